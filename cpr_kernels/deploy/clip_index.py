"""Which known clips are near? A FAISS index in a folder, with the file and the seconds of every clip.

`manifest.json` names the two files of the current generation (`vectors.N.faiss`, `clips.N.jsonl`), their hashes, and
the model whose embeddings they hold. Files are named by absolute paths; where index and archive were copied together,
they are found beside each other. A change writes the next generation beside the current one and then replaces the
manifest: a reader, or a kill at any moment, sees the old index or the new one. Writers take turns by a lock.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import numpy.typing as npt
from msgspec import Meta
from torch import Tensor  # torch before faiss: one OpenMP runtime

from ..files import leftovers, relocated, replacing
from ..progress import say
from ..reading.records import as_record, read_json, read_record
from ..reading.seals import UNSEALED, check_seal, sealed
from .artifact import digest

FORMAT, VERSION = "cpr_kernels clip index", 1
MANIFEST, LOCK = "manifest.json", "lock"


@dataclass(frozen=True)
class Clip:
    """One row of an index: a part of a file."""

    path: str
    start: float
    end: float
    bytes: Annotated[int, Meta(ge=0)]
    changed_ns: int
    content_sha256: str = ""  # of the file; none in an older index


@dataclass(frozen=True)
class _Manifest:
    """Holds the fields of manifest.json."""

    model: str
    embedding: Annotated[int, Meta(ge=1, le=1 << 20)]
    clips: Annotated[int, Meta(ge=0)]
    generation: Annotated[int, Meta(ge=1)]
    files: Annotated[dict[str, str], Meta(min_length=2, max_length=2)]
    folder: str | None = None


@dataclass(frozen=True)
class Neighbor:
    """A known clip and its cosine with the query."""

    clip: Clip
    score: float


class ClipIndex:
    """Embeddings of clips, searched exactly by inner product.

    Args:
        folder: where the index lies.
        model: the id of the model that it must be of; None takes any.

    Attributes:
        clips: the rows.
        model: the id of the model whose embeddings these are.

    Raises:
        ValueError: no index, one of another version or model, or files that are not what the manifest says.
    """

    def __init__(self, folder: str | Path, model: str | None = None) -> None:
        self.folder = Path(folder)
        manifest = _manifest(self.folder)
        self.model, self.size, self.generation = manifest.model, manifest.embedding, manifest.generation
        if model is not None and model != self.model:
            raise ValueError(
                f"index: {folder} holds embeddings of another model (weights {self.model[:12]}, these are "
                f"{model[:12]}); use the artifact that it was made with, or make a new index"
            )
        bodies = {name: _body(self.folder, name, sha) for name, sha in manifest.files.items()}
        clips, vectors = (bodies[name] for name in sorted(bodies))  # clips.N.jsonl before vectors.N.faiss
        try:
            held = [read_record(line, Clip) for line in clips.splitlines()]
            self._index = _flat(vectors)
        except ValueError as error:
            raise ValueError(f"index: {folder} is damaged: {error}; make the index again") from None
        paths = {
            path: str(relocated(path, manifest.folder, self.folder)) for path in {clip.path for clip in held}
        }
        self.clips = [replace(clip, path=paths[clip.path]) for clip in held]
        if not len(self.clips) == self._index.ntotal == manifest.clips or self._index.d != self.size:
            raise ValueError(
                f"index: {folder} holds {self._index.ntotal} vectors of {self._index.d} numbers and {len(self.clips)} "
                f"clips, its manifest says {manifest.clips} of {self.size}; it was changed by hand: make it again"
            )

    def search(self, queries: Tensor, topk: int) -> list[list[Neighbor]]:
        """For each query [B, E] of length 1 its nearest clips, best first; fewer where the index is small."""
        if not self.clips:
            return [[] for _ in queries]
        scores, rows = self._index.search(queries.float().contiguous().numpy(), min(topk, len(self.clips)))
        return [
            [Neighbor(self.clips[row], float(score)) for row, score in zip(found, near) if row >= 0]
            for found, near in zip(rows.tolist(), scores.tolist())
        ]

    def nearest_files(self, queries: Tensor, topk: int) -> list[Neighbor]:
        """The `topk` files with the clip nearest to any of the queries [M, E]: each file's best clip, best first."""
        looked, best = 4 * topk, dict[str, Neighbor]()
        while True:
            for near in (near for found in self.search(queries, looked) for near in found):
                held = best.get(near.clip.path)
                if held is None or near.score > held.score:
                    best[near.clip.path] = near
            if len(best) >= topk or looked >= len(self.clips):
                return sorted(best.values(), key=lambda near: -near.score)[:topk]
            looked *= 4

    def vectors(self) -> npt.NDArray[np.float32]:
        """All rows [N, E]."""
        found: npt.NDArray[np.float32] = self._index.reconstruct_n(0, len(self.clips))
        return found


def exists(folder: Path) -> bool:
    """Whether an index lies there."""
    return (folder / MANIFEST).is_file()


def is_index(folder: Path) -> bool:
    """Whether the manifest there is an index's that this version reads, not a data set's or another's."""
    try:
        _manifest(folder)
    except ValueError:
        return False
    return True


