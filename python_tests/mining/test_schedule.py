"""Schedules: the paper's counts exactly, text that reads back, errors that name the argument."""

from __future__ import annotations

import copy
import pickle
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cpr_kernels import Schedule, Stage, coclr_schedule, cpr_schedule, oracle_schedule, parse_schedule

NAMES = st.text(
    st.characters(exclude_characters=",+*", exclude_categories=("C", "Z")), min_size=1, max_size=6
)
WEIGHTS = st.floats(allow_nan=False, allow_infinity=False).filter(lambda w: 2.0**-126 <= abs(w) < 2.0**127)


@st.composite
def schedules(draw):
    keeps = sorted(draw(st.lists(st.integers(1, 10**9), min_size=1, max_size=6)), reverse=True)
    views = st.one_of(NAMES, st.dictionaries(NAMES, WEIGHTS, min_size=1, max_size=3))
    return Schedule(Stage(draw(views), keep) for keep in keeps)


@pytest.mark.parametrize(
    ("num_keys", "stages", "ratio", "counts"),
    [
        (2048, 7, 0.5, [1024, 512, 256, 128, 64, 32, 5]),
        (16384, 7, 0.5, [8192, 4096, 2048, 1024, 512, 256, 5]),
        (1000, 3, 0.7, [700, 490, 5]),  # float power gives 489 at stage 2
        (100, 2, 0.29, [29, 5]),  # float product gives 28
        (16384, 4, 0.7, [11468, 8028, 5619, 5]),  # rounding down stage by stage gives 8027
        (1000, 4, Fraction(1, 3), [333, 111, 37, 5]),
        (100, 3, 1, [100, 100, 5]),
        (50, 1, 0.5, [5]),
        (50, 2, 0.5, [25, 5]),
    ],
)
def test_the_papers_counts_are_exact(num_keys, stages, ratio, counts):
    made = cpr_schedule(("flow", "rgb"), num_keys, stages, ratio, topk=5)
    assert [stage.keep for stage in made] == counts
    assert [stage.view for stage in made] == [("flow", "rgb")[s % 2] for s in range(stages)]


def test_any_number_of_views_alternates():
    made = cpr_schedule(("a", "b", "c"), num_keys=64, stages=5, ratio=0.5, topk=4)
    assert str(made) == "a:32,b:16,c:8,a:4,b:4"
    assert made.views == ("a", "b", "c")
    assert made.topk == 4


def test_the_other_presets():
    assert str(coclr_schedule("rgb", 3)) == "rgb:3"
    assert str(oracle_schedule(("flow", "rgb"), 7)) == "flow+rgb:7"


def test_numpy_numbers_are_as_good_as_pythons():
    made = cpr_schedule(("flow", "rgb"), np.int64(1000), np.int32(3), np.float32(0.7), np.int8(5))
    assert made == cpr_schedule(("flow", "rgb"), 1000, 3, 0.7, 5)
    assert Stage({"flow": np.int64(2), "rgb": np.float64(0.5)}, np.uint8(3)) == Stage(
        {"flow": 2, "rgb": 0.5}, 3
    )
    assert type(Stage("flow", np.int64(3)).keep) is int


def test_one_view_of_weight_one_is_that_view():
    assert Stage({"flow": 1.0}, 5) == Stage("flow", 5)
    assert Stage({"flow": 2.0}, 5) != Stage("flow", 5)


def test_table_is_row_major_in_the_order_asked_for():
    made = Schedule([("rgb", 9), ({"flow": 2, "rgb": -1}, 4)])
    assert made.table(("flow", "rgb")) == ([0.0, 1.0, 2.0, -1.0], [9, 4])
    assert made.table(("rgb", "x", "flow")) == ([1.0, 0.0, 0.0, -1.0, 0.0, 2.0], [9, 4])


@settings(deadline=None)
@given(schedules())
def test_a_schedule_reads_back_from_its_text_its_list_and_its_pickle(made):
    assert parse_schedule(str(made)) == made
    assert Schedule.from_list(made.to_list()) == made
    for again in (pickle.loads(pickle.dumps(made)), copy.copy(made), copy.deepcopy(made)):
        assert again == made
        assert hash(again) == hash(made)
        assert isinstance(again, Schedule)


