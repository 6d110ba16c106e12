"""What the protocol's figures say: sentences made from them, whichever way they came out."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import mean
from typing import Any

Document = dict[str, Any]
CPR = ("cpr-3", "cpr-7", "cpr-7-progressive")
TOGETHER = "both"


def reading(document: Document) -> list[str]:
    """Does CPR win, by how much against the seeds' spread, and why or why not? A sentence or two a point."""
    results = {name: runs for name, runs in document["results"].items() if runs}
    found = [value for value in document["diagnosis"].values() if value]
    return [
        *(_against(results, method, "coclr") for method in CPR if method in results and "coclr" in results),
        *_bounds(results),
        *_cascades(found),
        *_views(found),
    ]


def _against(results: Document, method: str, other: str) -> str:
    """One method against another: features, and what was mined."""
    gain, seeds = _difference(results, method, other)
    mined = []
    for view in next(iter(results[method].values()))["mining"]:
        pairs = [[_pmr(results[name], seed, view) for seed in seeds] for name in (method, other)]
        ours, theirs = ([share for share in shares if share is not None] for shares in pairs)
        if ours and theirs:
            mined.append(f"{view} {_percent(mean(ours))} against {_percent(mean(theirs))}")
    text = f"{method} against {other}: R@1 of both views together {points(gain)}; {verdict(gain, _spread(results))}."
    return text + (f" Right among the mined positives at the end, %: {', '.join(mined)}." if mined else "")


def verdict(gain: Sequence[float], spread: float) -> str:
    """What a difference in each seed amounts to."""
    if len(gain) < 2:
        return "one seed, so nothing is said of its spread"
    if min(gain) > 0 or max(gain) < 0:
        way = "ahead" if min(gain) > 0 else "behind"
        small = abs(mean(gain)) <= spread
        return f"{way} with every seed" + (
            ", though by no more than seeds of one method differ" if small else ""
        )
    return "the same" if not any(gain) else "the seeds do not agree, so they show no difference"


def _bounds(results: Document) -> list[str]:
    """How much any positives can move the features within the budget."""
    said = []
    if len(next(iter(results.values()), {})) > 1:
        said.append(
            f"Seeds of one method differ by up to {100 * _spread(results):.1f} points of R@1 (both views)."
        )
    if "ubernce" in results and "infonce" in results:
        gain, _ = _difference(results, "ubernce", "infonce")
        room = "which leaves mined positives little to win in this budget" if mean(gain) <= _spread(results) else (
            "the room that mined positives have in this budget"
        )  # fmt: skip
        said.append(
            f"Positives by label (ubernce, the upper bound) against none (infonce, as long): {points(gain)}, {room}."
        )
    if "infonce" in results and "warm-up" in results:
        gain, _ = _difference(results, "infonce", "warm-up")
        said.append(
            f"Training on without mining (infonce) against stopping after the warm-up: {points(gain)}."
        )
    return said


def _cascades(found: list[Document]) -> list[str]:
    """Cascades against the view that judges last in them, on the same queue; and what their stages do."""
    said = []
    for name in found[0]["purity"] if found else ():
        if not name.startswith("cascade"):
            continue
        judge = name.split(", ")[2].split(" ")[0]
        gain = [one["purity"][name][-1] - one["purity"][f"{judge} alone"][-1] for one in found]
        last = len(found[0]["purity"][name]) - 2
        share, alive, kept, entries, chance = (
            mean(figures)
            for figures in zip(*(
                (*(one[figure][name][last] for figure in ("purity", "alive", "kept")), one["entries"], one["chance"])
                for one in found
            ))
        )  # fmt: skip
        lift = share / max(chance, 1e-9)
        said.append(
            f"After the warm-up, {name}: {points(gain)} of right positives against {judge} alone, on the same queue. "
            f"Before the last stage {kept:.0f} entries are left, {_percent(share)} % of them right "
            f"({lift:.1f} times chance), and {_percent(alive)} % of the right ones: "
            f"{_why(mean(gain), alive / (kept / entries), lift)}."
        )
    return said


def _why(gain: float, favour: float, lift: float) -> str:
    """What the stages before the last did. favour: how much likelier a right entry survives them than any entry."""
    if gain > 0:
        return "the other view took out more wrong than right ones near the query"
    if lift < 1.2:
        return "its stages keep right entries hardly more often than any, so there is nothing to refine"
    return (
        f"a right entry survives {favour:.1f} times as often as any, but those that the last view would have picked "
        "are among the ones thrown out"
    )


def _views(found: list[Document]) -> list[str]:
    """How alike the views judge, and the siblings."""
    if not found:
        return []
    agreement = mean(one["agreement"] for one in found)
    way = (
        "so alike that a second view can correct little" if agreement > 0.7
        else "nearly independently, so that a cascade keeps what both find alike" if agreement < 0.3
        else "partly alike"
    )  # fmt: skip
    siblings = _percent(mean(one["siblings"] for one in found))
    return [
        f"The two views judge {way} (rank correlation {agreement:.2f}). {siblings} % of the queue are siblings of a "
        "query, which are never mined."
    ]


def _difference(results: Document, method: str, other: str) -> tuple[list[float], list[str]]:
    """R@1 of both views together, seed by seed, and the seeds that have both."""
    seeds = [seed for seed in results[method] if seed in results[other]]
    return [_r1(results[method][seed]) - _r1(results[other][seed]) for seed in seeds], seeds


def _spread(results: Document) -> float:
    """The largest difference between seeds of one method."""
    of_methods = [[_r1(run) for run in runs.values()] for runs in results.values()]
    return max((max(shares) - min(shares) for shares in of_methods), default=0.0)


def _r1(run: Document) -> float:
    shares: dict[str, float] = run["recall"][
        TOGETHER if TOGETHER in run["recall"] else next(iter(run["recall"]))
    ]
    return shares["1"]


def _pmr(runs: Document, seed: str, view: str) -> float | None:
    mining = runs[seed]["mining"].get(view, {})
    return mining["mined"]["pmr"] if "mined" in mining else None


def points(gain: Sequence[float]) -> str:
    """A mean difference of shares in points, and each seed's."""
    each = ", ".join(f"{100 * one:+.1f}" for one in gain)
    return f"{100 * mean(gain):+.1f} points" + (f" ({each} by seed)" if len(gain) > 1 else "")


def cell(shares: Sequence[float]) -> str:
    """A mean share in percent, and each seed's where there are several."""
    if not shares:
        return "–"
    each = " (" + ", ".join(map(_percent, shares)) + ")" if len(shares) > 1 else ""
    return f"{_percent(mean(shares))}{each}"


def _percent(share: float) -> str:
    return f"{100 * share:.1f}"
