"""Released CoCLR, CPR and IIC checkpoints, and encoders of a run, at their public path."""

from .encoders.published import LoadReport, load_published
from .encoders.weights import load_encoder, save_encoder

__all__ = ["LoadReport", "load_encoder", "load_published", "save_encoder"]
