"""Stops a training on a signal, after the current step."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


class Stop:
    """Is true once a signal requested an end."""

    requested = False

    def __bool__(self) -> bool:
        return self.requested


@contextmanager
def stop_flag() -> Iterator[Stop]:
    """Requests an end after the current step on SIGINT and SIGTERM; a second one ends at once."""
    stop = Stop()

    def request(number: int, frame: FrameType | None) -> None:
        if stop.requested:
            raise KeyboardInterrupt
        stop.requested = True

    try:
        before = {number: signal.signal(number, request) for number in (signal.SIGINT, signal.SIGTERM)}
    except ValueError:  # not in the main thread: the caller's signals stay as they are
        before = {}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
