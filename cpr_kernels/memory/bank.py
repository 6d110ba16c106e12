"""The memory bank: one slowly moving embedding for each training sample and view, addressed by sample."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from ..dispatch.tensor_checks import FEATURE_DTYPES, check_ids, check_views
from .ids import check_filled, with_own_sources
from .queue import gathered


class MemoryBank(nn.Module):
    """One row for each of M samples, with an embedding per view, an id and a label.

    Unlike :class:`MultiViewQueue`, which forgets the oldest keys, every sample keeps its place: a new embedding
    is averaged into the sample's row, ``row = normalize(momentum * row + (1 - momentum) * embedding)`` (Wu et
    al. 2018, "Unsupervised feature learning via non-parametric instance discrimination", section 3.3; the bank of
    CMC and IIC). Rows that were never written have id -1: mining and losses leave them out, and the first
    embedding is taken whole. Everything is a buffer, so `state_dict` is complete.

    Args:
        views: ``{name: D}``, the size of each view's embedding.
        rows: M, samples.
        momentum: weight of the old row, in [0, 1).
        dtype: storage, float32, bfloat16, float16, or float64 (mined and swept slowly).
        device: where the buffers live.

    Attributes:
        ids: [M] int64, source video of each sample; -1 where nothing was written yet.
        labels: [M] int64, class of each sample, -1 where unknown. For metrics only.

    Example:
        >>> bank = MemoryBank({"rgb": 128, "residual": 128}, rows=9537)
        >>> bank.update(rows, {"rgb": torch.randn(16, 128), "residual": torch.randn(16, 128)}, ids=sources)
        >>> drawn = bank.draw(rows, 1024, torch.Generator())  # [16, 1024], never the row itself
    """

    ids: Tensor
    labels: Tensor

    def __init__(
        self,
        views: Mapping[str, int],
        rows: int,
        *,
        momentum: float = 0.5,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str | None = None,
    ) -> None:
        super().__init__()
        check_views("MemoryBank", views)
        if rows < 1:
            raise ValueError(f"MemoryBank: rows must be >= 1, got {rows}")
        if not 0 <= momentum < 1:
            raise ValueError(f"MemoryBank: momentum must lie in [0, 1), got {momentum}")
        if dtype not in FEATURE_DTYPES:
            raise ValueError(f"MemoryBank: dtype must be float32, bfloat16, float16 or float64, got {dtype}")
        self.rows, self.momentum = rows, momentum
        self._names = tuple(views)
        for name, dim in views.items():
            self.register_buffer(f"view_{name}", torch.zeros(rows, dim, dtype=dtype, device=device))
        self.register_buffer("ids", torch.full((rows,), -1, dtype=torch.int64, device=device))
        self.register_buffer("labels", torch.full((rows,), -1, dtype=torch.int64, device=device))

    @property
    def views(self) -> dict[str, Tensor]:
        """``{view: [M, D]}``: the buffers themselves, not copies. What mining takes as keys."""
        return {name: getattr(self, f"view_{name}") for name in self._names}

    def __len__(self) -> int:
        """Rows that were written; waits for the device."""
        return int((self.ids >= 0).sum())

    def __bool__(self) -> bool:
        """True, as of every module, also of an empty bank."""
        return True

    @property
    def is_full(self) -> bool:
        """Whether every row was written; waits for the device."""
        return len(self) == self.rows

    @torch.no_grad()
    def reset(self) -> None:
        """Empties the bank: zeros, ids and labels -1."""
        for buffer in self.views.values():
            buffer.zero_()
        for buffer in (self.ids, self.labels):
            buffer.fill_(-1)

    def reset_parameters(self) -> None:
        """As :meth:`reset`: what `torch` calls to fill a module after ``to_empty``."""
        self.reset()

    @torch.no_grad()
    def update(
        self,
        rows: Tensor,
        features: Mapping[str, Tensor],
        ids: Tensor | None = None,
        labels: Tensor | None = None,
    ) -> None:
        """Average a batch into its rows and normalise them.

        With a process group up, every rank must call this, with any batch size; all ranks then make the same
        changes, in rank order. Of a sample that occurs twice, only the last embedding counts. The device
        is never waited for, so a row outside the bank is an error of the device (an IndexError on the CPU).

        Args:
            rows: [B] int64, the sample of each embedding, 0 <= row < M.
            features: ``{view: [B, D]}``, every view of the bank.
            ids: [B] int64, source video of each sample, >= 0 (:func:`source_ids` makes them of names); None: each
                sample is its own source, with an id of 2**62 or more.
            labels: [B] int64, or None for unknown.

        Raises:
            ValueError: a missing or unknown view, a wrong shape, dtype or device, or a negative id (an error of the
                device on CUDA).
        """
        if set(features) != set(self._names):
            raise ValueError(
                f"update: features must hold the views {list(self._names)}, got {list(features)}"
            )
        batch = rows.shape[0] if rows.dim() else 0
        check_ids("update", "rows", rows, batch, "embedding", self.ids.device)
        if ids is None:
            ids = with_own_sources(torch.full_like(rows, -1), rows)
        else:
            check_ids("update", "ids", ids, batch, "embedding", self.ids.device)
            check_filled("update", ids)
        labels = torch.full_like(rows, -1) if labels is None else labels
        check_ids("update", "labels", labels, batch, "embedding", self.ids.device)
        for name, held in self.views.items():
            self._check_features(name, features[name], (batch, held.shape[1]))
        # averages are formed in float32, or float64 where the bank holds that
        wide = {name: torch.promote_types(held.dtype, torch.float32) for name, held in self.views.items()}
        values = [features[name].to(wide[name]) for name in self._names]
        rows, ids, labels, *values = gathered([rows, ids, labels, *values])
        if not len(rows):
            return
        last = last_of_each(rows)
        fresh = (self.ids.index_select(0, rows) < 0)[:, None]
        for held, value in zip(self.views.values(), values):
            mixed = self.momentum * held[rows].to(value.dtype) + (1 - self.momentum) * value
            mixed = nn.functional.normalize(torch.where(fresh, value, mixed), dim=1)
            held.index_copy_(0, rows, mixed[last].to(held.dtype))
        self.ids.index_copy_(0, rows, ids[last])
        self.labels.index_copy_(0, rows, labels[last])

    def draw(self, rows: Tensor, count: int, generator: torch.Generator | None = None) -> Tensor:
        """Negatives for NCE: [B, count] rows drawn evenly, with replacement, never the query's own row.

        Args:
            rows: [B] int64, the query's own rows.
            count: draws for each, >= 1.
            generator: on the CPU; torch's global one by default.

        Raises:
            ValueError: a bank of one row, which has no negative.
        """
        if self.rows < 2:
            raise ValueError("draw: a bank of one row holds no negative; it needs at least 2 rows")
        drawn = torch.randint(self.rows - 1, (len(rows), count), generator=generator).to(rows.device)
        return drawn + (drawn >= rows[:, None])

    def _check_features(self, name: str, value: Tensor, shape: tuple[int, int]) -> None:
        if tuple(value.shape) != shape:
            raise ValueError(
                f"update: features[{name!r}] must have shape {list(shape)}, got {list(value.shape)}"
            )
        if value.device != self.ids.device:
            raise ValueError(
                f"update: features[{name!r}] is on {value.device}, the bank on {self.ids.device}"
            )
        if not value.is_floating_point():
            raise ValueError(f"update: features[{name!r}] must be floating point, got {value.dtype}")

    def extra_repr(self) -> str:
        """Views, rows and momentum, for printing the module."""
        views = ", ".join(f"{name}: {buffer.shape[1]}" for name, buffer in self.views.items())
        return f"{{{views}}}, rows={self.rows}, momentum={self.momentum}"


def last_of_each(rows: Tensor) -> Tensor:
    """Returns, for each place of a batch, the last with the same row: written so, the order of writes is moot."""
    same = rows[:, None] == rows[None, :]
    places = torch.arange(len(rows), device=rows.device)
    return torch.where(same, places, -1).amax(dim=1)
