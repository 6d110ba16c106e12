"""Videos in, data set out: decoding and TV-L1 in several processes, one writer, resumable at any moment."""

from __future__ import annotations

import json
import math
import multiprocessing
import os
import signal
import threading
from collections import Counter, deque
from collections.abc import Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict, dataclass, replace
from multiprocessing.connection import wait as wait_for
from pathlib import Path
from typing import Any

from ...processes import process_context
from ...progress import ProgressBar, say, table
from ...reading.seals import sealed
from ...video_files import by_reason, folded
from .. import TrainError
from ..runtime.lock import exclusive
from .decoding import FrameSettings, Pictures, UnreadableVideo, knots, read_views
from .kinds.shards import extracted
from .layouts import Labels
from .manifest import NO_CLASS, VERSION, Manifest, Video, rate_warning
from .parts import FOLDER as IS_PART
from .parts import Part, finished, refuse_other_parts
from .segments import WHOLE, Segment
from .sound import NoSound, log_mel, packed_spectrogram, read_sound
from .sources import Source, list_sources
from .store import FrameStore, packed, record_key

SPLITS = ("train", "test", "val")
KEPT = ("frames", "silence", "fps", "knots", "note")  # of an entry, in the manifest
SLOWEST = 2.0  # seconds from a picture to the next, the mean, up to which sound is kept


@dataclass(frozen=True)
class Prepared:
    """What one run of `prepare` did: `stored` now, `kept` from an earlier run, and the manifest of all."""

    manifest: Manifest
    stored: int
    kept: int


def prepare(
    videos: Path | Sequence[Path],
    out: Path,
    settings: FrameSettings | None = None,
    processes: int = 0,
    lists: tuple[Path, int] | None = None,
    labels: Labels = "auto",
    root: Path | None = None,
    part: Part | None = None,
) -> Prepared:
    """Stores the RGB and flow frames of every readable video of a folder or list, and its sound where it has one, in
    one LMDB at `out`; see `list_sources` for what it may hold.

    What is stored already, with the same settings and from an unchanged file, is kept: kill it at any moment
    and run it again. Broken, short and missing files are skipped and listed with their reason, in
    `manifest.json`, in `skipped.txt` and at the end. `processes=0` takes one a core.

    `lists`: a folder of official split lists, and which of its splits. `labels`: whether folders are classes; auto:
    where there are any. `root`: the folder that paths in lists are below, by default that of the list. `part`: stores
    one part of the videos, in a folder of its own in `out`; who finishes the last part writes the manifest of all.

    Raises:
        TrainError: no video at all, none readable, other settings than those `out` was made with, a full disk.
    """
    settings = settings or FrameSettings()
    splits, fold = lists or (None, 1)
    given = [Path(videos)] if isinstance(videos, (str, Path)) else [Path(one) for one in videos]
    sources, passed_over, notes = list_sources(given, splits, fold, labels, root)
    videos = Path(", ".join(map(str, given)))
    for note in notes:
        say(f"{videos}: {note}")
    if passed_over:
        say(f"{videos}: {len(sources):,} videos; passed over: {by_reason(passed_over)}")
    skipped = list(folded(passed_over))
    out, processes = Path(out), processes or os.cpu_count() or 1
    refuse_other_parts(out, part)
    if part is None:
        with exclusive(out, "prepare", wait=True):
            return _prepare(sources, skipped, videos, out, settings, processes)
    own, folder = [source for source in sources if part.holds(source.id)], part.folder(out)
    with exclusive(folder, "prepare", wait=True):
        (folder / "manifest.json").unlink(missing_ok=True)  # a part without one is not finished
        made = _prepare(own, [], videos, folder, settings, processes)
    with exclusive(out, "prepare", wait=True):
        return _joined(made, sources, skipped, out, part.of)


def _joined(
    made: Prepared, sources: list[Source], skipped: list[tuple[str, str]], out: Path, of: int
) -> Prepared:
    """Writes the manifest of all parts where all are finished; else says which are not."""
    manifests, missing = finished(out, of)
    if missing:
        say(
            f"{out}: parts {', '.join(map(str, missing))} of {of} are not finished: run them, or run them again"
        )
        return made
    settings = made.manifest.settings
    if any(one.settings != settings for one in manifests):
        raise TrainError(
            f"out: the parts in {out} were made with different settings; make them again with the same"
        )
    entries = {
        video.id: {name: getattr(video, name) for name in KEPT} for one in manifests for video in one.videos
    }
    skipped = skipped + [entry for one in manifests for entry in one.skipped]
    if not entries:
        raise TrainError(
            f"videos: none of the {len(sources)} files could be used; see the parts' skipped.txt"
        )
    whole = _manifest(sources, entries, settings, skipped)
    whole.save(out)
    say(f"{out}: all {of} parts are finished")
    return Prepared(whole, made.stored, made.kept)


def _prepare(
    sources: list[Source],
    skipped: list[tuple[str, str]],
    videos: Path,
    out: Path,
    settings: FrameSettings,
    processes: int,
) -> Prepared:
    """`prepare` of listed videos; `skipped` is added to."""
    store, passed_over = FrameStore(out, writable=True), len(skipped)
    try:
        store.check()
        _same_settings(store, settings)
        entries = {source.id: entry for source in sources if (entry := _stored_entry(store, source))}
        kept = len(entries)
        todo = [source for source in sources if source.id not in entries]
        with ProgressBar("prepare", len(sources), done=kept, unit="video") as bar:
            for source, outcome in _read_all(todo, settings, processes):
                if isinstance(outcome, str):
                    skipped.append((source.id, outcome))
                else:
                    rgb, flow = record_key("rgb", source.id), record_key("flow", source.id)
                    store.put({
                        rgb: packed(outcome.rgb, rgb),
                        flow: packed(outcome.flow, flow),
                        **({record_key("audio", source.id): outcome.audio} if outcome.audio else {}),
                        record_key("entry", source.id): json.dumps(sealed(outcome.entry)).encode(),
                    })  # fmt: skip
                    entries[source.id] = outcome.entry
                bar.advance()
    finally:
        store.close()
    if not entries and sources and not IS_PART.fullmatch(out.name):
        example = "; ".join(f"{name}: {reason}" for name, reason in skipped[passed_over : passed_over + 2])
        raise TrainError(f"videos: none of the {len(sources)} files in {videos} could be used ({example})")
    store.note_whole()
    (manifest := _manifest(sources, entries, settings, skipped)).save(out)
    return Prepared(manifest, stored=len(entries) - kept, kept=kept)


