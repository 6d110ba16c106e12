"""`cpr mine`: every input and output format, the figures it prints, and one line for every error."""

from __future__ import annotations

import csv
import json

import numpy as np
import pytest
import torch
from mine_data import K, N, make_data, run, table

from cpr_kernels import cascade_topk, class_mining_recall, parse_schedule, positive_mining_recall
from cpr_kernels.metrics import median_recall

SCHEDULE = "flow:0.5,rgb:12,flow:4"


@pytest.fixture
def data(tmp_path):
    return make_data(tmp_path)


def unit(array, mean=None):
    rows = torch.from_numpy(array) - (0 if mean is None else mean)
    return torch.nn.functional.normalize(rows, dim=1)


def expected(data, schedule=SCHEDULE, queries=None, ids=True):
    """What the op mines when called by hand."""
    keys = {name: unit(data.arrays[name]) for name in ("flow", "rgb")}
    asked = keys if queries is None else {name: unit(queries[name]) for name in keys}
    numbers = np.unique(
        np.concatenate([data.arrays["video"], (queries or data.arrays)["video"]]), return_inverse=True
    )
    key_ids, query_ids = torch.from_numpy(numbers[1][:N]), torch.from_numpy(numbers[1][N:])
    if not ids:
        key_ids = query_ids = torch.arange(N)
    return cascade_topk(asked, keys, parse_schedule(schedule, N), query_ids=query_ids, key_ids=key_ids)


def summary(capsys):
    return json.loads(capsys.readouterr().out)


def test_an_npz_becomes_positives_and_figures(data, capsys):
    out = data.folder / "mined.npz"
    run(data.npz, "--schedule", SCHEDULE, "--out", out, "--json")
    said, wrote = summary(capsys), np.load(out)
    indices, scores = expected(data)
    assert np.array_equal(wrote["indices"], indices.numpy())
    assert np.array_equal(wrote["scores"], scores.numpy())
    assert str(wrote["schedule"]) == said["schedule"] == "flow:30,rgb:12,flow:4"
    assert wrote["key_ids"].tolist() == data.arrays["video"].tolist() == wrote["query_ids"].tolist()
    assert wrote["key_labels"].tolist() == data.arrays["label"].tolist()
    labels = torch.from_numpy(data.arrays["label"])
    assert said["pmr"] == pytest.approx(positive_mining_recall(indices, labels, labels).item())
    recall = class_mining_recall(indices, labels, labels)
    assert said["cmr"] == {str(c): pytest.approx(r) for c, r in recall.items()}
    assert said["cmr_median"] == pytest.approx(median_recall(recall))
    assert said["ids"] == "video: 7 sources" and said["labels"] == "label: 3 classes"
    assert (said["entries"], said["queries"], said["self"], said["columns"]) == (N, N, True, ["clip"])
    assert said["views"] == {"flow": 8, "rgb": 6} and said["out"] == [str(out)]
    assert said["short_queries"] == 0 and said["backend"] in ("native", "reference")


def test_the_stage_table_counts_survivors_and_their_labels(data, capsys):
    run(data.npz, "--schedule", SCHEDULE, "--json")
    stages = summary(capsys)["stages"]
    labels, video = data.arrays["label"], data.arrays["video"]
    eligible = video[:, None] != video[None, :]
    same = labels[:, None] == labels[None, :]
    assert stages[0]["survivors"] == pytest.approx(eligible.sum() / N)
    assert stages[0]["same_label"] == pytest.approx((eligible & same).sum() / eligible.sum())
    for s, text in enumerate(("flow:0.5", "flow:0.5,rgb:12", SCHEDULE), start=1):
        indices, _ = expected(data, text)
        hits = labels[indices.numpy()] == labels[:, None]
        assert stages[s]["survivors"] == indices.shape[1]
        assert stages[s]["same_label"] == pytest.approx(hits.mean())
    assert [row["judge"] for row in stages] == ["eligible", "flow", "rgb", "flow"]


