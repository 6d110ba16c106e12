"""Ids and labels of every kind are told apart by `cpr mine` as they were given; what cannot be read is an error."""

from __future__ import annotations

import csv
import json

import numpy as np
import pytest
import torch
from mine_data import N, run, table

from cpr_kernels.cli.mine.codes import encode, values_of
from cpr_kernels.cli.tables import Column

BASE = 2**63
SOURCES = {
    "uint64 hashes": np.array([BASE + 1, BASE + 2, 1, 2, 2**64 - 1, 2**64 - 2], np.uint64),
    "uint64 beside what wraps to them": np.array([2**64 - 5, 5, BASE, 0, 2**64 - 2, 7], np.uint64),
    "signed hashes": np.array([-5, 5, -(2**63), 2**63 - 1, -2, 0]),
    "large neighbours": np.array([2**53, 2**53 + 1, 2**53 + 2, 2**62, 2**62 + 1, 3]),
    "floats": np.array([0.0, 1.0, -2.0, 2.0**52, 2.0**53, -7.0]),
    "float32": np.array([0, 1, -2, 3, 2**24, -7], np.float32),
    "bools": np.array([False, True, False, True, False, True]),
    "strings": np.array(["a", "A", "a ", "á", "a\u0301", "-1"]),
    "bytes": np.array([b"a", b"\xff", b"\xfe", b"\xff\xfe", "é".encode(), b"?"]),
    "big-endian": np.array([1, 256, -3, 4, 5, 6], ">i4"),
}


def exact_groups(values: np.ndarray) -> list[int]:
    """A number for each value, equal where Python's own values are."""
    seen: dict[object, int] = {}
    return [seen.setdefault(value, len(seen)) for value in values.tolist()]


@pytest.mark.parametrize("kind", SOURCES)
@pytest.mark.parametrize("column", [False, True], ids=["[N]", "[N, 1]"])
def test_rows_of_one_source_never_mine_each_other_and_all_others_may(tmp_path, capsys, kind, column):
    ids = np.resize(SOURCES[kind], N)
    groups = np.array(exact_groups(ids))
    arrays = {"flow": table()["flow"], "ids": ids[:, None] if column else ids, "label": groups}
    np.savez(tmp_path / "t.npz", **arrays)
    run(tmp_path / "t.npz", "--topk", N, "--out", tmp_path / "m.npz", "--json")
    assert json.loads(capsys.readouterr().out)["ids"] == f"ids: {len(set(groups))} sources"
    indices = np.load(tmp_path / "m.npz")["indices"]
    for row, mined in enumerate(indices):
        assert sorted(mined[mined >= 0]) == np.flatnonzero(groups != groups[row]).tolist()


@pytest.mark.parametrize("kind", [kind for kind in SOURCES if kind != "bools"])
def test_labels_of_every_kind_are_told_apart(tmp_path, capsys, kind):
    values = SOURCES[kind]
    labels = np.resize(values, N)
    np.savez(tmp_path / "t.npz", flow=table()["flow"], label=labels)
    run(tmp_path / "t.npz", "--topk", 5, "--json", "--out", tmp_path / "m.csv")
    said = json.loads(capsys.readouterr().out)
    groups = np.array(exact_groups(labels))
    rows = list(csv.DictReader((tmp_path / "m.csv").open(encoding="utf-8", errors="surrogateescape")))
    right = np.mean([groups[int(row["query"])] == groups[int(row["index"])] for row in rows])
    assert said["pmr"] == pytest.approx(right) and len(said["cmr"]) == len(set(groups))
    same = np.mean([row["query_label"] == row["label"] for row in rows])
    assert same == pytest.approx(right)  # what is written tells them apart too


