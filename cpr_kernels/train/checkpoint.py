"""Re-exports, at their public path, the loaders of released CoCLR, CPR and IIC checkpoints and of a run's encoders."""

from .encoders.published import LoadReport, load_published
from .encoders.weights import load_encoder, save_encoder

__all__ = ["LoadReport", "load_encoder", "load_published", "save_encoder"]
