"""Reads videos in several processes: what each gave, or why it gave nothing, whatever its decoder does."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections import deque
from collections.abc import Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from multiprocessing.connection import wait as wait_for
from pathlib import Path
from typing import TypedDict

from ...processes import process_context
from ...reading.seals import file_hash
from .. import TrainError
from .decoding import FrameSettings, Knots, Pictures, UnreadableVideo, knots, read_views
from .kinds.shards import extracted
from .segments import WHOLE, Segment
from .sound import NoSound, log_mel, packed_spectrogram, read_sound
from .sources import Source

SLOWEST = 2.0  # seconds from a picture to the next, the mean, up to which sound is kept


class Lasting(str):
    """Why a file gives nothing, until it changes: its content decides, neither the disk nor the memory."""


class Entry(TypedDict, total=False):
    """What is stored of a video beside its frames, in part as in `Video`; the last three are its file's."""

    frames: int
    silence: str
    fps: float
    knots: Knots
    note: str
    bytes: int
    changed_ns: int
    content_sha256: str  # none of a folder of frames


class Refusal(TypedDict):
    """Why a file cannot be used, what found that, and the file's stamp."""

    reason: str
    reader: str
    bytes: int
    changed_ns: int


@dataclass(frozen=True)
class Reading:
    """What a video file gave: its frames as JPEGs, its spectrogram as a PNG where there is one, and its entry."""

    rgb: list[bytes]
    flow: list[bytes]
    audio: bytes
    entry: Entry


def read_all(
    todo: list[Source], settings: FrameSettings, processes: int
) -> Iterator[tuple[Source, Reading | str]]:
    """Every source with its two views, or the reason why not, in the order of completion."""
    waiting = deque(todo)
    while waiting:
        flying: dict[Future[Reading | str], Source] = {}
        try:
            yield from _read_in_pool(waiting, settings, processes, flying)
        except BrokenProcessPool:
            # One file killed its decoder, and with it the pool; reading those in flight one by one finds it.
            yield from _read_one_by_one(list(flying.values()), settings)


def _read_in_pool(
    waiting: deque[Source],
    settings: FrameSettings,
    processes: int,
    flying: dict[Future[Reading | str], Source],
) -> Iterator[tuple[Source, Reading | str]]:
    with _pool(min(processes, len(waiting))) as pool:
        try:
            while waiting or flying:
                while waiting and len(flying) < 2 * processes:
                    future = pool.submit(read_source, waiting[0], settings)  # raises where the pool is broken
                    flying[future] = waiting.popleft()
                for future in wait(flying, return_when=FIRST_COMPLETED).done:
                    outcome = future.result()
                    yield flying.pop(future), outcome
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


def _read_one_by_one(
    sources: list[Source], settings: FrameSettings
) -> Iterator[tuple[Source, Reading | str]]:
    """Each source in a process of its own making, twice if need be; a file that ends both is the guilty one."""
    pool = _pool(1)
    for source in sources:
        outcome: Reading | str = "the decoder crashed on this file"
        for _ in range(2):
            try:
                outcome = pool.submit(read_source, source, settings).result()
                break
            except BrokenProcessPool:
                pool = _working_pool()
        yield source, outcome
    pool.shutdown()


def _working_pool() -> ProcessPoolExecutor:
    """A pool of one process that has answered; an error where processes end as soon as they start."""
    pool = _pool(1)
    try:
        pool.submit(os.getpid).result()
    except BrokenProcessPool:
        raise TrainError(
            "processes: a decoding process ends as soon as it starts; its own message stands above"
        ) from None
    return pool


def _pool(processes: int) -> ProcessPoolExecutor:
    # Never forked from here: torch is loaded, and a fork of its threads can hang.
    return ProcessPoolExecutor(processes, process_context(__name__), _start_worker)


def read_source(source: Source, settings: FrameSettings) -> Reading | str:
    """What a source gives, taken out of its shard where it is in one, with its file's stamp; see `read_one`."""
    try:
        stamp = stamp_of(source.path)
        with extracted(source.path, source.member) as path:
            if path.is_file():
                stamp["content_sha256"] = file_hash(path)
            return read_one(path, settings, source.segment, stamp)
    except OSError as error:
        return (
            "missing file" if isinstance(error, FileNotFoundError) else f"cannot be read ({error.strerror})"
        )


def content_hash(source: Source) -> str:
    """The `content_sha256` that a source's entry has while its content is the same; empty where it cannot be read."""
    try:
        with extracted(source.path, source.member) as path:
            return file_hash(path) if path.is_file() else ""
    except OSError:
        return ""


def read_one(
    path: Path, settings: FrameSettings, segment: Segment = WHOLE, stamp: Entry | None = None
) -> Reading | str:
    """What a file gives, or in a line why it gives nothing, whatever its decoder raises.

    `stamp`: of the file that its entry is to name, by default its own.
    """
    try:
        stamp = stamp_of(path) if stamp is None else stamp
        pictures = read_views(path, settings, segment)
    except UnreadableVideo as reason:
        lasts = reason.__cause__ is None or isinstance(reason.__cause__, ValueError)
        return Lasting(reason) if lasts and path.exists() else str(reason)
    except FileNotFoundError:
        return "missing file"
    except ImportError:
        raise  # a missing package fails for every file
    except Exception as error:
        return f"its decoder failed ({type(error).__name__}: {_one_line(error)})"
    audio, silence = _read_sound(path, pictures)
    entry: Entry = {
        "frames": len(pictures.rgb), "silence": silence, "fps": pictures.rate, "knots": knots(pictures.times),
        "note": pictures.note, **stamp,
    }  # fmt: skip
    return Reading(pictures.rgb, pictures.flow, audio, entry)


def _read_sound(path: Path, pictures: Pictures) -> tuple[bytes, str]:
    """The spectrogram of a video's pictures as a PNG, or no bytes and why there is none."""
    if path.is_dir():
        return b"", "no sound of a folder of frames"
    seconds = pictures.times[-1]
    if seconds > SLOWEST * len(pictures.rgb):
        return b"", f"no sound of pictures that are {SLOWEST:g} s apart or more"
    try:
        return packed_spectrogram(log_mel(read_sound(path, seconds, pictures.origin))), ""
    except NoSound as reason:
        return b"", str(reason)
    except Exception as error:
        return b"", f"its sound's decoder failed ({type(error).__name__}: {_one_line(error)})"


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:200]


def _start_worker() -> None:
    """One core a worker; Ctrl-C is the parent's business; a worker whose parent was killed leaves too."""
    import av.logging
    import cv2

    cv2.setNumThreads(1)
    av.logging.set_level(None)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = multiprocessing.parent_process()

    def leave_with_parent() -> None:
        if parent is not None:
            wait_for([parent.sentinel])
            os._exit(1)

    threading.Thread(target=leave_with_parent, daemon=True).start()


def stamp_of(path: Path) -> Entry:
    """Size and time of change of a file, as an entry holds them."""
    status = path.stat()
    return {"bytes": status.st_size, "changed_ns": status.st_mtime_ns}
