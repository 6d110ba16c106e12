"""Measures where `cpr prepare` spends its time: decoding, flow at every effort, and JPEGs, on one core.

    python -m bench prepare --videos FOLDER [--size 128] [--count 8]

Milliseconds a frame over the first videos of a folder, and the share of it when all of a preset is done. Beside it the
usual way, every frame decoded at its full size and then shrunk by OpenCV, OpenCV's DIS flow, and torchcodec where it is
installed. `cpr prepare` runs one such process a core.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from functools import partial
from importlib import import_module
from itertools import islice, pairwise
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from ..harness.text import markdown, significant

T = TypeVar("T")
R = TypeVar("R")
FRAMES = 30  # of a video
BOUND, QUALITY = 20.0, 95


def paths_in(folder: Path, count: int) -> list[Path]:
    """Returns the first videos of a folder, evenly spread over it."""
    from cpr_kernels.video_files import walk

    names = walk(folder)[0]
    if not names:
        raise ValueError(f"--videos: {folder} holds no video")
    return [folder / names[i] for i in np.linspace(0, len(names) - 1, min(count, len(names))).astype(int)]


def decoded(path: Path, size: int) -> list[Any]:
    """Returns the frames as `cpr prepare` reads them: scaled by the converter that also makes them RGB."""
    from cpr_kernels.video import timed_frames

    return [frame for frame, _ in islice(timed_frames(path, size), FRAMES)]


def decoded_then_shrunk(path: Path, size: int) -> list[Any]:
    """Returns the frames by the usual way: whole, as RGB, then shrunk."""
    import cv2

    from cpr_kernels.video import opened, shrunk

    with opened(path) as container:
        container.streams.video[0].thread_type = "NONE"
        whole = (frame.to_ndarray(format="rgb24") for frame in islice(container.decode(video=0), FRAMES))
        return [
            cv2.resize(frame, shrunk(frame.shape[1], frame.shape[0], size), interpolation=cv2.INTER_AREA)
            for frame in whole
        ]


def torchcodec_decoder() -> Callable[[Path, int], list[Any]] | str:
    """Returns what decodes by torchcodec on one thread, or why it cannot."""
    try:
        with suppress(ImportError):  # FFmpeg as a wheel, for systems that lack it
            import_module("torchcodec_ffmpeg").install()
        decoders = import_module("torchcodec.decoders")
    except (ImportError, RuntimeError, OSError) as error:
        return f"torchcodec cannot be used: {' '.join(str(error).split())[:120]}"

    def read(path: Path, size: int) -> list[Any]:
        import cv2

        from cpr_kernels.video import shrunk

        decoder = decoders.VideoDecoder(
            str(path), num_ffmpeg_threads=1, dimension_order="NHWC", seek_mode="approximate"
        )
        return [
            cv2.resize(frame, shrunk(frame.shape[1], frame.shape[0], size), interpolation=cv2.INTER_AREA)
            for frame in (one.numpy() for one in islice(decoder, FRAMES))
        ]

    return read


def flows() -> Iterator[tuple[str, Callable[[Any, Any], Any]]]:
    """Yields every kind of flow between two frames, by name."""
    import cv2

    from cpr_kernels.video import FLOW_SETTINGS, flow_estimator, quantised_flow

    for effort in FLOW_SETTINGS:
        yield f"TV-L1 {effort}", flow_estimator(effort, BOUND)
    contributed: Any = cv2  # this part of OpenCV has no type hints
    dis = contributed.DISOpticalFlow_create(cv2.DISOPTICAL_FLOW_PRESET_MEDIUM)

    def between(first: Any, second: Any) -> Any:
        greys = [cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY) for frame in (first, second)]
        return quantised_flow(np.asarray(dis.calc(*greys, None), np.float32), BOUND)

    yield "DIS medium (not offered)", between


def timed(work: Callable[[T], R], items: Sequence[T]) -> tuple[float, list[R]]:
    """Returns seconds of this thread's CPU and the results of all items."""
    began = time.thread_time()
    made = [work(item) for item in items]
    return time.thread_time() - began, made


def starmapped(work: Callable[[Any, Any], Any], pair: tuple[Any, Any]) -> Any:
    """Returns `work` of a pair's two items."""
    return work(*pair)


def main(argv: Sequence[str] | None = None) -> int:
    """Prints the tables."""
    import cv2

    from cpr_kernels.train.data.decoding import encode_jpeg

    words = argparse.ArgumentParser(prog="python -m bench prepare", description=__doc__.split("\n")[0])
    words.add_argument("--videos", type=Path, required=True, help="folder of videos")
    words.add_argument("--size", type=int, default=128, help="shorter edge of stored frames, in pixels")
    words.add_argument("--count", type=int, default=8, help="how many videos")
    options = words.parse_args(argv)
    cv2.setNumThreads(1)
    paths = paths_in(options.videos, options.count)
    decoders: dict[str, Callable[..., list[Any]]] = {
        "decoded and scaled (PyAV)": decoded, "decoded whole, then shrunk": decoded_then_shrunk,
    }  # fmt: skip
    by_torchcodec = torchcodec_decoder()
    if not isinstance(by_torchcodec, str):
        decoders["decoded by torchcodec, then shrunk"] = by_torchcodec
    clips = [decoded(path, options.size) for path in paths]  # also warms the files up
    frames = sum(map(len, clips))
    costs = {
        name: timed(partial(read, size=options.size), paths)[0] / frames for name, read in decoders.items()
    }
    rgb = timed(
        lambda frame: encode_jpeg(frame[..., ::-1], QUALITY), [one for clip in clips for one in clip]
    )[0]
    rows = [[name, significant(1e3 * cost), ""] for name, cost in costs.items()]
    rows.append(["JPEGs of the pictures", significant(1e3 * rgb / frames), ""])
    pairs = [two for clip in clips for two in pairwise(clip)]
    for name, between in flows():
        spent, made = timed(partial(starmapped, between), pairs)
        packed = timed(lambda one: encode_jpeg(one, QUALITY), made)[0]
        whole = costs["decoded and scaled (PyAV)"] + (rgb + spent + packed) / frames
        rows.append([name, significant(1e3 * spent / frames), f"{100 * spent / frames / whole:.0f} %"])
        jpegs = 1e3 * packed / frames
    rows.append(["JPEGs of the flow", significant(jpegs), ""])
    title = f"{frames} frames of {len(paths)} videos, shorter edge {options.size}"
    print(markdown([title, "ms of CPU a frame", "share of preparing"], rows))
    if isinstance(by_torchcodec, str):
        print(by_torchcodec)
    return 0
