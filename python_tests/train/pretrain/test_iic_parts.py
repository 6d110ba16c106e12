"""The parts of IIC by themselves: the published network's names, broken clips, and the loss against loops."""

from __future__ import annotations

import math
from argparse import Namespace

import pytest
import torch
from torch.nn.functional import normalize

from cpr_kernels import MemoryBank, mil_nce
from cpr_kernels.networks.r3d import R3D, R3D18
from cpr_kernels.train import TrainError
from cpr_kernels.train.encoders.weights import load_encoder
from cpr_kernels.train.pretrain.iic_loss import drawn_nce, intra_negatives
from cpr_kernels.train.views import KNOWN


def test_the_network_has_the_published_names_and_shapes():
    published = {"conv1.temporal_spatial_conv.weight": (64, 3, 3, 7, 7)}
    before = 64
    for layer, channels in zip((2, 3, 4, 5), (64, 128, 256, 512)):
        block = f"conv{layer}.block1."
        published[f"{block}conv1.temporal_spatial_conv.weight"] = (channels, before, 3, 3, 3)
        published[f"{block}conv2.temporal_spatial_conv.weight"] = (channels, channels, 3, 3, 3)
        if layer > 2:
            published[f"{block}downsampleconv.temporal_spatial_conv.weight"] = (channels, before, 1, 1, 1)
        before = channels
    network = R3D()
    convolutions = {n: tuple(v.shape) for n, v in network.state_dict().items() if v.dim() == 5}
    assert convolutions == published
    norms = {n.rpartition(".")[0] for n in network.state_dict() if n.endswith("running_mean")}
    blocks = {f"conv{n}.block1.bn{i}" for n in (2, 3, 4, 5) for i in (1, 2)}
    assert norms == {"bn1"} | blocks | {f"conv{n}.block1.downsamplebn" for n in (3, 4, 5)}
    assert len(network.state_dict()) == len(published) + 5 * len(norms)
    assert "conv3.blocks.0.conv1.temporal_spatial_conv.weight" in R3D18(0.125).state_dict()


def test_sizes_and_norms_of_its_embeddings():
    network, clip = R3D(width=0.125), torch.randn(2, 3, 8, 32, 32)
    assert network.features(clip).shape == (2, network.feature_size) == (2, 64)
    assert network(clip).norm(dim=1).tolist() == pytest.approx([1, 1], abs=1e-5)


def test_repeating_keeps_one_frame_and_shuffling_exchanges_two_quarters():
    clips = torch.arange(10.0).view(1, 1, 10, 1, 1).expand(50, 2, 10, 3, 3)
    generator = torch.Generator().manual_seed(0)
    repeated = intra_negatives(clips, "repeat", generator)[:, 0, :, 0, 0]
    assert torch.equal(repeated, repeated[:, :1].expand_as(repeated))
    assert set(repeated[:, 0].int().tolist()) == set(range(10))
    quarters = [(0, 1, 2), (3, 4, 5), (6, 7), (8, 9)]
    expected = set()
    for i in range(4):
        for j in range(i):
            order = list(quarters)
            order[i], order[j] = order[j], order[i]
            expected.add(sum(order, ()))
    shuffled = intra_negatives(clips, "shuffle", generator)
    assert {tuple(row) for row in shuffled[:, 1, :, 2, 1].int().tolist()} == expected
    with pytest.raises(ValueError, match="at least 4 frames, got 3"):
        intra_negatives(clips[:, :, :3], "shuffle", generator)


def example(batch=5, rows=12, dim=6, draws=7):
    generator = torch.Generator().manual_seed(3)
    unit = lambda *shape: normalize(torch.randn(*shape, generator=generator), dim=-1)  # noqa: E731
    bank = MemoryBank({"v": dim}, rows)
    own_rows = torch.tensor([3, 0, 11, 7, 5])
    drawn = bank.draw(own_rows, draws, generator)
    return unit(batch, dim), unit(batch, dim), unit(rows, dim), drawn, unit(batch, dim), unit(rows, dim)


