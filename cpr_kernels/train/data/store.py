"""Where do the frames lie? One LMDB a data set, one record a video and view, and a manifest beside it.

Record `<view>/<key>`: the count and the end offsets of the frames as little-endian uint32, then the JPEGs one
after the other and a CRC-32 of each, so a clip is read and checked without touching the rest of the video. Record
`audio/<key>`: the spectrogram as a PNG, where there is sound. Record `entry/<key>`: JSON about the video, written in
the same transaction: a video is stored whole or not at all. Record `refused/<key>`: JSON about why a video that cannot
be used is not read again until its file changes. `manifest.json` is written last, when all are in.
"""

from __future__ import annotations

import hashlib
import json
import os
import struct
import subprocess
import sys
import zlib
from contextlib import suppress
from itertools import pairwise
from pathlib import Path
from typing import Any, TypeVar

import lmdb
import msgspec
import numpy as np
import numpy.typing as npt

from ...progress import waiting
from ...reading.records import as_record, many_objects, read_json
from ...reading.seals import SEAL, TEXT_SEAL, check_seal, text_seal
from .. import TrainError
from ..runtime.files import write_atomically
from .decoding import DamagedRecord, decode_flow, decode_rgb
from .sound import unpacked_spectrogram

T = TypeVar("T")
FIRST_MAP_SIZE = 1 << 28
COPY = "take a whole copy of data.mdb, or prepare the videos into a new folder"
LOCK_BYTES = 8192  # of LMDB's lock file, for its default of 126 readers
SPARE_PAGES = 16  # at the end of a whole file, LMDB may count a few pages that it never wrote


# LMDB allows one open environment a file and process; stores of one folder share it, and a fork opens its own.
_OPEN: dict[tuple[int, Path], lmdb.Environment] = {}
CHECKED = "checked.json"
WALK = """
import resource, sys
resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
sys.path += sys.argv[2:]
import lmdb
with lmdb.open(sys.argv[1], readonly=True, lock=False, readahead=False) as env, env.begin(buffers=True) as reading:
    count = 0
    for key, value in reading.cursor():
        count += len(key) > 0 and len(value) > 0 and value[0] + value[-1] >= 0
    sys.exit(count != env.stat()["entries"])
"""


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
        """Raises `TrainError` where the file is missing, or its tables of records are damaged.

        LMDB follows damaged pages out of its memory, which ends the process. So a process of its own looks at the
        place of every record first. That reads the whole file, so it is done once: `checked.json` keeps the size and
        the time of the file that was found whole.
        """
        path = self.folder / "data.mdb"
        self.env.info()
        if not self._is_known_whole():
            command = [sys.executable, "-I", "-c", WALK, str(self.folder), *_paths_of(lmdb)]
            with waiting(f"check {path}"):
                walked = subprocess.run(command, capture_output=True, check=False)
            if walked.returncode:
                why = walked.stderr.decode(errors="replace").strip().rpartition("\n")[2]
                raise TrainError(
                    f"data: {path} is damaged: its tables of records cannot be followed"
                    f"{f' ({why})' if why else ''}; {COPY}"
                )
            self.note_whole()

    def note_whole(self) -> None:
        """Keeps that data.mdb, as it is, has whole tables: after they were followed, or were just written."""
        with suppress(OSError, TrainError):  # a folder that cannot be written to is read again next time
            write_atomically(self.folder / CHECKED, json.dumps(self._state()).encode())

    def _is_known_whole(self) -> bool:
        try:
            return bool(read_json((self.folder / CHECKED).read_bytes()) == self._state())
        except (OSError, ValueError):
            return False

    def _state(self) -> dict[str, int]:
        status = (self.folder / "data.mdb").stat()
        return {"size": status.st_size, "mtime_ns": status.st_mtime_ns}

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
        try:
            return None if value is None else _plain(value)
        except ValueError as error:
            raise self._damaged(key, error) from None

    def all_json(self, kind: str, form: type[T]) -> dict[str, T]:
        """The JSON records of a kind by their keys, as a `TypedDict`; they are neighbours in the file's tables."""
        read, prefix, found = msgspec.json.Decoder(form).decode, f"{kind}/".encode(), {}
        with self.env.begin() as transaction, many_objects():
            cursor = transaction.cursor()
            for key, value in cursor if cursor.set_range(prefix) else ():
                if not key.startswith(prefix):
                    break
                name = key.decode()
                try:
                    found[name] = read(value) if text_seal(value) else as_record(_older(value), form)
                except (ValueError, msgspec.MsgspecError) as error:
                    raise self._damaged(name, error) from None
        return found

    def _damaged(self, key: str, error: Exception) -> TrainError:
        return TrainError(f"data: record {key} of {self.folder / 'data.mdb'} is damaged ({error}); {COPY}")

    def frames(self, video_id: str, view: str, start: int, count: int) -> npt.NDArray[np.uint8]:
        """Frames start .. start+count-1 of a view, [count, H, W, 3] for rgb and [count, H, W, 2] for flow,
        uint8.
        """
        decode = decode_rgb if view == "rgb" else decode_flow
        with self.env.begin(buffers=True) as transaction:
            key = record_key(view, video_id)
            record = transaction.get(key.encode())
            if record is None:
                raise TrainError(f"data: {video_id} is not stored in {self.folder}; run `cpr prepare` again")
            try:
                pictures = _pictures(record, key, start, count)
                return np.stack([decode(picture) for picture in pictures])
            except DamagedRecord as error:
                raise TrainError(
                    f"data: {view} of {video_id} in {self.folder / 'data.mdb'} {error}; {COPY}"
                ) from None

    def spectrogram(self, video_id: str) -> npt.NDArray[np.uint8]:
        """The log-mel spectrogram [BANDS, L] of a video that has sound, uint8."""
        with self.env.begin(buffers=True) as transaction:
            record = transaction.get(record_key("audio", video_id).encode())
            if record is None:
                raise TrainError(
                    f"data: no sound of {video_id} is stored in {self.folder}; run `cpr prepare` again"
                )
            try:
                return unpacked_spectrogram(record)
            except DamagedRecord as error:
                raise TrainError(
                    f"data: sound of {video_id} in {self.folder / 'data.mdb'} {error}; {COPY}"
                ) from None

    def close(self) -> None:
        """Closes this process's environment; a store that is used again opens it again."""
        env = _OPEN.pop((os.getpid(), self.folder), None)
        if env is not None:
            env.close()


