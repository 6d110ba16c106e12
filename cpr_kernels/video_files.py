"""Which files hold video? One list of endings and of FFmpeg's demuxers, and one walk through folders."""

from __future__ import annotations

import os
import re
import stat
from collections import Counter, defaultdict
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import TypeVar

ENDINGS = frozenset((
    ".264", ".265", ".3g2", ".3gp", ".amv", ".asf", ".avi", ".dav", ".divx", ".dv", ".f4v", ".flv", ".gif", ".gxf",
    ".h264", ".h265", ".hevc", ".ivf", ".m1v", ".m2t", ".m2ts", ".m2v", ".m4v", ".mjpeg", ".mjpg", ".mk3d", ".mkv",
    ".mov", ".mp4", ".mpe", ".mpeg", ".mpg", ".mts", ".mxf", ".nut", ".obu", ".ogm", ".ogv", ".qt", ".rm", ".rmvb",
    ".tod", ".ts", ".vob", ".webm", ".wmv", ".wtv", ".y4m",
))  # fmt: skip
# FFmpeg's demuxers of containers and of bare video streams. Its readers of text, pictures, playlists and devices are
# not among them: they open other files, or draw letters as frames.
DEMUXERS = (
    "mov", "matroska", "avi", "mpegts", "mpeg", "mpegvideo", "m4v", "h261", "h263", "h264", "hevc", "vvc", "av1",
    "obu", "ivf", "vc1", "cavsvideo", "dirac", "dnxhd", "mjpeg", "flv", "live_flv", "kux", "asf", "asf_o", "gif",
    "ogg", "rm", "ivr", "mxf", "mxf_opatom", "gxf", "nut", "nuv", "nsv", "wtv", "dv", "dhav", "pva", "ty", "roq",
    "yuv4mpegpipe",
)  # fmt: skip
OPEN_OPTIONS = {"format_whitelist": ",".join(DEMUXERS)}  # of `av.open`
KINDS = {
    "picture": ".jpg .jpeg .png .bmp .tif .tiff .webp .heic .heif .avif .ppm .pgm .svg .psd .apng .ico .jxl .exr",
    "text": ".txt .nfo .md .rst .log .csv .tsv .json .jsonl .xml .html .htm .yaml .yml .toml .ini .pdf .doc .docx",
    "playlist": ".m3u .m3u8 .pls .xspf .cue .asx .mpd .ffconcat .ismv .sdp",
    "archive": ".zip .tar .gz .tgz .bz2 .xz .7z .rar .zst .iso",
    "sound": ".wav .mp3 .aac .flac .ogg .oga .opus .m4a .wma .aif .aiff .ac3 .mka",
    "subtitles": ".srt .vtt .ass .ssa .sub .idx .sbv .lrc",
    "unfinished download": ".part .crdownload .ytdl .tmp .download",
}
KIND_OF = {ending: kind for kind, endings in KINDS.items() for ending in endings.split()}
FOLDED = 10  # files of one folder and reason; more become one line

T = TypeVar("T")
PassedOver = list[tuple[str, str]]  # (name, reason); the reason's part before a colon is its kind


def why_not(name: str) -> str | None:
    """The reason, by its name, why a file is taken for no video; None where it may be one."""
    if name.startswith("."):
        return "hidden"
    stem, _, ending = name.rpartition(".")  # a path's suffix would take ten times as long
    ending = f".{ending.lower()}" if stem else ""
    if ending in ENDINGS:
        return None
    return KIND_OF.get(ending) or (f"ending {ending} is no video's" if ending else "no ending")


FRAME = re.compile(r"(?P<kind>.*?)[_-]?(?P<number>\d+)\.(?:jpe?g|png|webp|bmp)", re.IGNORECASE)
FEWEST = 2  # pictures that make a folder of frames
LEFTOVERS = ("thumbs.db", "ehthumbs.db", "desktop.ini")  # Windows' own files in folders of pictures


def numbered_frames(names: Iterable[str]) -> dict[str, list[str]]:
    """Returns the pictures among names by what is before their number, in the order of the numbers: img_00001.jpg."""
    groups: dict[str, dict[int, str]] = defaultdict(dict)
    for name in names:
        if (match := FRAME.fullmatch(name)) and not name.startswith("."):
            groups[match["kind"]][int(match["number"])] = name
    return {kind: [group[number] for number in sorted(group)] for kind, group in groups.items()}


