"""Videos in, data set out: decoding and TV-L1 in several processes, one writer, resumable at any moment."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import threading
from collections import Counter, deque
from collections.abc import Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict, dataclass
from multiprocessing.connection import wait as wait_for
from pathlib import Path
from typing import Any

from ...progress import ProgressBar, say, table
from .. import TrainError
from ..runtime.lock import exclusive
from .decoding import FrameSettings, UnreadableVideo, read_views
from .manifest import VERSION, Manifest, Video
from .sound import NoSound, log_mel, packed_spectrogram, read_sound
from .sources import Source, list_sources
from .store import FrameStore, packed, record_key


@dataclass(frozen=True)
class Prepared:
    """What one run of `prepare` did: `stored` now, `kept` from an earlier run, and the manifest of all."""

    manifest: Manifest
    stored: int
    kept: int


def prepare(
    videos: Path,
    out: Path,
    settings: FrameSettings | None = None,
    processes: int = 0,
    lists: tuple[Path, int] | None = None,
) -> Prepared:
    """Stores the RGB and flow frames of every readable video of a folder or CSV, and its sound where it has one, in one
    LMDB at `out`.

    What is stored already, with the same settings and from an unchanged file, is kept: kill it at any moment
    and run it again. Broken, short and missing files are skipped and listed with their reason, in
    `manifest.json`, in `skipped.txt` and at the end. `processes=0` takes one a core. `lists`: a folder of official
    split lists, and which of its splits.

    Raises:
        TrainError: no video at all, none readable, other settings than those `out` was made with, a full
        disk.
    """
    settings = settings or FrameSettings()
    sources, skipped = list_sources(Path(videos), *(lists or ()))
    with exclusive(Path(out), "prepare", wait=True):
        return _prepare(sources, skipped, Path(videos), Path(out), settings, processes or os.cpu_count() or 1)


def _prepare(
    sources: list[Source],
    skipped: list[tuple[str, str]],
    videos: Path,
    out: Path,
    settings: FrameSettings,
    processes: int,
) -> Prepared:
    """`prepare` of listed videos; `skipped` is added to."""
    store = FrameStore(out, writable=True)
    try:
        _same_settings(store, settings)
        entries = {source.id: entry for source in sources if (entry := _stored_entry(store, source))}
        kept = len(entries)
        todo = [source for source in sources if source.id not in entries]
        with ProgressBar("prepare", len(sources), done=kept, unit="video") as bar:
            for source, outcome in _read_all(todo, settings, processes):
                if isinstance(outcome, str):
                    skipped.append((source.id, outcome))
                else:
                    entry = _entry(source, len(outcome.rgb), outcome.silence)
                    sound = {} if outcome.silence else {record_key("audio", source.id): outcome.audio}
                    store.put({
                        record_key("rgb", source.id): packed(outcome.rgb),
                        record_key("flow", source.id): packed(outcome.flow),
                        **sound,
                        record_key("entry", source.id): json.dumps(entry).encode(),
                    })  # fmt: skip
                    entries[source.id] = entry
                bar.advance()
    finally:
        store.close()
    if not entries:
        example = "; ".join(f"{name}: {reason}" for name, reason in skipped[:2])
        raise TrainError(f"videos: none of the {len(skipped)} files in {videos} could be used ({example})")
    manifest = _manifest(sources, entries, settings, skipped)
    manifest.save(out)
    return Prepared(manifest, stored=len(entries) - kept, kept=kept)


def print_summary(prepared: Prepared, out: Path) -> None:
    """The final tables: videos by class and split, and what was skipped, with the reason."""
    manifest = prepared.manifest
    counts = [[0, 0] for _ in manifest.classes]
    for video in manifest.videos:
        counts[video.label][video.split == "test"] += 1
    rows = [[name, str(train), str(test)] for name, (train, test) in zip(manifest.classes, counts)]
    rows.append(["all", str(sum(c[0] for c in counts)), str(sum(c[1] for c in counts))])
    table(
        f"{out}: {prepared.stored} stored, {prepared.kept} kept from before", ["class", "train", "test"], rows
    )
    mute = Counter(video.silence for video in manifest.videos)
    rows = [["sound", str(mute.pop("", 0))], *([reason, str(n)] for reason, n in mute.most_common())]
    table(f"sound of {len(manifest.videos)} videos", ["", "videos"], rows[:12])
    for split, place in (("training", 0), ("test", 1)):
        lacking = [name for name, count in zip(manifest.classes, counts) if not count[place]]
        if lacking:
            more = f" and {len(lacking) - 5} more" if len(lacking) > 5 else ""
            say(f"without a {split} video: {', '.join(lacking[:5])}{more}")
    if manifest.skipped:
        shown = [list(row) for row in manifest.skipped[:20]]
        if len(manifest.skipped) > len(shown):
            shown.append([f"... {len(manifest.skipped) - len(shown)} more", f"see {out / 'skipped.txt'}"])
        table(f"{len(manifest.skipped)} skipped", ["file", "reason"], shown)


def _same_settings(store: FrameStore, settings: FrameSettings) -> None:
    wanted = {"version": VERSION, **asdict(settings)}
    before = store.get_json("settings")
    if before is None:
        store.put({"settings": json.dumps(wanted).encode()})
    elif before != wanted:
        changed = ", ".join(f"{k} {before.get(k)} -> {v}" for k, v in wanted.items() if before.get(k) != v)
        raise TrainError(
            f"out: {store.folder} was made with other settings ({changed}); give a new --out or delete it"
        )


def _stored_entry(store: FrameStore, source: Source) -> dict[str, Any] | None:
    entry = store.get_json(record_key("entry", source.id))
    if entry is None or not source.path.is_file():
        return None
    return entry if entry == _entry(source, entry["frames"], entry["silence"]) else None


def _entry(source: Source, frames: int, silence: str) -> dict[str, Any]:
    status = source.path.stat()
    return {
        "frames": frames, "silence": silence, "bytes": status.st_size, "changed_ns": status.st_mtime_ns,
    }  # fmt: skip


def _manifest(
    sources: list[Source],
    entries: dict[str, dict[str, Any]],
    settings: FrameSettings,
    skipped: list[tuple[str, str]],
) -> Manifest:
    usable = [source for source in sources if source.id in entries]
    classes = sorted({source.label for source in usable})
    groups = {group: i for i, group in enumerate(sorted({source.group for source in usable}))}
    videos = [
        Video(
            source.id,
            classes.index(source.label),
            groups[source.group],
            source.split,
            entries[source.id]["frames"],
            entries[source.id]["silence"],
        )
        for source in usable
    ]
    return Manifest(settings, classes, videos, sorted(skipped))


@dataclass(frozen=True)
class Reading:
    """What a video file gave: its frames as JPEGs, its spectrogram as a PNG, or why it has none."""

    rgb: list[bytes]
    flow: list[bytes]
    audio: bytes = b""
    silence: str = ""


def _read_all(
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
                    source = waiting.popleft()
                    flying[pool.submit(_read_one, source.path, settings)] = source
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
                outcome = pool.submit(_read_one, source.path, settings).result()
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
    # Spawned, not forked: torch is loaded here, and a fork of its threads can hang.
    return ProcessPoolExecutor(processes, multiprocessing.get_context("spawn"), _start_worker)


def _read_one(path: Path, settings: FrameSettings) -> Reading | str:
    try:
        rgb, flow = read_views(path, settings)
    except UnreadableVideo as reason:
        return str(reason)
    try:
        sound = read_sound(path, len(rgb), settings.fps_stride)
    except NoSound as reason:
        return Reading(rgb, flow, silence=str(reason))
    return Reading(rgb, flow, packed_spectrogram(log_mel(sound)))


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
