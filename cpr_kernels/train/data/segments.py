"""Which part of a video is a sample? Seconds from its first frame on."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Iterator
from typing import NamedTuple, TypeVar

T = TypeVar("T")
ROUNDING = 1e-6  # seconds: far below a frame, far above the rounding of a time


class Segment(NamedTuple):
    """The frames of a video with start <= time < end, in seconds from its first frame on; the default is all of it."""

    start: float = 0.0
    end: float = math.inf

    @property
    def whole(self) -> bool:
        """Whether this is all of the video."""
        return self == Segment()

    def id(self, name: str) -> str:
        """What names this part of the file `name`: ``a.mp4@1.5-3``, or the name itself for all of it."""
        return name if self.whole else f"{name}@{self.start:.10g}-{self.end:.10g}"

    def inside(self, frames: Iterable[tuple[T, float]]) -> Iterator[tuple[T, float]]:
        """Yields those of (frame, second), in order of time, that are in this part; reads none after it."""
        later = itertools.dropwhile(lambda timed: timed[1] < self.start - ROUNDING, frames)
        return itertools.takewhile(lambda timed: timed[1] < self.end - ROUNDING, later)


WHOLE = Segment()


def segment_of(start: str | float | None, end: str | float | None) -> Segment | None:
    """The part from `start` to `end`, numbers or text, where empty is the video's own; None where they are none."""
    try:
        first = 0.0 if start == "" else float(start)  # type: ignore[arg-type]
        last = math.inf if end == "" else float(end)  # type: ignore[arg-type]
    except (TypeError, ValueError, OverflowError):
        return None
    return Segment(first, last) if 0 <= first < last and math.isfinite(first) else None