def test_the_loss_is_its_formula():
    query, positive, keys, drawn, own_broken, all_broken = example()
    mined = torch.tensor([[1, 2], [4, -1], [-1, -1], [1, 1], [8, 9]])
    left_out = torch.zeros(5, 12, dtype=torch.bool)
    left_out[0, 1] = left_out[4, drawn[4, 0]] = True
    got = drawn_nce(
        query, positive, keys, drawn, 0.1, mined=mined, broken=(own_broken, all_broken), left_out=left_out
    )
    for b in range(5):
        right = {row for row in mined[b].tolist() if row >= 0 and not left_out[b, row]}
        draws = [row for row in drawn[b].tolist() if not left_out[b, row]]
        e = lambda key: math.exp(float(query[b] @ key) / 0.1)  # noqa: B023, E731
        above = e(positive[b]) + sum(e(keys[row]) for row in right)
        others = sum(e(keys[row]) for row in draws if row not in right)
        broken = e(own_broken[b]) + sum(e(all_broken[row]) for row in draws)
        assert float(got[b]) == pytest.approx(math.log((above + others + broken) / above), abs=1e-5)


def test_with_every_row_drawn_once_it_is_the_op_and_so_are_its_gradients():
    query, positive, keys, *_, own_broken, all_broken = example()
    every = torch.arange(12).expand(5, 12)
    mined = torch.tensor([[1, 2], [4, -1], [-1, -1], [1, 1], [8, 9]])
    for broken in (None, (own_broken, all_broken)):
        query.requires_grad_()
        got = drawn_nce(query, positive, keys, every, 0.07, mined=mined, broken=broken)
        pool = keys if broken is None else torch.cat((keys, all_broken))
        if broken is None:
            expected = mil_nce(query, positive, pool, mined, 0.07, reduction="none")
            gradients = [torch.autograd.grad(loss.sum(), query)[0] for loss in (got, expected)]
            assert torch.allclose(*gradients, atol=1e-5)
            assert torch.allclose(got, expected, atol=1e-5)
        else:
            for b in range(5):  # the own intra-negative is another key of each query
                keys_of_b = torch.cat((pool, own_broken[b : b + 1]))
                expected = mil_nce(query[b : b + 1], positive[b : b + 1], keys_of_b, mined[b : b + 1], 0.07)
                assert got[b].item() == pytest.approx(expected.item(), abs=1e-5)


def test_the_loss_is_finite_where_the_plain_form_is_not():
    query = torch.tensor([[1.0, 0.0]], requires_grad=True)
    loss = drawn_nce(query, -query.detach(), query.detach(), torch.zeros(1, 3).long(), 1e-3)
    assert loss.item() == pytest.approx(2000 + math.log(3), abs=0.01)
    assert torch.isfinite(torch.autograd.grad(loss.sum(), query)[0]).all()
    with_nothing_drawn = drawn_nce(query, query.detach(), query.detach(), torch.zeros(1, 0).long(), 0.07)
    assert with_nothing_drawn.tolist() == [0.0]


@pytest.mark.parametrize("kind", [R3D, R3D18])
def test_a_published_checkpoint_loads_strictly(kind, tmp_path):
    network, path = kind(width=0.25), tmp_path / "ckpt_epoch_240.pth"
    for value in network.state_dict().values():
        value.copy_(value.float() + 0.01 * torch.rand_like(value.float()))
    tensors = {f"module.{name}": value for name, value in network.state_dict().items()}
    state = {"opt": Namespace(model="r3d", nce_k=1024), "model": tensors, "contrast": {}, "epoch": 240}
    torch.save(state, path)
    loaded, clip = load_encoder(path), torch.randn(1, 3, 8, 32, 32)
    assert type(loaded) is kind
    assert all(torch.equal(value, network.state_dict()[name]) for name, value in loaded.state_dict().items())
    assert torch.equal(loaded.eval()(clip), network.eval()(clip))
    for change, says in (
        (lambda t: t.pop("module.bn1.bias"), "it is missing bn1.bias"),
        (lambda t: t.update({"module.linear.weight": torch.ones(1)}), "it has unknown linear.weight"),
        (
            lambda t: t.update({"module.bn1.bias": torch.ones(3)}),
            r"other shapes: bn1.bias \[3\] instead of \[16\]",
        ),
        (lambda t: t.pop("module.conv1.temporal_spatial_conv.weight"), "is no R3D of IIC"),
    ):
        changed = dict(tensors)
        change(changed)
        torch.save({**state, "model": changed}, path)
        with pytest.raises(TrainError, match=says):
            load_encoder(path)


def test_the_network_gets_its_input_as_published():
    network = R3D(width=0.125).eval()
    frames = torch.randint(0, 256, (2, 8, 32, 32, 3), dtype=torch.uint8)
    clips = KNOWN["rgb"].plain(frames)
    seen = []
    network.conv1.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    network(clips)
    assert torch.allclose(seen[0], frames.permute(0, 4, 1, 2, 3) / 255, atol=1e-6)
