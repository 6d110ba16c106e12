"""bfloat16 on CPUs: convolutions and their gradients are float32's within rounding, whatever their shapes."""

from __future__ import annotations

import random
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor

from cpr_kernels.networks import Conv4
from cpr_kernels.train import TrainError
from cpr_kernels.train.runtime.device import autocast, device_to_train_on, multiplies_bfloat16

CPU = torch.device("cpu")
needs_bfloat16 = pytest.mark.skipif(
    not multiplies_bfloat16(),
    reason="this CPU has no instructions for bfloat16 (AVX-512 BF16)",
)
FORMATS: dict[int, list[Any]] = {
    1: [torch.contiguous_format],
    2: [torch.contiguous_format, torch.channels_last],
    3: [torch.contiguous_format, torch.channels_last_3d],
}


class Shape(NamedTuple):
    input: tuple[int, ...]
    weight: tuple[int, ...]
    stride: tuple[int, ...]
    padding: tuple[int, ...]


def drawn(random: random.Random, dims: int) -> Shape:
    """Small inputs, long kernels and strides, of which torch by itself gets one in twenty wrong."""
    while True:
        kernel = tuple(random.choice([1, 3, 7]) for _ in range(dims))
        sizes = tuple(random.choice([1, 2, 3, 4, 7, 9]) for _ in range(dims))
        padding = tuple(random.choice([0, length // 2]) for length in kernel)
        if all(size + 2 * pad >= length for size, pad, length in zip(sizes, padding, kernel)):
            break
    channels = [random.choice([3, 16, 32, 48, 64]) for _ in range(2)]
    stride = tuple(random.choice([1, 1, 1, 1, 2, 4]) for _ in range(dims))
    batch = random.choice([1, 2, 3, 8])
    return Shape((batch, channels[0], *sizes), (channels[1], channels[0], *kernel), stride, padding)


def spoil_free_memory(random: random.Random) -> None:
    """Leaves NaN in memory that the next tensors, or what reads beyond them, may find."""
    for _ in range(10):
        torch.full((random.randint(1, 100_000),), float("nan"))


def off(value: Tensor, wanted: Tensor) -> float:
    return float(((value.float() - wanted).norm() / (wanted.norm() + 1e-20)).detach())


@needs_bfloat16
@pytest.mark.parametrize("dims", [1, 2, 3])
def test_convolutions_of_any_shape(dims: int) -> None:
    chosen = random.Random(dims)
    convolution = (torch.conv1d, torch.conv2d, torch.conv3d)[dims - 1]
    g = torch.Generator().manual_seed(dims)
    for _ in range(40 if dims == 1 else 150):  # one dimension takes torch long
        shape = drawn(chosen, dims)
        layout = chosen.choice(FORMATS[dims])
        rows = torch.randn(shape.input, generator=g).contiguous(memory_format=layout)
        weight = torch.randn(shape.weight, generator=g) / shape.weight[1] ** 0.5
        bias = torch.randn(shape.weight[0], generator=g) if chosen.random() < 0.5 else None
        given = [t.requires_grad_() for t in (rows, weight, bias) if t is not None]
        exact = convolution(rows, weight, bias, shape.stride, shape.padding)
        grad = torch.randn(exact.shape, generator=g)
        wanted = torch.autograd.grad(exact, given, grad)
        spoil_free_memory(chosen)
        with autocast(CPU, "bf16"):
            made = convolution(rows, weight, bias, shape.stride, shape.padding)
        got = torch.autograd.grad(made, given, grad.to(made.dtype))
        assert off(made, exact) < 0.02, shape
        assert all(off(value, right) < 0.02 for value, right in zip(got, wanted)), shape
        if 3 in shape.weight[:2] or set(shape.stride) != {1}:
            assert made.dtype == torch.float32 and torch.equal(made, exact)


@needs_bfloat16
def test_a_network_computes_in_bfloat16_and_keeps_its_gradients_near() -> None:
    g = torch.Generator().manual_seed(0)
    network = Conv4(0.5)
    clips = torch.randn(16, 3, 4, 24, 24, generator=g)
    target = torch.randn(16, 128, generator=g)

    def gradients(amp: Any) -> Tensor:
        network.zero_grad()
        with autocast(CPU, amp):
            made = network(clips)
        (made.float() * target).sum().backward()
        return torch.cat([p.grad.flatten() for p in network.parameters()])

    exact, low = gradients("off"), gradients("bf16")
    assert low.dtype == torch.float32 and not torch.equal(low, exact)
    assert torch.nn.functional.cosine_similarity(low, exact, dim=0) > 0.99
    assert torch.equal(gradients("bf16"), low)  # the same bits again


@needs_bfloat16
def test_other_forms_of_convolutions_are_float32() -> None:
    """Groups, dilation, padding by name, one item without a batch: none of them was tried in bfloat16."""
    rows, weight = torch.randn(2, 16, 9, 9), torch.randn(16, 16, 3, 3)
    forms: list[dict[str, Any]] = [
        {"padding": "same"},
        {"dilation": 2},
        {"dilation": (2, 1)},
        {"groups": 16, "weight": weight[:, :1].contiguous()},
        {"input": rows[0]},
    ]
    for form in forms:
        call = {"input": rows, "weight": weight} | form
        with autocast(CPU, "bf16"):
            made = torch.nn.functional.conv2d(**call)
        assert torch.equal(made, torch.nn.functional.conv2d(**call)), form


def test_a_cpu_without_instructions_for_bfloat16_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx512_bf16": False}, raising=False)
    with pytest.raises(TrainError, match="amp: bf16 on the device cpu needs a CPU with AVX-512 BF16"):
        device_to_train_on("cpu", "bf16")
    assert device_to_train_on("cpu", "off") == CPU
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx512_bf16": True}, raising=False)
    assert device_to_train_on("cpu", "bf16") == CPU
