"""How is a trained model used, without the trainer?

`artifact` (one file that holds it), `video` (frames of a file), `model` (clips in, classes and embeddings out), `index`
(which known clips are near?). Imported by the console script, and by the trainer, which writes artifacts.
"""

from __future__ import annotations

from .artifact import ArtifactError
from .clip_index import ClipIndex
from .model import Model

__all__ = ["ArtifactError", "ClipIndex", "Model"]
