"""Describes a cascade stage by stage: which view scores, and how many entries stay."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from itertools import pairwise
from math import floor
from typing import Any

from ..dispatch.tensor_checks import is_float32

Weights = tuple[tuple[str, float], ...]
# a count or a share, as text; more digits, or a larger exponent, would take for ever to write out
AMOUNT = re.compile(
    r"\d{1,18}(/\d{1,18}|(\.\d{0,18})?(e[+-]?\d{1,2})?)|\.\d{1,18}(e[+-]?\d{1,2})?", re.IGNORECASE
)
MOST_STAGES = 1_000


@dataclass(frozen=True)
class Stage:
    """Names the view (or weighted views) that scores in one stage, and how many entries the stage keeps.

    Args:
        view: a view's name, or ``{name: weight}`` to score by the weighted sum of several views' scores.
            A name holds no comma, plus or star and no space at its ends, so that a schedule reads back.
        keep: entries that survive this stage, >= 1.

    Raises:
        ValueError: no view, an unusable name or weight, or ``keep`` < 1.
    """

    view: str | Weights
    keep: int

    def __init__(self, view: str | Mapping[str, float] | Weights, keep: int) -> None:
        named = view if isinstance(view, str) else tuple((str(n), float(w)) for n, w in _pairs(view))
        if not named:
            raise ValueError("Stage: view names nothing; give a view's name or {name: weight}")
        _check_weights(((named, 1.0),) if isinstance(named, str) else named)
        if not isinstance(named, str) and len(named) == 1 and named[0][1] == 1.0:
            named = named[0][0]
        object.__setattr__(self, "view", named)
        object.__setattr__(self, "keep", _count(keep, f"Stage: keep must be an integer >= 1 (view {view!r})"))

    @property
    def weights(self) -> dict[str, float]:
        """Returns ``{view: weight}`` of the stage's views, in the order given."""
        return {self.view: 1.0} if isinstance(self.view, str) else dict(self.view)

    def __str__(self) -> str:
        names = [
            name if weight == 1.0 else f"{_number(weight)}*{name}" for name, weight in self.weights.items()
        ]
        return f"{'+'.join(names)}:{self.keep}"


def _number(weight: float) -> str:
    """Returns the shortest text that reads back as `weight`, without a plus."""
    return str(int(weight)) if weight.is_integer() and abs(weight) < 1e6 else repr(weight).replace("e+", "e")


def _count(value: Any, expected: str) -> int:
    """Returns `value`, a whole number >= 1 of any type, as an int."""
    try:
        count = int(value)
        whole = not isinstance(value, (bool, str)) and count == value and 1 <= count < 2**63
    except (TypeError, ValueError, OverflowError):
        whole = False
    if not whole:
        raise ValueError(f"{expected}, got {value!r}")
    return count


def _check_weights(named: Weights) -> None:
    names = [name for name, _ in named]
    for name, weight in named:
        if not name or name.strip() != name or set(name) & set(",+*"):
            raise ValueError(
                f"Stage: a view's name must hold no comma, plus, star or outer space, got {name!r}"
            )
        if names.count(name) > 1:
            raise ValueError(f"Stage: view {name!r} is named twice; give its weights as one sum")
        if not is_float32(weight):
            raise ValueError(
                f"Stage: the weight of view {name!r} must be finite in float32, and 0 or at least 1.18e-38 in "
                f"magnitude, got {weight}"
            )
    if not any(weight for _, weight in named):
        raise ValueError(
            f"Stage: the weights of {', '.join(map(repr, names))} are all 0; some view must judge"
        )


def _pairs(view: Mapping[str, float] | Weights) -> Iterable[tuple[str, float]]:
    return view.items() if isinstance(view, Mapping) else view


