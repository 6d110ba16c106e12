"""Heads over embeddings: one a view, which maps a row to a better one."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

HeadKind = Literal["residual", "projection"]


class Head(nn.Module):
    """Maps raw embeddings of a view [..., D] to unit ones [..., E].

    ``normalize(x + f(x))`` of a residual head, whose last layer starts at zero, or ``normalize(f(x))`` of a projection;
    x is the row less the mean, of length 1, and f two layers with a ReLU between them.

    Args:
        kind: "residual" or "projection".
        mean: [D] float32, of the rows to train on.
        hidden: units between the layers.
        embedding: E of a projection; a residual head keeps D.
    """

    mean: Tensor

    def __init__(self, kind: HeadKind, mean: Tensor, hidden: int, embedding: int) -> None:
        super().__init__()
        self.residual = kind == "residual"
        size = len(mean)
        self.embedding = size if self.residual else embedding
        self.register_buffer("mean", mean.clone())
        self.first, self.last = nn.Linear(size, hidden), nn.Linear(hidden, self.embedding)
        if self.residual:
            nn.init.zeros_(self.last.weight)
            nn.init.zeros_(self.last.bias)

    def unit(self, rows: Tensor) -> Tensor:
        """Returns the rows less the mean, of length 1: what the head takes, and the identity that it starts from."""
        return normalize(rows.float() - self.mean, dim=-1)

    def embed(self, unit: Tensor) -> Tensor:
        """Returns the embeddings of unit rows, which may be augmented."""
        out = self.last(torch.relu(self.first(unit)))
        return normalize(unit + out if self.residual else out, dim=-1)

    def forward(self, rows: Tensor) -> Tensor:
        """Returns the embeddings of raw rows."""
        return self.embed(self.unit(rows))


class Heads(nn.Module):
    """Holds the heads of all views, in the order of the table; called with one tensor a view."""

    def __init__(self, heads: Mapping[str, Head]) -> None:
        super().__init__()
        self.views = tuple(heads)
        self.of_view = nn.ModuleList(heads.values())  # by number: a view's name may hold a dot

    @property
    def heads(self) -> dict[str, Head]:
        """Returns ``{view: head}``."""
        return dict(zip(self.views, self.of_view))  # type: ignore[arg-type]

    def forward(self, *views: Tensor) -> tuple[Tensor, ...]:
        """Returns the embeddings [B, E_v] of raw rows [B, D_v], one a view."""
        return tuple(head(rows) for head, rows in zip(self.of_view, views))

    @torch.no_grad()
    def embeddings(self, views: Mapping[str, Tensor], block: int = 8192) -> dict[str, Tensor]:
        """Returns the embeddings [N, E_v] of raw rows [N, D_v], or of rows of several clips [N, C, D_v].

        Those of several clips are averaged, and of length 1 again.
        """
        found = {}
        for name, head in self.heads.items():
            parts = [head(rows) for rows in views[name].split(block)]
            whole = torch.cat(parts)
            found[name] = whole if whole.dim() == 2 else normalize(whole.mean(dim=1), dim=1)
        return found


def new_heads(kind: HeadKind, means: Mapping[str, Tensor], hidden: int, embedding: int, seed: int) -> Heads:
    """Returns new heads, whose weights are a function of the seed; torch's generator is left as it is."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return Heads({view: Head(kind, mean, hidden, embedding) for view, mean in means.items()})
