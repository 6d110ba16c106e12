"""A table of embeddings: rows of every view, their sources and labels, and which sources are held out."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from .. import TrainError


@dataclass(frozen=True)
class Table:
    """Holds rows: ``views`` {name: [N, D] or [N, C, D] of C clips}, ``sources`` [N] int64, ``labels`` [N] or None.

    Rows of one source are never positives of each other by mining. A label of -1 is unknown.
    """

    views: Mapping[str, Tensor]
    sources: Tensor
    labels: Tensor | None = None

    def __len__(self) -> int:
        return len(self.sources)

    def __getitem__(self, rows: Tensor) -> Table:
        """Returns the table of some rows."""
        views = {name: table[rows] for name, table in self.views.items()}
        return Table(views, self.sources[rows], None if self.labels is None else self.labels[rows])

    def means(self) -> dict[str, Tensor]:
        """Returns the mean row [D] of each view, float32."""
        return {
            name: rows.reshape(-1, rows.shape[-1]).double().mean(dim=0).float()
            for name, rows in self.views.items()
        }


def split_by_source(table: Table, share: float, seed: int) -> tuple[Table, Table]:
    """Returns rows to train on and rows held out: about a share of the sources, whole and drawn at random.

    Raises:
        TrainError: either side would have fewer than two sources.
    """
    names, places = table.sources.unique(return_inverse=True)
    count = round(share * len(names))
    if min(count, len(names) - count) < 2:
        raise TrainError(
            f"hold-out: {share:g} of {len(names)} sources leaves fewer than 2 on a side; name more sources by --ids, "
            "or another --hold-out"
        )
    drawn = torch.randperm(len(names), generator=torch.Generator().manual_seed(seed))[:count]
    held = torch.isin(places, drawn)
    return table[~held], table[held]
