"""Chooses a mining plan without labels: every candidate is judged by the views that it did not see."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor

from .agreement import Votes
from .candidates import POWERS, Candidate, Settings, plain_schedules, tuned_settings
from .checks import LEAST_ROWS, check_count, check_ids, check_varied, check_views
from .plan import MiningPlan
from .trial import Sample, Trial, draw_sample
from .whitening import PrincipalAxes

RESAMPLES = 400
SURE = 3.0  # standard errors: so far above chance must the best agree, and views for a plain schedule speak
VOUCHING = 3  # views that must speak for a plain schedule: without any one of them, two are left
ALIKE = 1.645  # standard errors: closer to the best than this, a candidate is as good (one-sided 5 %)


class Choice(NamedTuple):
    """Says which candidate is chosen, and how sure that is."""

    chosen: int
    agreement: Tensor  # [C]
    behind: Tensor  # [C] standard errors below the best
    confidence: float
    best: int  # which candidate agrees most, of those that may be chosen
    spread: float  # its standard error


def choose(ballots: Sequence[Votes], settings: Sequence[Settings], seed: int, thinned: bool) -> Choice:
    """Returns which candidate is chosen: the least whitened joint score that is as good as the best, else the best.

    As good is less than `ALIKE` standard errors of the difference behind, queries being drawn at random (Breiman et al.
    1984, section 3.4.3, with 5 % in place of one standard error). Of equal whitening, the one that agrees most; on a
    thinned sample first the one of most neighbours, as the table holds more of each class than the sample showed.

    A single view or cascade is no candidate but where `is_vouched`: else two views that err alike would win by each
    vouching for the other's pairs.

    Args:
        ballots: the votes for C candidates.
        settings: what they are; those of the joint score come first.
        seed: of the resamples that the confidence is a share of.
        thinned: whether the sample is a part of the table.
    """
    agreement = torch.cat([votes.agreement() for votes in ballots]).double()
    influence = torch.stack([votes.influence() for votes in ballots]).double()  # [C, N]
    joint = settings[0].schedule
    vouched = [
        tried.schedule == joint or is_vouched(votes, ballots[0]) for votes, tried in zip(ballots, settings)
    ]
    best = int(agreement.where(torch.tensor(vouched, device=agreement.device), -torch.inf).argmax())
    gap = agreement[best] - agreement
    errors = torch.linalg.vector_norm(influence[best] - influence, dim=1)
    behind = torch.where(gap > 0, gap / errors.clamp(min=1e-12), 0.0)

    def rank(c: int) -> tuple[float, int, float]:
        tried = settings[c]
        neighbors = tried.expand.neighbors if thinned and tried.expand is not None else 0
        return tried.power, -neighbors, -float(agreement[c])

    alike = [c for c, tried in enumerate(settings) if tried.schedule == joint and behind[c] <= ALIKE]
    chosen = min(alike, key=rank, default=best)
    others = (errors > 0) & (gap >= 0)  # those with the same votes are the best itself
    runner_up = int(gap.where(others, torch.inf).argmin())
    confidence = _share_ahead(ballots[best], ballots[runner_up], seed)
    spread = float(torch.linalg.vector_norm(influence[best]))
    return Choice(chosen, agreement, behind, confidence, best, spread)


def is_vouched(votes: Votes, joint: Votes) -> bool:
    """Returns whether a plain schedule is clearly better than the plain joint score by `VOUCHING` views, worse by none.

    A view judges the joint score without itself, while a single view loses nothing: it cannot say that the schedule
    is better than a joint score that has it. Others can, and one of them may err like the schedule's view, as near
    copies do; so two others are asked about each. A view without which the schedule cannot be judged gave it the joint
    score's votes, and says neither; copies are one view.
    """
    power = joint.best_power()
    (share, moved), (joint_share, joint_moved) = votes.by_view(power), joint.by_view(power)
    errors = torch.linalg.vector_norm(moved.double() - joint_moved.double(), dim=1)
    ahead = (share - joint_share).double() / errors.clamp(min=1e-12)
    return int((ahead > SURE).sum()) >= VOUCHING and bool((ahead >= -ALIKE).all())


def _share_ahead(best: Votes, other: Votes, seed: int) -> float:
    """Returns the share of resamples of the queries in which one candidate agrees more than another."""
    rows = best.pairs.shape[1]
    drawn = torch.randint(rows, (RESAMPLES, rows), generator=torch.Generator().manual_seed(seed))
    weights = (
        torch.zeros(RESAMPLES, rows).scatter_add_(1, drawn, torch.ones(RESAMPLES, rows)).T.to(best.pairs)
    )
    return float((best.agreement(weights) > other.agreement(weights)).double().mean())


def tune_schedule(
    views: Mapping[str, Tensor],
    ids: Tensor | None = None,
    *,
    topk: int = 5,
    sample: int = 1200,
    seed: int = 0,
    progress: bool | None = False,
) -> MiningPlan:
    """Chooses how to mine these views, without labels: whitening, expansion, hub term and schedule.

    Each candidate mines a sample of the rows with one view left out, and that view tells which share of the mined
    pairs are mutual neighbours in it; the mean over the views left out is the candidate's agreement. Where views err
    independently given the class, agreement ranks candidates as the share of true positives does. Chosen is, among
    the candidates that cannot be distinguished from the best at 5 %, one of the least whitening, and of these the best.

    Candidates: the joint score of all views, whitened by the powers 0, 0.25, 0.5, 0.75 and 1, each plain, with the
    hub term, and expanded by 5 or 10 neighbours; single views; and the cascades of 3, 5 and 7 stages at ratio 0.5 in
    the order of the views. With two views, a cascade without one of them is the other view alone, as is the joint
    score: agreement then cannot tell these plain candidates apart, and the joint score is preferred.

    Args:
        views: ``{view: [N, D_v]}`` raw embeddings of any float dtype; row i of every view is the same sample. A row
            of NaN or zeros throughout is a missing view, and takes no part in that view's statistics.
        ids: [N] int64 source of each row, -1 where it takes no part; rows of one source are never mined for each
            other. None: each row its own.
        topk: positives per query.
        sample: rows that candidates are tried on, at random. Whiteners are fitted to all rows.
        seed: of the sample, and of the resamples behind the confidence; the same seed gives the same plan.
        progress: True shows a bar, None one on a terminal and lines elsewhere, False nothing.

    Returns:
        A :class:`MiningPlan`. Where nothing can be decided (copies of one view, views that agree by chance only), it is
        the plain joint score and `doubt` says why.

    Raises:
        ValueError: one view, too few rows or sources, constant views, rows with NaN beside numbers, or arguments that
            do not fit.
    """
    op = "tune_schedule"
    check_count(op, 1, topk=topk)
    check_count(op, 0, seed=seed)
    check_count(op, max(LEAST_ROWS, 2 * topk), sample=sample)
    check_views(op, views, topk)
    check_varied(op, views)
    ids = check_ids(op, ids, views, topk)
    drawn = draw_sample(views, ids, sample, seed)
    return _plan(drawn, list(views), len(ids), topk, seed, progress)


def _plan(
    drawn: Sample, views: list[str], rows: int, topk: int, seed: int, progress: bool | None
) -> MiningPlan:
    from ..progress import ProgressBar

    settings = tuned_settings(views, topk)
    schedules = plain_schedules(views, rows, topk, len(drawn.ids))
    tried = plain_schedules(views, len(drawn.ids), topk, len(drawn.ids))
    settings += [Settings(0.0, None, None, schedule) for schedule in schedules]
    trial = Trial(drawn, topk)
    if len(trial.judges) == 1:
        return _undecided(drawn, settings[0], f"the views {', '.join(views)} are copies of one another")
    steps = len(trial.judges) * (len(POWERS) + 1)
    with ProgressBar("tuning", steps, unit="trial", shown=progress) as bar:
        ballots = trial.tuned(bar.advance)
        ballots += trial.plain(tried, ballots[0], bar.advance)
    choice = choose(ballots, settings, seed, thinned=rows > len(drawn.ids))
    order = sorted(range(len(settings)), key=lambda c: -float(choice.agreement[c]))
    numbers = zip(settings, choice.agreement.tolist(), choice.behind.tolist())
    candidates = [Candidate(*each, c == choice.chosen) for c, each in enumerate(numbers)]
    ranked = tuple(candidates[c] for c in order)
    above = float(choice.agreement[choice.best]) - trial.by_chance()
    if above <= SURE * choice.spread:
        doubt = "the views agree on what is mined no more than on random pairs"
        return replace(
            _undecided(drawn, settings[0], doubt), candidates=tuple(replace(c, chosen=False) for c in ranked)
        )
    return replace(
        as_plan(settings[choice.chosen], drawn.axes), candidates=ranked, confidence=choice.confidence
    )


def as_plan(settings: Settings, axes: Mapping[str, PrincipalAxes]) -> MiningPlan:
    """Returns settings as a plan, its whiteners those of the views' principal axes."""
    whiten = {view: axes[view].whitener(settings.power) for view in settings.schedule.views}
    return MiningPlan(whiten, settings.expand, settings.hub, settings.schedule, power=settings.power)


def _undecided(drawn: Sample, plain: Settings, doubt: str) -> MiningPlan:
    return replace(as_plan(plain, drawn.axes), doubt=doubt)
