"""Partial whitening of a view: centre, L2-normalise, scale the principal axes by a power of their variances."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import normalize

BLOCK_ROWS = 4096  # converted to float64 at a time
FLAT = 1e-10  # axes of less than this share of the largest variance are left out
RIDGE = 0.1  # of the mean variance, added where the power is 1


def present(rows: Tensor) -> Tensor:
    """Returns True [N] where a row holds the view; a row of NaN or of zeros throughout is a missing view."""
    return ~(rows.isnan() | (rows == 0)).all(dim=1)


class Whitener(NamedTuple):
    """Maps raw embeddings of a view [B, D] to whitened ones [B, R] of length 1.

    ``normalize(normalize(rows - mean) @ matrix)``; a missing view stays a row of zeros.
    """

    mean: Tensor  # [D] float32
    matrix: Tensor | None  # [D, R] float32; None is the identity

    def __call__(self, rows: Tensor) -> Tensor:
        """Returns the whitened rows, float32."""
        rows = rows.float()
        unit = normalize(rows - self.mean, dim=1)
        if self.matrix is not None:
            unit = normalize(unit @ self.matrix, dim=1)
        missing = ~(rows.abs().amax(dim=1, keepdim=True) > 0)  # also where a number is NaN
        return unit.masked_fill(missing, 0.0)

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
    held = rows[present(rows)]
    blocks = held.split(BLOCK_ROWS)
    mean = torch.stack([block.double().sum(dim=0) for block in blocks]).sum(dim=0) / len(held)
    count, dim = held.shape
    if count < dim:
        unit = normalize(held.double() - mean, dim=1)
        variances, vectors = torch.linalg.eigh(
            unit @ unit.T / count
        )  # of the [N, N] side: the same variances
        kept = variances > FLAT * variances[-1]
        scale = (count * variances[kept]).rsqrt()
        return PrincipalAxes(mean, unit.T @ vectors[:, kept] * scale, variances[kept])
    second = held.new_zeros(dim, dim, dtype=torch.float64)
    for block in blocks:
        unit = normalize(block.double() - mean, dim=1)
        second.addmm_(unit.T, unit)
    variances, axes = torch.linalg.eigh(second / count)
    kept = variances > FLAT * variances[-1]
    return PrincipalAxes(mean, axes[:, kept], variances[kept])
