"""Measures how long a large data set takes to be listed, prepared again with nothing to do, and opened by a training.

    python -m bench startup --out FOLDER [--videos 240000]

FOLDER gets as many files of a few bytes in 400 class folders, and a data set with tiny frames of each, stored by the
functions of `cpr prepare`; both are kept, so the same command measures them again. Each row is measured in a process of
its own, after imports: seconds, seconds of CPU, and by how much the peak of resident memory grew.
"""

from __future__ import annotations

import argparse
import json
import resource
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from ..harness.process import answer_of
from ..harness.text import markdown

CLASSES, FRAMES = 400, 20
SPLITS = ("train", "train", "train", "val")
STORED_AT_ONCE = 10_000  # videos
ROWS = {
    "list": "listing the folders",
    "again": "`cpr prepare` with nothing to do",
    "load": "reading the manifest",
    "open": "opening the data set for a training",
}


def make(folder: Path, videos: int) -> None:
    """Writes the files in Kinetics' layout and a data set of them that `cpr prepare` takes for its own."""
    import numpy as np

    from cpr_kernels.train.data.decoding import FrameSettings, encode_jpeg
    from cpr_kernels.train.data.prepare import claim, records
    from cpr_kernels.train.data.sources import list_sources
    from cpr_kernels.train.data.store import FrameStore
    from cpr_kernels.train.data.workers import Entry, Reading

    for number in range(videos):
        path = folder / "videos" / SPLITS[number // CLASSES % 4] / f"class {number % CLASSES:03}"
        if number < 4 * CLASSES:
            path.mkdir(parents=True, exist_ok=True)
        (path / f"{number:011}.mp4").write_bytes(b"%d" % number)
    rgb = [encode_jpeg(np.zeros((16, 16, 3), np.uint8), 95)] * FRAMES
    flow = [encode_jpeg(np.zeros((32, 16), np.uint8), 95)] * FRAMES
    seconds = FRAMES / 25
    store, waiting = FrameStore(folder / "data", writable=True), dict[str, bytes]()
    claim(store, FrameSettings())
    for number, source in enumerate(list_sources(folder / "videos").sources, start=1):
        assert source.stamp is not None  # its file was just written
        entry = Entry(
            frames=FRAMES, silence="no sound track", fps=25.0, knots=((0, 0.0), (FRAMES, seconds)), note="",
            bytes=source.stamp.bytes, changed_ns=source.stamp.changed_ns, content_sha256="0" * 64,
        )  # fmt: skip
        waiting |= records(source.id, Reading(rgb, flow, b"", entry))
        if number % STORED_AT_ONCE == 0 or number == videos:
            store.put(waiting)
            waiting = {}
    store.note_whole()
    store.close()


def steps(folder: Path) -> dict[str, Callable[[], Any]]:
    """Returns what is measured, by the names of `ROWS`."""
    from cpr_kernels.train.batches.dataset import ClipDataset
    from cpr_kernels.train.data.manifest import Manifest
    from cpr_kernels.train.data.prepare import prepare
    from cpr_kernels.train.data.sources import list_sources

    return {
        "list": lambda: list_sources(folder / "videos"),
        "again": lambda: prepare(folder / "videos", folder / "data"),
        "load": lambda: Manifest.load(folder / "data"),
        "open": lambda: ClipDataset(folder / "data", 16, 112),
    }


def measure(request: dict[str, str]) -> dict[str, float]:
    """Runs one step in this process; returns seconds, seconds of CPU and MiB."""
    if (
        request["step"] == "make"
    ):  # not in the process that the others are forked from: they would begin at its peak
        make(Path(request["folder"]), int(request["videos"]))
        return {}
    step = steps(Path(request["folder"]))[request["step"]]
    held = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    began, worked = time.perf_counter(), time.process_time()
    step()
    return {
        "seconds": time.perf_counter() - began,
        "cpu": time.process_time() - worked,
        "mib": (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - held) / 1024,
    }


def main(argv: Sequence[str] | None = None) -> int:
    """Makes the data set where it is missing, measures every step and prints a table."""
    words = argparse.ArgumentParser(prog="python -m bench startup", description=__doc__.split("\n")[0])
    words.add_argument("--out", type=Path, required=True, help="folder for the files and the data set")
    words.add_argument("--videos", type=int, default=240_000, help="how many (default: Kinetics-400's)")
    options = words.parse_args(argv)
    if options.videos < 4 * CLASSES:
        raise ValueError(
            f"--videos: at least {4 * CLASSES} fill all classes and splits, got {options.videos}"
        )
    request, rows = {"folder": str(options.out.resolve()), "videos": str(options.videos)}, []
    if not (options.out / "data" / "checked.json").is_file():
        answer_of(__name__, {**request, "step": "make"}, {}, "making the data set")
    for name, what in ROWS.items():
        found = answer_of(__name__, {**request, "step": name}, {}, f"measuring {what}")
        rows.append([what, f"{found['seconds']:.1f}", f"{found['cpu']:.1f}", f"{found['mib']:,.0f}"])
    print(markdown([f"{options.videos:,} videos", "s", "s of CPU", "MiB"], rows))
    for name in ("data.mdb", "manifest.json"):
        print(f"{name}: {(options.out / 'data' / name).stat().st_size / 1e6:,.0f} MB")
    return 0


if __name__ == "__main__":
    print(json.dumps(measure(json.loads(sys.argv[1]))))
