"""Files that a crash, a full disk or a bad copy left behind: each is named in a sentence, before anything is begun."""

from __future__ import annotations

import json
import os
import resource
import shutil
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from limits import limited
from train_sets import DRAFT, lively, tiny

from cpr_kernels.reading.seals import TEXT_SEAL, sealed, sealed_text
from cpr_kernels.train import TrainError
from cpr_kernels.train.batches.dataset import ClipDataset
from cpr_kernels.train.batches.loader import clip_batches, clip_loader
from cpr_kernels.train.batches.sampler import ClipSampler
from cpr_kernels.train.data.decoding import DamagedRecord
from cpr_kernels.train.data.manifest import Manifest
from cpr_kernels.train.data.prepare import prepare
from cpr_kernels.train.data.store import FrameStore, _pictures, packed, record_key
from cpr_kernels.train.encoders.weights import load_encoder, save_encoder
from cpr_kernels.train.evaluate import retrieval as evaluate
from cpr_kernels.train.evaluate.retrieval import evaluate_run, measurable_views
from cpr_kernels.train.pages.report import write_report
from cpr_kernels.train.pages.report.page import _evaluation
from cpr_kernels.train.pretrain.loop import pretrain
from cpr_kernels.train.pretrain.run_folder import config_of
from cpr_kernels.train.runtime.checkpoint import load

pytest_plugins = ["train_fixtures"]


@pytest.fixture
def copied(data: Path, tmp_path: Path) -> Path:
    """A data set to be damaged."""
    return Path(shutil.copytree(data, tmp_path / "data"))


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ('{"version": 2', r"is damaged \(it is no JSON: Expecting"),
        ('{"version": 2}', r"is damaged \(Object missing required field `settings`\)"),
        ("[]", "a list where an object belongs"),
        ('{"version": 7}', "has version 7, expected 1 or 2"),
    ],
)
def test_a_manifest_that_is_none(body: str, words: str, copied: Path, tmp_path: Path) -> None:
    (copied / "manifest.json").write_text(body)
    with pytest.raises(TrainError, match=r"data: .*manifest\.json .*" + words):
        pretrain(tiny(copied, tmp_path / "run"))
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("left", "words"),
    [
        (
            20_000,
            r"is cut short \(20,000 of [\d,]+ bytes\); copy it again",
        ),  # reading it would end the process
        (0.9, r"is cut short \([\d,]+ of [\d,]+ bytes\)"),
        (100, "cannot be opened"),
        (None, "cannot be opened"),
    ],
)
def test_a_store_that_is_cut_short_or_none(
    left: float | None, words: str, copied: Path, clip_folder: Path, tmp_path: Path
) -> None:
    path = copied / "data.mdb"
    whole = path.read_bytes()
    size = len(whole) if left is None else round(left * len(whole)) if left < 1 else int(left)
    path.write_bytes(b"\xa5" * size if left is None else whole[:size])
    with pytest.raises(TrainError, match=words):
        pretrain(tiny(copied, tmp_path / "run"))
    assert not (tmp_path / "run").exists()
    with pytest.raises(TrainError, match=words):
        prepare(clip_folder, copied, DRAFT)
    assert path.stat().st_size == size  # left as it was, for whoever wants to look


def test_a_store_that_is_missing(copied: Path, tmp_path: Path) -> None:
    (copied / "data.mdb").unlink()
    with pytest.raises(TrainError, match=r"holds no data\.mdb; make it with `cpr prepare`"):
        pretrain(tiny(copied, tmp_path / "run"))
    assert not (tmp_path / "run").exists()