@pytest.mark.parametrize("how", ["files", "safetensors", "mixed"])
def test_other_inputs_give_the_same(data, how):
    out = data.folder / "mined.npz"
    f = data.folder
    views = ["--view", f"flow={f}/flow.npy", "--view", f"rgb={f}/rgb.npy"]
    columns = ["--ids", f"{f}/video.npy", "--labels", f"{f}/label.npy"]
    if how == "files":
        run(*views, *columns, "--schedule", SCHEDULE, "--out", out)
    elif how == "mixed":
        run(data.npz, "--views", "big,rgb", "--view", f"big={f}/flow.npy", *columns[2:],
            "--schedule", SCHEDULE.replace("flow", "big"), "--out", out)  # fmt: skip
    else:
        save_file = pytest.importorskip("safetensors.torch").save_file
        tensors = {n: torch.from_numpy(a) for n, a in data.arrays.items() if a.dtype.kind in "fi"}
        tensors["ids"] = torch.from_numpy(np.unique(data.arrays["video"], return_inverse=True)[1])
        save_file(tensors, f / "t.safetensors")
        run(f / "t.safetensors", "--schedule", SCHEDULE, "--out", out)
    indices, scores = expected(data)
    assert np.array_equal(np.load(out)["indices"], indices.numpy())
    assert np.array_equal(np.load(out)["scores"], scores.numpy())


def test_one_npy_is_one_view(data, capsys):
    run(data.folder / "flow.npy", "--topk", 3, "--json")
    said = summary(capsys)
    assert said["schedule"] == "flow:3" and said["views"] == {"flow": 8}
    assert "pmr" not in said and said["stages"][1]["same_label"] is None
    assert said["stages"][0]["survivors"] == N - 1  # a row never mines itself


@pytest.mark.parametrize("suffix", [".npz", ".npy", ".csv", ".safetensors"])
def test_every_output_format(data, suffix):
    if suffix == ".safetensors":
        load_file = pytest.importorskip("safetensors.torch").load_file
    out = data.folder / f"mined{suffix}"
    run(data.npz, "--schedule", SCHEDULE, "--out", out)
    indices, scores = expected(data)
    if suffix == ".npy":
        assert torch.equal(torch.from_numpy(np.load(data.folder / "mined.indices.npy")), indices)
        assert torch.equal(torch.from_numpy(np.load(data.folder / "mined.scores.npy")), scores)
    elif suffix == ".npz":
        assert torch.equal(torch.from_numpy(np.load(out)["indices"]), indices)
    elif suffix == ".safetensors":
        wrote = load_file(out)
        assert torch.equal(wrote["indices"], indices) and torch.equal(wrote["scores"], scores)
        assert wrote["key_labels"].tolist() == data.arrays["label"].tolist()
    else:
        rows = list(csv.DictReader(out.open()))
        assert len(rows) == N * K
        for row in rows:
            query, rank = int(row["query"]), int(row["rank"]) - 1
            entry = int(indices[query, rank])
            assert (int(row["index"]), np.float32(row["score"])) == (entry, scores[query, rank].numpy())
            assert (row["query_id"], row["id"]) == (data.arrays["video"][query], data.arrays["video"][entry])
            assert int(row["label"]) == data.arrays["label"][entry]
    assert not [path.name for path in data.folder.iterdir() if path.name.endswith(".part")]


