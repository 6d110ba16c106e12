"""Named arrays from and to files: `.npz`, `.npy`, `.safetensors` in; the same and `.csv` out."""

from __future__ import annotations

import csv
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from ...files import replacing
from ...reading.arrays import npy_file, npz_headers

READS = (".npz", ".npy", ".safetensors")
WRITES = (".npz", ".npy", ".csv", ".safetensors")
FLOATS = ("float16", "bfloat16", "float32", "float64")


class Column(NamedTuple):
    """One array of a file, known by its header and read on first use."""

    name: str
    where: str  # for messages: "features.npz: flow"
    shape: tuple[int, ...]
    dtype: str  # float32, bfloat16, int64, str, object, ...
    load: Callable[[], Any]  # numpy array (memory-mapped for .npy) or torch tensor

    @property
    def is_float(self) -> bool:
        """Floating point of a kind that can be mined."""
        return self.dtype in FLOATS

    @property
    def is_number(self) -> bool:
        """Real numbers of any kind."""
        return self.is_float or self.dtype.startswith(("int", "uint"))


def open_columns(path: Path, name: str | None = None) -> dict[str, Column]:
    """The arrays of a file by name; a `.npy` holds one, called `name` (default: the file's stem).

    Raises:
        ValueError: no such file, a suffix that is not read, or a file that is not what its suffix says.
        ImportError: a `.safetensors` without that package.
    """
    if path.suffix not in READS:
        raise ValueError(
            f"{path}: cannot read {path.suffix or 'a file without suffix'}; give {', '.join(READS)}"
        )
    if not path.is_file():
        raise ValueError(f"{path}: no such file")
    with _reading(path):
        if path.suffix == ".npz":
            found = _npz(path)
        elif path.suffix == ".npy":
            found = [_npy(path, name or path.stem)]
        else:
            found = _safetensors(path)
    return {column.name: column for column in found}


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    try:
        yield
    except ImportError:
        raise
    except Exception as error:  # a damaged file: NumPy, zlib and safetensors raise many kinds
        reason = " ".join(str(error).split()) or type(error).__name__
        raise ValueError(f"{path}: not a readable {path.suffix} file ({reason})") from error


def _dtype_name(dtype: np.dtype[Any]) -> str:
    return "str" if dtype.kind in "US" else "object" if dtype.hasobject else dtype.name


def _npz(path: Path) -> list[Column]:
    return [
        Column(name, f"{path}: {name}", header.shape, _dtype_name(header.dtype), _npz_loader(path, name))
        for name, header in npz_headers(path).items()
    ]


def _npz_loader(path: Path, name: str) -> Callable[[], Any]:
    def load() -> Any:
        with _reading(path), np.load(path, allow_pickle=False) as archive:
            return archive[name]

    return load


def _npy(path: Path, name: str) -> Column:
    def load() -> Any:
        with _reading(path):
            return np.load(path, mmap_mode="r", allow_pickle=False)

    header = npy_file(path)
    if header is None or header.dtype.hasobject:
        raise ValueError("holds Python objects or named fields; save plain numbers or strings")
    return Column(name, str(path), header.shape, _dtype_name(header.dtype), load)


def _safetensors(path: Path) -> list[Column]:
    try:
        from safetensors import safe_open
    except ImportError as error:
        raise ImportError(f"{path}: reading needs safetensors: pip install safetensors") from error

    def loader(name: str) -> Callable[[], Any]:
        def load() -> Any:
            with _reading(path), safe_open(path, framework="pt") as file:
                return file.get_tensor(name)

        return load

    with safe_open(path, framework="pt") as file:
        heads = [(name, file.get_slice(name)) for name in file.keys()]  # noqa: SIM118 (not a mapping)
        return [
            Column(
                name, f"{path}: {name}", tuple(head.get_shape()), _long_name(head.get_dtype()), loader(name)
            )
            for name, head in heads
        ]  # fmt: skip


def _long_name(short: str) -> str:
    """float32 from safetensors' F32."""
    if short == "BF16":
        return "bfloat16"
    for letter, word in (("F", "float"), ("I", "int"), ("U", "uint")):
        if short.startswith(letter) and short[1:].isdigit():
            return word + short[1:]
    return short.lower()


class Result(NamedTuple):
    """What is written: the mined table, and what is known of its rows."""

    indices: np.ndarray  # [B, k] int64, -1 is padding
    scores: np.ndarray  # [B, k] float32, -inf is padding
    schedule: str
    query_ids: np.ndarray | None = None  # [B] as given
    key_ids: np.ndarray | None = None  # [N]
    query_labels: np.ndarray | None = None  # [B] as given
    key_labels: np.ndarray | None = None  # [N]


def output_paths(path: Path, force: bool) -> list[Path]:
    """The files that `--out path` makes: one, or for `.npy` a pair.

    Raises:
        ValueError: an unknown suffix, a missing folder, or a file that is there already without `force`.
    """
    if path.suffix not in WRITES:
        raise ValueError(f"--out: cannot write {path.name!r}; end it in {', '.join(WRITES)}")
    if not path.parent.is_dir():
        raise ValueError(f"--out: the folder {path.parent} does not exist; make it first")
    paths = [path]
    if path.suffix == ".npy":
        paths = [path.with_suffix(".indices.npy"), path.with_suffix(".scores.npy")]
    there = [str(p) for p in paths if p.exists()]
    if there and not force:
        raise ValueError(f"--out: {', '.join(there)} is there already; add --force to replace it")
    return paths


def write_result(paths: list[Path], result: Result) -> None:
    """Writes `result` to the files of :func:`output_paths`, whole or not at all."""
    suffix = paths[0].suffix
    with replacing(paths) as parts:
        if suffix == ".npy":
            for part, array in zip(parts, (result.indices, result.scores)):
                with part.open("wb") as file:
                    np.save(file, array)
        elif suffix == ".npz":
            with parts[0].open("wb") as file:
                np.savez(file, **_named(result), schedule=np.array(result.schedule))
        elif suffix == ".csv":
            _write_csv(parts[0], result)
        else:
            _write_safetensors(parts[0], result)


def _named(result: Result) -> dict[str, Any]:
    fields = result._asdict()
    del fields["schedule"]
    return {name: array for name, array in fields.items() if array is not None}


def _write_safetensors(path: Path, result: Result) -> None:
    try:
        from safetensors.torch import save_file
    except ImportError as error:
        raise ImportError(
            "--out: writing .safetensors needs that package: pip install safetensors"
        ) from error
    numbers = {n: torch.from_numpy(a.copy()) for n, a in _named(result).items() if a.dtype.kind in "fiu"}
    save_file(numbers, path, metadata={"schedule": result.schedule})


def _write_csv(path: Path, result: Result) -> None:
    """One line a mined entry; padding is left out."""
    extra = [
        (name, of_query, of_key)
        for name, of_query, of_key in (
            ("id", result.query_ids, result.key_ids),
            ("label", result.query_labels, result.key_labels),
        )
        if of_query is not None and of_key is not None
    ]
    with path.open("w", newline="", encoding="utf-8", errors="surrogateescape") as file:
        out = csv.writer(file)
        names = [column for name, _, _ in extra for column in (f"query_{name}", name)]
        out.writerow(["query", "rank", "index", "score", *names])
        for query, (entries, scores) in enumerate(zip(result.indices.tolist(), result.scores.tolist())):
            for rank, (entry, score) in enumerate(zip(entries, scores), start=1):
                if entry >= 0:
                    known = [x for _, of_query, of_key in extra for x in (of_query[query], of_key[entry])]
                    out.writerow([query, rank, entry, f"{score:.9g}", *known])
