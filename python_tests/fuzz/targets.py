"""Every kind of file that is read from other people, small and whole, to be damaged."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from zip_members import members_of, zipped

from cpr_kernels import FaissIndex, parse_schedule
from cpr_kernels.reading.seals import sealed

from .reading import Change, read_table, resealed_json
from .runner import Target
from .table_targets import targets as table_targets


def same_arrays(one: dict[str, Any], other: dict[str, Any]) -> bool:
    return one.keys() == other.keys() and all(
        one[name].dtype == other[name].dtype
        and np.array_equal(one[name], other[name], equal_nan=one[name].dtype.kind in "fc")
        for name in one
    )


# --- what `cpr mine` reads


def write_tables(folder: Path) -> None:
    rng = np.random.default_rng(0)
    rows = rng.standard_normal((6, 4)).astype(np.float32)
    np.savez(folder / "a.npz", flow=rows, ids=np.arange(6), names=np.array(list("abcdef")))
    np.savez_compressed(folder / "b.npz", flow=rows, ids=np.arange(6))
    np.save(folder / "a.npy", rows)
    from safetensors.numpy import save_file

    save_file({"flow": rows, "ids": np.arange(6)}, folder / "a.safetensors")


def as_numpy_reads(name: str) -> Callable[[Any, Any, Path], bool]:
    """A user's table has no hash of ours: right is what the format's own library reads."""

    def right(whole: Any, got: Any, folder: Path) -> bool:
        if name.endswith(".npz"):
            with np.load(folder / name) as file:
                return same_arrays(
                    got, {column: file[column] for column in file.files if column in got}
                ) and bool(got or not file.files)
        if name.endswith(".npy"):
            return same_arrays(got, {"a": np.load(folder / name)})
        from safetensors.numpy import load_file

        return same_arrays(got, load_file(folder / name))

    return right


def table(name: str) -> Target:
    return Target(name, write_tables, (name,), read_table(name), as_numpy_reads(name))


def write_schedule(folder: Path) -> None:
    (folder / "schedule.txt").write_text("flow:1024,rgb:0.5,flow+2*rgb:1/2,flow:5")


def read_schedule(folder: Path) -> Any:
    return parse_schedule((folder / "schedule.txt").read_text(errors="surrogateescape"), 4096)


def reads_back(whole: Any, got: Any, folder: Path) -> bool:
    return parse_schedule(str(got)) == got and all(1 <= stage.keep < 2**63 for stage in got)


# --- FAISS folders and indexes of clips


def write_faiss(factory: str) -> Callable[[Path], None]:
    def write(folder: Path) -> None:
        generator = torch.Generator().manual_seed(0)
        keys = {"flow": torch.randn(300, 8, generator=generator)}
        FaissIndex(keys, "flow", factory, key_ids=torch.arange(300)).save(folder)

    return write


def read_faiss(folder: Path) -> Any:
    index = FaissIndex.load(folder)
    query = torch.nn.functional.normalize(torch.ones(2, 8), dim=1)
    found = index.store.search(query.numpy(), 5)
    return (
        found[0].tolist(),
        found[1].tolist(),
        index.ids.tolist(),
        index.views,
        index.dims,
        index.settings,
        index.policy,
    )


FAISS_FILES = ("index.faiss", "entries.npz", "about.json")


def write_clips(folder: Path) -> None:
    from cpr_kernels.deploy import clip_index

    clips = [clip_index.Clip(f"{n}.mp4", 0.0, n + 0.5, 10 * n, n) for n in range(5)]
    clip_index.extend(folder, "m" * 8, clips, torch.eye(5))


def read_clips(folder: Path) -> Any:
    from cpr_kernels.deploy import ClipIndex

    index = ClipIndex(folder)
    return index.clips, index.model, index.vectors().tolist()


def same_clips(body: bytes, change: Change) -> bytes:
    lines = body.splitlines()
    return b"\n".join([json.dumps(change(json.loads(lines[0]))).encode(), *lines[1:]]) + b"\n"


# --- artifacts


def write_artifact(folder: Path) -> None:
    from small_artifact import small

    small(folder / "model.cpr", 3)


def read_artifact(folder: Path) -> Any:
    from cpr_kernels.deploy import Model

    model = Model(folder / "model.cpr")
    weights = {name: value.numpy() for name, value in model._module.state_dict().items()}
    return model.manifest, {name: value.tobytes() for name, value in weights.items()}


def changed_artifact(body: bytes, change: Change) -> bytes:
    """An artifact with another manifest, every hash right."""
    members = members_of(io.BytesIO(body))
    members["manifest.json"] = resealed_json(members["manifest.json"], change)
    return zipped(members)


def described_alike(whole: Any, got: Any, folder: Path) -> bool:
    """With its hash made right a manifest may say something else; the weights are those of the file."""
    return bool(whole[1] == got[1])


# --- the trainer's files


def write_encoder(folder: Path) -> None:
    from cpr_kernels.networks import new_encoder
    from cpr_kernels.train.encoders.weights import save_encoder

    torch.manual_seed(0)
    save_encoder(folder / "e.safetensors", new_encoder("r3d", 0.01, 0), "rgb", phase="infonce")


def read_encoder(folder: Path) -> Any:
    from cpr_kernels.train.encoders.weights import load_encoder

    encoder = load_encoder(folder / "e.safetensors")
    return (
        encoder.architecture,
        encoder.width,
        [value.numpy().tobytes() for value in encoder.state_dict().values()],
    )


def write_checkpoint(folder: Path) -> None:
    from cpr_kernels.train.runtime.checkpoint import save

    torch.manual_seed(0)
    save(
        folder / "c.pt",
        {"step": 3, "model": {"weight": torch.randn(7, 5)}, "config": "{}", "list": [1.5, "a", None]},
    )


def read_checkpoint(folder: Path) -> Any:
    from cpr_kernels.train.runtime.checkpoint import load

    state = load(folder / "c.pt")
    return state["step"], state["config"], state["list"], state["model"]["weight"].tolist()


def write_config(folder: Path) -> None:
    from cpr_kernels.train.pretrain.config import TrainConfig, to_json

    (folder / "config.json").write_text(
        to_json(TrainConfig(Path("data"), Path("run"), init={"rgb": Path("x")}))
    )


def read_config(folder: Path) -> Any:
    from cpr_kernels.train.pretrain.run_folder import config_of

    return config_of(folder)


def typed_config(whole: Any, got: Any, folder: Path) -> bool:
    """People write configs by hand: right is one that reads back as itself, all of whose numbers are in range."""
    from cpr_kernels.train.pretrain.config import from_json, to_json

    got.check()
    return bool(from_json(to_json(got)) == got)


def write_manifest(folder: Path) -> None:
    from cpr_kernels.train.data.decoding import FrameSettings
    from cpr_kernels.train.data.manifest import Manifest, Video

    videos = [
        Video(
            f"a/{n}.mp4",
            n % 2,
            n,
            ("train", "test", "val")[n % 3],
            20 + n,
            "",
            fps=25.0,
            knots=((0, 0.0), (20, 0.8)),
        )
        for n in range(4)
    ]
    Manifest(FrameSettings(), ["a", "b"], videos, [("c.mp4", "broken")]).save(folder)


def read_manifest(folder: Path) -> Any:
    from cpr_kernels.train.data.manifest import Manifest

    return Manifest.load(folder)


def sound_manifest(whole: Any, got: Any, folder: Path) -> bool:
    got.check()
    return all(video.split in ("train", "test", "val") and video.frames > 0 for video in got.videos)


def write_store(folder: Path) -> None:
    from cpr_kernels.train.data.decoding import encode_jpeg
    from cpr_kernels.train.data.store import FrameStore, packed, record_key

    rng = np.random.default_rng(0)
    frames = [encode_jpeg(rng.integers(0, 256, (32, 32, 3)).astype(np.uint8), 90) for _ in range(6)]
    store = FrameStore(folder, writable=True)
    for n in range(3):
        store.put(
            {
                record_key("rgb", str(n)): packed(frames, record_key("rgb", str(n))),
                record_key("entry", str(n)): json.dumps(sealed({"bytes": 3})).encode(),
            }
        )
    store.close()


def read_store(folder: Path) -> Any:
    from cpr_kernels.train.data.store import FrameStore, record_key

    store = FrameStore(folder)
    try:
        store.check()
        return [
            (store.frames(str(n), "rgb", 1, 4).tobytes(), store.get_json(record_key("entry", str(n))))
            for n in range(3)
        ]
    finally:
        store.close()


def same_records(whole: Any, got: Any, folder: Path) -> bool:
    """An entry that is missing is a video that `cpr prepare` has not stored yet, and stores again."""
    return all(a[0] == b[0] and b[1] in (a[1], None) for a, b in zip(whole, got))


def write_list(folder: Path) -> None:
    rows = [f"{n}.mp4,{'ab'[n % 2]},{('train', 'test')[n % 2]},g{n},{n},{n + 1.5}" for n in range(5)]
    (folder / "list.csv").write_text("\n".join(["path,label,split,group,start,end", *rows]))
    facts = {"subset": "training", "annotations": [{"label": "a", "segment": [0, 2]}]}
    (folder / "net.json").write_text(json.dumps({"database": {str(n): facts for n in range(3)}}))
    for n in range(5):
        (folder / f"{n}.mp4").write_bytes(b"")


def read_rows(name: str) -> Callable[[Path], Any]:
    def read(folder: Path) -> Any:
        from cpr_kernels.train.data.lists import read_list

        return read_list(folder / name, "auto")[0]

    return read


def sound_rows(whole: Any, got: Any, folder: Path) -> bool:
    """People write lists by hand: right are rows of text with a split and a segment that is one."""
    return all(
        row.name and row.split in ("train", "test", "val", "") and 0 <= row.segment.start < row.segment.end
        for row in got
    )


# --- the same as older versions wrote them, without hashes


def write_old_faiss(folder: Path) -> None:
    write_faiss("IVF4,Flat")(folder)
    about = json.loads((folder / "about.json").read_text())
    del about["sha256"], about["files"]
    (folder / "about.json").write_text(json.dumps(about))


def write_old_encoder(folder: Path) -> None:
    from safetensors import safe_open
    from safetensors.torch import load_file, save_file

    path = folder / "e.safetensors"
    write_encoder(folder)
    with safe_open(path, framework="pt") as file:
        facts = {name: value for name, value in file.metadata().items() if name != "sha256"}
    save_file(load_file(path), path, facts)


def write_old_checkpoint(folder: Path) -> None:
    write_checkpoint(folder)
    body = (folder / "c.pt").read_bytes()
    (folder / "c.pt").write_bytes(body[:-73] + b"\0\0")  # the comment that holds the hash, and its length


def anything(whole: Any, got: Any, folder: Path) -> bool:
    """Without a hash a changed number cannot be seen; a crash, a traceback or a wrong shape can."""
    return type(whole) is type(got)


TARGETS = {
    target.name: target
    for target in (
        *map(table, ("a.npz", "b.npz", "a.npy", "a.safetensors")), *table_targets(),
        Target("schedule", write_schedule, ("schedule.txt",), read_schedule, reads_back),
        Target("faiss-flat", write_faiss("Flat"), FAISS_FILES, read_faiss, json={}),
        Target("faiss-ivf", write_faiss("IVF4,Flat"), FAISS_FILES, read_faiss),
        Target("clip-index", write_clips, ("manifest.json", "clips.1.jsonl", "vectors.1.faiss"), read_clips),
        Target("artifact", write_artifact, ("model.cpr",), read_artifact),
        Target("encoder", write_encoder, ("e.safetensors",), read_encoder),
        Target("checkpoint", write_checkpoint, ("c.pt",), read_checkpoint),
        Target("data.mdb", write_store, ("data.mdb",), read_store, same_records),
        Target("config", write_config, ("config.json",), read_config, typed_config, {"config.json": resealed_json}),
        Target("list.csv", write_list, ("list.csv",), read_rows("list.csv"), sound_rows),
        Target("net.json", write_list, ("net.json",), read_rows("net.json"), sound_rows, {"net.json": resealed_json}),
        Target("manifest", write_manifest, ("manifest.json",), read_manifest),
        Target("faiss-old", write_old_faiss, FAISS_FILES, read_faiss, anything),
        Target("encoder-old", write_old_encoder, ("e.safetensors",), read_encoder, anything),
        Target("checkpoint-old", write_old_checkpoint, ("c.pt",), read_checkpoint),
        # the same with hashes made right: only the schema can refuse
        Target("faiss-schema", write_faiss("Flat"), ("about.json",), read_faiss, anything, {"about.json": resealed_json}),
        Target("clip-schema", write_clips, ("manifest.json",), read_clips, anything, {"manifest.json": resealed_json}),
        Target("artifact-schema", write_artifact, ("model.cpr",), read_artifact, described_alike, {"model.cpr": changed_artifact}),
        Target("manifest-schema", write_manifest, ("manifest.json",), read_manifest, sound_manifest, {"manifest.json": resealed_json}),
    )
}  # fmt: skip
