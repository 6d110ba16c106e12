"""Predicts times on a GPU that is not here, from counted instructions, in two numbers: a bound and what is likely.

The bound of a kernel is the longest of issuing its instructions, four a clock on every multiprocessor that has a block, of
its tensor-core products at the rate that `mma.sync` or `wgmma` reaches, and of its reads and writes of global memory at the
rate of L2, which is assumed. Likely is the sum of all bounds and a fifth, and a launch
each. SASS is about 0.8 of PTX (static ratio of the main loops). Nothing here is measured.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from places import ROOT

from .counts import Count

NOTES = ROOT / "bench" / "gpu_notes.md"
BEGIN, END = "<!-- counted: begin -->\n", "<!-- counted: end -->\n"
CLOCK, MULTIPROCESSORS, SASS = 1.755e9, 132, 0.8
PRODUCTS = 788e12 * 0.62 / (2 * 16 * 8 * 16)  # m16n8k16 a second: 62 % of the dense rate
WGMMA_PRODUCTS = 788e12 / (
    2 * 16 * 8 * 16
)  # what a matrix product of a library reaches, 80 % of the datasheet's rate
CACHE = 5.5e12  # bytes a second between L2 and all multiprocessors: assumed
LIKELY, LAUNCH = 1.2, 0.7e-6


class Part(NamedTuple):
    """Units of work of one kernel in a call; `blocks`: multiprocessors that have any, `issued` instructions a clock there."""

    kernel: str
    unit: str
    units: float
    launches: int = 1
    blocks: int = MULTIPROCESSORS
    issued: float = 4


class Goal(NamedTuple):
    name: str
    microseconds: float
    parts: list[Part]


def select_part(queries: int, sweeps: int) -> Part:
    """A block a query: a launch ends with the multiprocessors that have one more than others."""
    a_launch, blocks = queries // sweeps, min(queries // sweeps, MULTIPROCESSORS)
    return Part(
        "select_kernel<16>", "query, N = 16,384", sweeps * -(-a_launch // blocks) * blocks, sweeps, blocks
    )


def wgmma_goal(name: str, goal: float, queries: int, planes: str, sweeps: int) -> Goal:
    """The same with scores by wgmma: 128 blocks of 256 keys, of which each sweep's first tile waits for the keys, which
    the blocks split themselves."""
    tiles, kernel = -(-queries // 64) * 128, f"score_wgmma_kernel<{planes}>"
    parts = [
        Part(kernel, "256 keys and a first tile", sweeps * 128, sweeps),
        Part(kernel, "tile of 64 x 256", tiles - sweeps * 128, 0),
        select_part(queries, sweeps),
    ]
    numbers = "numbers" if planes == FLOAT32 else "16-bit numbers"
    return Goal(name, goal, [Part("prepare_kernel", f"packed row of 128 {numbers}", 2 * queries), *parts])


def cascade_goal(name: str, goal: float, queries: int, planes: str, tile: int, sweeps: int) -> Goal:
    """A ring call of N = 16,384, D = 128, two views, seven stages."""
    tiles = -(-queries // tile) * 128 * 2
    parts = [
        Part(f"score_kernel<{planes}, {tile}>", "tile", tiles, sweeps),
        select_part(queries, sweeps),
    ]
    if planes == "false, 2":
        parts.insert(0, Part("prepare_kernel", "row of 128 numbers", 2 * (queries + 16384)))
    return Goal(name, goal, parts)


def loss_goal(name: str, planes: int, numbers: str, stats: bool = False) -> Goal:
    """A loss of 512 x 16,384 by wgmma: 128 blocks of two times 64 queries and four steps."""
    kernel = f"attend_wgmma_kernel<{planes}, {2 if stats else 0}>"
    parts = [
        Part("prepare_kernel", f"packed row of 128 {numbers}", 512 + 16384),
        Part(kernel, "64 queries and a first step", 256, 1, 128, LOSS),
        Part(kernel, "step of 64 x 128", 768, 0, 128, LOSS),
    ]
    return Goal(name, LOSS_GOAL, [*parts, *after_the_sweep(stats)])


def plain_loss_goal(name: str, stats: bool = False) -> Goal:
    """The same in float32 by mma.sync."""
    kernel = f"attend_kernel<128, {2 if stats else 0}>"
    parts = [
        Part("prepare_kernel", "row of 128 numbers", 512 + 16384),
        Part(kernel, "warp and step of 32 keys", 512 / 16 * 16384 / 32, issued=LOSS),
    ]
    return Goal(name, LOSS_GOAL, [*parts, *after_the_sweep(stats)])


def tiny_goal(name: str, planes: str) -> Goal:
    """16 x 2,048: 16 warps a block score, of which eight select; what these issue less is added."""
    issued = ALONE * ALONE_16 / (ALONE_16 - ALONE)
    parts = [
        Part(f"tiny_kernel<{planes}>", "block of 16, 16 x 2,048", 16, 1, 16, ALONE_16),
        Part("select_kernel<8>", "query, N = 2,048", 16, 0, 16, issued),
    ]
    return Goal(name, 10, parts)


def after_the_sweep(stats: bool) -> list[Part]:
    """Own pairs, whose scores a sweep with statistics needs, and what ends the loss."""
    if not stats:
        return [Part("finish_kernel", "query, 1,024 keys with ids", 512)]
    return [Part("own_kernel", "query", 512), Part("finish_kernel", "query, 32 parts, statistics", 512)]


FLOAT32, BF16 = "false, 2", "true, 1"
LOSS_GOAL = 15
LOSS = 2  # issued a clock by 8 warps a multiprocessor
ALONE = 1.5  # what one block of 8 warps issues a clock, its barriers and loads waited for
ALONE_16 = 2.5  # of 16 warps, assumed as the former: less than twice that
GOALS = [
    wgmma_goal("512 x 16,384, float32, wgmma", 40, 512, FLOAT32, 2),
    wgmma_goal("512 x 16,384, bf16, wgmma", 28, 512, BF16, 2),
    wgmma_goal("64 x 16,384, float32, wgmma", 20, 64, FLOAT32, 1),
    wgmma_goal("64 x 16,384, bf16, wgmma", 16, 64, BF16, 1),
    cascade_goal("512 x 16,384, float32", 40, 512, FLOAT32, 64, 2),
    cascade_goal("512 x 16,384, bf16", 28, 512, BF16, 64, 2),
    cascade_goal("64 x 16,384, float32", 20, 64, FLOAT32, 64, 1),
    cascade_goal("64 x 16,384, bf16", 16, 64, BF16, 64, 1),
    tiny_goal("16 x 2,048, float32", FLOAT32),
    tiny_goal("16 x 2,048, bf16", BF16),
    loss_goal("loss and gradient, 512 x 16,384, float32, wgmma", 2, "numbers"),
    loss_goal("loss and gradient, 512 x 16,384, bf16, wgmma", 1, "16-bit numbers"),
    plain_loss_goal("loss and gradient, 512 x 16,384, float32"),
    loss_goal("loss, gradient and statistics, 512 x 16,384, float32, wgmma", 2, "numbers", stats=True),
    loss_goal("loss, gradient and statistics, 512 x 16,384, bf16, wgmma", 1, "16-bit numbers", stats=True),
    plain_loss_goal("loss, gradient and statistics, 512 x 16,384, float32", stats=True),
]  # fmt: skip


def bound(part: Part, count: Count) -> float:
    """Seconds at the least."""
    instructions, products = count.of["instructions"] * part.units, count.of["products"] * part.units
    share = MULTIPROCESSORS / part.blocks
    issue = instructions * SASS / (part.blocks * part.issued * CLOCK)
    rate = WGMMA_PRODUCTS if "wgmma" in part.kernel else PRODUCTS
    return max(issue, products / rate * share, count.of["global_bytes"] * part.units / CACHE)


def predictions(counts: Iterable[Count]) -> list[str]:
    """The rows of the table of goals."""
    known = {(count.kernel, count.unit): count for count in counts}
    rows = []
    for goal in GOALS:
        bounds = [bound(part, known[part.kernel, part.unit]) for part in goal.parts]
        likely = LIKELY * sum(bounds) + LAUNCH * sum(part.launches for part in goal.parts)
        names = ", ".join(
            f"{part.kernel.partition('_kernel')[0]} {1e6 * seconds:.1f}"
            for part, seconds in zip(goal.parts, bounds)
        )
        rows.append(
            f"| {goal.name} | {1e6 * sum(bounds):.0f} ({names}) | {1e6 * likely:.0f} | {goal.microseconds} |"
        )
    return rows


def section(counts: list[Count], sizes: dict[str, int]) -> str:
    """What bench/gpu_notes.md holds between its marks."""
    lines = [
        "| kernel | unit | warp-instructions | products | ldmatrix | barriers a warp | shared bytes | wavefronts, least "
        "| global bytes | PTX |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for kernel, unit, of in counts:
        warps = of["warps"] or 1
        lines.append(
            f"| `{kernel}` | {unit} | {of['instructions']:,.0f} | {of['products']:,.0f} | {of['matrices']:,.0f} | "
            f"{of['barriers'] / warps:,.0f} | {of['shared_bytes']:,.0f} | {of['wavefronts']:,.0f}, "
            f"{of['least_wavefronts']:,.0f} | {of['global_bytes']:,.0f} | {sizes[kernel]:,} |"
        )
    lines += ["", "| call | at least, us (each kernel) | predicted, us | goal |", "| --- | --- | --- | --- |"]
    return "\n".join([*lines, *predictions(counts), ""])


def written(notes: str, made: str) -> str:
    """The notes with the section between the marks replaced."""
    before, rest = notes.split(BEGIN)
    return before + BEGIN + made + END + rest.split(END)[1]