def test_only_minus_one_and_ignored_labels_stand_for_nothing(tmp_path, capsys):
    ids, labels = np.arange(N) - 3, np.arange(N) % 3 - 2
    labels[labels == 0], labels[5] = -100, -7
    np.savez(tmp_path / "t.npz", flow=table()["flow"], ids=ids, label=labels)
    run(tmp_path / "t.npz", "--topk", N, "--out", tmp_path / "m.npz", "--json")
    said, indices = json.loads(capsys.readouterr().out), np.load(tmp_path / "m.npz")["indices"]
    assert said["ids"] == f"ids: {N - 1} sources; 1 entries have no id and are never mined"
    assert set(said["cmr"]) == {"-2", "-7"}
    assert not (indices == 2).any() and (indices[0] >= 0).sum() == N - 2


def test_the_two_sides_are_compared_as_they_are():
    keys, queries = np.array([-1, 5, 7]), np.array([2**64 - 1, 5, 2**63 + 7], np.uint64)
    codes = encode([keys], [queries], "--ids")
    assert codes.of_keys.tolist()[0] == -1 and codes.of_keys[1] == codes.of_queries[1]
    assert len({*codes.of_keys.tolist(), *codes.of_queries.tolist()}) == 5
    plain = encode([np.array([1, 2])], [np.array([2**53 + 1, 2**53], np.uint64)], "--ids")
    assert len({*plain.of_keys.tolist(), *plain.of_queries.tolist()}) == 4
    joined = encode([np.array(["a/b", "a"]), np.array(["c", "b/c"])], None, "--ids")
    assert joined.names.tolist() == ['["a", "b/c"]', '["a/b", "c"]'] and joined.of_keys.tolist() == [1, 0]
    assert encode([np.array(["a", "b"]), np.array([1, 2])], None, "--ids").names.tolist() == ["a/1", "b/2"]


def test_unsigned_ids_of_safetensors(tmp_path):
    save_file = pytest.importorskip("safetensors.torch").save_file
    ids = torch.from_numpy(np.resize(SOURCES["uint64 hashes"], N))
    save_file({"flow": torch.from_numpy(table()["flow"]), "ids": ids}, tmp_path / "t.safetensors")
    run(tmp_path / "t.safetensors", "--topk", 3, "--out", tmp_path / "m.npz")
    assert np.array_equal(np.load(tmp_path / "m.npz")["key_ids"], ids.numpy())


