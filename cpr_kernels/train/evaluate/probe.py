"""Measures features by a linear probe: logistic regression on frozen features, solved to its minimum."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from .. import TrainError


def probe(
    train: Tensor, train_labels: Tensor, test: Tensor, test_labels: Tensor, penalty: float = 1e-2
) -> float:
    """Returns the top-1 accuracy on `test` of a linear classifier fitted to `train`: features [M, F], labels [M].

    Features are standardised by the training split's mean and deviation; the cross-entropy plus
    ``penalty / 2 * |weights|^2`` is convex, and L-BFGS finds its only minimum from zero, so nothing is random.
    Test videos of a class without training videos count as wrong.

    Raises:
        TrainError: fewer than two classes to train on, or no test video.
    """
    classes = train_labels.unique()
    if len(classes) < 2 or not len(test):
        raise TrainError(
            f"probe: needs training videos of two classes or more and a test video, got {len(classes)} classes "
            f"and {len(test)} test videos"
        )
    mean, deviation = train.double().mean(dim=0), train.double().std(dim=0)
    scale = torch.where(deviation > 1e-8, deviation, torch.ones_like(deviation))
    inputs, tested = ((rows.double() - mean) / scale for rows in (train, test))
    targets = torch.searchsorted(classes, train_labels)
    weights = torch.zeros(inputs.shape[1], len(classes), dtype=torch.float64, requires_grad=True)
    bias = torch.zeros(len(classes), dtype=torch.float64, requires_grad=True)
    solver = torch.optim.LBFGS(
        [weights, bias], max_iter=200, tolerance_grad=1e-6, history_size=20, line_search_fn="strong_wolfe"
    )

    def objective() -> Tensor:
        solver.zero_grad()
        value = functional.cross_entropy(inputs @ weights + bias, targets)
        value = value + penalty / 2 * weights.square().sum()
        value.backward()
        return value

    with torch.enable_grad():
        solver.step(objective)
    with torch.no_grad():
        named = classes[(tested @ weights + bias).argmax(dim=1)]
    return (named == test_labels).double().mean().item()
