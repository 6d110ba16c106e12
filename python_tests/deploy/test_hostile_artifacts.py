"""Artifacts of other people: nothing in them runs as code, and no member leads out of the file or grows."""

from __future__ import annotations

import contextlib
import io
import json
import os
import pickle
import re
import stat
import warnings
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch
import train_sets  # noqa: F401  skips without the trainer's packages
from small_artifact import EXAMPLE, means, small
from zip_members import members_of, zipped

from cpr_kernels.__main__ import main
from cpr_kernels.deploy import ArtifactError, Model, artifact
from cpr_kernels.deploy.network import weights_of
from cpr_kernels.reading.seals import sealed

WEIGHTS_CONFIG = "archive/data/weights/model_weights_config.json"
CONSTANTS_CONFIG = "archive/data/constants/model_constants_config.json"
MODEL = "archive/models/model.json"


class Touch:
    """Creates a file when it is unpickled."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.mark),)


def resealed(path: Path, out: Path, program: bytes) -> Path:
    """An artifact with another program, every hash right."""
    members = {**members_of(path), artifact.PROGRAM: program}
    body = json.loads(members.pop(artifact.MANIFEST))
    left = {name: body[name] for name in body if name not in ("format", "version", "files", "sha256")}
    artifact.write(out, left, members)
    return out


def sample(members: dict[str, bytes], evil: bytes, mark: Path) -> None:
    members["archive/data/sample_inputs/model.pt"] = evil


def legacy_weights(members: dict[str, bytes], evil: bytes, mark: Path) -> None:
    members["archive/data/weights/model.pt"] = evil


def legacy_constants(members: dict[str, bytes], evil: bytes, mark: Path) -> None:
    members["archive/data/constants/model.pt"] = evil


def opaque_constant(members: dict[str, bytes], evil: bytes, mark: Path) -> None:
    entry = {"path_name": "opaque_obj_0", "is_param": False, "use_pickle": True, "tensor_meta": None}
    members[CONSTANTS_CONFIG] = json.dumps({"config": {"x": entry}}).encode()
    members["archive/data/constants/opaque_obj_0"] = pickle.dumps(Touch(mark))


def pickled_weight(members: dict[str, bytes], evil: bytes, mark: Path) -> None:
    body = json.loads(members[WEIGHTS_CONFIG])
    body["config"]["linear.bias"]["use_pickle"] = True
    members[WEIGHTS_CONFIG] = json.dumps(body).encode()
    members["archive/data/weights/weight_1"] = evil


def symbolic_size(members: dict[str, bytes], evil: bytes, mark: Path) -> None:
    text = f"__import__('os').mkdir('{mark}') or s0"
    members[MODEL] = re.sub(rb'"expr_str": "[^"]*"', f'"expr_str": "{text}"'.encode(), members[MODEL])


def guard(members: dict[str, bytes], evil: bytes, mark: Path) -> None:
    body = json.loads(members[MODEL])
    body["guards_code"] = [f"__import__('os').mkdir('{mark}') is None"]
    members[MODEL] = json.dumps(body).encode()


ATTACKS = (sample, legacy_weights, legacy_constants, opaque_constant, pickled_weight, symbolic_size, guard)


@pytest.fixture(scope="module")
def bare(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return means(tmp_path_factory.mktemp("bare") / "bare.cpr", 3)


@pytest.fixture(scope="module")
def described(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small(tmp_path_factory.mktemp("small") / "small.cpr", 3)


@pytest.mark.parametrize("attack", ATTACKS, ids=lambda attack: attack.__name__)
def test_no_code_in_a_program_runs(attack: Any, bare: Path, described: Path, tmp_path: Path) -> None:
    mark, evil = tmp_path / "mark", io.BytesIO()
    torch.save(Touch(mark), evil)
    program = members_of(io.BytesIO(members_of(bare)[artifact.PROGRAM]))
    attack(program, evil.getvalue(), mark)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with contextlib.suppress(Exception):  # the code has run by then
            torch.export.load(io.BytesIO(zipped(program))).module()(*EXAMPLE)
    assert mark.is_dir()  # the attack is one
    mark.rmdir()
    hostile = resealed(bare, tmp_path / "hostile.cpr", zipped(program))
    with pytest.raises(ArtifactError, match=r"describes no network.*can run code.*--trust"):
        Model(hostile)
    with pytest.raises(ArtifactError, match=r"code|no size and no name|no comparison of sizes"):
        Model(hostile, trust=True)
    assert Model(resealed(described, tmp_path / "both.cpr", zipped(program))).classes == [
        "class 0",
        "class 1",
        "class 2",
    ]
    assert not mark.exists()


def test_a_program_that_calls_other_functions_is_refused(bare: Path, tmp_path: Path) -> None:
    program = members_of(io.BytesIO(members_of(bare)[artifact.PROGRAM]))
    program[MODEL] = program[MODEL].replace(b"torch.ops.aten.movedim.int", b"torch.os.system")
    with pytest.raises(ArtifactError, match=r"calls 'torch.os.system', which is no operator of torch"):
        Model(resealed(bare, tmp_path / "hostile.cpr", zipped(program)), trust=True)


def test_old_artifacts_need_trust(bare: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert Model(bare, trust=True).embedding == 48
    assert main(["predict", str(bare), str(tmp_path)]) == 2
    capsys.readouterr()
    video = tmp_path / "a.mp4"
    video.write_bytes(b"no video")
    assert main(["predict", str(bare), str(video)]) == 2
    assert "load it with --trust" in capsys.readouterr().err
    assert main(["predict", str(bare), str(video), "--trust"]) == 1  # loaded; the video is none
    unsealed = members_of(bare)
    body = json.loads(unsealed[artifact.MANIFEST])
    del body["sha256"]  # as older versions wrote it
    old = tmp_path / "old.cpr"
    old.write_bytes(zipped({**unsealed, artifact.MANIFEST: json.dumps(body).encode()}))
    capsys.readouterr()
    assert Model(old, trust=True).embedding == 48
    assert "holds no content hash" in capsys.readouterr().err


def entry(name: str, body: bytes = b"x", kind: int = stat.S_IFREG, how: int = zipfile.ZIP_STORED) -> Any:
    info = zipfile.ZipInfo("placeholder")
    info.filename = info.orig_filename = name
    info.external_attr, info.compress_type = (kind | 0o644) << 16, how
    return info, body


BOMB = entry("bomb", bytes(1 << 20), how=zipfile.ZIP_DEFLATED)


@pytest.mark.parametrize(
    ("entries", "sentence"),
    [
        ([entry("/etc/passwd")], "'/etc/passwd' leads out of the file"),
        ([entry("a/../../b")], "leads out of the file"),
        ([entry("C:/b")], "leads out of the file"),
        ([entry("a\\b")], "has an unusable name"),
        ([entry("folder/")], "leads out of the file"),
        ([entry("link", b"/etc/passwd", stat.S_IFLNK)], "'link' is no regular file"),
        ([entry("twice"), entry("twice")], "'twice' is there twice"),
        ([BOMB], "'bomb' is compressed"),
    ],
)  # fmt: skip
def test_members_that_lead_out_or_grow_are_refused(
    entries: list[Any], sentence: str, described: Path, tmp_path: Path
) -> None:
    hostile = tmp_path / "hostile.cpr"
    hostile.write_bytes(described.read_bytes())
    with zipfile.ZipFile(hostile, "a") as archive, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a name that is there twice
        for info, body in entries:
            archive.writestr(info, body)
    with pytest.raises(ArtifactError, match=re.escape(sentence)):
        Model(hostile)


def test_members_that_share_their_bytes_are_refused(described: Path, tmp_path: Path) -> None:
    """A zip bomb without compression: many members name the same bytes."""
    hostile = tmp_path / "hostile.cpr"
    hostile.write_bytes(described.read_bytes())
    with zipfile.ZipFile(hostile, "a") as archive:
        archive.writestr("one", bytes(1000))
        first = archive.getinfo("one")
        for number in range(200):
            info, _ = entry(f"copy {number}")
            info.header_offset, info.CRC = first.header_offset, first.CRC
            info.file_size = info.compress_size = first.file_size
            archive.filelist.append(info)
            archive.NameToInfo[info.filename] = info
        archive._didModify = True
    with pytest.raises(ArtifactError, match="larger than the file; some share their bytes"):
        Model(hostile)


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"classes": "rgb"}, r"Expected `array`, got `str` - at `\$.classes`"),
        ({"embedding": 8.0}, r"Expected `int`, got `float` - at `\$.embedding`"),
        ({"embedding": 10**15}, r"<= 1048576 - at `\$.embedding`"),
        ({"views": []}, r"length >= 1 - at `\$.views`"),
        ({"files": {"weights.safetensors": 7}}, r"Expected `object`, got `int`"),
        ({"clip": {"frames": 1e7}}, r"\$.clip"),
        ({"views": [{"name": "rgb", "record": "rgb", "architecture": "r3d", "width": 1e9}]}, r"<= 64.0 - at"),
        ({"views": [{"name": "rgb", "record": "rgb", "architecture": "mlp"}]}, "must be one of s3d"),
        ({"views": [{"name": "rgb", "record": "rgb", "architecture": "r3d"}]}, r"its weight .* its network needs"),
        ({"classes": ["one"]}, r"its weight linear\.\w+ is torch.float32"),
    ],
)  # fmt: skip
def test_every_field_of_the_manifest_is_checked(
    changes: dict[str, Any], sentence: str, described: Path, tmp_path: Path
) -> None:
    members = members_of(described)
    body = {**json.loads(members[artifact.MANIFEST]), **changes}
    del body["sha256"]
    lie = tmp_path / "lie.cpr"
    lie.write_bytes(zipped({**members, artifact.MANIFEST: json.dumps(sealed(body)).encode()}))
    with pytest.raises(ArtifactError, match=sentence):
        Model(lie)


def test_a_flipped_letter_of_a_class_is_seen(described: Path, tmp_path: Path) -> None:
    lie = tmp_path / "lie.cpr"
    members = members_of(described)
    members[artifact.MANIFEST] = members[artifact.MANIFEST].replace(b"class 1", b"clasr 1")
    lie.write_bytes(zipped(members))
    with pytest.raises(ArtifactError, match="its content is not what its sha256 says"):
        Model(lie)


def test_weights_of_another_network_are_refused(described: Path, tmp_path: Path) -> None:
    members = members_of(described)
    body = json.loads(members.pop(artifact.MANIFEST))
    left = {name: body[name] for name in body if name not in ("format", "version", "files", "sha256")}
    linear = weights_of(torch.nn.Linear(2, 2))
    artifact.write(tmp_path / "lie.cpr", left, {artifact.WEIGHTS: linear})
    with pytest.raises(ArtifactError, match="its weights lack centre_rgb"):
        Model(tmp_path / "lie.cpr")
