"""S3D's names and shapes against a second list of the published network, and published checkpoints."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import train_sets  # noqa: F401  (skips where the packages of the trainer are absent)
from torch import Tensor

from cpr_kernels.networks.s3d import S3D, Encoder
from cpr_kernels.train import TrainError
from cpr_kernels.train.encoders.published import load_published
from cpr_kernels.train.encoders.weights import load_encoder, save_encoder
from cpr_kernels.train.runtime.checkpoint import load, save

# The published network, layer by layer, from its released source: name in the file, place in its block, and for an
# inception unit its input and the six widths.
UNITS = """
Mixed_3b block3.1 192   64  96 128 16  32  32
Mixed_3c block3.2 256  128 128 192 32  96  64
Mixed_4b block4.1 480  192  96 208 16  48  64
Mixed_4c block4.2 512  160 112 224 24  64  64
Mixed_4d block4.3 512  128 128 256 24  64  64
Mixed_4e block4.4 512  112 144 288 32  64  64
Mixed_4f block4.5 528  256 160 320 32 128 128
Mixed_5b block5.1 832  256 160 320 32 128 128
Mixed_5c block5.2 832  384 192 384 48 128 128
"""


def published_shapes() -> dict[str, tuple[int, ...]]:
    """{name: shape} of every tensor of a published `encoder_q`, without the prefix."""
    convolutions: dict[str, tuple[int, ...]] = {}  # name of the layer -> shape of its weight

    def point(name: str, i: int, o: int) -> None:
        convolutions[f"{name}.conv"] = (o, i, 1, 1, 1)

    def separable(name: str, i: int, o: int, k: int) -> None:
        convolutions[f"{name}.conv1"], convolutions[f"{name}.conv2"] = (o, i, 1, k, k), (o, o, k, 1, 1)

    for name in ("Conv_1a", "block1.0"):
        separable(name, 3, 64, 7)
    for name in ("Conv_2b", "block2.1"):
        point(name, 64, 64)
    for name in ("Conv_2c", "block2.2"):
        separable(name, 64, 192, 3)
    for line in UNITS.split("\n"):
        if line:
            own, place, *numbers = line.split()
            i, a, b, c, d, e, f = map(int, numbers)
            for name in (own, place):
                point(f"{name}.branch0.0", i, a)
                point(f"{name}.branch1.0", i, b)
                separable(f"{name}.branch1.1", b, c, 3)
                point(f"{name}.branch2.0", i, d)
                separable(f"{name}.branch2.1", d, e, 3)
                point(f"{name}.branch3.1", i, f)
    shapes: dict[str, tuple[int, ...]] = {}
    for name, shape in convolutions.items():
        shapes[f"0.{name}.weight"] = shape
        norm = name.replace(".conv", ".bn")
        for part in ("weight", "bias", "running_mean", "running_var"):
            shapes[f"0.{norm}.{part}"] = (shape[0],)
        shapes[f"0.{norm}.num_batches_tracked"] = ()
    shapes.update({"2.weight": (1024, 1024, 1, 1, 1), "2.bias": (1024,)})
    shapes.update({"4.weight": (128, 1024, 1, 1, 1), "4.bias": (128,)})
    return shapes


ALIASES = {"0.Conv_1a.": "0.block1.0.", "0.Conv_2b.": "0.block2.1.", "0.Conv_2c.": "0.block2.2."} | {
    f"0.{line.split()[0]}.": f"0.{line.split()[1]}." for line in UNITS.split("\n") if line
}


def published_state(seed: int) -> dict[str, Tensor]:
    """Random tensors under the published names; the two names of a layer hold the same values."""
    generator = torch.Generator().manual_seed(seed)
    state: dict[str, Tensor] = {}
    for name, shape in published_shapes().items():
        first = next(
            (own + name[len(place) :] for own, place in ALIASES.items() if name.startswith(place)), name
        )
        if first != name:
            state[name] = state[first].clone()
        elif name.endswith("num_batches_tracked"):
            state[name] = torch.tensor(7)
        else:
            state[name] = torch.rand(shape, generator=generator)
    return state


PUBLISHED = {part: published_state(seed) for seed, part in enumerate(("encoder_q", "encoder_k", "sampler"))}


def published_file(path: Path, parts: tuple[str, ...], prefix: str = "", **changes: Tensor | None) -> None:
    """Writes a file as the published training code does; `changes` to `encoder_q`, None takes a tensor away."""
    tensors = {**PUBLISHED, "encoder_q": {**PUBLISHED["encoder_q"], **changes}}
    state = {
        f"{part}.{name}": value
        for part in parts
        for name, value in tensors[part].items()
        if value is not None
    }
    state.update({
        "queue": torch.rand(128, 2048), "queue_ptr": torch.zeros(1, dtype=torch.long),
        "queue_second": torch.rand(128, 2048), "queue_vname": torch.zeros(2048, dtype=torch.long),
        "queue_label": torch.ones(2048, dtype=torch.long), "memory_index_record": torch.arange(2048),
    })  # fmt: skip
    moments = {"step": torch.tensor(3.0), "exp_avg": torch.zeros(2), "exp_avg_sq": torch.zeros(2)}
    torch.save(
        {
            "epoch": 99, "state_dict": {prefix + name: value for name, value in state.items()}, "best_acc": 0.61,
            "optimizer": {"state": {0: moments}, "param_groups": [{"lr": 1e-3, "params": [0]}]}, "iteration": 29800,
        },
        path,
    )  # fmt: skip


def test_s3d_has_the_published_names_and_shapes() -> None:
    encoder = Encoder()
    assert {name: tuple(value.shape) for name, value in encoder.state_dict().items()} == published_shapes()
    assert sum(p.numel() for p in encoder[0].parameters()) == 7_910_048  # each shared layer counted once
    narrow = S3D(width=0.25)
    assert set(narrow.state_dict()) == set(S3D().state_dict()) and narrow.feature_size == 256
    with pytest.raises(ValueError, match="width must be > 0"):
        S3D(width=0)


def test_encoder_gives_unit_embeddings_and_pooled_features() -> None:
    encoder = Encoder(width=0.05, embedding=16).eval()
    clip = torch.randn(2, 3, 8, 32, 32)
    with torch.no_grad():
        assert encoder(clip).shape == (2, 16)
        assert torch.allclose(encoder(clip).norm(dim=1), torch.ones(2))
        assert encoder.features(clip).shape == (2, encoder.feature_size)


@pytest.mark.parametrize("part", list(PUBLISHED))
def test_published_checkpoint_loads_strictly(tmp_path: Path, part: str) -> None:
    path = tmp_path / "epoch99.pth.tar"
    parts = tuple(PUBLISHED) if part == "sampler" else (part,)  # all of them make 200 MB
    published_file(path, parts, prefix="module." if part == "encoder_k" else "")
    encoder, report = load_published(path, part=part)
    for name, value in PUBLISHED[part].items():
        assert torch.equal(encoder.state_dict()[name], value), name
    assert len(report.loaded) == len(published_shapes()) and report.missing == []
    assert {name.split(".")[0] for name in report.ignored} >= {"queue", "queue_second", "memory_index_record"}
    assert report.facts == {"epoch": 99, "iteration": 29800, "best_acc": 0.61}
    assert "928 tensors loaded, 0 missing" in str(report) and "queue_vname" in str(report)


def test_published_checkpoint_that_does_not_fit_names_what(tmp_path: Path) -> None:
    path = tmp_path / "x.pth.tar"
    cases: list[tuple[dict[str, Tensor | None], str]] = [
        ({"0.Mixed_4d.branch2.1.conv2.weight": None}, r"is missing 0\.Mixed_4d\.branch2\.1\.conv2\.weight"),
        ({"0.fc.weight": torch.zeros(3)}, r"has unknown 0\.fc\.weight"),
        ({"2.bias": torch.zeros(7)}, r"other shapes: 2\.bias \[7\] instead of \[1024\]"),
        (
            {"0.block2.1.conv.weight": torch.zeros(64, 64, 1, 1, 1)},
            "two versions of one layer: .*Conv_2b.* differ",
        ),
        ({"4.weight": None}, r"4\.weight is missing"),
    ]
    for changes, sentence in cases:
        published_file(path, ("encoder_q",), **changes)
        with pytest.raises(TrainError, match=sentence):
            load_published(path)
    published_file(path, ("encoder_q",))
    with pytest.raises(TrainError, match="part: must be one of encoder_q"):
        load_published(path, part="encoder")
    torch.save({"epoch": 3}, path)
    with pytest.raises(TrainError, match="no state_dict"):
        load_published(path)


class Surprise:
    """Is an object that loading a checkpoint must not make."""


def test_checkpoints_are_read_without_running_code(tmp_path: Path) -> None:
    path = tmp_path / "x.pt"
    torch.save({"state_dict": Surprise()}, path)
    with pytest.raises(TrainError, match=r"holds a Python object \(.*Surprise\), which could run code"):
        load(path)
    save(path, {"weights": torch.arange(1000.0), "step": 3})
    assert load(path)["step"] == 3
    path.write_bytes(path.read_bytes()[:2000])
    with pytest.raises(TrainError, match="cannot be read: cut short"):
        load(path)
    path.write_text("no checkpoint")
    with pytest.raises(TrainError, match=r"x\.pt"):
        load(path)
    with pytest.raises(TrainError, match="does not exist"):
        load(tmp_path / "absent.pt")
    assert list(tmp_path.glob(".*part")) == []


def test_saved_encoder_comes_back(tmp_path: Path) -> None:
    encoder = Encoder(width=0.05, embedding=16)
    save_encoder(tmp_path / "e.safetensors", encoder, "flow", phase="infonce")
    again = load_encoder(tmp_path / "e.safetensors")
    assert again.width == 0.05
    assert all(torch.equal(a, b) for a, b in zip(encoder.state_dict().values(), again.state_dict().values()))
