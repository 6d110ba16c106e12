"""Draws the thumbnails of videos that pages show: single frames, strips that play, and pictures of other views."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ..data.manifest import Manifest, Video
from ..data.parts import open_store
from ..data.store import FrameStore
from ..views import chosen
from ..views.pictures import flow_picture
from .strips import StripFormat, encoded

STRIP_SPAN = 40  # video frames that a strip covers

# (most videos of a page, format): their pictures take less than 10 MB
BY_COUNT = (
    (400, StripFormat(8, 96, True)),
    (1500, StripFormat(6, 72, True, 65)),
    (4000, StripFormat(4, 64, False, 60)),
    (1 << 62, StripFormat(1, 48, False, 45)),
)


@dataclass(frozen=True)
class ExtraPicture:
    """Is a picture of a video in a view that its frames and flow do not show, such as its spectrogram.

    `picture` [H, W, 3] is None where the video lacks the view; `why` then holds the reason.
    """

    view: str
    caption: str
    picture: npt.NDArray[np.uint8] | None
    why: str = ""


def extra_pictures(views: Sequence[str], store: FrameStore, video: Video) -> list[ExtraPicture]:
    """Returns the extra pictures of a video, one for each of the views that has such a picture."""
    pictures = []
    for name, view in chosen(views).items():
        if view.pictured and view.has(video):
            picture, caption = view.picture(store, video)
            pictures.append(ExtraPicture(name, caption, picture))
        elif view.pictured:
            pictures.append(ExtraPicture(name, f"no {view.label}", None, video.silence))
    return pictures


class Album:
    """Draws the videos of one data set for a page: as single frames (`clip`) or as strips that play (`page`).

    data: folder of the data set. views: those whose extra pictures are shown beside the frames.
    """

    def __init__(self, data: Path, manifest: Manifest, views: Sequence[str] = ()) -> None:
        self.manifest, self.store = manifest, open_store(data)
        self.views = tuple(views)
        self.place_of: dict[int, int] = {}  # video: its place in `page`
        self._clips: dict[int, dict[str, Any]] = {}

    def label(self, video: int) -> str:
        """Returns the class name of a video of the manifest; empty where it has none."""
        number = self.manifest.videos[video].label
        return self.manifest.classes[number] if number >= 0 else ""

    def clip(self, video: int) -> dict[str, Any]:
        """Returns a video's class name, middle frame, flow and extra pictures, as `sized`; each is drawn once."""
        if video not in self._clips:
            stored = self.manifest.videos[video]
            frame = self.store.frames(stored.id, "rgb", stored.frames // 2, 1)[0]
            start = max(0, stored.frames // 2 - 8)
            flow = self.store.frames(stored.id, "flow", start, min(16, stored.frames - start))
            self._clips[video] = {
                "label": self.label(video),
                "frame": sized(frame),
                "flow": sized(flow_picture(flow)),
                "extra_pictures": [
                    {
                        "caption": extra.caption, "why": extra.why,
                        "picture": None if extra.picture is None else sized(extra.picture),
                    }
                    for extra in extra_pictures(self.views, self.store, stored)
                ],
            }  # fmt: skip
        return self._clips[video]

    def places(self, videos: Sequence[int]) -> list[int]:
        """Returns the places in `page` of these videos of the manifest; new ones are appended."""
        return [self.place_of.setdefault(video, len(self.place_of)) for video in videos]

    def add_views(self, views: Sequence[str]) -> None:
        """Adds views whose extra pictures are shown beside the frames."""
        self.views = tuple(dict.fromkeys((*self.views, *views)))

    def page(self, tick: Callable[[], None]) -> dict[str, Any]:
        """Returns the classes, and for each placed video its id, class, strip and {view: extra picture}.

        `tick` is called after each video.
        """
        form = next(form for most, form in BY_COUNT if len(self.place_of) <= most)
        videos = []
        for index in self.place_of:
            video = self.manifest.videos[index]
            extra = {
                one.view: {
                    "caption": one.caption, "why": one.why,
                    "data": "" if one.picture is None else encoded(one.picture, form.quality),
                }
                for one in extra_pictures(self.views, self.store, video)
            }  # fmt: skip
            strip = encoded(self._strip(video, form), form.quality)
            videos.append({"id": video.id, "class": video.label, "strip": strip, "extra": extra})
            tick()
        return {"classes": self.manifest.classes, "frames": form.frames, "flow": form.flow, "videos": videos}

    def _strip(self, video: Video, form: StripFormat) -> npt.NDArray[np.uint8]:
        """Returns frames side by side, below them the flow at the same moments: [H, W, 3]."""
        span = min(STRIP_SPAN, video.frames)
        first = (video.frames - span) // 2
        moments = first + np.linspace(0, span - 1, form.frames).round().astype(int)
        rows = [np.concatenate([self._frame(video, "rgb", int(moment), form) for moment in moments], axis=1)]
        if form.flow:
            rows.append(np.concatenate([self._frame(video, "flow", int(m), form) for m in moments], axis=1))
        return np.concatenate(rows)

    def _frame(self, video: Video, record: str, moment: int, form: StripFormat) -> npt.NDArray[np.uint8]:
        """Returns the middle square of one frame of a record, `form.size` pixels a side."""
        import cv2

        stored = self.store.frames(video.id, record, moment, 1)
        frame = flow_picture(stored) if record == "flow" else stored[0]
        height, width = frame.shape[:2]
        side = min(height, width)
        top, left = (height - side) // 2, (width - side) // 2
        square = frame[top : top + side, left : left + side]
        interpolation = cv2.INTER_AREA if side > form.size else cv2.INTER_LINEAR
        return np.asarray(cv2.resize(square, (form.size, form.size), interpolation=interpolation), np.uint8)


def thumbnail(frame: npt.NDArray[np.uint8], width: int = 96) -> str:
    """Returns an RGB frame [H, W, 3] as a small JPEG, in a data URI."""
    return str(sized(frame, width)["src"])


def sized(frame: npt.NDArray[np.uint8], width: int = 96) -> dict[str, Any]:
    """Returns an RGB frame [H, W, 3] as a small JPEG: its data URI, and the size that a page keeps free for it."""
    import cv2

    height = max(1, round(frame.shape[0] * width / frame.shape[1]))
    small = cv2.resize(frame, (width, height), interpolation=cv2.INTER_AREA)
    jpeg = encoded(np.asarray(small, np.uint8), 85, ".jpg")
    return {"src": f"data:image/jpeg;base64,{jpeg}", "width": width, "height": height}
