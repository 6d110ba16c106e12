"""Accumulates the mining metrics as `torchmetrics.Metric`: update per step, compute per epoch, summed over ranks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from .functional import median_recall, retrieval_recall_at_k, true_positives

try:
    from torchmetrics import Metric
    from torchmetrics.utilities import dim_zero_cat
except ImportError as error:
    raise ImportError(
        "the streaming metrics need torchmetrics: pip install 'cpr_kernels[metrics]' (the functions do not)"
    ) from error


class PositiveMiningRecall(Metric):
    """Computes PMR over an epoch: the share of all mined positives that have their query's label (eq. 3)."""

    higher_is_better = True
    full_state_update = False
    hits: Tensor
    mined: Tensor

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.add_state("hits", torch.zeros((), dtype=torch.int64), dist_reduce_fx="sum")
        self.add_state("mined", torch.zeros((), dtype=torch.int64), dist_reduce_fx="sum")

    def update(self, indices: Tensor, query_labels: Tensor, key_labels: Tensor) -> None:
        """Adds a step's mined entries: [B, k], [B], [N]."""
        self.hits += true_positives(indices, query_labels, key_labels).sum()
        self.mined += (indices >= 0).sum()

    def compute(self) -> Tensor:
        """Returns a 0-dim float32 in [0, 1]; NaN when nothing was mined."""
        return self.hits.float() / self.mined


class ClassMiningRecall(Metric):
    """Computes CMR over an epoch: distinct samples mined as true positives / samples of the class (eq. 4).

    Args:
        sample_labels: [M] int64, the class of every training sample; entries of the queue name their sample.
    """

    higher_is_better = True
    full_state_update = False
    found: Tensor

    def __init__(self, sample_labels: Tensor, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.register_buffer("sample_labels", sample_labels.clone(), persistent=False)
        self.add_state("found", torch.zeros(len(sample_labels), dtype=torch.int64), dist_reduce_fx="max")

    def update(self, indices: Tensor, query_labels: Tensor, key_labels: Tensor, key_samples: Tensor) -> None:
        """Adds a step: mined [B, k], labels [B] and [N], and the sample [N] that each entry holds."""
        hit = true_positives(indices, query_labels, key_labels)
        samples = key_samples[indices[hit]]
        if samples.numel() and not 0 <= int(samples.min()) <= int(samples.max()) < len(self.found):
            raise ValueError(
                f"ClassMiningRecall: key_samples must name samples below {len(self.found)}, "
                f"got {int(samples.min())} to {int(samples.max())}"
            )
        self.found[samples] = 1

    def per_class(self) -> dict[int, float]:
        """Returns ``{class: recall}`` over the classes of `sample_labels`."""
        labels = self.sample_labels
        classes = labels[labels >= 0].unique().tolist()  # type: ignore[index,operator]
        return {int(c): self.found[labels == c].float().mean().item() for c in classes}

    def compute(self) -> Tensor:
        """Returns the median over classes, 0-dim float32."""
        return torch.tensor(median_recall(self.per_class()), device=self.found.device)


class RetrievalRecallAtK(Metric):
    """Computes R@k of test features against a gallery of training features, both collected over an epoch.

    Args:
        ks: cut-offs, each >= 1.
    """

    higher_is_better = True
    full_state_update = False
    query: list[Tensor]
    query_labels: list[Tensor]
    gallery: list[Tensor]
    gallery_labels: list[Tensor]

    def __init__(self, ks: Sequence[int] = (1, 5, 10, 20), **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.ks = tuple(ks)
        for name in ("query", "query_labels", "gallery", "gallery_labels"):
            self.add_state(name, [], dist_reduce_fx="cat")

    def update(self, features: Tensor, labels: Tensor, gallery: bool) -> None:
        """Adds features [B, D] and labels [B], to the gallery or to the queries."""
        (self.gallery if gallery else self.query).append(features)
        (self.gallery_labels if gallery else self.query_labels).append(labels)

    def compute(self) -> dict[int, float]:
        """Returns ``{k: share}`` as :func:`~cpr_kernels.metrics.retrieval_recall_at_k`."""
        for name in ("query", "gallery"):
            if not len(getattr(self, name)):
                raise ValueError(
                    f"RetrievalRecallAtK: no {name} features yet; call update for both sides first"
                )
        return retrieval_recall_at_k(
            dim_zero_cat(self.query),
            dim_zero_cat(self.gallery),
            dim_zero_cat(self.query_labels),
            dim_zero_cat(self.gallery_labels),
            ks=self.ks,
        )
