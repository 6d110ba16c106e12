"""Locks a folder for one process: two that write the same run would mix their checkpoints."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ...processes import imports_main
from ...progress import say
from .. import TrainError

LOCK = ".lock"


@contextmanager
def exclusive(folder: Path, purpose: str, *, wait: bool = False) -> Iterator[None]:
    """Locks the folder, so that no other process writes to it inside; the lock ends with the process, however it ends.

    purpose: what is done there, for the message, such as "train". wait: waits for another process that holds the lock,
    and prints that. On a file system without locks, nothing is checked.

    Raises:
        TrainError: another process holds the lock, for example a worker that outlived a killed torchrun; or a helper
            process came here because it imports a program whose calls stand at its top level.
    """
    import fcntl

    if imports_main():
        raise TrainError(
            f"out: a helper process was about to {purpose} {folder} too, since it imports the program's main file; put "
            'what that file does under `if __name__ == "__main__":`'
        )

    folder.mkdir(parents=True, exist_ok=True)
    with (folder / LOCK).open("a+") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            lock.seek(0)
            other = f"another process ({lock.read().strip() or 'unknown'}) is at work in {folder}"
            if not wait:
                raise TrainError(
                    f"out: {other}, which only one may {purpose}; wait for it, or end it"
                ) from None
            say(f"{other}: waiting for it")
            fcntl.flock(lock, fcntl.LOCK_EX)
        except OSError:
            pass
        lock.truncate(0)
        lock.write(f"process {os.getpid()} on {os.uname().nodename}")
        lock.flush()
        yield