def test_a_manifest_whose_fields_are_wrong(copied: Path) -> None:
    whole = json.loads((copied / "manifest.json").read_text())
    del whole[TEXT_SEAL]
    first = whole["videos"][0]

    def sentence(**changes: Any) -> str:
        (copied / "manifest.json").write_text(json.dumps(sealed({**whole, **changes})))
        with pytest.raises(TrainError, match=r"manifest\.json is damaged") as caught:
            Manifest.load(copied)
        assert "\n" not in str(caught.value)
        return str(caught.value)

    def of_first(**changes: Any) -> str:
        return sentence(videos=[{**first, **changes}, *whole["videos"][1:]])

    assert "Expected `int`, got `float` - at `$.videos[0].frames`" in of_first(frames=1e7)
    assert "holds NaN, which is no number" in sentence(settings={**whole["settings"], "size": float("nan")})
    assert "size must be at least 16 and at most" in sentence(settings={**whole["settings"], "size": 10**9})
    assert "has label 9, and there are 9 classes" in of_first(label=9)
    assert "$.videos[0].split" in of_first(split="both")
    assert "two of its videos have one id" in sentence(videos=[first, first])
    (copied / "manifest.json").write_text(
        json.dumps(sealed(whole)).replace('"label": 0', '"label": 1', 1)  # a flipped bit
    )
    with pytest.raises(TrainError, match="its content is not what its sha256 says"):
        Manifest.load(copied)


def test_a_manifest_of_an_older_version_is_read_with_a_note(copied: Path, capsys: Any) -> None:
    path = copied / "manifest.json"
    whole = Manifest.load(copied)
    lines = path.read_text().splitlines()
    path.write_text("\n".join([lines[0], *lines[2:]]))  # "then take that line out"
    assert Manifest.load(copied) == whole
    assert "manifest.json holds no content hash" in capsys.readouterr().err
    path.write_text(json.dumps(sealed(json.loads(path.read_text()))))
    assert Manifest.load(copied) == whole and capsys.readouterr().err == ""
    body = path.read_bytes()
    path.write_bytes(body.replace(b'"version": 2', b'"version": 3'))
    with pytest.raises(TrainError, match="it has version 3, expected 1 or 2"):
        Manifest.load(copied)


def test_a_manifest_with_a_flipped_bit(copied: Path) -> None:
    path = copied / "manifest.json"
    whole = path.read_bytes()
    assert b'"label": 0' in whole
    path.write_bytes(whole.replace(b'"label": 0', b'"label": 1', 1))
    with pytest.raises(TrainError, match="its content is not what its sha256_of_rest says"):
        Manifest.load(copied)
    later = {**json.loads(whole), "version": 3, "videos": "elsewhere"}
    path.write_bytes(sealed_text({name: part for name, part in later.items() if name != TEXT_SEAL}))
    with pytest.raises(TrainError, match="it has version 3, expected 1 or 2"):
        Manifest.load(copied)


def damage(store: Path, video: str, frame: int) -> None:
    """Turns one bit in the middle of a stored RGB frame."""
    with FrameStore(store).env.begin() as transaction:
        record = transaction.get(record_key("rgb", video).encode())
    FrameStore(store).close()
    total = int.from_bytes(record[:4], "little")
    ends = np.frombuffer(record, "<u4", total, 4)
    inside = 4 * (total + 1) + int(ends[frame]) - 20
    body = bytearray((store / "data.mdb").read_bytes())
    place = body.index(record) + inside
    body[place] ^= 4
    (store / "data.mdb").write_bytes(body)


def test_a_damaged_frame_is_named_and_the_run_stops_at_a_checkpoint(copied: Path, tmp_path: Path) -> None:
    config = tiny(copied, tmp_path / "run")
    dataset = ClipDataset(copied, config.clips.frames, config.clips.crop, views=config.views)
    sampler = ClipSampler(len(dataset), config.clips.batch, config.seed)
    video = dataset.manifest.videos[dataset.videos[sampler.sample_keys(1)[0][0]]].id
    damage(copied, video, 0)
    with pytest.raises(
        TrainError, match=rf"rgb of {video} in .*data\.mdb is damaged: frame 0 has another checksum"
    ):
        FrameStore(copied).frames(video, "rgb", 0, 2)
    FrameStore(copied).frames(video, "rgb", 1, 2)  # the others are whole
    with pytest.raises(TrainError, match=rf"{video} .*step 1 is saved: then continue with") as caught:
        pretrain(config)
    assert "\n" not in str(caught.value)
    assert load(tmp_path / "run" / "checkpoint.pt")["step"] == 1
    [error] = _of_a_worker(dataset, sampler)
    assert error.startswith("data: rgb of ") and "\n" not in error