@contextmanager
def writing(folder: Path) -> Iterator[None]:
    """One writer at a time; others wait."""
    import fcntl

    folder.mkdir(parents=True, exist_ok=True)
    with (folder / LOCK).open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def extend(folder: Path, model: str, clips: Sequence[Clip], embeddings: Tensor) -> int:
    """Adds rows; those of a file that was in it before are replaced. Returns how many rows the index now has.

    Args:
        folder: the index, made where there is none.
        model: id of the model that made the embeddings.
        clips: one a row.
        embeddings: [M, E] of length 1.
    """
    added = embeddings.detach().float().contiguous().numpy()
    with writing(folder):
        if not exists(folder):
            _commit(folder, model, 1, clips, added)
            return len(added)
        old = ClipIndex(folder, model)
        if old.size != added.shape[1]:
            raise ValueError(f"index: {folder} holds {old.size} numbers a clip, these have {added.shape[1]}")
        changed = {clip.path for clip in clips}
        rows = [i for i, clip in enumerate(old.clips) if clip.path not in changed]
        everything = np.concatenate([old.vectors()[rows], added])
        _commit(folder, model, old.generation + 1, [*(old.clips[i] for i in rows), *clips], everything)
    return len(everything)


def restamp(folder: Path, model: str, changed_ns: dict[str, int]) -> None:
    """Notes another time of change of files whose content is the same: {path: nanoseconds}."""
    with writing(folder):
        old = ClipIndex(folder, model)
        clips = [replace(one, changed_ns=changed_ns.get(one.path, one.changed_ns)) for one in old.clips]
        _commit(folder, model, old.generation + 1, clips, old.vectors())


def prune(folder: Path, model: str) -> list[str]:
    """Drops the rows of files that are not there any more; returns the files, in order."""
    with writing(folder):
        old = ClipIndex(folder, model)
        gone = sorted({clip.path for clip in old.clips if not Path(clip.path).is_file()})
        dropped = set(gone)
        rows = [i for i, clip in enumerate(old.clips) if clip.path not in dropped]
        if gone:
            _commit(folder, model, old.generation + 1, [old.clips[i] for i in rows], old.vectors()[rows])
    return gone


def _commit(
    folder: Path, model: str, generation: int, clips: Sequence[Clip], vectors: npt.NDArray[np.float32]
) -> None:
    """Writes a generation, makes it the current one and removes the others."""
    faiss = _faiss()
    index = faiss.IndexFlatIP(vectors.shape[1])
    index.add(vectors)
    bodies = {
        f"clips.{generation}.jsonl": "".join(json.dumps(asdict(clip)) + "\n" for clip in clips).encode(),
        f"vectors.{generation}.faiss": faiss.serialize_index(index).tobytes(),
    }
    manifest = {
        "format": FORMAT, "version": VERSION, "model": model, "embedding": vectors.shape[1], "clips": len(clips),
        "generation": generation, "folder": str(folder.resolve()),
        "files": {name: digest(body) for name, body in bodies.items()},
    }  # fmt: skip
    with replacing([folder / name for name in bodies]) as parts:
        for part, body in zip(parts, bodies.values()):
            part.write_bytes(body)
    with replacing([folder / MANIFEST]) as [part]:
        part.write_text(json.dumps(sealed(manifest), indent=1))
    tidy(folder)


def tidy(folder: Path) -> None:
    """Removes what is of no use in an index: call it while `writing`."""
    for path in loose_ends(folder):
        path.unlink(missing_ok=True)


def loose_ends(folder: Path) -> list[Path]:
    """Returns what killed writers left in a folder with an index: temporary files, and generations that the manifest
    does not name; nothing while another process writes.
    """
    generations = [*folder.glob("clips.*.jsonl"), *folder.glob("vectors.*.faiss")]
    current = _manifest(folder).files if exists(folder) else {}
    return leftovers(folder) + sorted(path for path in generations if path.name not in current)


def _manifest(folder: Path) -> _Manifest:
    path = folder / MANIFEST
    if not path.is_file():
        raise ValueError(f"index: {folder} holds no index; make one with `cpr index`")
    try:
        body = read_json(path.read_bytes())
        if not isinstance(body, dict) or body.get("format") != FORMAT:
            raise ValueError("it was not written by `cpr index`")
        if body.get("version") != VERSION:
            raise ValueError(f"it has version {body.get('version')}, this cpr_kernels reads {VERSION}")
        if not check_seal(body):
            say(f"index: {path} {UNSEALED}; it gets one with the next change")
        manifest = as_record(body, _Manifest)
        wanted = [f"clips.{manifest.generation}.jsonl", f"vectors.{manifest.generation}.faiss"]
        if sorted(manifest.files) != wanted:
            raise ValueError(f"it names {', '.join(sorted(manifest.files))}, expected {', '.join(wanted)}")
    except (ValueError, OSError) as error:
        raise ValueError(f"index: {path} cannot be read: {error}; make the index again") from None
    return manifest


def _flat(body: bytes) -> Any:
    """Returns the FAISS index in a file's bytes, an exact one by inner product."""
    faiss = _faiss()
    try:
        index = faiss.deserialize_index(np.frombuffer(body, np.uint8))
    except (RuntimeError, MemoryError) as error:
        raise ValueError(f"its vectors are no FAISS index ({' '.join(str(error).split())[:120]})") from None
    kind = faiss.downcast_index(index)
    if not isinstance(kind, faiss.IndexFlat) or index.metric_type != faiss.METRIC_INNER_PRODUCT:
        raise ValueError(f"its vectors are a {type(kind).__name__}, expected an IndexFlatIP")
    return index


def _body(folder: Path, name: str, sha256: str) -> bytes:
    path = folder / name
    if Path(name).name != name or not path.is_file():
        raise ValueError(f"index: {path} is missing, which the manifest names; make the index again")
    body = path.read_bytes()
    if digest(body) != sha256:
        raise ValueError(f"index: {path} is not the file that the manifest names; make the index again")
    return body


def _faiss() -> Any:
    try:
        import faiss
    except ImportError as error:
        raise ImportError("an index needs faiss: pip install 'cpr_kernels[deploy]'") from error
    return faiss
