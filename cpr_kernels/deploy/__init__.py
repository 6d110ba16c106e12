"""How is a trained model used, without the trainer?

`artifact` (the file that holds it), `model` (clips in, classes and embeddings out), `adapter` (embeddings in, better
ones out), `clip_index` (the nearest known clips). Imported by the console script, and by the trainer, which writes
artifacts.
"""

from __future__ import annotations

from .adapter import Adapter
from .artifact import ArtifactError
from .clip_index import ClipIndex
from .model import Model

__all__ = ["Adapter", "ArtifactError", "ClipIndex", "Model"]