def test_other_queries(data, capsys):
    out = data.folder / "mined.npz"
    run(data.npz, "--queries", data.folder / "q.npz", "--schedule", SCHEDULE, "--out", out, "--json")
    said = summary(capsys)
    indices, _ = expected(data, queries=data.others)
    assert np.array_equal(np.load(out)["indices"], indices.numpy())
    assert (said["queries"], said["entries"], said["self"]) == (25, N, False)
    own, labels = (torch.from_numpy(side["label"]) for side in (data.others, data.arrays))
    assert said["pmr"] == pytest.approx(positive_mining_recall(indices, own, labels).item())
    np.save(data.folder / "qf.npy", data.others["flow"])
    np.save(data.folder / "qr.npy", data.others["rgb"])
    np.save(data.folder / "qv.npy", data.others["video"])
    run(data.npz, "--query-view", f"flow={data.folder}/qf.npy", "--query-view", f"rgb={data.folder}/qr.npy",
        "--query-ids", data.folder / "qv.npy", "--schedule", SCHEDULE, "--out", out, "--force", "--json")  # fmt: skip
    assert np.array_equal(np.load(out)["indices"], indices.numpy())
    assert summary(capsys)["labels"].startswith("not used: the queries have no label")


def test_queries_without_ids_may_mine_anything(data, capsys):
    np.savez(data.folder / "plain.npz", flow=data.arrays["flow"], rgb=data.arrays["rgb"])
    run(data.npz, "--queries", data.folder / "plain.npz", "--schedule", "flow:1", "--json")
    said = summary(capsys)
    assert said["ids"].startswith("not used: the queries have no video")
    assert said["stages"][0]["survivors"] == N


@pytest.mark.parametrize("chunk", [1, 7, 60, 1000])
def test_chunks_and_threads_change_nothing(data, chunk):
    out = data.folder / "mined.npz"
    threads = torch.get_num_threads()
    run(data.npz, "--schedule", SCHEDULE, "--chunk", chunk, "--threads", 1, "--out", out)
    assert np.array_equal(np.load(out)["indices"], expected(data)[0].numpy())
    assert np.array_equal(np.load(out)["scores"], expected(data)[1].numpy())
    assert torch.get_num_threads() == threads


def test_joined_columns_are_one_source(data):
    out = data.folder / "mined.npz"
    run(data.npz, "--ids", "label,video", "--schedule", SCHEDULE, "--out", out)
    wrote = np.load(out)
    joined = [f"{label}/{video}" for label, video in zip(data.arrays["label"], data.arrays["video"])]
    assert wrote["key_ids"].tolist() == joined
    keys = {name: unit(data.arrays[name]) for name in ("flow", "rgb")}
    ids = torch.from_numpy(np.unique(joined, return_inverse=True)[1])
    indices, _ = cascade_topk(keys, keys, parse_schedule(SCHEDULE, N), query_ids=ids, key_ids=ids)
    assert np.array_equal(wrote["indices"], indices.numpy())


def test_ids_none_leaves_only_the_row_itself_out(data):
    out = data.folder / "mined.npz"
    run(data.npz, "--ids", "none", "--labels", "none", "--schedule", SCHEDULE, "--out", out)
    assert np.array_equal(np.load(out)["indices"], expected(data, ids=False)[0].numpy())
    further = {f"{side}_{name}" for side in ("query", "key") for name in ("label", "video", "clip")}
    assert set(np.load(out).files) == {"indices", "scores", "schedule"} | further


def test_negative_and_empty_names_are_unknown(data, capsys):
    arrays = table()
    ids, labels = np.arange(N), arrays["label"].astype(str)
    ids[:10], labels[5:] = -1, ""
    np.savez(data.folder / "u.npz", flow=arrays["flow"], ids=ids, label=labels)
    run(data.folder / "u.npz", "--topk", 60, "--out", data.folder / "m.npz", "--json")
    said, indices = summary(capsys), np.load(data.folder / "m.npz")["indices"]
    assert said["ids"] == "ids: 50 sources; 10 entries have no id and are never mined"
    assert said["labels"] == "label: 3 classes; 55 entries have no label"
    assert said["labelled_queries"] == 5 and said["short_queries"] == N
    assert not np.isin(indices, np.arange(10)).any()
    assert (indices[20] >= 0).sum() == 49  # all with an id but itself
    assert (indices[3] >= 0).sum() == 50