class Schedule(tuple[Stage, ...]):
    """Lists the stages of a cascade in order, each keeping no more than the one before.

    It is a tuple of :class:`Stage`, prints as ``flow:1024,rgb:512,flow:5``, compares equal by value and is read back
    by :func:`parse_schedule`.

    Attributes:
        views: every view that some stage scores by, in order of first use.
        judged: :meth:`table` for these views, as tuples.

    Raises:
        ValueError: no stage, or a stage that keeps more than the one before.
    """

    views: tuple[str, ...]
    judged: tuple[tuple[float, ...], tuple[int, ...]]

    def __new__(cls, stages: Iterable[Stage | tuple[Any, int]]) -> Schedule:
        """Makes a schedule of stages, or of ``(view, keep)`` pairs."""
        if isinstance(stages, str):
            raise ValueError(f"Schedule: read text with parse_schedule({stages!r}, num_keys)")
        made = tuple(s if isinstance(s, Stage) else Stage(*s) for s in stages)
        if not made:
            raise ValueError("Schedule: needs at least one stage, got none")
        for i, (before, after) in enumerate(pairwise(made), start=2):
            if after.keep > before.keep:
                raise ValueError(
                    f"Schedule: stage {i} ({after}) keeps more than stage {i - 1} ({before}); "
                    "counts must not grow"
                )
        self = super().__new__(cls, made)
        # both are read at every training step
        self.views = tuple(dict.fromkeys(name for stage in made for name in stage.weights))
        weights, keep = self.table(self.views)
        self.judged = tuple(weights), tuple(keep)
        return self

    @property
    def topk(self) -> int:
        """Returns the number of entries that the last stage keeps (``k``)."""
        return self[-1].keep

    def with_topk(self, topk: int) -> Schedule:
        """Returns the schedule whose last stage keeps ``topk`` entries.

        Raises:
            ValueError: the stage before keeps fewer.
        """
        return Schedule([*self[:-1], Stage(self[-1].weights, topk)])

    def table(self, views: Sequence[str]) -> tuple[list[float], list[int]]:
        """Returns row-major ``stage_weights`` [S * V] and ``stage_keep`` [S] of the op, for views in this order.

        Raises:
            ValueError: a stage names a view that is not among ``views``.
        """
        weights: list[float] = []
        for i, stage in enumerate(self, start=1):
            unknown = [name for name in stage.weights if name not in views]
            if unknown:
                raise ValueError(
                    f"schedule: stage {i} ({stage}) judges by view {unknown[0]!r}, "
                    f"but queries and keys hold {', '.join(map(repr, views)) or 'no view'}"
                )
            weights += [stage.weights.get(name, 0.0) for name in views]
        return weights, [stage.keep for stage in self]

    def to_list(self) -> list[dict[str, Any]]:
        """Returns a JSON-ready form: ``[{"view": {name: weight}, "keep": n}, ...]``."""
        return [{"view": stage.weights, "keep": stage.keep} for stage in self]

    @classmethod
    def from_list(cls, stages: Iterable[Mapping[str, Any]]) -> Schedule:
        """Makes a schedule of what :meth:`to_list` returned."""
        return cls(Stage(stage["view"], stage["keep"]) for stage in stages)

    def __str__(self) -> str:
        return ",".join(map(str, self))

    def __repr__(self) -> str:
        return f"Schedule('{self}')"


def _exact(ratio: float | Fraction) -> Fraction:
    """Returns the ratio as written: 0.7 is 7/10, not its binary neighbour."""
    try:
        if isinstance(ratio, Fraction):
            return ratio
        if (
            abs(float(ratio)) < 1e-99 or abs(float(ratio)) > 1
        ):  # as text, its fraction might take for ever to make
            return Fraction(str(float(ratio)))
        return Fraction(str(ratio))
    except (ValueError, TypeError, OverflowError):
        raise ValueError(f"cpr_schedule: ratio must be a number in (0, 1], got {ratio!r}") from None


