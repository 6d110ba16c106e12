"""A small labelled video set whose classes need both views: class = (motion, appearance).

Every motion comes with every appearance: a bar that stands or lies, or a disc, each in its own family of hues. A still
picture shows the appearance and not the motion; flow shows the motion at once, and the outline to an encoder that was
taught to look for it. Background, camera drift, object size, speed, shade, brightness and noise vary from source to
source. Files are named as in UCF101, so that several clips of one source (`clips`) are known as siblings.
"""

from __future__ import annotations

import colorsys
import hashlib
import os
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import numpy as np
import numpy.typing as npt

from ...progress import ProgressBar

Image = npt.NDArray[np.float32]
FPS = 18

# Where the object is at phase p (radians), in units of its path's half width: (x, y).
MOTIONS: dict[str, Callable[[float], tuple[float, float]]] = {
    "Swing": lambda p: (float(np.sin(p)), 0.25 * float(np.cos(2 * p))),
    "Bounce": lambda p: (0.25 * float(np.sin(p / 2)), 1 - 2 * abs(float(np.sin(p / 2)))),
    "Circle": lambda p: (float(np.cos(p)), float(np.sin(p))),
}
APPEARANCES = ("Tall", "Wide", "Round")


@dataclass(frozen=True)
class SyntheticSettings:
    """How large a set to draw. `sources` videos a class, `clips` cut from each; `size` pixels square."""

    sources: int = 90
    test_sources: int = 30
    clips: int = 1
    frames: int = 16
    size: int = 64
    seed: int = 0


def class_names() -> list[str]:
    """The nine classes, e.g. `SwingTall`."""
    return [motion + appearance for motion in MOTIONS for appearance in APPEARANCES]


def generate(folder: Path, settings: SyntheticSettings | None = None) -> int:
    """Writes `folder/<train|test>/<class>/v_<class>_g<source>_c<clip>.mp4` (H.264); returns how many there
    are.

    A file that is there is kept, and each is written under another name first: an interrupted run can go on.
    """
    settings = settings or SyntheticSettings()
    jobs = [(name, source) for name in class_names() for source in range(1, settings.sources + 1)]
    with ProgressBar("draw clips", len(jobs), unit="source") as bar:
        for name, source in jobs:
            split = "test" if source <= settings.test_sources else "train"
            paths = [
                folder / split / name / f"v_{name}_g{source:02}_c{clip:02}.mp4"
                for clip in range(1, settings.clips + 1)
            ]
            if not all(path.is_file() for path in paths):
                frames = draw_source(name, source, settings)
                for i, path in enumerate(paths):
                    write_mp4(path, frames[i * settings.frames : (i + 1) * settings.frames])
            bar.advance()
    return len(jobs) * settings.clips


def draw_source(name: str, source: int, settings: SyntheticSettings) -> npt.NDArray[np.uint8]:
    """All frames of one source video [clips * frames, size, size, 3], a function of the seed, class and
    number.
    """
    motion = next(motion for motion in MOTIONS if name.startswith(motion))
    key = hashlib.sha1(f"{settings.seed}/{name}/{source}".encode()).digest()
    rng = np.random.default_rng(list(key[:8]))
    size = settings.size
    rows, columns = np.mgrid[0:size, 0:size].astype(np.float32)
    background = _cloud(rng, 2 * size)
    backdrop, ink, paper = _colours(rng, name[len(motion) :])
    radius = size * rng.uniform(0.19, 0.26)
    reach = (size / 2 - radius) * rng.uniform(0.65, 0.85)
    speed = 2 * np.pi * rng.uniform(0.8, 1.1) / FPS * rng.choice([-1.0, 1.0])
    phase, twist = rng.uniform(0, 2 * np.pi), rng.uniform(0, 2 * np.pi)
    lean = 0.25 * np.sin(twist)
    drift = rng.uniform(-0.25, 0.25, 2)
    light, noise = rng.uniform(0.8, 1.15), rng.uniform(0.005, 0.03)
    centre = size / 2 + rng.uniform(-0.06, 0.06, 2) * size
    frames = np.empty((settings.clips * settings.frames, size, size, 3), np.uint8)
    for t in range(len(frames)):
        x, y = MOTIONS[motion](phase + speed * t)
        dx, dy = columns - (centre[0] + reach * x), rows - (centre[1] - reach * y)
        depth = radius * _depth(name[len(motion) :], dx / radius, dy / radius, lean)
        inside = np.clip(depth + 0.5, 0, 1)[..., None]
        left, top = (size / 2 + drift * t).astype(int) % size
        scene = backdrop * (0.4 + 0.6 * background[top : top + size, left : left + size, None])
        pattern = _stripes(dx / radius, dy / radius, twist)[..., None]
        image = (1 - inside) * scene + inside * (pattern * ink + (1 - pattern) * paper)
        image = image * light + rng.normal(0, noise, image.shape)
        frames[t] = np.clip(image * 255, 0, 255)
    return frames


