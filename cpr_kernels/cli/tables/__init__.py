"""Which named arrays does a file of embeddings hold? One reader for every format: `open_columns`."""

from .column import Column
from .formats import READS
from .reading import open_columns

__all__ = ["READS", "Column", "open_columns"]
