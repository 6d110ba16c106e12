"""A table of two views that share the class, one of them with a strong nuisance, and settings of a short training."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import torch

from cpr_kernels.train.adapt import AdaptConfig, Table
from cpr_kernels.train.adapt.job import Report

SMALL = AdaptConfig(method="auto", hidden=16, warm_up=1, epochs=2, batch=32, queue=64)


def two_views(rows: int = 240, classes: int = 8) -> Table:
    """Rows in pairs of one source. RGB has four strong directions that have nothing to do with the class, flow none."""
    draw = torch.Generator().manual_seed(0)
    sources = torch.arange(rows) // 2
    labels = sources % classes
    views = {}
    for name, strength in (("rgb", 3.0), ("flow", 0.3)):
        codes = torch.randn(classes, 12, generator=draw)
        nuisance = strength * torch.randn(rows // 2, 4, generator=draw)[sources]
        seen = codes[labels] + 0.7 * torch.randn(rows, 12, generator=draw)
        views[name] = torch.cat([seen, nuisance], dim=1)
    return Table(views, sources, labels)


class Trained(NamedTuple):
    table: Table
    folder: Path
    report: Report
