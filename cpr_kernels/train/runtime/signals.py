"""Stop when asked, not in the middle of a step."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


class Stop:
    """True once a signal asked for an end."""

    asked = False

    def __bool__(self) -> bool:
        return self.asked


@contextmanager
def stop_flag() -> Iterator[Stop]:
    """SIGINT and SIGTERM ask for an end after the current step; a second one ends at once."""
    stop = Stop()

    def ask(number: int, frame: FrameType | None) -> None:
        if stop.asked:
            raise KeyboardInterrupt
        stop.asked = True

    try:
        before = {number: signal.signal(number, ask) for number in (signal.SIGINT, signal.SIGTERM)}
    except ValueError:  # not in the main thread: the caller's signals stay as they are
        before = {}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
