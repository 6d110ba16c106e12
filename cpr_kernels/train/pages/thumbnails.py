"""Thumbnails that play: for each video a strip of small frames, its flow below, as one JPEG; and its sound."""

from __future__ import annotations

import base64
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ..data.manifest import Manifest, Video
from ..data.store import FrameStore
from ..views import chosen
from ..views.pictures import flow_picture

SPAN = 40  # video frames that a strip covers


@dataclass(frozen=True)
class Strips:
    """How thumbnails are made: frames of one strip, pixels of a frame's side, with flow below or without."""

    frames: int
    size: int
    flow: bool
    quality: int = 72


# (at most so many videos, how); a page of 10,000 stays near 25 MB
BY_COUNT = (
    (400, Strips(8, 96, True)),
    (1500, Strips(6, 72, True, 65)),
    (4000, Strips(4, 64, False, 60)),
    (1 << 62, Strips(1, 56, False, 55)),
)


@dataclass(frozen=True)
class Beside:
    """What is shown of a video in a view that its frames do not tell of. `picture` [H, W, 3] is None where the video
    lacks the view; `why` then says so.
    """

    view: str
    caption: str
    picture: npt.NDArray[np.uint8] | None
    why: str = ""


def beside(views: Sequence[str], store: FrameStore, video: Video) -> list[Beside]:
    """The pictures of a video that go beside its frames, one for each of the views that has such a picture."""
    shown = []
    for name, view in chosen(views).items():
        if view.pictured and view.has(video):
            picture, caption = view.picture(store, video)
            shown.append(Beside(name, caption, picture))
        elif view.pictured:
            shown.append(Beside(name, f"no {view.label}", None, video.silence))
    return shown


class Album:
    """The videos of one data set that a page shows, each with its strip, and with what `views` show beside it."""

    def __init__(self, data: Path, manifest: Manifest) -> None:
        self.manifest, self.store = manifest, FrameStore(data)
        self.wanted: dict[int, int] = {}  # video: its place in the page
        self.views: tuple[str, ...] = ()

    def places(self, videos: Sequence[int]) -> list[int]:
        """Places in the page of these videos of the manifest; new ones are appended."""
        return [self.wanted.setdefault(video, len(self.wanted)) for video in videos]

    def add_views(self, views: Sequence[str]) -> None:
        """Views whose pictures are shown beside the frames."""
        self.views = tuple(dict.fromkeys((*self.views, *views)))

    def page(self, tick: Callable[[], None]) -> dict[str, Any]:
        """What the page reads: classes, and for each video its id, class, strip and {view: picture beside it}."""
        how = next(strips for most, strips in BY_COUNT if len(self.wanted) <= most)
        videos = []
        for index in self.wanted:
            video = self.manifest.videos[index]
            others = {
                one.view: {
                    "caption": one.caption, "why": one.why,
                    "jpeg": "" if one.picture is None else _jpeg(one.picture, how.quality),
                }
                for one in beside(self.views, self.store, video)
            }  # fmt: skip
            strip = _jpeg(self._strip(video, how), how.quality)
            videos.append({"id": video.id, "class": video.label, "strip": strip, "beside": others})
            tick()
        return {"classes": self.manifest.classes, "frames": how.frames, "flow": how.flow, "videos": videos}

    def _strip(self, video: Video, how: Strips) -> npt.NDArray[np.uint8]:
        """Frames side by side, below them the flow at the same moments: [H, W, 3]."""
        span = min(SPAN, video.frames)
        first = (video.frames - span) // 2
        moments = first + np.linspace(0, span - 1, how.frames).round().astype(int)
        rows = [np.concatenate([self._frame(video, "rgb", int(moment), how) for moment in moments], axis=1)]
        if how.flow:
            rows.append(np.concatenate([self._frame(video, "flow", int(m), how) for m in moments], axis=1))
        return np.concatenate(rows)

    def _frame(self, video: Video, record: str, moment: int, how: Strips) -> npt.NDArray[np.uint8]:
        """The middle square of one frame of a record, `how.size` pixels a side."""
        import cv2

        stored = self.store.frames(video.id, record, moment, 1)
        frame = flow_picture(stored) if record == "flow" else stored[0]
        height, width = frame.shape[:2]
        side = min(height, width)
        top, left = (height - side) // 2, (width - side) // 2
        square = frame[top : top + side, left : left + side]
        how_to = cv2.INTER_AREA if side > how.size else cv2.INTER_LINEAR
        return np.asarray(cv2.resize(square, (how.size, how.size), interpolation=how_to), np.uint8)


def _jpeg(picture: npt.NDArray[np.uint8], quality: int) -> str:
    """Base64 of an RGB picture [H, W, 3] as a JPEG."""
    import cv2

    good, encoded = cv2.imencode(".jpg", picture[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, quality])
    if not good:
        raise ValueError(f"a picture of shape {picture.shape} cannot be encoded")
    return base64.b64encode(bytes(encoded)).decode()
