"""Defines the op `cascade`: its inputs, right answers and floors."""

from __future__ import annotations

import torch
from torch import Tensor

from cpr_kernels.dispatch.calls import CascadeCall
from cpr_kernels.mining import reference

from ..harness.inputs import Table, make_table, some_rows
from ..harness.peer import Peer, Settings
from ..harness.workloads import Workload
from ..peers.cascade import peers

__all__ = ["NAME", "CascadeGate", "flops", "gate", "least_bytes", "make_inputs", "near_tie_bounds", "peers"]

NAME = "cascade"
CHECKED_SCORES = 1 << 20  # rows x N that the reference ranks; more rows add time, not kinds of error


def flops(workload: Workload) -> float:
    """Returns those of the similarities: 2 B N D per judging view. Selecting is not counted."""
    return 2.0 * workload.num_queries * workload.num_keys * workload.dim * workload.judging


def least_bytes(workload: Workload) -> float:
    """Returns those of queries and keys of the judging views, read once, and of indices and scores, written once."""
    size = torch.finfo(getattr(torch, workload.dtype)).bits // 8
    read = (workload.num_queries + workload.num_keys) * workload.dim * workload.judging * size
    return float(read + workload.num_queries * workload.topk * 12)


def make_inputs(workload: Workload, settings: Settings) -> Table:
    """Returns real-valued features."""
    return make_table(workload, settings.device)


def gate(workload: Workload, settings: Settings) -> CascadeGate:
    """Returns right answers for the workload."""
    return CascadeGate(workload, settings.device)


def as_call(table: Table, rows: Tensor) -> CascadeCall:
    """Returns the op's arguments for some of the queries, for the reference."""
    views = table.workload.schedule.views
    weights, keep = table.workload.schedule.table(views)
    query_ids = None if table.query_ids is None else table.query_ids[rows]
    queries = [table.queries[view][rows] for view in views]
    keys = [table.keys[view] for view in views]
    return CascadeCall(queries, keys, weights, keep, query_ids, table.key_ids, None)


def slack_of(table: Table) -> float:
    """Returns how far apart two scores must be before every honest float32 method ranks them alike.

    Twice a bound on one score's rounding error, ``2 sqrt(D) 2^-24 |q| |k|``: about ten times what is seen.
    """
    longest = max(
        float(table.queries[view].float().norm(dim=1).max() * table.keys[view].float().norm(dim=1).max())
        for view in table.queries
    )
    return float(4 * table.workload.dim**0.5 * 2**-24 * longest)


def _ranked(scores: Tensor, among: Tensor, place: int) -> Tensor:
    """Returns the score at that place (from 1) among the entries marked: [B, 1]; -inf where there are fewer."""
    width = scores.shape[1]
    if place > width:
        return scores.new_full((len(scores), 1), -torch.inf)
    return scores.masked_fill(~among, -torch.inf).kthvalue(width - place + 1, dim=1, keepdim=True).values


def near_tie_bounds(
    scores: list[Tensor], eligible: Tensor, keep: list[int], slack: float
) -> tuple[Tensor, Tensor]:
    """Returns which entries [B, N] every honest method selects, and which ones some honest method may select.

    Two scores closer than `slack` may rank either way, at every stage. An entry surely survives a stage when
    even all possible rivals leave it a place; it may survive when the certain ones alone do not fill the stage.
    Without near ties both are the reference's selection.
    """
    certain = possible = eligible
    for score, count in zip(scores, keep):
        last_certain = _ranked(score, certain, count)
        first_dropped = _ranked(score, possible, count + 1)
        certain = certain & (score > first_dropped + slack)
        possible = possible & (score >= last_certain - slack)
    return certain, possible


class CascadeGate:
    """Right answers on integer-valued inputs (exact, ties and all) and real-valued ones (up to near ties)."""

    def __init__(self, workload: Workload, device: str) -> None:
        self.workload, self.device = workload, device
        self.rows = some_rows(workload, CHECKED_SCORES).to(device)
        self.exact = reference.run(as_call(make_table(workload, device, integers=True), self.rows))
        self.inputs = make_table(workload, device)
        call = as_call(self.inputs, self.rows)
        stage_scores = reference.stage_scores(call)
        self.slack = slack_of(self.inputs)
        self.last_scores = stage_scores[-1]
        self.certain, self.possible = near_tie_bounds(
            stage_scores, ~reference.excluded(call), list(call.stage_keep), self.slack
        )

    def why_wrong(self, peer: Peer) -> str | None:
        """Runs the peer on the gate's inputs: the sentence why its answer is wrong, or None."""
        if peer.checked == "part":
            return None
        if peer.checked == "exact":
            answer = peer.prepare(make_table(self.workload, self.device, integers=True))()
            for name, came, expected in zip(("indices", "scores"), answer, self.exact):
                if came.shape[1:] != expected.shape[1:]:
                    return f"integer-valued features: {name} have shape {list(came.shape)}"
                wrong = (came[self.rows] != expected).any(dim=1)
                if wrong.any():
                    return f"integer-valued features: {name} differ from the reference for {_share(wrong)}"
        return self._why_wrong_on_reals(*peer.prepare(self.inputs)(), ordered=peer.checked == "exact")

    def _why_wrong_on_reals(self, indices: Tensor, scores: Tensor | None, *, ordered: bool) -> str | None:
        indices = indices[self.rows]
        if indices.shape[1] != self.workload.topk:
            return f"real-valued features: {indices.shape[1]} indices a query, expected {self.workload.topk}"
        if (indices < 0).any() or (indices >= self.workload.num_keys).any():
            return "real-valued features: an index is outside the queue"
        picked = torch.zeros_like(self.possible).scatter_(1, indices, True)
        if (picked.sum(dim=1) != self.workload.topk).any():
            return "real-valued features: an index is selected twice"
        wrong = ((picked & ~self.possible) | (self.certain & ~picked)).any(dim=1)
        if wrong.any():
            return f"real-valued features: another selection than the reference's for {_share(wrong)}"
        if scores is None:
            return None
        scores = scores[self.rows]
        far = ((scores - self.last_scores.gather(1, indices)).abs() > self.slack).any(dim=1)
        if far.any():
            return f"real-valued features: scores are off by more than {self.slack:.1e} for {_share(far)}"
        if ordered and (scores.diff(dim=1) > 0).any():
            return "real-valued features: scores are not in descending order"
        return None


def _share(wrong: Tensor) -> str:
    return f"{int(wrong.sum())} of the {len(wrong)} queries checked"
