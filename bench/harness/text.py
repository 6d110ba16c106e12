"""Formats numbers for people to read, and Markdown tables."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import mean


def duration(seconds: float) -> str:
    """Returns three significant digits in the unit that fits: 812 us, 4.02 ms, 1.58 s."""
    for unit, scale in (("us", 1e-6), ("ms", 1e-3)):
        if seconds < 999.5 * scale:
            return f"{significant(seconds / scale)} {unit}"
    return f"{significant(seconds)} s"


def size(count: float) -> str:
    """Returns bytes in kB, MB or GB."""
    for unit, scale in (("kB", 1e3), ("MB", 1e6)):
        if count < 999.5 * scale:
            return f"{count / scale:.0f} kB" if unit == "kB" else f"{significant(count / scale, 2)} MB"
    return f"{significant(count / 1e9, 2)} GB"


def significant(value: float, digits: int = 3) -> str:
    """Returns so many significant digits, never an exponent."""
    if abs(value) >= 10**digits - 0.5:
        return f"{value:.0f}"
    return f"{value:#.{digits}g}".rstrip(".")


def percents(shares: Sequence[float]) -> str:
    """Returns a mean share in percent, and each seed's where there are several: 25.0 (20.0, 30.0)."""
    if not shares:
        return "–"
    each = [f"{100 * share:.1f}" for share in shares]
    return f"{100 * mean(shares):.1f}" + (f" ({', '.join(each)})" if len(each) > 1 else "")


def markdown(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Returns a Markdown table; columns after the first are aligned to the right."""
    widths = [max(len(line[i]) for line in (header, *rows)) for i in range(len(header))]
    lines = [_line(header, widths)]
    lines.append(
        "|" + "|".join("-" * (w + 2) if i == 0 else "-" * (w + 1) + ":" for i, w in enumerate(widths)) + "|"
    )
    lines += [_line(row, widths) for row in rows]
    return "\n".join(lines)


def _line(cells: Sequence[str], widths: Sequence[int]) -> str:
    padded = [c.ljust(w) if i == 0 else c.rjust(w) for i, (c, w) in enumerate(zip(cells, widths))]
    return "| " + " | ".join(padded) + " |"