def test_presets(data, capsys):
    for options, schedule in (
        (["--stages", "3", "--topk", "4"], "flow:30,rgb:15,flow:4"),
        (
            ["--preset", "cpr", "--stages", "2", "--ratio", "1/3", "--order", "rgb,flow", "--topk", 2],
            "rgb:20,flow:2",
        ),
        ([], "flow:30,rgb:15,flow:5"),  # seven stages would need more entries
        (["--preset", "coclr"], "flow:5"),
        (["--preset", "coclr", "--order", "rgb", "--topk", "2"], "rgb:2"),
        (["--preset", "oracle", "--topk", "6"], "flow+rgb:6"),
        (["--views", "rgb"], "rgb:5"),
        (["--schedule", "rgb:20,2*flow+rgb:3"], "rgb:20,2*flow+rgb:3"),
    ):
        run(data.npz, *options, "--json")
        assert summary(capsys)["schedule"] == schedule


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32"])
def test_center_normalize_and_dtype(data, capsys, dtype):
    out = data.folder / "mined.npz"
    kind = getattr(torch, dtype)
    run(
        data.npz,
        "--schedule",
        "flow:3",
        "--center",
        "--dtype",
        dtype,
        "--ids",
        "none",
        "--out",
        out,
        "--json",
    )
    rows = torch.from_numpy(data.arrays["flow"])
    view = {"flow": unit(data.arrays["flow"], rows.double().mean(dim=0).float()).to(kind)}
    ids = torch.arange(N)
    indices, scores = cascade_topk(view, view, parse_schedule("flow:3"), query_ids=ids, key_ids=ids)
    assert np.array_equal(np.load(out)["indices"], indices.numpy())
    assert np.array_equal(np.load(out)["scores"], scores.numpy())
    assert summary(capsys)["dtype"] == dtype
    run(data.npz, "--schedule", "flow:3", "--no-normalize", "--ids", "none", "--out", out, "--force")
    plain = cascade_topk({"flow": rows}, {"flow": rows}, parse_schedule("flow:3"), query_ids=ids, key_ids=ids)
    assert np.array_equal(np.load(out)["indices"], plain[0].numpy())


@pytest.mark.parametrize("kind", [np.float64, np.float16, np.int8, ">f4"])
def test_other_number_types_are_converted(data, kind):
    flow = np.round(data.arrays["flow"] * 20).astype(kind)
    np.save(data.folder / "odd.npy", np.asfortranarray(flow))
    run(
        "--view", f"flow={data.folder}/odd.npy", "--no-normalize", "--topk", 3, "--out", data.folder / "m.npz"
    )
    rows, ids = {"flow": torch.from_numpy(flow.astype(np.float32))}, torch.arange(N)
    indices, _ = cascade_topk(rows, rows, parse_schedule("flow:3"), query_ids=ids, key_ids=ids)
    assert np.array_equal(np.load(data.folder / "m.npz")["indices"], indices.numpy())


def test_bfloat16_views_are_read(data):
    save_file = pytest.importorskip("safetensors.torch").save_file
    flow = torch.from_numpy(data.arrays["flow"]).bfloat16()
    save_file({"flow": flow}, data.folder / "b.safetensors")
    run(data.folder / "b.safetensors", "--no-normalize", "--dtype", "bfloat16", "--topk", 3,
        "--out", data.folder / "m.npz")  # fmt: skip
    ids = torch.arange(N)
    view = {"flow": flow}
    indices, _ = cascade_topk(view, view, parse_schedule("flow:3"), query_ids=ids, key_ids=ids)
    assert np.array_equal(np.load(data.folder / "m.npz")["indices"], indices.numpy())


