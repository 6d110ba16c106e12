"""The faiss backend of `cpr::cascade_topk`: a Flat index made for one call. Runs only when asked for by name."""

from __future__ import annotations

import importlib.util

import torch
from torch import Tensor

from ...dispatch.calls import CascadeCall
from .plan import why_not_schedule

NAME = "faiss"


def why_not(call: CascadeCall) -> str | None:
    """FAISS serves CPU tensors where it is installed and stage 1 keeps a small share of the queue."""
    device = call.queries[0].device
    if call.sharded:
        return call.sharded
    if importlib.util.find_spec("faiss") is None:
        return "FAISS is not installed; pip install 'cpr_kernels[faiss]'"
    if device.type != "cpu":
        return f"an index made for one call serves CPU tensors, and these are on {device}; keep a FaissIndex"
    return why_not_schedule(call.stage_keep[0], call.keys[0].shape[0])


def run(call: CascadeCall) -> tuple[Tensor, Tensor]:
    """`(indices [B, k], scores [B, k])`, the exact cascade's; see `reference.run` for the meaning.

    Making the index takes longer than one exact call: keep a :class:`FaissIndex` and pass it as `backend`.
    """
    from .index import FaissIndex
    from .search import run_on_index

    weights = call.stage_weights[: len(call.queries)]
    judges = [v for v, weight in enumerate(weights) if weight != 0]
    keys = {str(v): key for v, key in enumerate(call.keys)}
    index = FaissIndex(keys, [str(v) for v in judges], key_ids=call.key_ids)
    vectors = torch.cat([call.queries[v].float() * weights[v] for v in judges], dim=1)
    return run_on_index(index, call, vectors)
