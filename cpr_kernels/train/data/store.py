"""Where do the frames lie? One LMDB a data set, one record a video and view, and a manifest beside it.

Record `<view>/<key>`: the count and the end offsets of the frames as little-endian uint32, then the JPEGs one
after the other, so a clip is read without touching the rest of the video. Record `audio/<key>`: the spectrogram
as a PNG, where there is sound. Record `entry/<key>`: JSON about the video, written in the same transaction: a video
is stored whole or not at all. `manifest.json` is written last, when all are in.
"""

from __future__ import annotations

import hashlib
import json
import os
import struct
from pathlib import Path
from typing import Any

import lmdb
import numpy as np
import numpy.typing as npt

from .. import TrainError
from .decoding import decode_flow, decode_rgb
from .sound import unpacked_spectrogram

FIRST_MAP_SIZE = 1 << 28
LOCK_BYTES = 8192  # of LMDB's lock file, for its default of 126 readers
SPARE_PAGES = 16  # at the end of a whole file, LMDB may count a few pages that it never wrote


# LMDB allows one open environment a file and process; stores of one folder share it, and a fork opens its own.
_OPEN: dict[tuple[int, Path], lmdb.Environment] = {}


class FrameStore:
    """The LMDB of a data set. Opened on first use in each process, so a copy may cross into a worker."""

    def __init__(self, folder: Path, writable: bool = False) -> None:
        self.folder, self.writable = Path(folder).resolve(), writable
        if writable:
            self.close()

    @property
    def env(self) -> lmdb.Environment:
        """The open LMDB environment of this process."""
        key = (os.getpid(), self.folder)
        if key not in _OPEN:
            if self.writable:
                self.folder.mkdir(parents=True, exist_ok=True)
            elif not (self.folder / "data.mdb").is_file():
                raise TrainError(f"data: {self.folder} holds no data.mdb; make it with `cpr prepare`")
            _OPEN[key] = self._opened()
        return _OPEN[key]

    def _opened(self) -> lmdb.Environment:
        """The environment, whole: reading a file that is cut short would end the process."""
        path = self.folder / "data.mdb"
        if self.writable:
            self._make_lock_file()
        try:
            env = lmdb.open(
                str(self.folder), readonly=not self.writable, lock=self.writable, readahead=False,
                meminit=False, map_size=FIRST_MAP_SIZE if self.writable else 0,
            )  # fmt: skip
        except lmdb.Error as error:
            reason = str(error).rpartition(": ")[2]
            raise TrainError(
                f"data: {path} cannot be opened ({reason}); copy it again, or delete it and prepare again"
            ) from error
        page = env.stat()["psize"]
        needed = (env.info()["last_pgno"] + 1) * page
        if path.stat().st_size < needed - SPARE_PAGES * page:
            env.close()
            raise TrainError(
                f"data: {path} is cut short ({path.stat().st_size:,} of {needed:,} bytes); copy it again, or delete it "
                "and prepare again"
            )
        return env

    def _make_lock_file(self) -> None:
        """Writes LMDB's lock file, which it maps into memory: on a full disk that would end the process."""
        path = self.folder / "lock.mdb"
        if not path.is_file():
            try:
                path.write_bytes(bytes(LOCK_BYTES))
            except OSError as error:
                path.unlink(missing_ok=True)
                raise TrainError(
                    f"out: {self.folder} cannot be written to ({error.strerror}); free some space and run again"
                ) from error

    def check(self) -> None:
        """Raises `TrainError` where the file is missing or damaged."""
        self.env.info()

    def put(self, records: dict[str, bytes]) -> None:
        """Stores all records or none; the file grows as needed."""
        while True:
            try:
                with self.env.begin(write=True) as transaction:
                    for key, value in records.items():
                        transaction.put(key.encode(), value)
                return
            except lmdb.MapFullError:
                self.env.set_mapsize(self.env.info()["map_size"] * 2)
            except lmdb.Error as error:
                raise TrainError(
                    f"out: writing to {self.folder} failed ({error}); free some space and run again"
                ) from error

    def get_json(self, key: str) -> dict[str, Any] | None:
        """The JSON record under `key`, or None."""
        with self.env.begin() as transaction:
            value = transaction.get(key.encode())
        return None if value is None else json.loads(value)

    def frames(self, video_id: str, view: str, start: int, count: int) -> npt.NDArray[np.uint8]:
        """Frames start .. start+count-1 of a view, [count, H, W, 3] for rgb and [count, H, W, 2] for flow,
        uint8.
        """
        decode = decode_rgb if view == "rgb" else decode_flow
        with self.env.begin(buffers=True) as transaction:
            record = transaction.get(record_key(view, video_id).encode())
            if record is None:
                raise TrainError(f"data: {video_id} is not stored in {self.folder}; run `cpr prepare` again")
            (total,) = struct.unpack_from("<I", record)
            if not 0 <= start <= start + count <= total:
                raise IndexError(
                    f"{video_id} has {total} {view} frames, wanted {start} to {start + count - 1}"
                )
            ends = (
                4 * (total + 1),
                *(4 * (total + 1) + end for end in struct.unpack_from(f"<{total}I", record, 4)),
            )
            return np.stack([decode(record[ends[i] : ends[i + 1]]) for i in range(start, start + count)])

    def spectrogram(self, video_id: str) -> npt.NDArray[np.uint8]:
        """The log-mel spectrogram [BANDS, L] of a video that has sound, uint8."""
        with self.env.begin(buffers=True) as transaction:
            record = transaction.get(record_key("audio", video_id).encode())
            if record is None:
                raise TrainError(
                    f"data: no sound of {video_id} is stored in {self.folder}; run `cpr prepare` again"
                )
            return unpacked_spectrogram(record)

    def close(self) -> None:
        """Closes this process's environment; a store that is used again opens it again."""
        env = _OPEN.pop((os.getpid(), self.folder), None)
        if env is not None:
            env.close()


def record_key(kind: str, video_id: str) -> str:
    """LMDB keys are short, ids are paths: a hash stands for the id."""
    return f"{kind}/{hashlib.sha1(video_id.encode()).hexdigest()}"


def packed(frames: list[bytes]) -> bytes:
    """One record of many JPEGs: count, end offsets, JPEGs."""
    ends = np.cumsum([len(frame) for frame in frames]).tolist()
    return b"".join([struct.pack(f"<{1 + len(ends)}I", len(frames), *ends), *frames])
