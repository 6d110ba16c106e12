"""Tables of every format hold the same arrays, are read in parts, and fail in one line."""

from __future__ import annotations

import csv
import io
import json

import numpy as np
import pytest
import torch
from mine_data import N, make_data, run, table

from cpr_kernels.cli.mine import embeddings
from cpr_kernels.cli.tables import open_columns

h5py = pytest.importorskip("h5py", reason="the formats of tables: pip install 'cpr_kernels[tables]'")
pa = pytest.importorskip("pyarrow")
feather = pytest.importorskip("pyarrow.feather")
parquet = pytest.importorskip("pyarrow.parquet")

ARRAYS = table()
SCHEDULE = "flow:0.5,rgb:12,flow:4"


def wide(arrays):
    """One column a number, as pandas writes it."""
    flat = {}
    for name, array in arrays.items():
        flat |= (
            {f"{name}_{i}": array[:, i] for i in range(array.shape[1])} if array.ndim == 2 else {name: array}
        )
    return pa.table(flat)


def lists(arrays, fixed):
    made = {}
    for name, array in arrays.items():
        if array.ndim == 1:
            made[name] = pa.array(array)
        elif fixed:
            made[name] = pa.FixedSizeListArray.from_arrays(pa.array(array.reshape(-1)), array.shape[1])
        else:
            made[name] = pa.array(list(array))
    return pa.table(made)


def write(path, kind):
    if kind in ("h5", "hdf5"):
        with h5py.File(path, "w") as file:
            for name, array in ARRAYS.items():
                file[name] = array.astype(object) if array.dtype.kind == "U" else array
    elif kind in ("pt", "pth"):
        torch.save(
            {n: a.tolist() if a.dtype.kind == "U" else torch.from_numpy(a) for n, a in ARRAYS.items()}, path
        )
    elif kind == "parquet":
        parquet.write_table(lists(ARRAYS, fixed=False), path, row_group_size=17)
    elif kind == "feather":
        feather.write_feather(lists(ARRAYS, fixed=True), path, compression="uncompressed", chunksize=17)
    else:
        text = io.StringIO()
        out = csv.writer(text, delimiter=";" if kind == "csv" else "\t")
        rows = wide(ARRAYS)
        out.writerow(rows.column_names)
        out.writerows(zip(*(column.to_pylist() for column in rows.columns)))
        path.write_text("\ufeff" + text.getvalue(), encoding="utf-8")
    return path


@pytest.mark.parametrize("kind", ["h5", "hdf5", "pt", "pth", "parquet", "feather", "csv", "tsv"])
def test_every_format_holds_the_same_arrays(tmp_path, kind):
    columns = open_columns(write(tmp_path / f"t.{kind}", kind))
    assert set(columns) == set(ARRAYS)
    for name, array in ARRAYS.items():
        column = columns[name]
        assert column.shape == array.shape
        assert column.is_float == (array.ndim == 2) and column.dtype != "object"
        loaded = column.load()
        assert np.array_equal(np.asarray(loaded[:]), array)
        if array.ndim == 2:
            assert np.array_equal(np.asarray(loaded[7:20]), array[7:20])
            assert np.array_equal(np.asarray(loaded[np.array([3, 18, 59])]), array[[3, 18, 59]])


@pytest.fixture(scope="module")
def mined(tmp_path_factory):
    """What is mined from the same table as `.npz`."""
    data = make_data(tmp_path_factory.mktemp("npz"))
    run(data.npz, "--schedule", SCHEDULE, "--out", data.folder / "m.npz")
    return np.load(data.folder / "m.npz")


@pytest.mark.parametrize("kind", ["h5", "pt", "parquet", "csv"])
def test_mining_is_the_same_from_every_format_and_names_go_through(tmp_path, capsys, mined, kind):
    out = tmp_path / "m.parquet"
    run(write(tmp_path / f"t.{kind}", kind), "--schedule", SCHEDULE, "--out", out, "--json")
    said = json.loads(capsys.readouterr().out)
    assert said["ids"] == "video: 7 sources" and said["columns"] == ["clip"] and said["unused"] == []
    lines = parquet.read_table(out).to_pydict()
    assert lines["index"] == mined["indices"].reshape(-1).tolist()
    assert np.allclose(lines["score"], mined["scores"].reshape(-1), rtol=0, atol=1e-6 if kind == "csv" else 0)
    assert lines["clip"] == lines["index"] and lines["query_clip"] == lines["query"]
    assert lines["id"] == ARRAYS["video"][lines["index"]].tolist()
    assert parquet.read_schema(out).metadata[b"schedule"].decode() == "flow:30,rgb:12,flow:4"


