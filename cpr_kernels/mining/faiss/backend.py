"""Runs `cpr::cascade_topk` with a Flat index made for one call; auto never chooses this backend."""

from __future__ import annotations

import importlib.util

import torch
from torch import Tensor

from ...dispatch.calls import CascadeCall
from .index import FaissIndex
from .plan import why_not_schedule

NAME = "faiss"


def why_not(call: CascadeCall) -> str | None:
    """Returns None for CPU tensors where FAISS is installed and stage 1 keeps a small share of the queue."""
    device = call.queries[0].device
    if call.sharded:
        return call.sharded
    if importlib.util.find_spec("faiss") is None:
        return "FAISS is not installed; pip install 'cpr_kernels[faiss]'"
    if device.type != "cpu":
        return f"an index made for one call serves CPU tensors, and these are on {device}; keep a FaissIndex"
    return why_not_schedule(call.stage_keep[0], call.keys[0].shape[0])


def run(call: CascadeCall) -> tuple[Tensor, Tensor]:
    """Returns the exact cascade's `(indices [B, k], scores [B, k])`; see `reference.run` for the meaning.

    Making the index takes longer than one exact call: keep a :class:`FaissIndex` and pass it as `backend`.
    """
    weights = call.stage_weights[: len(call.queries)]
    weighted = [v for v, weight in enumerate(weights) if weight != 0]
    keys = {str(v): key for v, key in enumerate(call.keys)}
    index = FaissIndex(keys, [str(v) for v in weighted], key_ids=call.key_ids)
    vectors = torch.cat([call.queries[v].float() * weights[v] for v in weighted], dim=1)
    return index.search(call, vectors)