FLOW, RGB = table()["flow"], table()["rgb"]
BAD = [
    (
        {"ids": np.array([{} for _ in range(N)])},
        "--ids: 'ids' must hold one integer or string a row, shape [60], got object",
    ),
    ({"labels": np.array([None] * N)}, "--labels: 'labels' must hold one integer or string a row"),
    (
        {"ids": np.arange(N - 1)},
        "--ids: 'ids' must hold one integer or string a row, shape [60], got int64 [59]",
    ),
    ({"label": np.array(["a", "b"])}, "got str [2]; name another array, or give --labels none"),
    (
        {"ids": np.arange(2 * N).reshape(N, 2)},
        "'ids' is int64 [60, 2], and views are floats of shape [N, D], columns [N], here N=60",
    ),
    (
        {"rgb": RGB[:9]},
        "'rgb' is float32 [9, 6], and views are floats of shape [N, D], columns [N], here N=60; give --views flow to",
    ),
    ({"video": np.zeros((N, 3, 6, 2), np.float32)}, "'video' is float32 [60, 3, 6, 2]"),
    ({"video": np.zeros((N, 3, 6), np.int32)}, "'video' is int32 [60, 3, 6]"),
    ({"codes": np.zeros((N, 8), np.uint8)}, "'codes' is uint8 [60, 8]"),
    ({"caption": np.array(["a"] * (N - 1))}, "'caption' is str [59], and views are floats"),
    ({"times": np.zeros(2 * N)}, "'times' is float64 [120], and views are floats"),
    ({"ids": np.array(["a", 1] * (N // 2), dtype=object)}, "got object [60]"),
    ({"ids": np.array([2**64] * N, dtype=object)}, "got object [60]"),
    ({"ids": np.arange(N) + 0.5}, "--ids: 'ids' must hold integers or strings, got fractions or NaN"),
    (
        {"ids": (np.arange(N) * 1e6).astype(np.float32)},
        "holds numbers beyond 16,777,216, which float32 rounds",
    ),
    ({"ids": np.arange(N) * 1e15}, "holds numbers beyond 9,007,199,254,740,992, which float64 rounds"),
    ({"ids": np.arange(N).astype("datetime64[s]")}, "got datetime64[s] [60]"),
]


@pytest.mark.parametrize(("odd", "says"), BAD, ids=[says[:50] for _, says in BAD])
def test_what_is_not_understood_is_an_error_and_never_unused(tmp_path, capsys, odd, says):
    np.savez(tmp_path / "t.npz", flow=FLOW, **odd)
    run(tmp_path / "t.npz", status=2)
    printed = capsys.readouterr()
    assert printed.out == "" and printed.err.count("\n") == 1 and says in printed.err


@pytest.mark.parametrize(
    ("given", "kept"),
    [
        ([f"v{i // 2}" for i in range(N)], [f"v{i // 2}" for i in range(N)]),
        ([-7 - i // 2 for i in range(N)], [-7 - i // 2 for i in range(N)]),
        ([2**63 + i // 2 for i in range(N)], [2**63 + i // 2 for i in range(N)]),
        ([None, float("nan"), *("ab" * 29)], ["", "", *("ab" * 29)]),
    ],
    ids=["strings", "negative", "large", "missing"],
)
@pytest.mark.parametrize("kind", ["npz", "npy"])
def test_objects_of_strings_or_whole_numbers_are_ids(tmp_path, given, kept, kind):
    ids = np.array(given, dtype=object)
    np.savez(tmp_path / "t.npz", flow=FLOW, **({"ids": ids} if kind == "npz" else {}))
    np.save(tmp_path / "i.npy", ids, allow_pickle=True)
    run(
        tmp_path / "t.npz",
        "--ids",
        "ids" if kind == "npz" else tmp_path / "i.npy",
        "--out",
        tmp_path / "m.npz",
    )
    mined = np.load(tmp_path / "m.npz")
    assert mined["key_ids"].tolist() == kept
    own = mined["key_ids"][mined["indices"]] == mined["query_ids"][:, None]
    assert not own[mined["indices"] >= 0].any()


def test_objects_are_never_unpickled(tmp_path, capsys):
    class Trap:
        def __reduce__(self):
            return (open, (str(tmp_path / "trapped"), "w"))

    np.savez(tmp_path / "t.npz", flow=FLOW, ids=np.array([Trap()] * N, dtype=object))
    for options in ([], ["--ids", "ids"], ["--labels", "ids", "--ids", "none"]):
        run(tmp_path / "t.npz", *options, status=2)
        assert "object" in capsys.readouterr().err
    assert not (tmp_path / "trapped").exists()
    run(tmp_path / "t.npz", "--ids", "none", "--json")
    assert json.loads(capsys.readouterr().out)["unused"] == ["ids"]


def test_named_views_leave_the_rest_out(tmp_path, capsys):
    np.savez(
        tmp_path / "t.npz",
        flow=FLOW,
        rgb=RGB[:9],
        masks=np.zeros((N, 3, 3)),
        video=np.zeros((N, 4), np.float32),
    )
    run(tmp_path / "t.npz", "--views", "flow", "--json")
    said = json.loads(capsys.readouterr().out)
    assert said["unused"] == ["rgb", "masks", "video"] and said["ids"].startswith("none found")


def test_a_later_name_serves_where_an_earlier_one_does_not_fit(tmp_path, capsys):
    names = np.array(["x", "y", "z"])
    np.savez(tmp_path / "t.npz", flow=FLOW, labels=names, y=np.arange(N) % 3)
    run(tmp_path / "t.npz", "--json")
    assert json.loads(capsys.readouterr().out)["labels"] == "y: 3 classes"


def test_values_keep_their_type():
    def read(array):
        return values_of(Column("x", "f: x", array.shape, array.dtype.name, lambda: array), "--ids")

    assert (
        read(np.array([1, 2], np.uint64)).dtype == np.int64
    )  # compared with int64 of the other side at no cost
    assert read(np.array([1, 2**63], np.uint64)).dtype == np.uint64
    assert read(np.array([], np.uint64)).dtype == np.int64
