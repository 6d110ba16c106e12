"""The published cascade, restated as it ran (feature gathers, query by query), against `cpr_schedule`.

It has two anchors: the main one judges stages 1, 3, 5, ... and always the last; the auxiliary one judges the
others. So an even number of stages ends on the main anchor twice, and picks what one stage fewer picks.
"""

from __future__ import annotations

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from cpr_kernels import cascade_topk, coclr_schedule, cpr_schedule

TOPK = 3


def published_picks(main, aux, main_queue, aux_queue, num_stages, ratio):
    """Picks [B, TOPK] for anchors [B, D] and queues [N, D]."""
    assert num_stages >= 3
    num_keys, picks = len(main_queue), []
    for main_anchor, aux_anchor in zip(main, aux):
        candidates = torch.arange(num_keys)
        for stage in range(num_stages):
            last = stage == num_stages - 1
            by_main = last or stage % 2 == 0
            anchor, queue = (main_anchor, main_queue) if by_main else (aux_anchor, aux_queue)
            keep = TOPK if last else int(num_keys * ratio ** (stage + 1))
            similarity = queue[candidates] @ anchor
            candidates = candidates[similarity.topk(keep).indices]
        picks.append(candidates)
    return torch.stack(picks)


def whole_numbers(shape, seed):
    """Features whose inner products are exact in float32 and seldom equal."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(-500, 501, shape, generator=generator).float()


def distinct(scores):
    return all(len(row.unique()) == len(row) for row in scores)


@st.composite
def problems(draw):
    seed, dim = draw(st.integers(0, 10**6)), draw(st.integers(4, 16))
    num_queries, num_keys = draw(st.integers(1, 4)), draw(st.integers(24, 160))
    shapes = {"flow": dim, "rgb": draw(st.integers(4, 16))}
    queries = {n: whole_numbers((num_queries, d), seed + i) for i, (n, d) in enumerate(shapes.items())}
    keys = {n: whole_numbers((num_keys, d), seed + 7 + i) for i, (n, d) in enumerate(shapes.items())}
    for name in shapes:  # equal scores have no published order
        assume(distinct(queries[name] @ keys[name].T))
    return queries, keys, num_keys


def published(queries, keys, stages, ratio):
    return published_picks(queries["flow"], queries["rgb"], keys["flow"], keys["rgb"], stages, ratio)


def ours(queries, keys, num_keys, stages, ratio):
    return cascade_topk(queries, keys, cpr_schedule(("flow", "rgb"), num_keys, stages, ratio, TOPK))[0]


def fits(num_keys, stages, ratio):
    return int(num_keys * ratio ** (stages - 1)) >= TOPK


@settings(max_examples=60, deadline=None)
@given(problems(), st.sampled_from([3, 5, 7]), st.sampled_from([0.5, 0.75, 0.875]))
def test_odd_stage_counts_pick_what_the_published_code_picks(problem, stages, ratio):
    queries, keys, num_keys = problem
    assume(fits(num_keys, stages, ratio))
    assert torch.equal(ours(queries, keys, num_keys, stages, ratio), published(queries, keys, stages, ratio))


@settings(max_examples=60, deadline=None)
@given(problems(), st.sampled_from([4, 6]), st.sampled_from([0.5, 0.75]))
def test_there_an_even_count_is_one_stage_fewer(problem, stages, ratio):
    queries, keys, num_keys = problem
    assume(fits(num_keys, stages, ratio))
    even = published(queries, keys, stages, ratio)
    assert torch.equal(even, published(queries, keys, stages - 1, ratio))
    assert torch.equal(even, ours(queries, keys, num_keys, stages - 1, ratio))


def test_here_an_even_count_is_a_cascade_of_its_own():
    """Views alternate to the end, so four stages end on rgb and differ from three."""
    queries = {name: whole_numbers((8, 8), seed) for seed, name in enumerate(("flow", "rgb"))}
    keys = {name: whole_numbers((256, 8), 9 + seed) for seed, name in enumerate(("flow", "rgb"))}
    assert cpr_schedule(("flow", "rgb"), 256, 4, 0.5, TOPK)[-1].view == "rgb"
    assert not torch.equal(ours(queries, keys, 256, 4, 0.5), ours(queries, keys, 256, 3, 0.5))


@pytest.mark.parametrize("stages", [1, 2])
def test_one_and_two_stages_are_defined_here(stages):
    queries = {name: whole_numbers((4, 8), seed) for seed, name in enumerate(("flow", "rgb"))}
    keys = {name: whole_numbers((64, 8), 5 + seed) for seed, name in enumerate(("flow", "rgb"))}
    picks = ours(queries, keys, 64, stages, 0.5)
    flow = queries["flow"] @ keys["flow"].T
    if stages == 1:
        assert torch.equal(picks, flow.argsort(dim=1, descending=True, stable=True)[:, :TOPK])
        assert torch.equal(picks, cascade_topk(queries, keys, coclr_schedule("flow", TOPK))[0])
    else:
        half = flow.topk(32).indices.sort().values
        rgb = (queries["rgb"] @ keys["rgb"].T).gather(1, half)
        best = rgb.argsort(dim=1, descending=True, stable=True)[:, :TOPK]
        assert torch.equal(picks, half.gather(1, best))