def print_summary(prepared: Prepared, out: Path) -> None:
    """The final tables: videos by class and split, and what was skipped, with the reason."""
    manifest = prepared.manifest
    counts = Counter((video.label, video.split) for video in manifest.videos)
    splits = [split for split in SPLITS if split != "val" or any(kind == "val" for _, kind in counts)]
    rows = [
        [name, *(str(counts[label, split]) for split in splits)]
        for label, name in enumerate(manifest.classes)
    ]
    totals = {split: sum(count for (_, kind), count in counts.items() if kind == split) for split in splits}
    rows.append(["all" if manifest.classes else "all, without classes", *map(str, totals.values())])
    table(f"{out}: {prepared.stored} stored, {prepared.kept} kept from before", ["class", *splits], rows)
    mute = Counter(video.silence for video in manifest.videos)
    rows = [["sound", str(mute.pop("", 0))], *([reason, str(n)] for reason, n in mute.most_common())]
    table(f"sound of {len(manifest.videos)} videos", ["", "videos"], rows[:12])
    if said := rate_warning(manifest):
        say(f"warning: {said}")
    notes = [[video.id, video.note] for video in manifest.videos if video.note]
    if notes:
        table(f"times of {len(notes)} videos", ["file", "reason"], notes[:20])
    for split, word in (("train", "training"), ("test", "test")):
        lacking = [name for label, name in enumerate(manifest.classes) if not counts[label, split]]
        if lacking:
            more = f" and {len(lacking) - 5} more" if len(lacking) > 5 else ""
            say(f"without a {word} video: {', '.join(lacking[:5])}{more}")
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
        return
    before = {**asdict(FrameSettings()), **before}  # what is newer than the data set had its default
    if before != wanted:
        changed = ", ".join(f"{k} {before.get(k)} -> {v}" for k, v in wanted.items() if before.get(k) != v)
        raise TrainError(
            f"out: {store.folder} was made with other settings ({changed}); give a new --out or delete it"
        )


def _stored_entry(store: FrameStore, source: Source) -> dict[str, Any] | None:
    """What is known of a video that is stored already, from a file that has not changed since."""
    entry = store.get_json(record_key("entry", source.id))
    try:
        return entry if entry is not None and entry == {**entry, **_stamp(source.path)} else None
    except OSError:
        return None


def _stamp(path: Path) -> dict[str, int]:
    """Size and time of change of a file: what tells a changed one from an unchanged one."""
    status = path.stat()
    return {"bytes": status.st_size, "changed_ns": status.st_mtime_ns}


def _manifest(
    sources: list[Source],
    entries: dict[str, dict[str, Any]],
    settings: FrameSettings,
    skipped: list[tuple[str, str]],
) -> Manifest:
    usable = [source for source in sources if source.id in entries]
    classes = sorted({source.label for source in usable if source.label})
    numbers = {name: number for number, name in enumerate(classes)}
    groups = {group: i for i, group in enumerate(sorted({source.group for source in usable}))}
    videos = [
        Video(
            source.id,
            numbers.get(source.label, NO_CLASS),
            groups[source.group],
            source.split,
            **{name: entries[source.id][name] for name in KEPT if name in entries[source.id]},
            start=source.segment.start,
            end=source.segment.end if math.isfinite(source.segment.end) else None,
        )
        for source in usable
    ]
    return Manifest(settings, classes, videos, sorted(skipped))


@dataclass(frozen=True)
class Reading:
    """What a video file gave: its frames as JPEGs, its spectrogram as a PNG where there is one, and its entry."""

    rgb: list[bytes]
    flow: list[bytes]
    audio: bytes
    entry: dict[str, Any]


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
                    future = pool.submit(
                        _read_source, waiting[0], settings
                    )  # raises where the pool is broken
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
                outcome = pool.submit(_read_source, source, settings).result()
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


def _read_source(source: Source, settings: FrameSettings) -> Reading | str:
    """What a source gives, taken out of its shard where it is in one; see `_read_one`."""
    try:
        stamp = _stamp(source.path)
        with extracted(source.path, source.member) as path:
            outcome = _read_one(path, settings, source.segment)
    except OSError as error:
        return (
            "missing file" if isinstance(error, FileNotFoundError) else f"cannot be read ({error.strerror})"
        )
    return outcome if isinstance(outcome, str) else replace(outcome, entry={**outcome.entry, **stamp})


def _read_one(path: Path, settings: FrameSettings, segment: Segment = WHOLE) -> Reading | str:
    """What a file gives, or in a line why it gives nothing, whatever its decoder raises."""
    try:
        stamp = _stamp(path)
        pictures = read_views(path, settings, segment)
    except UnreadableVideo as reason:
        return str(reason)
    except FileNotFoundError:
        return "missing file"
    except ImportError:
        raise  # a missing package fails for every file
    except Exception as error:
        return f"its decoder failed ({type(error).__name__}: {_one_line(error)})"
    audio, silence = _read_sound(path, pictures)
    entry = {
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