def _of_a_worker(dataset: ClipDataset, sampler: ClipSampler) -> list[str]:
    """What is said where a loader's process reads the damaged frame."""
    try:
        for _ in clip_batches(dataset, sampler, 1, 2):
            pass
    except TrainError as error:
        return [str(error)]
    return []


def test_damaged_tables_of_a_store_are_refused_and_do_not_end_the_process(copied: Path) -> None:
    path = copied / "data.mdb"
    body = bytearray(path.read_bytes())
    page = 4096
    leaves = [at for at in range(2 * page, len(body), page) if body[at + 10] == 2]  # P_LEAF
    for at in leaves:  # where each node lies in its page
        body[at + 16 : at + 40] = b"\xff" * 24
    path.write_bytes(body)
    with pytest.raises(TrainError, match=r"data\.mdb is damaged: its tables of records cannot be followed"):
        ClipDataset(copied, 8, 32)


def test_tables_are_followed_once_and_again_after_a_change(
    copied: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    walks: list[str] = []
    run = subprocess.run

    def counted(*words: Any, **how: Any) -> Any:
        walks.append("walk")
        return run(*words, **how)

    monkeypatch.setattr("cpr_kernels.train.data.store.subprocess.run", counted)
    FrameStore(copied).check()
    assert not walks  # `cpr prepare` has noted that it is whole, and the copy has its file's time
    os.utime(copied / "data.mdb", (1, 1))
    for _ in range(2):
        FrameStore(copied).check()
    assert walks == ["walk"]
    (copied / "checked.json").write_text("no JSON")
    FrameStore(copied).check()
    assert walks == ["walk"] * 2


def test_records_without_checksums_are_read(copied: Path) -> None:
    frames = [b"one", b"four", b"seven"]
    record = packed(frames, "rgb/x")
    assert [bytes(one) for one in _pictures(memoryview(record), "rgb/x", 1, 2)] == frames[1:]
    assert [bytes(one) for one in _pictures(memoryview(record[:-12]), "rgb/x", 1, 2)] == frames[
        1:
    ]  # as older versions wrote
    for broken in (record[:-1], record[:-13], record[:3], b"", b"\xff" * 20, b"\0" * 8):
        with pytest.raises(DamagedRecord, match="is damaged"):
            _pictures(memoryview(broken), "rgb/x", 1, 2)
    with pytest.raises(DamagedRecord, match="frame 1 has another checksum"):  # the record of another video
        _pictures(memoryview(record), "rgb/y", 1, 2)


def test_a_run_s_own_files(cascade_run: Path, tmp_path: Path) -> None:
    run = Path(shutil.copytree(cascade_run, tmp_path / "run"))
    evaluate_run(run, clips=1, last=True)
    log, evaluation, config = ((run / name).read_text() for name in ("log.jsonl", "eval.json", "config.json"))
    (run / "log.jsonl").write_text(log + "garbage\n")
    with pytest.raises(TrainError, match=rf"log\.jsonl line {log.count(chr(10)) + 1} is damaged"):
        write_report([run], tmp_path / "page.html")
    (run / "log.jsonl").write_text(log)
    (run / "eval.json").write_text(evaluation[:50])
    with pytest.raises(TrainError, match=r"eval\.json is damaged .*run `cpr evaluate .*` again"):
        write_report([run], tmp_path / "page.html")
    for body in (config[:50], "[]", config.replace('"queue"', '"cue"')):
        (run / "config.json").write_text(body)
        with pytest.raises(TrainError, match=r"run: .*config\.json is damaged, or of another version"):
            config_of(run)
    with pytest.raises(
        TrainError, match=r"is the checkpoint of a whole run, not one encoder; give a file of .*encoders"
    ):
        load_encoder(run / "checkpoint.pt")


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ('{"protocol": {}, "phases": "x"}', r"Expected `array`, got `str` - at `\$\.phases`"),
        ('{"phases": [{"phase": "a", "recall": {}, "probe": {}}]}', "missing required field `protocol`"),
        ('{"protocol": {}, "phases": [{"phase": "a", "recall": {"rgb": 1}, "probe": {}}]}', r"\.recall"),
    ],
)  # fmt: skip
def test_an_evaluation_of_another_shape(body: str, words: str, tmp_path: Path) -> None:
    (tmp_path / "eval.json").write_text(body)
    with pytest.raises(TrainError, match=rf"eval\.json is damaged .*{words}"):
        _evaluation(tmp_path)


