"""Names the classes of entries and queries."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from .inputs import CLASS_NAMES, Names, Side, printable
from .summary import Labels


def labels_of(entries: Side, labels: Names) -> Labels | None:
    """Classes of both sides, named by an array of class names where the file has one."""
    if labels.codes is None:
        return None
    names: Sequence[Any] = [printable(str(name)) for name in labels.codes.names]
    values = labels.codes.names
    for guess in CLASS_NAMES:
        column = entries.columns.get(guess)
        if column is None or column.dtype != "str" or values.dtype.kind not in "iu" or len(column.shape) != 1:
            continue
        if len(values) and values.min() >= 0 and values.max() < column.shape[0]:
            words = np.asarray(column.load()).astype(str)
            names = [str(words[value]) for value in values]
    return Labels(labels.codes.of_queries, labels.codes.of_keys, names)
