"""Videos in, data set out: several processes read, one writes, resumable at any moment."""

from __future__ import annotations

import json
import math
import os
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, TypeVar

from ...progress import ProgressBar, say, table
from ...reading.records import many_objects
from ...reading.seals import sealed_text
from ...video_files import by_reason, folded
from .. import TrainError
from ..runtime.lock import exclusive
from .decoding import FrameSettings
from .layouts import Labels
from .manifest import NO_CLASS, VERSION, Manifest, Video, rate_warning
from .parts import FOLDER as IS_PART
from .parts import Part, finished, refuse_other_parts
from .sources import ROOT_HINT, Source, list_sources
from .store import FrameStore, packed, record_key
from .workers import Entry, Lasting, Reading, Refusal, content_hash, read_all

SPLITS = ("train", "test", "val")
KEPT = ("frames", "silence", "fps", "knots", "note")  # of an entry, in the manifest


T = TypeVar("T", Entry, Refusal)


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
        claim(store, settings)
        entries = _known_entries(store, sources)
        refused = _unchanged(store.all_json("refused", Refusal), "refused", sources)
        kept = len(entries)
        refused = {
            id: note for id, note in refused.items() if id not in entries and note["reader"] == _reader()
        }
        skipped += [(id, str(note["reason"])) for id, note in refused.items()]
        todo = [source for source in sources if source.id not in entries and source.id not in refused]
        with ProgressBar("prepare", len(sources), done=kept + len(refused), unit="video") as bar:
            for source, outcome in read_all(todo, settings, processes):
                if isinstance(outcome, str):
                    skipped.append((source.id, str(outcome)))
                    if isinstance(outcome, Lasting) and source.stamp:
                        note = Refusal(
                            reason=str(outcome),
                            reader=_reader(),
                            bytes=source.stamp.bytes,
                            changed_ns=source.stamp.changed_ns,
                        )
                        store.put({record_key("refused", source.id): sealed_text(note)})
                else:
                    store.put(records(source.id, outcome))
                    entries[source.id] = outcome.entry
                bar.advance()
    finally:
        store.close()
    if not entries and sources and not IS_PART.fullmatch(out.name):
        example = "; ".join(f"{name}: {reason}" for name, reason in skipped[passed_over : passed_over + 2])
        hint = ROOT_HINT if example.endswith("missing file") else ""
        raise TrainError(
            f"videos: none of the {len(sources)} files in {videos} could be used ({example}){hint}"
        )
    store.note_whole()
    (manifest := _manifest(sources, entries, settings, skipped)).save(out)
    return Prepared(manifest, stored=len(entries) - kept, kept=kept)


def records(id: str, reading: Reading) -> dict[str, bytes]:
    """The records of a video, which are stored together or not at all."""
    rgb, flow = record_key("rgb", id), record_key("flow", id)
    return {
        rgb: packed(reading.rgb, rgb),
        flow: packed(reading.flow, flow),
        **({record_key("audio", id): reading.audio} if reading.audio else {}),
        record_key("entry", id): sealed_text(reading.entry),
    }


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
        table(f"notes on {len(notes)} videos", ["file", "reason"], notes[:20])
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


def claim(store: FrameStore, settings: FrameSettings) -> None:
    """Notes in a new data set what it is made with; raises `TrainError` for one that was made otherwise."""
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


def _known_entries(store: FrameStore, sources: list[Source]) -> dict[str, Entry]:
    """What is stored of each source whose file is the same: in size and time of change, or where only its time is
    another, as after copying, in its content.
    """
    stored = store.all_json("entry", Entry)
    known = _unchanged(stored, "entry", sources)
    before = {one.id: stored.get(record_key("entry", one.id)) for one in sources if one.id not in known}
    others = [(one, entry, one.stamp) for one in sources if (entry := before.get(one.id)) and one.stamp]
    touched = [
        item for item in others if item[1].get("content_sha256") and item[1].get("bytes") == item[2].bytes
    ]
    copied: dict[str, Entry] = {}
    with ThreadPoolExecutor() as pool, ProgressBar("compare", len(touched), unit="video") as bar:
        hashes = pool.map(lambda item: content_hash(item[0]), touched)
        for (source, entry, stamp), found in zip(touched, hashes):
            if found == entry["content_sha256"]:
                copied[source.id] = {**entry, "changed_ns": stamp.changed_ns}
            bar.advance()
    if copied:
        store.put({record_key("entry", id): sealed_text(entry) for id, entry in copied.items()})
        say(f"{len(copied):,} files have another time of change and the same content: kept")
    if len(others) > len(copied):
        say(f"{len(others) - len(copied):,} files have changed since they were stored: they are read again")
    return {**known, **copied}


def _unchanged(stored: dict[str, T], kind: str, sources: list[Source]) -> dict[str, T]:
    """What is stored of each source whose file has the same size and time of change: {id: JSON}."""
    known: dict[str, T] = {}
    for source in sources if stored else ():
        note = stored.get(record_key(kind, source.id))
        if note and source.stamp and source.stamp == (note.get("bytes"), note.get("changed_ns")):
            known[source.id] = note
    return known


def _reader() -> str:
    """What reads the videos: another version may read a file that this one cannot."""
    import av

    return f"cpr_kernels {version('cpr_kernels')}, PyAV {av.__version__}"


@many_objects()
def _manifest(
    sources: list[Source],
    entries: dict[str, Any],
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