def _depth(appearance: str, x: Image, y: Image, lean: float) -> Image:
    """How far a point (in radii) is inside the object's outline; negative outside. `lean` turns a bar, in radians."""
    if appearance == "Round":
        return (1.0 - np.hypot(x, y)).astype(np.float32)
    along, across = np.cos(lean) * x + np.sin(lean) * y, np.cos(lean) * y - np.sin(lean) * x
    if appearance == "Tall":
        along, across = across, along
    return np.minimum(1.5 - np.abs(along), 0.55 - np.abs(across))


def _stripes(x: Image, y: Image, twist: float) -> Image:
    """0 to 1 over the object (x and y in radii); `twist` turns the stripes."""
    wave = np.sin(2.5 * np.pi * (np.cos(twist) * x + np.sin(twist) * y))
    return np.clip(0.5 + 1.5 * wave, 0, 1).astype(np.float32)


def _cloud(rng: np.random.Generator, size: int) -> Image:
    """Smooth noise in 0..1, periodic, of the size of the largest window's double."""
    import cv2

    coarse = [
        cv2.resize(rng.random((n, n), np.float32), (size, size), interpolation=cv2.INTER_CUBIC)
        for n in (6, 14, 32)
    ]
    cloud = 0.4 * coarse[0] + 0.3 * coarse[1] + 0.3 * coarse[2]
    return ((cloud - cloud.min()) / np.ptp(cloud)).astype(np.float32)


def _colours(rng: np.random.Generator, appearance: str) -> tuple[Image, Image, Image]:
    """A greyish backdrop, and a strong and a pale colour of the object, each [3] in 0..1.

    Each appearance has its family of hues, a third of the colour wheel apart and wide enough to nearly meet.
    """
    backdrop = rng.uniform(0.45, 0.65) + rng.uniform(-0.03, 0.03, 3)
    hue = APPEARANCES.index(appearance) / 3 + rng.uniform(-0.1, 0.1)
    ink = _from_hue(hue, rng.uniform(0.6, 1.0), rng.uniform(0.5, 0.9))
    paper = _from_hue(hue + rng.uniform(-0.1, 0.1), rng.uniform(0.0, 0.25), rng.uniform(0.8, 1.0))
    return backdrop.astype(np.float32), ink, paper


def _from_hue(hue: float, saturation: float, value: float) -> Image:
    return np.array(colorsys.hsv_to_rgb(hue % 1, saturation, value), np.float32)


def write_mp4(path: Path, frames: npt.NDArray[np.uint8], fps: int = FPS) -> None:
    """Writes frames [F, H, W, 3] as H.264 in an mp4, whole or not at all; H and W must be even. Equal frames give equal
    files: x264's macroblock tree, which for small pictures is another in every process, is off.
    """
    import av

    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.stem}.{os.getpid()}.mp4")
    with av.open(str(part), "w") as container:
        options = {"crf": "20", "preset": "veryfast", "x264-params": "mbtree=0"}
        stream = container.add_stream("libx264", rate=Fraction(fps), options=options)
        stream.width, stream.height, stream.pix_fmt = frames.shape[2], frames.shape[1], "yuv420p"
        stream.thread_count = 1
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, "rgb24")))
        container.mux(stream.encode())
    part.replace(path)
