"""How are heads over tables of embeddings trained, without labels?

`config` (settings), `table` (rows, sources, which are held out), `positives` (which mining a
method's name means), `training` (the steps), `measure` (retrieval and agreement of held-out rows), `job` (all of it in
a folder, resumable), `export` (the artifact). The modules are in `networks.heads`. Tables are in memory as tensors:
there is no loader.
"""

from __future__ import annotations

from ...networks.heads import Heads
from .config import AdaptConfig
from .table import Table
from .training import HeadTrainer

__all__ = ["AdaptConfig", "HeadTrainer", "Heads", "Table"]