def test_a_split_without_videos(data: Path, copied: Path) -> None:
    manifest = json.loads((copied / "manifest.json").read_text())
    del manifest[TEXT_SEAL]  # changed by hand
    manifest["videos"] = [video for video in manifest["videos"] if video["split"] == "test"]
    (copied / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(TrainError, match="has no train video; prepare it with both splits"):
        ClipDataset(copied, 8, 32)
    assert measurable_views(copied, ("rgb", "flow")) == (
        "rgb",
        "flow",
    )  # nothing is said of views where no video is


def test_a_view_that_the_tested_data_lack_is_left_out_and_said(
    data: Path, sound_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    """A run with sound, tested on videos without: the other views are measured."""
    run = tmp_path / "run"
    config = tiny(sound_data, run, views=("rgb", "audio"))
    monkeypatch.setattr(evaluate, "config_of", lambda folder: config)
    monkeypatch.setattr(evaluate, "is_own_data", lambda run, data: False)
    for view in config.views:
        save_encoder(run / "encoders" / f"00-infonce.{view}.safetensors", lively(), view, phase="infonce")
    [result] = evaluate_run(run, clips=1, data=data)
    assert list(result["recall"]) == list(result["probe"]) == ["rgb"]
    said = " ".join(capsys.readouterr().err.split())
    assert "no train and no test video of" in said and "has audio: not measured there" in said
    with pytest.raises(TrainError, match="has no audio to test with"):
        measurable_views(data, ("audio",))


def test_a_full_disk_is_a_sentence_and_what_was_stored_stays(tmp_path: Path) -> None:
    with (
        limited(resource.RLIMIT_FSIZE, 4096),
        pytest.raises(TrainError, match=r"cannot be written to .*free some"),
    ):
        FrameStore(tmp_path, writable=True).put({"a": b"1"})
    store = FrameStore(tmp_path, writable=True)
    store.put({"a": json.dumps({"of": "a"}).encode()})
    with limited(resource.RLIMIT_FSIZE, 1 << 17), pytest.raises(TrainError, match="free some space"):
        store.put({"b": bytes(1 << 20)})
    assert store.get_json("a") == {"of": "a"} and store.get_json("b") is None
    store.put({"b": json.dumps({"of": "b"}).encode()})
    assert store.get_json("b") == {"of": "b"}
    store.close()


def test_more_workers_than_open_files_are_refused_before_they_start(data: Path) -> None:
    with (
        limited(resource.RLIMIT_NOFILE, 64),
        pytest.raises(
            TrainError, match=r"workers: 20 need about 104 open files, and the limit is 64.*ulimit -n"
        ),
    ):
        clip_loader(ClipDataset(data, 8, 32), ClipSampler(4, 2, seed=0), 20)
