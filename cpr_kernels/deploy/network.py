"""Defines the network of an artifact, and rebuilds it from its description and the weights: no code is loaded."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from ..networks import ENCODERS, new_encoder
from ..networks.inputs import PLAIN, channels_last

Plain = Callable[[Tensor], Tensor]


class Network(nn.Module):
    """Maps uint8 clips, one tensor per view, to embeddings [M, E] and class probabilities [M, C].

    An embedding is the views' pooled features, each less its centre and of length 1, side by side, of length 1: inner
    products are the mean cosine of the views, what `cpr evaluate` compares.

    Args:
        encoders: by view.
        plain: by view, what makes its encoder's input of clips; `PLAIN` for the views that it knows.
        linear: of a classifier, which has one view.
    """

    def __init__(
        self, encoders: Mapping[str, nn.Module], plain: Mapping[str, Plain], linear: nn.Linear | None = None
    ) -> None:
        super().__init__()
        self.plain = dict(plain)
        self.encoders = nn.ModuleDict(encoders)
        self.linear = linear
        for view, encoder in encoders.items():
            size: int = encoder.feature_size  # type: ignore[assignment]
            self.register_buffer(f"centre_{view}", torch.zeros(size))
        self.eval()

    def forward(self, *clips: Tensor) -> tuple[Tensor, ...]:
        """Returns embeddings, and with a classifier probabilities, of clips [M, T, S, S, C] uint8, one per view."""
        parts = []
        for clip, (name, plain) in zip(clips, self.plain.items()):
            features = self.encoders[name].features(channels_last(plain(clip)))  # type: ignore[operator]
            parts.append(functional.normalize(features - getattr(self, f"centre_{name}"), dim=1))
        embedding = torch.cat(parts, dim=1) / math.sqrt(len(parts))
        if self.linear is None:
            return (embedding,)
        return embedding, functional.softmax(self.linear(features), dim=1)  # one view: its features


def why_not_described(views: Sequence[str], encoders: Sequence[nn.Module]) -> str | None:
    """Returns None where the network can be rebuilt from a description, else why only its program can be stored."""
    for view, encoder in zip(views, encoders):
        if view not in PLAIN:
            return f"view {view} is not one of {', '.join(PLAIN)}"
        if type(encoder) is not ENCODERS.get(getattr(encoder, "architecture", "")):
            return f"the encoder of {view} is none of {', '.join(ENCODERS)}"
    return None


def weights_of(model: nn.Module) -> bytes:
    """Returns a model's state as safetensors; a tensor with two names is stored under the first."""
    from safetensors.torch import save

    first: dict[int, str] = {}
    state = model.state_dict(keep_vars=True)
    names = {name: first.setdefault(id(value), name) for name, value in state.items()}
    return save(
        {name: state[name].detach().contiguous() for name, under in names.items() if name == under},
        {"format": "pt"},
    )


def rebuilt(described: Mapping[str, tuple[str, float, int]], classes: int, weights: bytes) -> Network:
    """Returns the network that a description and its weights (safetensors) give, in evaluation mode.

    Args:
        described: {view: (architecture, width, embedding)}.
        classes: of a classifier; 0 is none.
        weights: the state of a `Network`; a tensor with two names is stored under the first.

    Raises:
        ValueError: an unknown view or architecture, or weights of other names, shapes or dtypes.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load

    if unknown := [view for view in described if view not in PLAIN]:
        raise ValueError(f"it has a view {unknown[0]!r}, and this cpr_kernels knows {', '.join(PLAIN)}")
    with torch.device("meta"):  # no memory yet, whatever the description says
        encoders = {view: new_encoder(*described[view]) for view in described}
        size = sum(encoder.feature_size for encoder in encoders.values())
        linear = nn.Linear(size, classes) if classes else None
        network = Network(encoders, {view: PLAIN[view] for view in described}, linear)
    try:
        stored = load(weights)
    except (SafetensorError, ValueError, KeyError) as error:
        raise ValueError(f"its weights are no safetensors ({error})") from None
    first: dict[int, str] = {}
    names = {name: first.setdefault(id(v), name) for name, v in network.state_dict(keep_vars=True).items()}
    wanted = {name: value for name, value in network.state_dict().items() if names[name] == name}
    _refuse_other(wanted, stored)
    network.load_state_dict({name: stored[under] for name, under in names.items()}, assign=True)
    return network.requires_grad_(False).eval()


def _refuse_other(wanted: Mapping[str, Tensor], stored: Mapping[str, Tensor]) -> None:
    """Raises `ValueError` where the stored tensors are not those of the network."""
    lacking, left = [n for n in wanted if n not in stored], [n for n in stored if n not in wanted]
    if lacking or left:
        what, names = ("lack", lacking) if lacking else ("hold an unknown", left)
        raise ValueError(f"its weights {what} {names[0]} (and {len(lacking) + len(left) - 1} more differ)")
    for name, value in wanted.items():
        got = stored[name]
        if (got.shape, got.dtype) != (value.shape, value.dtype):
            raise ValueError(
                f"its weight {name} is {got.dtype} {list(got.shape)}, its network needs {value.dtype} "
                f"{list(value.shape)}"
            )