def _plain(value: bytes) -> dict[str, Any]:
    """The JSON object of a record, without its hash."""
    if not text_seal(value):
        return _older(value)
    return {name: item for name, item in read_json(value).items() if name != TEXT_SEAL}


def _older(value: bytes) -> dict[str, Any]:
    """The JSON object of a record whose hash is of its content, or which has none, without the hash."""
    body = read_json(value)
    if not isinstance(body, dict):
        raise ValueError(f"a {type(body).__name__} where an object belongs")
    if check_seal(body):
        del body[SEAL]
    return body


def record_key(kind: str, video_id: str) -> str:
    """LMDB keys are short, ids are paths: a hash stands for the id."""
    return f"{kind}/{hashlib.sha1(video_id.encode()).hexdigest()}"


def _paths_of(module: Any) -> list[str]:
    """Returns the folder that a package is imported from, for a process without this one's paths."""
    return [str(Path(module.__file__).parents[1])]


def packed(frames: list[bytes], key: str) -> bytes:
    """One record of many JPEGs: count, end offsets, JPEGs, and the CRC-32 of each after the record's key."""
    ends = np.cumsum([len(frame) for frame in frames]).tolist()
    own = zlib.crc32(key.encode())
    checks = struct.pack(f"<{len(frames)}I", *(zlib.crc32(frame, own) for frame in frames))
    return b"".join([struct.pack(f"<{1 + len(ends)}I", len(frames), *ends), *frames, checks])


def _pictures(record: memoryview, key: str, start: int, count: int) -> list[memoryview]:
    """Returns JPEGs start .. start+count-1 of a record; older records end without their CRC-32s.

    Raises:
        DamagedRecord: offsets that do not fit, or a JPEG with another CRC-32.
    """
    size = len(record)
    total = struct.unpack_from("<I", record)[0] if size >= 4 else 0
    first = 4 * (total + 1)
    if not total > 0 or first > size:
        raise DamagedRecord("is damaged: its count of frames does not fit its length")
    if not 0 <= start <= start + count <= total:
        raise DamagedRecord(f"has {total} frames, wanted {start} to {start + count - 1}")
    ends = (0, *struct.unpack_from(f"<{total}I", record, 4))
    end = first + ends[-1]
    if any(a > b for a, b in pairwise(ends)) or size - end not in (0, 4 * total):
        raise DamagedRecord("is damaged: its offsets do not fit its length")
    found = [record[first + ends[i] : first + ends[i + 1]] for i in range(start, start + count)]
    if size > end:
        wanted = struct.unpack_from(f"<{count}I", record, end + 4 * start)
        own = zlib.crc32(key.encode())
        for number, (picture, check) in enumerate(zip(found, wanted), start=start):
            if zlib.crc32(picture, own) != check:
                raise DamagedRecord(f"is damaged: frame {number} has another checksum")
    return found
