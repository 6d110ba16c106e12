"""What the FAISS backend refuses, in one line each that names the argument and the remedy."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from test_faiss import SCHEDULE, clustered

from cpr_kernels import (
    FaissIndex,
    MultiViewQueue,
    RebuildPolicy,
    SearchSettings,
    ShardedMultiViewQueue,
    cascade_topk,
    faiss_recall,
    parse_schedule,
)
from cpr_kernels.reading.seals import sealed

faiss = pytest.importorskip("faiss", reason="FAISS is not installed (extra [faiss])")


def adopted(dim: int = 16, metric: int = faiss.METRIC_INNER_PRODUCT, rows: int = 800, ids: Any = None) -> Any:
    index = faiss.IndexFlat(dim, metric)
    if ids is not None:
        index = faiss.IndexIDMap2(index)
        index.add_with_ids(np.zeros((len(ids), dim), "f4"), np.asarray(ids))
    else:
        index.add(np.zeros((rows, dim), "f4"))
    return lambda keys: FaissIndex.from_faiss(index, keys, "flow")


def calls(
    views: str | tuple[str, ...] = "flow", schedule: str = "flow:40,rgb:5", rows: int = 800, dim: int = 16
) -> Any:
    return lambda keys: FaissIndex(keys, views).cascade_topk(
        clustered(3, dim), clustered(rows, dim), parse_schedule(schedule)
    )


REFUSALS = [
    (adopted(dim=17), "the index holds vectors of 17 numbers, but its views have 16 together"),
    (adopted(metric=faiss.METRIC_L2), "not by inner product; build it with METRIC_INNER_PRODUCT"),
    (adopted(rows=799), "holds 799 vectors without ids, and keys 800 entries; wrap it in IndexIDMap2"),
    (adopted(ids=[0, 5, 800]), "ids must be places of entries in [0, 800)"),
    (adopted(ids=[0, 5, 5]), "an id is there twice"),
    (lambda keys: FaissIndex(keys, "audio"), "views must name some of ['flow', 'rgb'], got ['audio']"),
    (lambda keys: FaissIndex(keys, ()), "views must name some of"),
    (lambda keys: FaissIndex(keys, "flow", "Nonsense"), "factory='Nonsense': could not parse index string"),
    (lambda keys: FaissIndex(keys, "flow", "PQ4"), "makes a IndexPQ; use Flat, IVF<cells>,Flat"),
    (lambda keys: FaissIndex(keys, "flow", "IVF4096,Flat"), "learns from at least 4096 entries, and the queue holds 800"),
    (lambda keys: FaissIndex(keys, "flow", device="cuda"), "device='cuda' cannot be used: "),
    (lambda keys: FaissIndex(keys, "flow", device="tpu"), "device must be 'cpu' or 'cuda', got 'tpu'"),
    (lambda keys: FaissIndex(keys, "flow", key_ids=torch.zeros(7).long()), "key_ids must be int64 of shape [800]"),
    (lambda keys: FaissIndex(keys, "flow").update(keys, torch.tensor([800])), "slots must lie in [0, 800), got 800 to 800"),
    (lambda keys: FaissIndex(keys, "flow", key_ids=torch.arange(800)).update(keys, torch.arange(3)), "update needs key_ids, for the index was built"),
    (lambda keys: SearchSettings(effort=0), "effort must be a whole number >= 1 or None, got 0"),
    (lambda keys: SearchSettings(overfetch=0.5), "overfetch must be >= 1 or None, got 0.5"),
    (lambda keys: SearchSettings(spare=0), "spare must be >= 1, got 0"),
    (lambda keys: SearchSettings(recall=0.0), "recall must be in (0, 1] or None, got 0.0"),
    (lambda keys: SearchSettings(recall=95), "recall must be in (0, 1] or None, got 95"),
    (lambda keys: SearchSettings(recall=0.9, effort=4), "effort=4 and recall=0.9 are both given, and recall chooses the effort; give one"),
    (calls(rows=801), "keys['flow'] must have shape [800, 16], got shape [801, 16]"),
    (calls(dim=15), "keys['flow'] must have shape [800, 16], got shape [800, 15]"),
    (calls(views="rgb"), "stage 1 (flow:40) judges by view 'flow', but the index holds rgb"),
    (calls(schedule="flow+rgb:40,rgb:5"), "judges by view 'rgb', but the index holds flow"),
    (calls(schedule="flow:400,rgb:5"), "stage 1 keeps 400 of 800 entries (50%), and an index pays up to 10%"),
    (lambda keys: SearchSettings(effort=1.5), "effort must be a whole number >= 1 or None, got 1.5"),
    (lambda keys: RebuildPolicy(every=0), "RebuildPolicy: every must be >= 1 or None, got 0"),
    (lambda keys: RebuildPolicy(dead=-1.0), "RebuildPolicy: dead must be above 0 or None, got -1.0"),
    (lambda keys: FaissIndex(keys["flow"], "flow"), "keys must be {view: tensor [N, D]}, got Tensor"),
    (lambda keys: FaissIndex({"flow": keys["flow"].numpy()}, "flow"), "keys['flow'] must be a float32, bfloat16 or float16 tensor [N, D], got ndarray"),
    (lambda keys: FaissIndex({"flow": keys["flow"].long()}, "flow"), "tensor [N, D], got torch.int64 [800, 16]"),
    (lambda keys: FaissIndex({"flow": keys["flow"][0]}, "flow"), "tensor [N, D], got torch.float32 [16]"),
    (lambda keys: FaissIndex(keys | {"rgb": keys["rgb"][:9]}, "flow"), "keys['rgb'] holds 9 entries, but keys['flow'] holds 800"),
    (lambda keys: FaissIndex(ShardedMultiViewQueue({"flow": 16}, 800).views, "flow"), "keys['flow'] is rank 0's share of a queue"),
    (lambda keys: FaissIndex(keys, "flow", None), "factory must be text as FAISS writes it, got None"),
    (lambda keys: FaissIndex(keys, "flow", "IVF4,PQ4x4fs"), "makes a IndexIVFPQFastScan; use Flat"),
    (lambda keys: FaissIndex(keys, "flow", key_ids=list(range(800))), "key_ids must be int64 of shape [800], got list"),
    (lambda keys: FaissIndex(keys, "flow").update(keys, torch.rand(3)), "slots must be int64 of shape [n], got torch.float32 [3]"),
    (lambda keys: FaissIndex(keys, "flow").update(keys, torch.ones(800).bool()), "got torch.bool [800]; of a mask, give mask.nonzero()[:, 0]"),
    (lambda keys: FaissIndex(keys, "flow").sync(keys), "sync takes the queue itself (a MultiViewQueue), got dict, which has no views and no ids"),
    (lambda keys: FaissIndex(keys, "flow").sync(MultiViewQueue({"flow": 16}, 9)), "the queue holds 9 entries, and the index was built over 800"),
    (lambda keys: FaissIndex.from_faiss("index.faiss", keys, "flow"), "expected an index made by FAISS, got str; a file is read with faiss.read_index"),
    (lambda keys: FaissIndex.from_faiss(faiss.IndexFlatIP(16), keys, "audio"), "views must name some of ['flow', 'rgb'], got ['audio']"),
    (lambda keys: cascade_topk(clustered(3), keys, SCHEDULE, backend=faiss.IndexFlatIP(16)), "backend must be 'auto', a backend's name or a FaissIndex, got IndexFlatIP; FaissIndex.from_faiss adopts"),
    (lambda keys: faiss_recall(FaissIndex(clustered(700), "flow"), clustered(3), keys, SCHEDULE), "keys['flow'] must have shape [700, 16], got shape [800, 16]"),
    (lambda keys: with_empty_slots(keys).cascade_topk(clustered(3), keys, SCHEDULE), "some are negative (empty slots), and the call has none"),
]  # fmt: skip


def with_empty_slots(keys: Any) -> FaissIndex:
    """An index without every third entry."""
    ids = torch.arange(800)
    return FaissIndex(keys, "flow", key_ids=ids.masked_fill(ids % 3 == 0, -1))


@pytest.mark.parametrize(("broken", "sentence"), REFUSALS, ids=[s[:40] for _, s in REFUSALS])
def test_refusals(broken: Any, sentence: str) -> None:
    with pytest.raises(ValueError) as caught:
        broken(clustered(800))
    assert sentence in str(caught.value)
    assert "\n" not in str(caught.value)


def test_damaged_or_mixed_files_are_refused(tmp_path: Path) -> None:
    keys = clustered(300)
    with pytest.raises(ValueError, match=r"lacks index.faiss, entries.npz, about.json; a bare FAISS file"):
        FaissIndex.load(tmp_path)
    FaissIndex(keys, "flow").save(tmp_path)
    about = json.loads((tmp_path / "about.json").read_text())
    entries = (tmp_path / "entries.npz").read_bytes()
    del (
        about["sha256"],
        about["files"],
    )  # as older versions wrote it, and so that each change is seen for itself

    def refused(body: object, sentence: str) -> None:
        text = body if isinstance(body, str) else json.dumps(sealed(body) if isinstance(body, dict) else body)
        (tmp_path / "about.json").write_text(text)
        with pytest.raises(ValueError, match=sentence) as caught:
            FaissIndex.load(tmp_path)
        assert "\n" not in str(caught.value)

    refused(about | {"held": 299}, "holds 300 vectors, but about.json counts 299")
    refused(about | {"dims": [15]}, "vectors of 16 numbers, but its views have 15")
    refused(about | {"format": 9}, "format 9, expected 1")
    refused("{", r"about.json is damaged: it is no JSON")
    refused("[1]", "format None, expected 1")
    refused({"format": 1, "views": ["flow"]}, "Object missing required field `dims`")
    refused(about | {"size": 299}, r"holds ids of shape \[300\], but about.json counts 299 entries")
    refused(about | {"size": "300"}, r"Expected `int`, got `str` - at `\$.size`")
    refused(about | {"settings": about["settings"] | {"spare": 0}}, "spare must be >= 1")
    refused(about | {"longest": -1.0}, r"\$.longest")
    refused(about | {"views": ["flow", "flow"]}, "names views")
    (tmp_path / "index.faiss").write_bytes(b"IxFI" + b"\0" * 9)
    refused(about, "not a whole FAISS index")
    FaissIndex(keys, "flow").save(tmp_path)
    for name in ("index.faiss", "entries.npz"):
        whole = (tmp_path / name).read_bytes()
        (tmp_path / name).write_bytes(flipped(whole, len(whole) // 2))
        with pytest.raises(ValueError, match=f"{name} is not the file that about.json names"):
            FaissIndex.load(tmp_path)
        (tmp_path / name).write_bytes(whole)
    text = (tmp_path / "about.json").read_text()
    (tmp_path / "about.json").write_text(text.replace('"size": 300', '"size": 301'))
    with pytest.raises(ValueError, match=r"about.json is damaged: its content is not what its sha256 says"):
        FaissIndex.load(tmp_path)
    (tmp_path / "entries.npz").write_bytes(entries[:200])
    refused(about, r"entries.npz is damaged: .*; save the index again")


def flipped(body: bytes, at: int) -> bytes:
    """A file with one bit turned."""
    return body[:at] + bytes([body[at] ^ 1]) + body[at + 1 :]


def test_a_folder_of_an_older_version_is_read_with_a_warning(tmp_path: Path) -> None:
    FaissIndex(clustered(300), "flow").save(tmp_path)
    about = json.loads((tmp_path / "about.json").read_text())
    del about["sha256"], about["files"]
    (tmp_path / "about.json").write_text(json.dumps(about))
    with pytest.warns(UserWarning, match="holds no content hash"):
        assert len(FaissIndex.load(tmp_path)) == 300


def test_without_faiss_the_errors_name_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "faiss", None)
    keys = clustered(900)
    with pytest.raises(ImportError, match=r"pip install 'cpr_kernels\[faiss\]'"):
        FaissIndex(keys, "flow")
    with pytest.raises(ValueError, match=r"FAISS is not installed; pip install 'cpr_kernels\[faiss\]'"):
        cascade_topk(clustered(2), keys, SCHEDULE, backend="faiss")


def test_an_index_of_huge_features_is_saved_and_read(tmp_path: Path) -> None:
    keys = {"flow": torch.full((300, 4), 1e19)}  # squares of their lengths are infinite in float32
    FaissIndex(keys, "flow").save(tmp_path)
    assert len(FaissIndex.load(tmp_path)) == 300
