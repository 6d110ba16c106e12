"""Writes the mined table: `.npz`, `.npy`, `.safetensors`; one line a mined entry as `.csv` or `.parquet`."""

from __future__ import annotations

import csv
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple, TextIO

import numpy as np
import torch

from ...files import refuse_existing, replacing

WRITES = (".npz", ".npy", ".csv", ".parquet", ".safetensors")
STDOUT = Path("-")
BLOCK = 4096  # queries whose lines are made at a time


class Known(NamedTuple):
    """What is known of the rows, as given: ids, labels, or a column that goes through."""

    plural: str  # in files of arrays: query_ids, key_ids
    singular: str  # in files of lines: query_id, id
    of_queries: np.ndarray | None  # [B]
    of_keys: np.ndarray | None  # [N]


class Result(NamedTuple):
    """What is written: the mined table, and what is known of its rows."""

    indices: np.ndarray  # [B, k] int64, -1 is padding
    scores: np.ndarray  # [B, k] float32, -inf is padding
    schedule: str
    known: tuple[Known, ...] = ()

    def arrays(self) -> dict[str, np.ndarray]:
        """Every array by its name in a file of arrays."""
        made = {"indices": self.indices, "scores": self.scores}
        for one in self.known:
            sides = ((f"query_{one.plural}", one.of_queries), (f"key_{one.plural}", one.of_keys))
            made.update({name: array for name, array in sides if array is not None})
        return made

    def lines(self) -> Iterator[dict[str, np.ndarray]]:
        """Yields the columns of some lines, one a mined entry, at least once; padding is left out."""
        for start in range(0, max(len(self.indices), 1), BLOCK):
            part = self.indices[start : start + BLOCK]
            query, rank = np.nonzero(part >= 0)
            entry = part[query, rank]
            scores = self.scores[start : start + BLOCK][query, rank]
            made = {"query": query + start, "rank": rank + 1, "index": entry, "score": scores}
            for one in self.known:
                if one.of_queries is not None:
                    made[f"query_{one.singular}"] = one.of_queries[query + start]
                if one.of_keys is not None:
                    made[one.singular] = one.of_keys[entry]
            yield made

    def names(self) -> set[str]:
        """Every name in the files of both kinds."""
        return {*self.arrays(), *next(self.lines()), "schedule"}


def output_paths(path: Path, force: bool) -> list[Path]:
    """Returns the files that `--out path` makes: one, or for `.npy` a pair; `-` itself for standard output.

    Raises:
        ValueError: an unknown suffix, a missing folder, or a file that is there already without `force`.
    """
    if path == STDOUT:
        return [path]
    if path.suffix not in WRITES:
        raise ValueError(f"--out: cannot write {path.name!r}; end it in {', '.join(WRITES)}, or give -")
    if not path.parent.is_dir():
        raise ValueError(f"--out: the folder {path.parent} does not exist; make it first")
    paths = [path]
    if path.suffix == ".npy":
        paths = [path.with_suffix(".indices.npy"), path.with_suffix(".scores.npy")]
    refuse_existing(paths, force)
    return paths


def write_result(paths: list[Path], result: Result) -> None:
    """Writes `result` to the files of :func:`output_paths`, whole or not at all; to standard output as CSV."""
    if paths == [STDOUT]:
        _write_csv(sys.stdout, result)
        sys.stdout.flush()
        return
    suffix = paths[0].suffix
    with replacing(paths) as parts:
        if suffix == ".npy":
            for part, array in zip(parts, (result.indices, result.scores)):
                with part.open("wb") as file:
                    np.save(file, array)
        elif suffix == ".npz":
            with parts[0].open("wb") as file:
                named: dict[str, Any] = {**result.arrays(), "schedule": np.array(result.schedule)}
                np.savez(file, **named)
        elif suffix == ".csv":
            with parts[0].open("w", newline="", encoding="utf-8", errors="surrogateescape") as text:
                _write_csv(text, result)
        elif suffix == ".parquet":
            _write_parquet(parts[0], result)
        else:
            _write_safetensors(parts[0], result)


def _write_safetensors(path: Path, result: Result) -> None:
    try:
        from safetensors.torch import save_file
    except ImportError as error:
        raise ImportError(
            "--out: writing .safetensors needs that package: pip install safetensors"
        ) from error
    numbers = {n: torch.from_numpy(a.copy()) for n, a in result.arrays().items() if a.dtype.kind in "fiub"}
    save_file(numbers, path, metadata={"schedule": result.schedule})


def _write_parquet(path: Path, result: Result) -> None:
    try:
        import pyarrow as pa
        import pyarrow.parquet as parquet
    except ImportError as error:
        raise ImportError(
            "--out: writing .parquet needs pyarrow: pip install 'cpr_kernels[tables]'"
        ) from error

    def array(values: np.ndarray) -> Any:
        if values.dtype.kind in "UO":  # bytes that are no UTF-8 are written as \\udcff
            return pa.array(
                [str(word).encode("utf-8", "backslashreplace").decode() for word in values], pa.string()
            )
        return pa.array(values)

    writer = None
    for lines in result.lines():
        table = pa.table({name: array(values) for name, values in lines.items()})
        if writer is None:
            writer = parquet.ParquetWriter(path, table.schema.with_metadata({"schedule": result.schedule}))
        writer.write_table(table.cast(writer.schema))
    if writer is not None:
        writer.close()


def _write_csv(file: TextIO, result: Result) -> None:
    """One line a mined entry, below a header."""
    out = csv.writer(file, lineterminator="\n" if file is sys.stdout else "\r\n")
    for number, lines in enumerate(result.lines()):
        if not number:
            out.writerow(lines)
        scores = [f"{score:.9g}" for score in lines["score"].tolist()]
        columns = [scores if name == "score" else values.tolist() for name, values in lines.items()]
        out.writerows(zip(*columns))