@settings(deadline=None)
@given(
    num_keys=st.integers(1, 10**6),
    shares=st.lists(st.sampled_from(["0.5", "0.7", "0.29", "1/3", "1.0", "9e-1"]), min_size=1, max_size=5),
)
def test_shares_multiply_exactly(num_keys, shares):
    exact, expected = Fraction(num_keys), []
    for share in shares:
        exact *= Fraction(share)
        expected.append(exact.numerator // exact.denominator)
    text = ",".join(f"v:{share}" for share in shares)
    if min(expected) < 1:
        with pytest.raises(ValueError, match="keeps less than one"):
            parse_schedule(text, num_keys)
    else:
        assert [stage.keep for stage in parse_schedule(text, num_keys)] == expected


@settings(deadline=None)
@given(st.integers(1, 5000), st.sampled_from([0.5, 0.7, 0.29, 0.8]), st.integers(1, 7))
def test_equal_shares_are_the_papers_counts(num_keys, ratio, stages):
    try:
        made = cpr_schedule(("flow", "rgb"), num_keys, stages, ratio, topk=1)
    except ValueError as error:
        assert f"num_keys={num_keys}" in str(error)
        return
    text = [f"{('flow', 'rgb')[s % 2]}:{ratio}" for s in range(stages - 1)]
    text.append(f"{('flow', 'rgb')[(stages - 1) % 2]}:1")
    assert parse_schedule(",".join(text), num_keys) == made


def test_text_mixes_shares_counts_and_sums():
    assert str(parse_schedule(" flow:0.5, rgb:20 ,flow + 2*rgb:1/4", 100)) == "flow:50,rgb:20,flow+2*rgb:5"
    assert str(parse_schedule("flow:5000,rgb:0.5", 100)) == "flow:5000,rgb:50"  # of the 100 there are
    assert parse_schedule("a:b:5")[0].view == "a:b"


@pytest.mark.parametrize(
    ("text", "num_keys", "says"),
    [
        ("", 10, "cannot read ''"),
        ("flow", 10, "cannot read 'flow'"),
        ("flow:", 10, "write stages as view:keep"),
        (":5", 10, "cannot read ':5'"),
        ("flow:five", 10, "cannot read 'flow:five'"),
        ("flow:0", 10, "cannot read 'flow:0'"),
        ("flow:-3", 10, "cannot read 'flow:-3'"),
        ("flow:1/0", 10, "cannot read 'flow:1/0'"),
        ("flow:5,,rgb:2", 10, "cannot read ''"),
        ("x*flow:5", 10, "cannot read 'x*flow:5'"),
        ("flow:0.5", None, "num_keys must be given"),
        ("flow:1.5", 10, "above 1"),
        ("flow:5/2", 10, "above 1"),
        ("flow:0.01", 10, "less than one of 10 entries"),
        ("flow+flow:5", 10, "'flow' is named twice"),
        ("0*flow:5", 10, "are all 0"),
        ("nan*flow:5", 10, "must be finite"),
        ("flow:5,rgb:6", 10, "stage 2 (rgb:6) keeps more than stage 1 (flow:5)"),
    ],
)
def test_bad_text_is_named(text, num_keys, says):
    with pytest.raises(ValueError) as error:
        parse_schedule(text, num_keys)
    assert says in str(error.value)


@pytest.mark.parametrize(
    ("build", "says"),
    [
        (lambda: Schedule([]), "at least one stage"),
        (lambda: Schedule("flow:5"), "parse_schedule('flow:5'"),
        (lambda: Schedule([("flow", 5), ("rgb", 6)]), "counts must not grow"),
        (lambda: Stage("flow", 0), "keep must be an integer >= 1 (view 'flow'), got 0"),
        (lambda: Stage("flow", -1), "got -1"),
        (lambda: Stage("flow", 2.5), "got 2.5"),
        (lambda: Stage("flow", True), "got True"),
        (lambda: Stage("flow", "5"), "got '5'"),
        (lambda: Stage("flow", None), "got None"),
        (lambda: Stage("flow", float("nan")), "got nan"),
        (lambda: Stage("flow", float("inf")), "got inf"),
        (lambda: Stage("", 5), "names nothing"),
        (lambda: Stage({}, 5), "names nothing"),
        (lambda: Stage({"flow": float("nan")}, 5), "weight of view 'flow' must be finite"),
        (lambda: Stage({"flow": 0.0, "rgb": 0}, 5), "'flow', 'rgb' are all 0"),
        (lambda: Stage((("flow", 1.0), ("flow", 2.0)), 5), "named twice"),
        (lambda: Stage("flow,rgb", 5), "no comma"),
        (lambda: Stage(" flow", 5), "outer space"),
        (lambda: oracle_schedule("flow"), "sequence of names, got 'flow'"),
        (lambda: cpr_schedule("flow"), "sequence of names, got 'flow'"),
        (lambda: cpr_schedule(()), "sequence of names, got ()"),
        (lambda: cpr_schedule(num_keys=0), "num_keys must be an integer >= 1, got 0"),
        (lambda: cpr_schedule(stages=0), "stages must be an integer >= 1, got 0"),
        (lambda: cpr_schedule(stages=2.5), "stages must be an integer >= 1, got 2.5"),
        (lambda: cpr_schedule(topk=-1), "topk must be an integer >= 1, got -1"),
        (lambda: cpr_schedule(ratio=0), "ratio must lie in (0, 1], got 0"),
        (lambda: cpr_schedule(ratio=1.01), "ratio must lie in (0, 1], got 1.01"),
        (lambda: cpr_schedule(ratio=float("nan")), "ratio must be a number in (0, 1], got nan"),
        (lambda: cpr_schedule(ratio="half"), "ratio must be a number in (0, 1], got 'half'"),
    ],
)
def test_a_bad_argument_is_named(build, says):
    with pytest.raises(ValueError) as error:
        build()
    assert says in str(error.value)


@pytest.mark.parametrize(("num_keys", "stages", "ratio"), [(256, 7, 0.5), (2048, 7, 0.1), (4, 2, 0.5)])
def test_too_few_entries_name_everything_that_could_change(num_keys, stages, ratio):
    with pytest.raises(ValueError) as error:
        cpr_schedule(num_keys=num_keys, stages=stages, ratio=ratio, topk=5)
    for part in (f"num_keys={num_keys}", f"ratio={ratio}", f"stages={stages}", "topk=5"):
        assert part in str(error.value)


def test_an_unknown_view_is_named_with_those_that_are_there():
    with pytest.raises(ValueError, match=r"stage 2 \(depth:5\) judges by view 'depth'.*'flow', 'rgb'"):
        Schedule([("flow", 9), ("depth", 5)]).table(("flow", "rgb"))


@pytest.mark.parametrize(
    "text", ["a:1e999999999", "a:1e-999999999", "a:1e99", "a:" + "9" * 10_000, "a:1/1e9999999"]
)
def test_amounts_that_would_take_for_ever_are_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"cannot read|must be an integer >= 1|keeps less than one"):
        parse_schedule(text, 100)


def test_ratios_and_stages_that_would_take_for_ever_are_refused() -> None:
    with pytest.raises(ValueError, match="ratio must lie in"):
        cpr_schedule(ratio="1e-999999999")
    with pytest.raises(ValueError, match="stages must be at most 1000"):
        cpr_schedule(stages=10**9)


def test_another_topk_changes_the_last_stage_only() -> None:
    schedule = parse_schedule("flow:64,flow+2*rgb:8")
    assert schedule.with_topk(3) == parse_schedule("flow:64,flow+2*rgb:3") and schedule.topk == 8
    assert schedule.with_topk(8) == schedule
    with pytest.raises(ValueError, match="keeps more than stage 1"):
        schedule.with_topk(65)
