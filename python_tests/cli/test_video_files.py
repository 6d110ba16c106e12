"""Which files `cpr predict`, `index` and `search` look at, and what FFmpeg may open as a video."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from cpr_kernels.cli.videos import video_files
from cpr_kernels.video import UnreadableVideo, timed_frames
from cpr_kernels.video_files import ENDINGS, FOLDED, by_reason, folded

av = pytest.importorskip("av")


def touched(folder: Path, *names: str) -> Path:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(name)
    return folder


def test_folders_and_patterns_are_searched_alike(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    touched(
        tmp_path, "a.MP4", "sub/b.mts", "sub/._b.mts", "sub/c.txt", ".cache/d.mp4", "sub/e.jpg", "sub/f.jpg"
    )
    (tmp_path / "link").symlink_to(tmp_path / "sub")
    (tmp_path / "sub" / "up").symlink_to(tmp_path)
    found = video_files("predict", [str(tmp_path)])
    assert [path.relative_to(tmp_path).as_posix() for path in found] == ["a.MP4", "link/b.mts"]
    said = capsys.readouterr().err.splitlines()
    assert said[0].startswith(f"cpr predict: {tmp_path}: passed over: picture 4, hidden 3, text 2, link that")
    assert said[1].endswith(f"sub/b.mts: passed over: same file as {tmp_path / 'link' / 'b.mts'}")
    assert video_files("index", [f"{tmp_path}/sub/*"]) == [tmp_path / "sub" / "b.mts"]
    assert "picture 2, text 1" in capsys.readouterr().err
    assert video_files("index", [f"{tmp_path}/sub/*.txt"]) == [
        tmp_path / "sub" / "c.txt"
    ]  # asked for by its ending
    assert video_files("index", [str(tmp_path / "sub" / "c.txt")]) == [tmp_path / "sub" / "c.txt"]
    with pytest.raises(
        ValueError, match=r"no video fits this pattern; passed over: picture 1 \(videos end in"
    ):
        video_files("index", [f"{tmp_path}/sub/e*"])
    with pytest.raises(ValueError, match="this folder holds no video"):
        video_files("index", [str(touched(tmp_path / "empty", "a.txt"))])


def written(path: Path, codec: str, size: tuple[int, int] = (64, 64), form: str | None = None) -> Path:
    """A video of 12 frames."""
    with av.open(str(path), "w", format=form) as container:
        stream = container.add_stream(codec, rate=25)
        stream.width, stream.height = size
        stream.pix_fmt = "rgb8" if codec == "gif" else "yuv420p"
        for i in range(12):
            picture = np.full((size[1], size[0], 3), 20 * i, np.uint8)
            container.mux(
                stream.encode(av.VideoFrame.from_ndarray(picture, "rgb24").reformat(format=stream.pix_fmt))
            )
        container.mux(stream.encode(None))
    return path


CONTAINERS = [
    (".mp4", "libx264", None), (".MOV", "libx264", None), (".mkv", "libx264", None), (".avi", "mpeg4", None),
    (".TS", "libx264", None), (".MTS", "libx264", "mpegts"), (".m2ts", "libx264", "mpegts"), (".VOB", "mpeg2video", "vob"),
    (".mpg", "mpeg1video", None), (".gif", "gif", None), (".wmv", "wmv2", None), (".flv", "flv", None),
    (".h264", "libx264", None), (".m2v", "mpeg2video", None), (".mxf", "mpeg2video", None), (".nut", "mpeg4", None),
]  # fmt: skip


@pytest.mark.parametrize(("ending", "codec", "form"), CONTAINERS, ids=[ending for ending, _, _ in CONTAINERS])
def test_every_kind_of_container_is_read(tmp_path: Path, ending: str, codec: str, form: str | None) -> None:
    assert ending.lower() in ENDINGS
    path = written(tmp_path / f"v{ending}", codec, form=form)
    assert len(list(timed_frames(path, 32))) == 12


def test_texts_pictures_and_playlists_are_no_videos_whatever_their_names(tmp_path: Path) -> None:
    import cv2

    video = written(tmp_path / "v.mp4", "libx264")
    picture = cv2.imencode(".png", np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8))[
        1
    ].tobytes()
    bodies = {
        "text.mp4": b"a line of plain text\n" * 100,
        "code.ts": b"import x from 'y';\n" * 100,
        "picture.mp4": picture,
        "list.mp4": b"ffconcat version 1.0\nfile 'v.mp4'\n",
        "notes.nfo": b"said of v.mp4\n" * 40,
        "playlist.m3u8": b"#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\nv.mp4\n#EXT-X-ENDLIST\n",
    }
    for name, body in bodies.items():
        (tmp_path / name).write_bytes(body)
        with pytest.raises(UnreadableVideo, match="not a video"):
            list(timed_frames(tmp_path / name, 32))
    assert len(list(timed_frames(video, 32))) == 12


def test_many_files_of_one_reason_are_one_line() -> None:
    many = [(f"frames/v1/{i}.jpg", "picture") for i in range(FOLDED + 5)]
    few = [
        ("Run/a.jpg", "picture"),
        ("Run/b.mp4", "broken link: to 'x'"),
        ("Run/c.mp4", "broken link: to 'y'"),
    ]
    assert list(folded(many + few)) == [("frames/v1/", f"picture: {FOLDED + 5} files"), *few]
    assert by_reason(many + few) == f"picture {FOLDED + 6}, broken link 2"
