"""Defines the op `loss` (MIL-NCE, forward and backward): its inputs, right answers and floors."""

from __future__ import annotations

import torch
from torch import Tensor

from cpr_kernels.dispatch.calls import LossCall
from cpr_kernels.losses import reference

from ..harness.peer import Peer, Settings
from ..harness.workloads import Workload
from ..peers.loss import LossInputs, make_loss_inputs, peers
from ..peers.torch_forms import TEMPERATURE

__all__ = ["NAME", "Answer", "LossGate", "flops", "gate", "least_bytes", "make_inputs", "peers"]

NAME = "loss"
BLOCK_LOGITS = 1 << 22  # the reference works through the batch in blocks of so many logits
SLACK = 2e-6  # of a probability of 1: float32 rounds logsumexps of the size of 1 / T, and 1 - p near 1
WORSE = 4.0  # how many times the error of plain float32 torch is still right


def flops(workload: Workload) -> float:
    """Returns those of one sweep: the logits and the gradient's weighted sum of keys, 2 B N D each.
    Exponentials not counted.
    """
    return 4.0 * workload.num_queries * workload.num_keys * workload.dim


def least_bytes(workload: Workload) -> float:
    """Returns those of keys, query and own positive, read once, and of the gradient, written once."""
    return 4.0 * (workload.num_keys + 3 * workload.num_queries) * workload.dim


def make_inputs(workload: Workload, settings: Settings) -> LossInputs:
    """Returns real-valued features."""
    return make_loss_inputs(workload, settings.device)


def gate(workload: Workload, settings: Settings) -> LossGate:
    """Returns right answers for the workload."""
    return LossGate(make_loss_inputs(workload, settings.device))


def _call(inputs: LossInputs, rows: slice, variant: str, dtype: torch.dtype) -> LossCall:
    """Returns the reference's arguments for a block of queries; "batch too" puts the other positives among the keys."""
    keys, key_ids, query_ids, how = inputs.keys, inputs.key_ids, inputs.query_ids, 1
    if "batch too" in variant:
        count = len(inputs.query)
        query_ids = torch.arange(count, device=keys.device)
        key_ids = torch.cat([query_ids, torch.arange(count, count + len(keys), device=keys.device)])
        keys, how = (
            torch.cat([inputs.positive, keys]),
            2,
        )  # its own is the own pair already, so left out there
    ids = None if query_ids is None else query_ids[rows]
    query, own, keys = (t.detach().to(dtype) for t in (inputs.query[rows], inputs.positive[rows], keys))
    return LossCall(query, own, keys, inputs.positives[rows], TEMPERATURE, ids, key_ids, None, how)


class Answer:
    """Mean loss and its gradient from the reference, in float64, with the error that float32 torch makes."""

    def __init__(self, inputs: LossInputs, variant: str = "") -> None:
        count = len(inputs.query)
        step = max(1, BLOCK_LOGITS // inputs.workload.num_keys)
        found: dict[torch.dtype, tuple[Tensor, Tensor]] = {}
        for dtype in (torch.float64, torch.float32):
            losses, gradients = [], []
            for begin in range(0, count, step):
                block = reference.sweep(_call(inputs, slice(begin, begin + step), variant, dtype), True)
                losses.append(block.loss.double())
                gradients.append(block.grad_query.double())
            gradient = torch.cat(gradients) / count
            if "normalises" in variant:  # the length of the query is free: only the part across it stays
                unit = torch.nn.functional.normalize(inputs.query.detach().double(), dim=1)
                gradient -= (gradient * unit).sum(dim=1, keepdim=True) * unit
            found[dtype] = torch.cat(losses).mean(), gradient
        (self.loss, self.gradient), (loss32, gradient32) = found[torch.float64], found[torch.float32]
        entry = float(inputs.keys.abs().max()) / (
            TEMPERATURE * count
        )  # of the gradient, for a probability of 1
        self.loss_slack = _slack(self.loss, loss32, 1.0)
        self.gradient_slack = _slack(self.gradient, gradient32, entry)

    def why_wrong(self, loss: Tensor, gradient: Tensor) -> str | None:
        """Returns the sentence why a loss or gradient is wrong, or None."""
        off = float((loss.double() - self.loss).abs())
        if not off <= self.loss_slack:
            return f"loss is {float(loss):.7g}, expected {float(self.loss):.7g} within {self.loss_slack:.1e}"
        return self.why_wrong_gradient(gradient)

    def why_wrong_gradient(self, gradient: Tensor, rows: Tensor | None = None) -> str | None:
        """Returns the same for the gradient alone, at the rows marked [B] or at all."""
        off = (gradient.double() - self.gradient).abs().amax(dim=1)
        wrong = ~(off <= self.gradient_slack)
        if rows is not None:
            wrong &= rows
        if wrong.any():
            return (
                f"gradient is off by {float(off.max()):.1e} at most, allowed {self.gradient_slack:.1e}, "
                f"wrong for {int(wrong.sum())} of {len(off)} queries"
            )
        return None


def _slack(exact: Tensor, rounded: Tensor, scale: float) -> float:
    """Returns how far an answer may be off: some times plain float32 torch's own error, and rounding at its scale."""
    return float(WORSE * (exact - rounded).abs().max() + SLACK * max(scale, float(exact.abs().max())))


class LossGate:
    """Right answers, made when a peer first needs them (libraries differ in what counts as a negative)."""

    def __init__(self, inputs: LossInputs) -> None:
        self.inputs = inputs
        self._answers: dict[str, Answer] = {}

    def why_wrong(self, peer: Peer) -> str | None:
        """Runs the peer on the gate's inputs: the sentence why its answer is wrong, or None."""
        if peer.variant not in self._answers:
            self._answers[peer.variant] = Answer(self.inputs, peer.variant)
        return self._answers[peer.variant].why_wrong(*peer.prepare(self.inputs)())