def test_a_dash_prints_lines_on_standard_output(tmp_path, capsys, mined):
    data = make_data(tmp_path)
    run(data.npz, "--schedule", SCHEDULE, "--out", "-")
    printed = capsys.readouterr()
    rows = list(csv.DictReader(io.StringIO(printed.out)))
    assert [int(row["index"]) for row in rows] == mined["indices"].reshape(-1).tolist()
    assert "written   standard output" in printed.err and rows[0]["query_clip"] == "0"


def test_columns_are_chosen_and_never_replace_the_output_s_own(tmp_path, capsys):
    np.savez(tmp_path / "t.npz", **ARRAYS, score=np.arange(N), name=np.array([f"n{i}" for i in range(N)]))
    out = tmp_path / "m.csv"
    for options, columns in (
        ([], ["clip", "name"]),
        (["--columns", "name"], ["name"]),
        (["--columns", "none"], []),
    ):
        run(tmp_path / "t.npz", "--stages", 3, "--out", out, "--force", "--json", *options)
        assert json.loads(capsys.readouterr().out)["columns"] == columns
        header = out.read_text().split("\n")[0].strip().split(",")
        assert [name for name in header if name in ("clip", "name")] == columns
    for name, says in (
        ("score", "a name of the output's own"),
        ("flow", "must have shape [60]"),
        ("x", "no array 'x'"),
    ):
        run(tmp_path / "t.npz", "--stages", 3, "--out", out, "--force", "--columns", name, status=2)
        assert says in capsys.readouterr().err


STEPS = [
    ARRAYS["flow"] + np.linspace(-1, 1, t)[:, None, None].astype(np.float32) * (t > 1) for t in (1, 3, 5)
]
PARTS = [STEPS[i % 3][:, i] for i in range(N)]  # [T, D] a video, T of 1, 3 or 5, whose mean is `flow`
NAMES = [f"c{i % 3}/v{i:02}" for i in range(N)]
ORDER = np.argsort(NAMES)


@pytest.mark.parametrize("kind", ["folder", "npz folder", "h5", "pt", "npz"])
def test_one_array_a_video_is_pooled_and_named(tmp_path, kind):
    path = tmp_path / f"i3d.{kind}"
    parts = dict(zip(NAMES, PARTS))
    if kind.endswith("folder"):
        for number, (name, part) in enumerate(parts.items()):
            (path / name).parent.mkdir(parents=True, exist_ok=True)
            if kind == "folder":
                np.save(path / f"{name}.npy", part)
            else:
                np.savez(path / f"{name}.npz", feature=part, fps=25.0, number=number)
        (path / "readme.txt").write_text("not an array")
    elif kind == "h5":
        with h5py.File(path, "w") as file:
            for name, part in parts.items():
                file[name] = part
    elif kind == "pt":
        torch.save({name: torch.from_numpy(part) for name, part in parts.items()}, path)
    else:
        np.savez(path, **parts)
    columns = open_columns(path, "flow")
    view = columns["feature" if kind == "npz folder" else "flow"]
    names = columns["video"].load().tolist()
    assert sorted(names) == sorted(NAMES) and view.shape == (N, 8)
    order = [int(name[-2:]) for name in names]
    assert np.allclose(view.load()[:], ARRAYS["flow"][order], atol=1e-6)
    assert "the mean over 1 to 5 steps" in view.note
    assert columns["label"].load().tolist() == [name[:2] for name in names]
    largest = open_columns(path, "flow", "max")[view.name].load()[:]
    assert np.array_equal(largest, np.stack([PARTS[i].max(axis=0) for i in order]))
    with pytest.raises(ValueError, match="have 1 to 5 steps; give --pool mean"):
        open_columns(path, "flow", "none")
    if kind == "npz folder":
        assert columns["number"].load().tolist() == order and columns["fps"].load().tolist() == [25.0] * N


def test_folders_of_the_same_names_are_views(tmp_path, capsys):
    for view in ("flow", "rgb"):
        (tmp_path / "both" / view).mkdir(parents=True)
        for i in range(N):
            np.save(tmp_path / "both" / view / f"v{i:02}.npy", ARRAYS[view][i])
    columns = open_columns(tmp_path / "both")
    assert {name: column.shape for name, column in columns.items()} == {
        "flow": (N, 8),
        "rgb": (N, 6),
        "video": (N,),
    }
    folders = [f"{view}={tmp_path}/both/{view}" for view in ("flow", "rgb")]
    run("--view", folders[0], "--view", folders[1], "--stages", 3, "--json", "--out", tmp_path / "m.npz")
    assert json.loads(capsys.readouterr().out)["ids"] == f"video: {N} sources"
    assert np.load(tmp_path / "m.npz")["key_ids"][3] == "v03"
    (tmp_path / "both/rgb/v07.npy").rename(tmp_path / "both/rgb/v99.npy")
    run("--view", folders[0], "--view", folders[1], "--stages", 3, status=2)
    assert "row 7 has v07 and v08" in capsys.readouterr().err


