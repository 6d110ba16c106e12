"""Partial whitening of a view: centre, L2-normalise, scale the principal axes by a power of their variances."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import normalize

from ..dispatch.fast_path import no_graph
from ..dispatch.native import core

BLOCK_ROWS = 4096  # converted to float64 at a time
TESTED_ROWS = 1 << 16  # compared with zero at a time
FLAT = 1e-10  # axes of less than this share of the largest variance are left out
RIDGE = 0.1  # of the mean variance, added where the power is 1


def present(rows: Tensor) -> Tensor:
    """Returns True [N] where a row holds the view; a row of NaN or of zeros throughout is a missing view."""
    held = rows.new_empty(len(rows), dtype=torch.bool)
    for part, block in zip(held.split(TESTED_ROWS), rows.split(TESTED_ROWS)):
        part.copy_(~(block.isnan() | (block == 0)).all(dim=1))
    return held


def held_blocks(rows: Tensor, held: Tensor) -> Iterator[Tensor]:
    """Yields the rows [N, D] where `held` [N] is True, in blocks: a table may be larger than memory."""
    for block, mask in zip(rows.split(BLOCK_ROWS), held.split(BLOCK_ROWS)):
        yield block if bool(mask.all()) else block[mask]


class Whitener(NamedTuple):
    """Maps raw embeddings of a view [B, D] to whitened ones [B, R] of length 1.

    ``normalize((rows - mean) @ matrix)``; a missing view stays a row of zeros.
    """

    mean: Tensor  # [D] float32
    matrix: Tensor | None  # [D, R] float32; None is the identity

    def __call__(self, rows: Tensor) -> Tensor:
        """Returns the whitened rows, float32."""
        return self.with_lacking(rows)[0]

    def with_lacking(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Returns the whitened rows, and True [B, 1] where a row is a missing view or holds NaN."""
        rows = rows.float()
        moved = rows - self.mean if self.matrix is None else (rows - self.mean) @ self.matrix
        if no_graph(rows, moved):
            missing = torch.empty(len(rows), 1, dtype=torch.bool, device=rows.device)
            if core.unit_rows_of_tensors(moved, rows, missing):
                return moved, missing
        longest = torch.linalg.vector_norm(rows, torch.inf, dim=1, keepdim=True)
        lacking = (longest > 0).logical_not_()  # NaN is not above 0
        length = torch.linalg.vector_norm(moved, dim=1, keepdim=True).clamp_min(1e-12)
        return (moved / length).masked_fill_(lacking, 0.0), lacking

    def to(self, device: torch.device | str) -> Whitener:
        """Returns the same whitener on another device."""
        return Whitener(self.mean.to(device), None if self.matrix is None else self.matrix.to(device))


class PrincipalAxes(NamedTuple):
    """Holds the mean of a view, and the eigenvectors of ``unit.T @ unit / N`` over its centred unit rows."""

    mean: Tensor  # [D] float64
    axes: Tensor  # [D, R] float64, those of a variance above 0
    variances: Tensor  # [R] float64

    def scales(self, power: float) -> Tensor:
        """Returns what each axis is multiplied by: ``variance ** (-power / 2)``, [R]."""
        ridge = RIDGE * self.variances.sum() / len(self.mean) if power == 1 else 0.0
        return (self.variances + ridge) ** (-power / 2)

    def whitener(self, power: float) -> Whitener:
        """Returns the whitener of a power from 0 (none) to 1 (full)."""
        matrix = None if power == 0 else (self.axes * self.scales(power)).float()
        return Whitener(self.mean.float(), matrix)

    def coordinates(self, rows: Tensor) -> Tensor:
        """Returns the rows along the axes, [N, R] float64; zeros where the view is missing."""
        unit = normalize(rows.double() - self.mean, dim=1).masked_fill(~present(rows)[:, None], 0.0)
        return unit @ self.axes


def whitened_coordinates(coordinates: Tensor, scales: Tensor) -> Tensor:
    """Returns whitened rows [N, R] float32 from their coordinates; inner products are those of `Whitener`."""
    return normalize(coordinates * scales, dim=1).float()


def principal_axes(rows: Tensor) -> PrincipalAxes:
    """Fits mean and axes to the rows [N, D] that hold the view (Jegou and Chum 2012, section 3), in float64."""
    held = present(rows)
    dim, count = rows.shape[1], int(held.sum())
    sums = rows.new_zeros(len(rows.split(BLOCK_ROWS)), dim, dtype=torch.float64)
    for own, block in zip(
        sums, held_blocks(rows, held)
    ):  # sums of their own memory would lie between freed blocks
        own.copy_(block.double().sum(dim=0))
    mean = sums.sum(dim=0) / count
    if count < dim:
        unit = normalize(torch.cat(list(held_blocks(rows, held))).double() - mean, dim=1)
        variances, vectors = torch.linalg.eigh(
            unit @ unit.T / count
        )  # of the [N, N] side: the same variances
        kept = variances > FLAT * variances[-1]
        scale = (count * variances[kept]).rsqrt()
        return PrincipalAxes(mean, unit.T @ vectors[:, kept] * scale, variances[kept])
    second = rows.new_zeros(dim, dim, dtype=torch.float64)
    for block in held_blocks(rows, held):
        unit = normalize(block.double() - mean, dim=1)
        second.addmm_(unit.T, unit)
    variances, axes = torch.linalg.eigh(second / count)
    kept = variances > FLAT * variances[-1]
    return PrincipalAxes(mean, axes[:, kept], variances[kept])
