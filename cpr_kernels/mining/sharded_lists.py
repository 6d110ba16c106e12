"""Lists what each query may still select of one rank's entries: in the core for CPU tensors, in torch for CUDA ones."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ..dispatch.calls import CascadeCall
from ..dispatch.native import DTYPE_CODES, LIMITS, address, core
from . import reference

DIGITS = (6, 6, 5, 5, 5, 5)  # bits of a score's key found at each exchange: 32 in all
SLACK = LIMITS["list_slack"]
Masks = tuple[Tensor | None, Tensor | None, Tensor | None]  # query_ids [m], key_ids [n], exclude [m, n] bytes


class NativeLists:
    """Holds lists in CPU tensors that the core writes: see EntryLists in csrc/shard.h."""

    def __init__(self, queries: int, weightings: int, room: int) -> None:
        pitch = room + SLACK
        self._scores = torch.empty(queries, weightings, pitch)
        self._index = torch.empty(queries, pitch, dtype=torch.int32)
        self._matching = torch.empty(queries, pitch, dtype=torch.int32)
        self._numbers = torch.zeros(2, queries, dtype=torch.int64)  # entries; entries that match the prefix
        self._resize(queries)

    @staticmethod
    def query_bytes(entries: int, weightings: int) -> int:
        """Returns the bytes that the lists of one query take."""
        return (entries + SLACK) * 4 * (weightings + 2)

    def _resize(self, queries: int) -> None:
        self.scores, self.index, self.length = (
            self._scores[:queries],
            self._index[:queries],
            self._numbers[0, :queries],
        )

    def _address(self) -> tuple[int, int, int, int, int, int]:
        queries, weightings, pitch = self.scores.shape
        return (
            self.scores.data_ptr(),
            self.index.data_ptr(),
            self.length.data_ptr(),
            queries,
            weightings,
            pitch,
        )

    def collect(
        self, queries: Sequence[Tensor], keys: Sequence[Tensor], weights: list[float], masks: Masks, bias: Tensor | None
    ) -> None:  # fmt: skip
        """Scores every entry for some queries, and lists those that each may select; `weights` [R, V] row-major."""
        self._resize(queries[0].shape[0])
        query_ids, key_ids, exclude = masks
        stride = 0 if exclude is None else exclude.stride(0)
        core.collect_entries(
            [
                (q.data_ptr(), q.stride(0), key.data_ptr(), key.stride(0), q.shape[1])
                for q, key in zip(queries, keys)
            ],
            DTYPE_CODES[queries[0].dtype],
            keys[0].shape[0],
            weights,
            (address(query_ids), address(key_ids), address(exclude), stride, address(bias)),
            self._address(),
            torch.get_num_threads(),
        )

    def count(self, row: int, prefix: Tensor, shift: int, step: int) -> Tensor:
        """Returns entries by their digit at `shift`, of those whose key begins with `prefix`: [m, 2^bits] int32."""
        bits = DIGITS[step]
        counts = torch.empty(self.scores.shape[0], 1 << bits, dtype=torch.int32)
        matching = (self._matching.data_ptr(), self._numbers[1].data_ptr())
        given = prefix.to(torch.int32)
        core.count_digits(
            self._address(),
            row,
            given.data_ptr(),
            (shift, bits, step),
            matching,
            counts.data_ptr(),
            torch.get_num_threads(),
        )
        return counts

    def keep(self, row: int, cut: Tensor, ties: Tensor) -> None:
        """Keeps the entries above the key `cut` [m], and the first `ties` [m] at it; everything where ties < 0."""
        cut, ties = cut.to(torch.int32), ties.to(torch.int32).contiguous()
        core.keep_above(self._address(), row, cut.data_ptr(), ties.data_ptr(), torch.get_num_threads())


class TorchLists:
    """Holds the same in tensors of any device, with the reference's scores: float64 products, rounded once."""

    index: Tensor  # [m, width] int32, ascending in each row
    scores: Tensor  # [m, R, width]
    length: Tensor  # [m] int64

    def __init__(self, queries: int, weightings: int, room: int) -> None:
        pass  # lists are as long as the longest

    @staticmethod
    def query_bytes(entries: int, weightings: int) -> int:
        """Returns the bytes that the lists of one query take, with what is made on the way."""
        return max(1, entries) * (12 * weightings + 48)

    def collect(
        self, queries: Sequence[Tensor], keys: Sequence[Tensor], weights: list[float], masks: Masks, bias: Tensor | None
    ) -> None:  # fmt: skip
        """Scores every entry for some queries, and lists those that each may select; `weights` [R, V] row-major."""
        query_ids, key_ids, exclude = masks
        excluded = None if exclude is None else exclude.bool()
        rows = len(weights) // len(queries)
        call = CascadeCall(list(queries), list(keys), weights, [1] * rows, query_ids, key_ids, excluded, bias)
        scores = torch.stack(reference.stage_scores(call), dim=1)
        alive = ~reference.excluded(call) & ~scores.isnan().any(dim=1)
        index = torch.arange(keys[0].shape[0], dtype=torch.int32, device=scores.device)
        self.index, self.scores = index.expand(alive.shape), scores
        self._take(alive)

    def _take(self, alive: Tensor) -> None:
        """Keeps the places [m, width] that are alive, in order."""
        self.length = alive.sum(dim=1)
        longest = int(self.length.max()) if self.length.numel() else 0
        order = (~alive).to(torch.uint8).argsort(dim=1, stable=True)[:, :longest]
        self.index = self.index.gather(1, order)
        self.scores = self.scores.gather(2, order[:, None].expand(-1, self.scores.shape[1], -1))

    def _inside(self) -> Tensor:
        return torch.arange(self.index.shape[1], device=self.index.device) < self.length[:, None]

    def count(self, row: int, prefix: Tensor, shift: int, step: int) -> Tensor:
        """Returns entries by their digit at `shift`, of those whose key begins with `prefix`: [m, 2^bits] int32."""
        bits, keys = DIGITS[step], ordered_keys(self.scores[:, row])
        matching = self._inside() & (keys >> (shift + bits) == prefix[:, None])
        counts = torch.zeros(keys.shape[0], 1 << bits, dtype=torch.int32, device=keys.device)
        return counts.scatter_add_(1, (keys >> shift) & ((1 << bits) - 1), matching.int())

    def keep(self, row: int, cut: Tensor, ties: Tensor) -> None:
        """Keeps the entries above the key `cut` [m], and the first `ties` [m] at it; everything where ties < 0."""
        keys, inside = ordered_keys(self.scores[:, row]), self._inside()
        equal = inside & (keys == cut[:, None])
        among_first = equal & (equal.cumsum(dim=1) <= ties[:, None])
        self._take(inside & ((keys > cut[:, None]) | among_first | (ties < 0)[:, None]))


def ordered_keys(scores: Tensor) -> Tensor:
    """Returns numbers from 0 to 2^32 - 1 (int64) in the order of float32 scores; -0 and +0 are one."""
    bits = (scores + 0.0).view(torch.int32).long() & 0xFFFFFFFF
    return torch.where(bits >= 1 << 31, bits ^ 0xFFFFFFFF, bits | 1 << 31)


def lists_for(device: torch.device) -> type[NativeLists] | type[TorchLists]:
    """Returns the kind of lists for tensors of a device."""
    return NativeLists if device.type == "cpu" else TorchLists
