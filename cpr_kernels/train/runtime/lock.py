"""One process a folder: two that write the same run would mix their checkpoints."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ...progress import say
from .. import TrainError

LOCK = ".lock"


@contextmanager
def alone(folder: Path, does: str, *, waits: bool = False) -> Iterator[None]:
    """Nobody else writes to the folder while inside; the lock goes with the process, however it ends.

    does: what is done there, for the message, such as "train". waits: until another process is done, and says so. On a
    file system without locks, nothing is checked.

    Raises:
        TrainError: another process is at it, for example a worker that outlived a killed torchrun.
    """
    import fcntl

    folder.mkdir(parents=True, exist_ok=True)
    with (folder / LOCK).open("a+") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            lock.seek(0)
            other = f"another process ({lock.read().strip() or 'unknown'}) is at work in {folder}"
            if not waits:
                raise TrainError(f"out: {other}, which only one may {does}; wait for it, or end it") from None
            say(f"{other}: waiting for it")
            fcntl.flock(lock, fcntl.LOCK_EX)
        except OSError:
            pass
        lock.truncate(0)
        lock.write(f"process {os.getpid()} on {os.uname().nodename}")
        lock.flush()
        yield
