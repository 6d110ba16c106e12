"""Numbers as people read them, and Markdown tables."""

from __future__ import annotations

from collections.abc import Sequence


def duration(seconds: float) -> str:
    """Three significant digits in the unit that fits: 812 us, 4.02 ms, 1.58 s."""
    for unit, scale in (("us", 1e-6), ("ms", 1e-3)):
        if seconds < 999.5 * scale:
            return f"{significant(seconds / scale)} {unit}"
    return f"{significant(seconds)} s"


def size(count: float) -> str:
    """Bytes in kB, MB or GB."""
    for unit, scale in (("kB", 1e3), ("MB", 1e6)):
        if count < 999.5 * scale:
            return f"{count / scale:.0f} kB" if unit == "kB" else f"{significant(count / scale, 2)} MB"
    return f"{significant(count / 1e9, 2)} GB"


def significant(value: float, digits: int = 3) -> str:
    """So many significant digits, never an exponent."""
    if abs(value) >= 10**digits - 0.5:
        return f"{value:.0f}"
    return f"{value:#.{digits}g}".rstrip(".")


def markdown(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table; columns after the first are aligned to the right."""
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
