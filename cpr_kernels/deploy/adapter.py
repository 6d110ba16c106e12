"""Runs an artifact of `cpr adapt`: takes rows of embeddings, returns better ones."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from ..networks.heads import Head, HeadKind, Heads
from . import artifact
from .artifact import ArtifactError

KIND, RECORD = "adapter", "embedding"
KINDS: dict[str, HeadKind] = {"residual": "residual", "projection": "projection"}


class Adapter:
    """Loads heads of `cpr adapt`, without the trainer, and maps embeddings by them.

    The heads are rebuilt from the weights; nothing of the file is run as code.

    Args:
        path: the artifact.

    Attributes:
        sizes: ``{view: D}`` of the rows that it takes.
        id: SHA-256 of the weights.

    Example:
        >>> adapter = Adapter("model/model.cpr")
        >>> better = adapter({"flow": flow, "rgb": rgb})

    Raises:
        ArtifactError: missing, damaged, of another version, or no adapter.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        manifest, members = artifact.read(self.path)
        if manifest.kind != KIND or manifest.clip is not None:
            raise ArtifactError(
                f"artifact: {path} is a {manifest.kind} of videos; `cpr adapt` makes adapters"
            )
        kinds = {view.name: view.architecture for view in manifest.views}
        try:
            self.heads = _rebuilt(kinds, members[artifact.WEIGHTS])
        except ValueError as error:
            raise ArtifactError(f"artifact: {path} cannot be used: {error}; export it again") from None
        self.id = manifest.files[artifact.WEIGHTS].sha256
        self.sizes = {view: len(head.mean) for view, head in self.heads.heads.items()}

    def __call__(self, views: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Returns ``{view: [N, E]}`` of length 1, float32, of raw rows ``{view: [N, D]}``; other views are left out.

        Raises:
            ValueError: a view that is not there, or of another size.
        """
        for view, size in self.sizes.items():
            if view not in views:
                raise ValueError(f"views: {self.path} is of {', '.join(self.sizes)}, got {', '.join(views)}")
            got = list(views[view].shape)
            if len(got) not in (2, 3) or got[-1] != size:
                raise ValueError(f"views: {view!r} must be [N, {size}] (or [N, C, {size}]), got {got}")
        return self.heads.embeddings(views)


def is_adapter(path: Path) -> bool:
    """Returns whether an artifact says that it takes embeddings; :class:`Adapter` checks it whole."""
    return artifact.stated_kind(path) == KIND


def _rebuilt(kinds: Mapping[str, str], weights: bytes) -> Heads:
    """Returns the heads that the stored tensors give; sizes are those of the tensors.

    Raises:
        ValueError: an unknown kind, or tensors of other names, shapes or dtypes.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load

    try:
        stored = load(weights)
    except (SafetensorError, ValueError, KeyError) as error:
        raise ValueError(f"its weights are no safetensors ({error})") from None
    if odd := [name for name, value in stored.items() if value.dtype != torch.float32]:
        raise ValueError(f"its weight {odd[0]} is {stored[odd[0]].dtype}, expected torch.float32")
    heads = {}
    for number, (view, kind) in enumerate(kinds.items()):
        parts = [stored.get(f"of_view.{number}.{name}") for name in ("mean", "first.weight", "last.weight")]
        if kind not in KINDS or any(part is None for part in parts):
            raise ValueError(f"it lacks the head of {view!r}, or that is none of {', '.join(KINDS)}")
        mean, first, last = (part for part in parts if part is not None)
        if mean.dim() != 1 or first.dim() != 2 or last.dim() != 2:
            raise ValueError(f"the head of {view!r} has tensors of other shapes")
        with torch.device("meta"):
            heads[view] = Head(KINDS[kind], mean.to("meta"), first.shape[0], last.shape[0])
    made = Heads(heads)
    try:
        made.load_state_dict(stored, assign=True)
    except RuntimeError as error:
        raise ValueError(" ".join(str(error).split())[:200]) from None
    return made.requires_grad_(False).eval()
