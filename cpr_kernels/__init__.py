"""Cascade positive mining for multi-view contrastive learning: fused kernels as torch ops."""

from __future__ import annotations

import torch  # first: its OpenMP runtime must be the one that the native core binds to

try:
    from . import _core as _core
except ImportError as error:
    raise ImportError(
        "cpr_kernels: the compiled core is missing or was built for another Python; install it with 'pip install .' "
        "(or 'pip install -e .' to work on it) instead of importing from the source folder"
    ) from error

from . import ops as _ops  # registers torch.ops.cpr.*
from .explain import explain
from .losses import LogitStats, MILNCELoss, mil_nce
from .memory.bank import MemoryBank
from .memory.ids import source_ids
from .memory.momentum import ema_update_
from .memory.queue import MultiViewQueue
from .memory.sharded_queue import ShardedMultiViewQueue, reshard
from .metrics import class_mining_recall, positive_mining_recall, retrieval_recall_at_k
from .mining import (
    CascadeTrace,
    FaissIndex,
    RebuildPolicy,
    Schedule,
    SearchSettings,
    Stage,
    cascade_rerank,
    cascade_topk,
    cascade_trace,
    coclr_schedule,
    cpr_schedule,
    faiss_recall,
    oracle_schedule,
    parse_schedule,
    plan_faiss,
)
from .tuning import Miner, MiningPlan, estimate_agreement, tune_schedule

__version__ = "0.1.0"

__all__ = [
    "CascadeTrace",
    "FaissIndex",
    "LogitStats",
    "MILNCELoss",
    "MemoryBank",
    "Miner",
    "MiningPlan",
    "MultiViewQueue",
    "RebuildPolicy",
    "Schedule",
    "SearchSettings",
    "ShardedMultiViewQueue",
    "Stage",
    "cascade_rerank",
    "cascade_topk",
    "cascade_trace",
    "class_mining_recall",
    "coclr_schedule",
    "cpr_schedule",
    "ema_update_",
    "estimate_agreement",
    "explain",
    "faiss_recall",
    "mil_nce",
    "oracle_schedule",
    "parse_schedule",
    "plan_faiss",
    "positive_mining_recall",
    "reshard",
    "retrieval_recall_at_k",
    "source_ids",
    "tune_schedule",
]

del torch, _ops