@pytest.mark.parametrize("pool", ["mean", "max"])
@pytest.mark.parametrize("kind", ["npy", "h5", "pt"])
def test_steps_of_a_sample_are_pooled(tmp_path, capsys, kind, pool):
    steps = np.random.default_rng(0).normal(size=(N, 5, 8)).astype(np.float16)
    path = tmp_path / f"t.{kind}"
    if kind == "npy":
        np.save(path, steps)
    elif kind == "h5":
        h5py.File(path, "w")["t"] = steps
    else:
        torch.save(torch.from_numpy(steps), path)
    view = open_columns(path, pool=pool)["t"]
    expected = getattr(steps.astype(np.float32), pool)(axis=1)
    assert view.shape == (N, 8) and np.array_equal(view.load()[:], expected)
    assert np.array_equal(view.load()[np.array([2, 3, 59])], expected[[2, 3, 59]])
    run(path, "--topk", 3, "--pool", pool, "--json")
    assert json.loads(capsys.readouterr().out)["notes"] == [f"t is the {pool} over 5 steps of [60, 5, 8]"]
    run(path, "--topk", 3, "--pool", "none", status=2)
    assert (
        "no array of shape [N, D] of floats found; there is t float16 [60, 5, 8]" in capsys.readouterr().err
    )


def test_numbers_of_a_csv_stay_what_they_are(tmp_path):
    (tmp_path / "t.csv").write_text("id,n,x,rgb_0,rgb_1\n007,7,a,1,0.5\n7,8,,2,1e-3\n")
    columns = open_columns(tmp_path / "t.csv")
    assert columns["id"].load().tolist() == ["007", "7"] and columns["n"].load().tolist() == [7, 8]
    assert columns["x"].load().tolist() == ["a", ""]
    assert columns["rgb"].load()[:].tolist() == [[1, 0.5], [2, 1e-3]]
    (tmp_path / "bare.csv").write_text("0.5,1,2\n3,4,5\n")
    assert open_columns(tmp_path / "bare.csv")["bare"].load()[:].tolist() == [[0.5, 1, 2], [3, 4, 5]]
    (tmp_path / "pandas.csv").write_text("0,1\n0.5,1\n3,4\n")
    assert open_columns(tmp_path / "pandas.csv")["pandas"].load()[:].tolist() == [[0.5, 1], [3, 4]]


class Code:
    def __reduce__(self):
        return (print, ("run",))


@pytest.mark.parametrize(
    "text", ["id;rgb_0;rgb_1\n7;0,5;1\n8;1,5;2\n", "0,5;0,25\n1;2\n", "rgb_0\trgb_1\n1\t2\n1,5\t2\n"]
)
def test_decimal_commas_are_named(tmp_path, text):
    (tmp_path / "a.csv").write_text(text)
    with pytest.raises(ValueError, match=r"a\.csv: has numbers with a comma, such as \d,5; write decimals"):
        open_columns(tmp_path / "a.csv")
    (tmp_path / "a.csv").write_text("0,5\n1,2.5\n")
    assert open_columns(tmp_path / "a.csv")["a"].load()[:].tolist() == [[0, 5], [1, 2.5]]