def _why_no_frames(names: Sequence[str]) -> str | None:
    """None where a folder's names are those of one video's frames, numbered without a gap, with or without its flow;
    else why they are not, where all are numbered pictures, and nothing where they are other files.
    """
    shown = [name for name in names if not name.startswith(".") and name.lower() not in LEFTOVERS]
    groups = numbered_frames(shown)
    frames = {kind: group for kind, group in groups.items() if kind not in ("flow_x", "flow_y")}
    if not frames or sum(map(len, groups.values())) < len(shown) or len(shown) < FEWEST:
        return ""
    if len(frames) > 1:
        return f"numbered pictures of several names, so no folder of frames: {', '.join(sorted(frames)[:4])}"
    [only] = frames.values()
    first, last = (int(FRAME.fullmatch(only[i])["number"]) for i in (0, -1))  # type: ignore[index]
    if len(only) < FEWEST:
        return ""
    missing = last - first + 1 - len(only)
    return f"numbers of frames have a gap: {missing:,} missing from {first} to {last}" if missing else None


def walk(root: Path, frames: bool = False) -> tuple[list[str], PassedOver]:
    """Returns the files below a folder that may hold video, sorted, and what was passed over, with the reason.

    Names are below the root, with slashes. With `frames`, a folder that holds nothing but numbered pictures counts as
    a video. Links to files and folders are followed, except one that leads back to a folder that holds it. Hidden files
    and folders, which begin with a point, are passed over, and so are files whose ending is no video's.
    """
    found: list[str] = []
    passed_over: PassedOver = []
    status = root.stat()
    _walk(str(root), "", ((status.st_dev, status.st_ino),), found, passed_over, frames)
    return found, passed_over


def _walk(
    folder: str, below: str, above: tuple[tuple[int, int], ...], found: list[str], passed_over: PassedOver,
    frames: bool,
) -> None:  # fmt: skip
    """Adds the files of a folder in order, `below` the root, whose own and whose parents' identities are `above`."""
    try:
        with os.scandir(folder) as scan:
            entries = sorted(scan, key=lambda entry: entry.name)
    except OSError as error:
        passed_over.append((below or f"{folder}/", f"folder cannot be read: {error.strerror}"))
        return
    if not entries and below:
        passed_over.append((below, "empty folder"))
    if frames and below and (why := _why_no_frames([entry.name for entry in entries])) != "":
        if why is None:
            found.append(below[:-1])
        else:
            passed_over.append((below, why))
        return
    for entry in entries:
        name = entry.name
        shown = below + (name if name.isascii() else printable(name))
        if name.startswith("."):
            passed_over.append((shown, "hidden"))
            continue
        try:
            mode, identity = _kind(entry)
        except OSError as error:
            broken = f"broken link: to {os.readlink(entry.path)!r}" if entry.is_symlink() else None  # noqa: PTH115
            passed_over.append((shown, broken or f"cannot be read: {error.strerror}"))
            continue
        if shown != below + name:
            passed_over.append((shown, "name is not UTF-8: rename it"))
        elif not stat.S_ISDIR(mode):
            reason = why_not(name) if stat.S_ISREG(mode) else "no regular file"
            if reason is None:
                found.append(shown)
            else:
                passed_over.append((shown, reason))
        elif identity in above:
            passed_over.append((f"{shown}/", "link that leads back to a folder above it"))
        else:
            _walk(entry.path, f"{shown}/", (*above, identity), found, passed_over, frames)


def _kind(entry: os.DirEntry[str]) -> tuple[int, tuple[int, int]]:
    """The mode of a folder's entry and what identifies it; of a plain file without a call to the file system."""
    if entry.is_file(follow_symlinks=False):
        return stat.S_IFREG, (0, 0)
    status = entry.stat()
    return status.st_mode, (status.st_dev, status.st_ino)


def printable(name: str) -> str:
    """A file's name as text that can be written as UTF-8: other bytes become ``\\xff``."""
    return os.fsencode(name).decode("utf-8", "backslashreplace")


def first_of_each(items: Iterable[T], identity: Callable[[T], Hashable]) -> tuple[list[T], list[tuple[T, T]]]:
    """Returns the first item of each identity, and the further ones, each with the first."""
    first: dict[Hashable, T] = {}
    repeats = []
    for item in items:
        known = first.setdefault(identity(item), item)
        if known is not item:
            repeats.append((item, known))
    return list(first.values()), repeats


def by_reason(passed_over: Iterable[tuple[str, str]]) -> str:
    """How many were passed over for which kind of reason: ``picture 12, hidden 3``."""
    counts = Counter(reason.partition(":")[0] for _, reason in passed_over)
    return ", ".join(f"{reason} {count:,}" for reason, count in counts.most_common())


def folded(passed_over: Iterable[tuple[str, str]]) -> Iterator[tuple[str, str]]:
    """Yields the list with one line for many files of a folder and reason: a million pictures stay a short list."""
    groups: dict[tuple[str, str], list[tuple[str, str]]] = defaultdict(list)
    for name, reason in passed_over:
        groups[name.rpartition("/")[0], reason].append((name, reason))
    for (folder, reason), group in groups.items():
        if len(group) > FOLDED:
            yield f"{folder}/" if folder else ".", f"{reason}: {len(group):,} files"
        else:
            yield from group
