"""The checks that every reader shares: records against dataclasses, arrays against their headers, hashes."""

from __future__ import annotations

import io
import json
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
import pytest
from msgspec import Meta

from cpr_kernels.cli.tables import open_columns
from cpr_kernels.reading.arrays import npy_header, npz_headers, read_npz
from cpr_kernels.reading.memory import memory
from cpr_kernels.reading.records import read_record
from cpr_kernels.reading.seals import check_seal, sealed


@dataclass(frozen=True)
class Thing:
    count: Annotated[int, Meta(ge=1, le=9)]
    kind: Literal["a", "b"] = "a"
    where: Path = Path()
    share: float = 0.5


def test_a_record_is_read_as_written() -> None:
    assert read_record('{"count": 3, "kind": "b", "where": "x/y", "share": 1}', Thing) == Thing(
        3, "b", Path("x/y"), 1.0
    )


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("{", "it is no JSON: Expecting"),
        (b"\xff", "it is no text in UTF-8"),
        ("[" * 100_000, "nested too deeply"),
        ("[]", "Expected `object`, got `array`"),
        ("{}", "missing required field `count`"),
        ('{"count": 1.0}', r"Expected `int`, got `float` - at `\$.count`"),
        ('{"count": true}', r"Expected `int`, got `bool` - at `\$.count`"),
        ('{"count": 10}', r"`int` <= 9 - at `\$.count`"),
        ('{"count": 1, "kind": "c"}', r"Invalid enum value 'c' - at `\$.kind`"),
        ('{"count": 1, "where": 3}', r"got `int` - at `\$.where`"),
        ('{"count": 1, "share": NaN}', "holds NaN"),
        ('{"count": 1, "share": 1e999}', "holds 1e999, which is too large"),
        ('{"count": 1, "count": 2}', "has a name twice"),
    ],
)  # fmt: skip
def test_other_records_are_refused_in_one_line(text: str | bytes, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence) as caught:
        read_record(text, Thing)
    assert "\n" not in str(caught.value)


def test_a_seal_sees_changes_and_no_new_spacing() -> None:
    body = sealed({"a": 1, "b": [1.5, "x"]})
    assert check_seal(json.loads(json.dumps(body, indent=3, sort_keys=True)))
    assert not check_seal({"a": 1})
    with pytest.raises(ValueError, match="its content is not what its sha256 says"):
        check_seal({**body, "a": 2})


def npy(header: str, body: bytes = b"") -> bytes:
    text = header.encode("latin-1")
    return b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text + body


LARGE = f"{{'descr': '<f4', 'fortran_order': False, 'shape': ({memory()}, ), }}"


@pytest.mark.parametrize(
    ("header", "sentence"),
    [
        ("{'descr': '<f4', 'fortran_order': False, 'shape': (9, 9), }", "324 bytes, and 8 follow: cut short"),
        ("{'descr': '<f4', 'fortran_order': False, 'shape': (-1, 9), }", r"says shape \[-1, 9\]"),
        ("{'descr': '<f4', 'fortran_order': False, 'shape': ('a', ), }", "header cannot be read"),
        ("{'descr': '<q9', 'fortran_order': False, 'shape': (1, ), }", "header cannot be read"),
        ("{'descr': (", "header cannot be read"),  # NumPy's tokenizer
        ("__import__('os').getpid()", "header cannot be read"),
        (LARGE, "cut short"),
    ],
)  # fmt: skip
def test_headers_of_arrays_are_checked(header: str, sentence: str, tmp_path: Path) -> None:
    body = npy(header, bytes(8))
    with pytest.raises(ValueError, match=sentence):
        npy_header(io.BytesIO(body), len(body))
    with zipfile.ZipFile(tmp_path / "a.npz", "w") as archive:
        archive.writestr("flow.npy", body)
    (tmp_path / "a.npy").write_bytes(body)
    for path in (tmp_path / "a.npz", tmp_path / "a.npy"):
        with pytest.raises(ValueError, match=rf"{path.name}: not a readable .*{sentence}") as caught:
            open_columns(path)
        assert "\n" not in str(caught.value)


def test_an_array_larger_than_memory_is_refused_before_it_is_made() -> None:
    with pytest.raises(ValueError, match="bytes, and this machine has"):
        npy_header(io.BytesIO(npy(LARGE)), 1 << 62)


def test_arrays_of_another_kind_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.npz"
    np.savez(path, ids=np.arange(3), rows=np.eye(2))
    assert list(npz_headers(path)) == ["ids", "rows"]
    assert read_npz(path, {"ids": ("i", 1)})["ids"].tolist() == [0, 1, 2]
    for wanted, sentence in (
        ({"ids": ("f", 1)}, "'ids' is int64"),
        ({"ids": ("i", 2)}, "'ids' is"),
        ({"x": ("i", 1)}, "lacks 'x'"),
    ):
        with pytest.raises(ValueError, match=sentence):
            read_npz(path, wanted)