def damaged(path, kind):
    """A file that its ending lies about, or that is cut short."""
    if kind == "cut":
        whole = write(path, path.suffix[1:]).read_bytes()
        path.write_bytes(whole[: len(whole) // 2])
    else:
        path.write_bytes(b"\x00\x01 this is no table \xff" * 9)
    return path


@pytest.mark.parametrize("kind", ["cut", "other"])
@pytest.mark.parametrize("ending", ["h5", "pt", "parquet", "feather", "csv"])
def test_a_damaged_file_is_one_line(tmp_path, capsys, ending, kind):
    if (ending, kind) == ("csv", "cut"):
        pytest.skip("half a CSV is a CSV")
    path = damaged(tmp_path / f"t.{ending}", kind)
    run(path, "--topk", 3, status=2)
    printed = capsys.readouterr()
    assert printed.out == "" and printed.err.count("\n") == 1
    assert (
        f"{path}: not a readable .{ending} file" in printed.err
        or f"{path}: holds more than tensors" in printed.err
    )


ODD = {
    "code.pt": (lambda path: torch.save({"rgb": Code()}, path), "which is never unpickled; save tensors"),
    "numpy.pt": (lambda path: torch.save({"rgb": ARRAYS["rgb"]}, path), "which is never unpickled; save tensors"),
    "none.pt": (lambda path: torch.save(3, path), "holds no tensors, but int"),
    "sparse.pt": (lambda path: torch.save(torch.eye(3).to_sparse(), path), "torch.sparse_coo"),
    "empty.h5": (lambda path: h5py.File(path, "w").close(), "holds no data sets"),
    "ragged.parquet": (
        lambda path: parquet.write_table(pa.table({"rgb": [[1.0, 2.0], [3.0]]}), path),
        "rgb has lists of 1 to 2 numbers; expected one length D",
    ),
    "holes.parquet": (
        lambda path: parquet.write_table(pa.table({"rgb": [[1.0, 2.0], None]}), path),
        "rgb has 1 empty rows; leave them out",
    ),
    "twice.csv": (lambda path: path.write_text("a,a\n1,2\n"), "two columns have one name"),
    "gap.csv": (lambda path: path.write_text("r_0,r_2\n1.5,2\n"), "there is r_0 float64 [1], r_2 int64 [1]"),
    "empty": (lambda path: path.mkdir(), "holds no .npy or .npz, one a video"),
}  # fmt: skip


@pytest.mark.parametrize("name", ODD)
def test_what_is_no_table_is_one_line(tmp_path, capsys, name):
    make, says = ODD[name]
    make(tmp_path / name)
    run(tmp_path / name, "--topk", 1, status=2)
    printed = capsys.readouterr()
    assert printed.out == "" and printed.err.count("\n") == 1 and says in printed.err


def anonymous_bytes():
    lines = open("/proc/self/status").read().splitlines()  # noqa: SIM115, PTH123
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith("RssAnon"))


@pytest.mark.parametrize("normalize", [True, False])
def test_rows_larger_than_memory_are_mapped(tmp_path, monkeypatch, normalize):
    rows, size = 100_000, 64
    array = np.lib.format.open_memmap(tmp_path / "big.npy", "w+", np.float32, (rows, size))  # sparse: 26 MB
    array[12_345] = 2.0
    del array
    monkeypatch.setattr(embeddings, "free_memory", lambda: 1 << 20)
    monkeypatch.setattr(embeddings, "BLOCK", 1 << 16)
    scratch = (
        tmp_path if normalize else tmp_path / "none"
    )  # nothing is copied where nothing is done to the rows
    how = embeddings.Preparing(None, normalize, torch.float32, scratch)
    before = anonymous_bytes()
    made = embeddings.prepare(open_columns(tmp_path / "big.npy")["big"].load(), how)
    assert anonymous_bytes() - before < 13 << 20
    assert made.zero == rows - 1 and made.rows[12_345].tolist() == [0.125 if normalize else 2.0] * size
    assert [path.name for path in tmp_path.iterdir()] == [
        "big.npy"
    ]  # the temporary file has no name any more


def test_a_scratch_folder_that_is_not_there_is_named(tmp_path, capsys, monkeypatch):
    data = make_data(tmp_path)
    monkeypatch.setattr(embeddings, "free_memory", lambda: 0)
    run(data.npz, "--topk", 3, "--scratch", tmp_path / "none", status=2)
    assert "--scratch: the folder" in capsys.readouterr().err
    run(data.npz, "--topk", 3, "--scratch", tmp_path)


def test_views_of_which_one_lacks_a_video_are_told(tmp_path, capsys):
    for number in range(4):
        for view in ("rgb", "flow"):
            (tmp_path / view).mkdir(exist_ok=True)
            np.save(tmp_path / view / f"clip{number}.npy", np.full(8, number, "float32"))
    (tmp_path / "flow" / "clip3.npy").unlink()
    columns = open_columns(tmp_path)
    assert columns["label"].load().tolist() == ["flow"] * 3 + ["rgb"] * 4
    said = capsys.readouterr().err
    assert "folders flow, rgb hold nearly the same names and are taken for classes" in said
    assert "clip3 of rgb is not in every one" in said
    for number in range(1, 4):
        (tmp_path / "flow" / f"clip{number}.npy").unlink(missing_ok=True)
    open_columns(tmp_path)
    assert capsys.readouterr().err == ""