@pytest.mark.parametrize("normalize", ["--normalize", "--no-normalize"])
def test_rows_that_are_not_finite_are_counted_and_never_mined(data, capsys, normalize):
    arrays = table()
    arrays["flow"][[3, 4]] = np.nan
    arrays["rgb"][[5], 2] = np.inf
    arrays["flow"][6] = 0
    np.savez(data.folder / "odd.npz", **arrays)
    run(
        data.folder / "odd.npz",
        "--schedule",
        SCHEDULE,
        normalize,
        "--center",
        "--out",
        data.folder / "m.npz",
        "--json",
    )
    said, indices = summary(capsys), np.load(data.folder / "m.npz")["indices"]
    assert said["notes"] == [
        "2 rows of flow hold NaN or infinity and are never mined",
        "1 rows of rgb hold NaN or infinity and are never mined",
    ]
    assert (indices[[3, 4, 5]] == -1).all()
    assert not np.isin(indices, [3, 4, 5]).any()
    assert said["short_queries"] == 3
    queries = ["--queries", data.folder / "odd.npz"]
    run(data.npz, *queries, "--schedule", "flow:0.5,rgb:3", "--json")
    assert "2 query rows of flow hold NaN or infinity and mine nothing" in summary(capsys)["notes"]


def test_zero_rows_are_counted(data, capsys):
    arrays = table()
    arrays["flow"][6] = 0
    np.savez(data.folder / "zero.npz", **arrays)
    run(data.folder / "zero.npz", "--topk", 2, "--stages", 3, "--json")
    assert summary(capsys)["notes"] == ["1 rows of flow are all zeros: they score 0 against everything"]


def test_class_names_come_from_the_file(data, capsys):
    np.savez(data.folder / "named.npz", **table(), classes=np.array(["jump", "run", "swim"]))
    run(data.folder / "named.npz", "--topk", 2, "--stages", 3, "--json")
    assert set(summary(capsys)["cmr"]) == {"jump", "run", "swim"}


def test_a_sample_of_queries_is_traced_and_said(data, capsys):
    run(data.npz, "--stages", 3, "--sample", 7)
    assert "mean of 7 of 60 queries, evenly spread" in capsys.readouterr().out
    run(data.npz, "--stages", 3, "--sample", 0)
    printed = capsys.readouterr().out
    assert "stage" not in printed.replace("--stages", "") and "PMR" in printed


def test_the_summary_reads_well(data, capsys):
    run(data.npz, "--stages", 3, "--topk", 4)
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == f"input     {data.npz}: 60 entries, each a query among the others"
    assert lines[1] == "views     flow [8], rgb [6], L2-normalised"
    assert lines[2:6] == [
        "ids       video: 7 sources",
        "labels    label: 3 classes",
        "unused    clip",
        "schedule  flow:30,rgb:15,flow:4",
    ]
    assert lines[6].startswith("mined     60 x 4 in ") and "queries/s (" in lines[6]
    assert lines[7].startswith("PMR       0.") and "a random eligible entry: 0." in lines[7]
    assert lines[8].startswith("CMR       ") and lines[8].endswith("(median of 3 classes)")
    assert lines[-1] == "written   nothing; give --out mined.npz to keep the result"
    assert max(map(len, lines)) <= max(110, len(lines[0]))


def test_empty_tables(data, capsys):
    np.savez(data.folder / "none.npz", flow=np.zeros((0, 4), np.float32), label=np.zeros(0, int))
    run(data.folder / "none.npz", "--out", data.folder / "m.csv", "--json")
    said = summary(capsys)
    assert (said["queries"], said["pmr"]) == (0, None)
    run(data.folder / "none.npz")
    np.savez(data.folder / "no.npz", flow=np.zeros((0, 8), np.float32))
    run(data.npz, "--views", "flow", "--queries", data.folder / "no.npz", "--out", data.folder / "m.npz")
    assert np.load(data.folder / "m.npz")["indices"].shape == (0, 5)


def test_progress_is_a_bar_on_a_terminal_only(data, capsys, monkeypatch):
    run(data.npz, "--stages", 3)
    assert capsys.readouterr().err == ""
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    run(data.npz, "--stages", 3)
    assert "mining: 100%" in capsys.readouterr().err
    run(data.npz, "--stages", 3, "--no-progress")
    assert capsys.readouterr().err == ""
