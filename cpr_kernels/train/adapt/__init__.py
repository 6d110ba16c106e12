"""How are heads over tables of embeddings trained, without labels?

`config` (settings), `table` (rows, sources, which are held out), `heads` (the modules), `positives` (which mining a
method's name means), `training` (the steps), `measure` (retrieval and agreement of held-out rows), `job` (all of it in
a folder, resumable). Tables are in memory as tensors: there is no loader.
"""

from __future__ import annotations

from .config import AdaptConfig
from .heads import Heads
from .table import Table
from .training import HeadTrainer

__all__ = ["AdaptConfig", "HeadTrainer", "Heads", "Table"]
