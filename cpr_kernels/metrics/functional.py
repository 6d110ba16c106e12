"""Computes mining and retrieval metrics from index tables and labels."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ..mining import cascade_topk, coclr_schedule


def true_positives(indices: Tensor, query_labels: Tensor, key_labels: Tensor) -> Tensor:
    """Returns True [B, k] where a mined entry has its query's label; padding (-1) and unknown labels (-1) are False.

    Raises:
        ValueError: shapes, dtypes or devices that do not fit.
    """
    if indices.dtype.is_floating_point or indices.dtype.is_complex or indices.dtype == torch.bool:
        raise ValueError(f"metrics: indices must hold integers, got {indices.dtype}")
    for name, labels in (("query_labels", query_labels), ("key_labels", key_labels)):
        if labels.device != indices.device:
            raise ValueError(f"metrics: {name} is on {labels.device}, but indices is on {indices.device}")
    if indices.dim() != 2 or query_labels.dim() != 1 or query_labels.shape[0] != indices.shape[0]:
        raise ValueError(
            f"metrics: indices must be [B, k] and query_labels [B], got {list(indices.shape)} and "
            f"{list(query_labels.shape)}"
        )
    if key_labels.dim() != 1:
        raise ValueError(f"metrics: key_labels must be [N], got {list(key_labels.shape)}")
    count = key_labels.shape[0]
    if indices.device.type == "cpu" and indices.numel() and int(indices.max()) >= count:
        raise ValueError(f"metrics: indices holds {int(indices.max())}, but key_labels has {count} entries")
    if count == 0:
        return torch.zeros_like(indices, dtype=torch.bool)
    mined = key_labels[indices.clamp(min=0).long()]
    return (mined == query_labels[:, None]) & (indices >= 0) & (query_labels[:, None] >= 0)


def positive_mining_recall(indices: Tensor, query_labels: Tensor, key_labels: Tensor) -> Tensor:
    """Returns PMR (Wu et al. 2022, eq. 3): the share of mined positives that have their query's label.

    ``true_positives(...).sum() / (indices >= 0).sum()``; padding counts neither way.

    Args:
        indices: [B, k] int64 mined entries, -1 is padding.
        query_labels: [B] int64 class of each query.
        key_labels: [N] int64 class of each entry.

    Returns:
        0-dim float32 in [0, 1]; NaN when nothing was mined.
    """
    hits = true_positives(indices, query_labels, key_labels).sum()
    return hits.float() / (indices >= 0).sum()


def class_mining_recall(
    indices: Tensor, query_labels: Tensor, key_labels: Tensor, key_samples: Tensor | None = None
) -> dict[int, float]:
    """Returns CMR (Wu et al. 2022, eq. 4) per class: distinct true positives mined / class size.

    Args:
        indices: [B, k] int64 mined entries of an epoch, -1 is padding.
        query_labels: [B] int64.
        key_labels: [N] int64.
        key_samples: [N] int64, which sample (clip or video) an entry holds, where a sample can occur
            several times; default: every entry is its own.

    Returns:
        ``{class: recall}`` over the classes present in `key_labels`; their median is the paper's figure.

    Raises:
        ValueError: shapes, dtypes or devices that do not fit.
    """
    hit = true_positives(indices, query_labels, key_labels)
    samples = torch.arange(len(key_labels), device=key_labels.device) if key_samples is None else key_samples
    if samples.shape != key_labels.shape:
        raise ValueError(f"metrics: key_samples must be {list(key_labels.shape)}, got {list(samples.shape)}")
    found = samples[indices[hit]].unique()
    recall = {}
    for label in key_labels[key_labels >= 0].unique().tolist():
        members = samples[key_labels == label].unique()
        recall[int(label)] = torch.isin(members, found).float().mean().item()
    return recall


def median_recall(recall: dict[int, float]) -> float:
    """Returns the median over classes of a :func:`class_mining_recall`; NaN when there is no class."""
    if not recall:
        return float("nan")
    ordered = sorted(recall.values())
    middle = len(ordered) // 2
    return ordered[middle] if len(ordered) % 2 else (ordered[middle - 1] + ordered[middle]) / 2


def retrieval_recall_at_k(
    query: Tensor,
    gallery: Tensor,
    query_labels: Tensor,
    gallery_labels: Tensor,
    ks: Sequence[int] = (1, 5, 10, 20),
) -> dict[int, float]:
    """Returns R@k: the share of queries with an entry of their class among their k most similar gallery entries.

    Similarity is the inner product; pass L2-normalised features for cosine. The search is one
    `cascade_topk` of one stage, so no [B, N] matrix is made.

    Args:
        query: [B, D] features, float32, bfloat16 or float16.
        gallery: [N, D] features.
        query_labels: [B] int64.
        gallery_labels: [N] int64.
        ks: cut-offs, each >= 1.

    Returns:
        ``{k: share in [0, 1]}``; NaN without queries. A query of unknown label (-1) counts as a miss.
    """
    if not ks or min(ks) < 1:
        raise ValueError(f"retrieval_recall_at_k: ks must be counts >= 1, got {list(ks)}")
    schedule = coclr_schedule("view", topk=max(ks))
    indices, _ = cascade_topk({"view": query}, {"view": gallery}, schedule)
    hits = true_positives(indices, query_labels, gallery_labels)
    return {k: hits[:, :k].any(dim=1).float().mean().item() for k in ks}