def cpr_schedule(
    views: Sequence[str] = ("flow", "rgb"),
    num_keys: int = 2048,
    stages: int = 7,
    ratio: float | Fraction = 0.5,
    topk: int = 5,
) -> Schedule:
    """Makes the cascade of Wu et al. 2022 (CPR, section 3.2): views alternate, each keeps a share of the queue.

    Stage ``s`` (from 1) scores by ``views[(s - 1) % len(views)]`` and keeps ``floor(num_keys * ratio**s)``
    entries, in exact arithmetic; the last keeps ``topk``. Odd ``stages`` >= 3 with two views pick what the
    published code picks when nothing is excluded.

    Raises:
        ValueError: an argument out of its range, or a count below the next one.
    """
    _require(
        len(views) > 0 and not isinstance(views, str), f"views must be a sequence of names, got {views!r}"
    )
    num_keys = _count(num_keys, "cpr_schedule: num_keys must be an integer >= 1")
    stages = _count(stages, "cpr_schedule: stages must be an integer >= 1")
    topk = _count(topk, "cpr_schedule: topk must be an integer >= 1")
    _require(stages <= MOST_STAGES, f"stages must be at most {MOST_STAGES}, got {stages}")
    share = _exact(ratio)
    _require(0 < share <= 1, f"ratio must lie in (0, 1], got {ratio}")
    keep = [floor(num_keys * share**s) for s in range(1, stages)] + [topk]
    for s, (count, following) in enumerate(pairwise(keep), start=1):
        _require(
            count >= following,
            f"num_keys={num_keys}, ratio={ratio}, stages={stages} keep {count} entries at stage {s}, fewer "
            f"than the {following} of stage {s + 1} (topk={topk}); "
            "use fewer stages, a larger ratio or more keys",
        )
    return Schedule(Stage(views[s % len(views)], count) for s, count in enumerate(keep))


def _require(holds: bool, sentence: str) -> None:
    if not holds:
        raise ValueError(f"cpr_schedule: {sentence}")


def coclr_schedule(view: str, topk: int = 5) -> Schedule:
    """Makes one stage of one view: the mining of CoCLR (Han et al. 2020, section 3.2)."""
    return Schedule([Stage(view, topk)])


def oracle_schedule(views: Sequence[str], topk: int = 5) -> Schedule:
    """Makes one stage that scores by all views together, as if their embeddings were concatenated."""
    if isinstance(views, str):
        raise ValueError(f"oracle_schedule: views must be a sequence of names, got {views!r}")
    return Schedule([Stage(dict.fromkeys(views, 1.0), topk)])


def parse_schedule(text: str, num_keys: int | None = None) -> Schedule:
    """Reads a schedule written as text: ``view:keep`` stages separated by commas.

    ``view`` is a name, a sum ``flow+rgb`` or a weighted sum ``2*flow+rgb``. ``keep`` is a count (``flow:5``),
    or a share of what the stage before kept (``flow:0.5``; of ``num_keys`` for the first). Shares in a row
    multiply exactly and are rounded down once, as in :func:`cpr_schedule`.

    Raises:
        ValueError: text that is no schedule, a share without ``num_keys``, or a share that keeps nothing.
    """
    stages: list[Stage] = []
    left = None if num_keys is None else Fraction(num_keys)
    for part in map(str.strip, text.split(",")):
        weights, amount = _parts(part, text)
        if "." in amount or "/" in amount or "e-" in amount.lower():
            if left is None:
                raise ValueError(f"schedule: {part!r} is a share, so num_keys must be given")
            share = Fraction(amount)
            _sensible(share <= 1, f"{part!r} keeps a share above 1; write a count without a point")
            left *= share
            keep = floor(left)
            _sensible(
                keep >= 1,
                f"{part!r} keeps less than one of {num_keys} entries; write a count, or larger shares",
            )
        else:
            keep = int(Fraction(amount))
            left = Fraction(keep if num_keys is None else min(keep, num_keys))
        stages.append(Stage(weights, keep))
    return Schedule(stages)


def _sensible(holds: bool, sentence: str) -> None:
    if not holds:
        raise ValueError(f"schedule: {sentence}")


def _parts(part: str, text: str) -> tuple[Weights, str]:
    """Returns the views and the amount of one stage."""
    view, _, amount = part.rpartition(":")
    try:
        positive = AMOUNT.fullmatch(amount.strip()) is not None and Fraction(amount) > 0
        weights = tuple(_term(term) for term in view.split("+"))
    except (ValueError, ZeroDivisionError):
        positive, weights = False, ()
    if not positive:
        raise ValueError(
            f"schedule: cannot read {part!r} in {text!r}; "
            "write stages as view:keep, for example flow:0.5,rgb:0.5,flow:5 or flow+rgb:5"
        )
    return weights, amount.strip()


def _term(term: str) -> tuple[str, float]:
    weight, star, name = term.strip().rpartition("*")
    if not name.strip():
        raise ValueError(term)
    return name.strip(), float(weight) if star else 1.0
