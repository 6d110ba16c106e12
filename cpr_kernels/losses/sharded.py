"""Computes `cpr::mil_nce` over a queue that several ranks hold in shares: logsumexps, reduced exactly.

Every rank sums the exponentials of its share for the queries of all ranks, relative to the highest score there; the
query's own rank rescales the W sums to a common maximum and adds the own pair. One exchange of queries, one of sums
(and, for a gradient, of 2 D numbers per query); nothing depends on N.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from ..dispatch.calls import LossCall, Sweep
from ..dispatch.checks import check_loss, check_positives_in_range
from ..dispatch.native import DTYPE_CODES
from ..dispatch.sharded_keys import (
    Shard,
    ShardedKeys,
    exchange,
    fingerprint,
    gather_rows,
    handshake,
    why_not_group,
)
from ..dispatch.tensor_checks import check_like
from . import native, torch_share

NAME = "sharded"


def why_not(call: LossCall) -> str | None:
    """Returns None for keys that are a shard, up to float32, while a group is up that carries them; else the reason."""
    if not isinstance(call.keys, ShardedKeys):
        return "the keys are not sharded; pass a view of a ShardedMultiViewQueue"
    if call.query.device.type not in ("cpu", "cuda"):
        return f"shards are swept in CPU or CUDA tensors, and these are on {call.query.device}"
    if call.query.dtype not in DTYPE_CODES:
        return f"shards are swept in float32, and {call.query.dtype} needs more"
    return why_not_group(call.keys.shard, call.query.device.type)


def check(call: LossCall) -> None:
    """Checks a call as `check_loss`; key_ids are those of this rank's entries, positives are global indices.

    Raises:
        ValueError: naming the argument, what was expected and what came.
    """
    check_loss(call._replace(keys=call.keys.rows))
    if call.negatives is not None:
        raise ValueError(
            "mil_nce: negatives list entries of keys that one process holds; of a sharded queue all entries take part"
        )
    for name in ("positive", "keys"):
        check_like("mil_nce", name, getattr(call, name), ("query", call.query))
    check_positives_in_range(call.positives, call.keys.shard.total)


def run(call: LossCall, want_stats: bool = False) -> tuple[Tensor, Tensor]:
    """Returns the `loss [B]` of this rank's queries, differentiable once, and statistics, [B, 3] or [0, 3].

    The backward pass is collective: all ranks make it together.
    """
    tensors = (call.query, call.positive, call.keys.rows)
    wants = tuple(torch.is_grad_enabled() and tensor.requires_grad for tensor in tensors)
    return _Loss.apply(*tensors, call, wants, want_stats)


def _kernels(device: torch.device) -> Any:
    """Returns the module that sweeps shares on a device: the core's kernels, which keep a share's sums on the CPU only,
    or torch.
    """
    return native if device.type == "cpu" else torch_share


class _AllQueries(NamedTuple):
    """Holds the queries of all ranks against this rank's share."""

    call: LossCall  # positive is a placeholder: the own pair belongs to the query's rank
    batch: list[int]  # queries of each rank
    shard: Shard
    own: Tensor | None  # scores of their own pairs, float32; None without statistics


def _own_scores(call: LossCall) -> Tensor:
    """Returns the scores of the own pairs [b] in float64, NaN where float32 does not hold them."""
    own = (call.query.double() * call.positive.double()).sum(dim=1)
    return torch.where(own.float().isfinite(), own, torch.nan)


def _gather(call: LossCall, wants: tuple[bool, ...], want_stats: bool) -> _AllQueries:
    """Returns all ranks' queries, with their positives by local index."""
    shard = call.keys.shard
    settings = (call.temperature, call.siblings, call.positives.shape[1])
    features = (str(call.query.dtype), call.query.shape[1], call.query_ids is None, call.key_ids is None)
    facts = [
        ("the temperature, siblings or number of positives", fingerprint(settings)),
        ("the size or dtype of the features, or the choice of ids,", fingerprint(features)),
        ("the choice of gradients or statistics", fingerprint((*wants, want_stats))),
        ("the layout of the queue", fingerprint(shard.sizes)),
    ]
    batch = handshake(shard, "mil_nce", call.query.shape[0], facts)
    columns = [call.query, call.positives] + ([_own_scores(call).float()] if want_stats else [])
    columns += [] if call.query_ids is None else [call.query_ids]
    query, listed, *rest = gather_rows(shard, columns, batch, "mil_nce, gathering the queries")
    own = rest.pop(0) if want_stats else None
    local = listed - shard.offset
    local = torch.where((local >= 0) & (local < shard.local), local, -1)
    query_ids = rest[0] if rest else None
    keys = call.keys.rows.detach()
    here = LossCall(query, query, keys, local, call.temperature, query_ids, call.key_ids, None, call.siblings)
    return _AllQueries(here, batch, shard, own)


def _shares(queries_of_all: _AllQueries, gradient: bool) -> native.Share:
    """Returns what each rank's share adds to this rank's queries: [W, b, ...] of each member, sums in float64."""
    call, batch, shard, own = queries_of_all
    share = _kernels(call.query.device).share(call, gradient, own)  # [M, ...]
    bits = share._replace(ranks=share.ranks.view(torch.float32))  # moved, never computed with
    rows = sum(batch)
    columns = [part.flatten(1) if len(part) == rows else part.new_empty(rows, 0) for part in bits]
    widths = [column.shape[1] for column in columns]
    outgoing = torch.cat(columns, dim=1).split(batch)
    mine = batch[shard.rank]
    parts = exchange(shard, outgoing, [mine * sum(widths)] * shard.world, "mil_nce, gathering the sums")
    every = torch.stack([part.view(mine, sum(widths)) for part in parts])
    sums, attended, ranks, best = every.split(widths, dim=2)
    attended = attended.reshape(shard.world, mine, 2, widths[1] // 2)
    return native.Share(sums.double(), attended.double(), ranks.contiguous().view(torch.int32), best)


def _stats(share: native.Share, own: Tensor, own_positive: Tensor, loss: Tensor) -> Tensor:
    """Returns the statistics [b, 3] of the ranks' best scores, in rank order, and the own pair's."""
    above, flags = share.ranks.long().unbind(dim=2)  # [W, b]
    positive = (flags[:, :, None] >> torch.arange(native.BEST, device=flags.device)) & 1  # [W, b, 5]
    scores = torch.cat([own.float()[:, None], *share.best], dim=1)  # [b, 1 + 5 W]
    positive = torch.cat([own_positive.long()[:, None], *positive], dim=1)
    top = scores.sort(dim=1, descending=True, stable=True)[1][:, : native.BEST]
    hits = positive.gather(1, top)
    stats = torch.stack([above.sum(dim=0), hits[:, 0], hits.sum(dim=1)], dim=1)
    return stats.masked_fill(loss.isnan()[:, None], -1)


def _reduce(call: LossCall, share: native.Share) -> Sweep:
    """Combines the ranks' sums relative to a common maximum, in rank order, and adds the own pair."""
    scale = torch_share.scale_of(call.temperature)
    query, positive = call.query.double(), call.positive.double()
    own = _own_scores(call)  # [b]; where it is NaN, all that the query gets is
    attended = share.attended
    top, mass, positive_top, positive_mass = share.sums.unbind(dim=2)  # [W, b] each
    others = (positive_mass > 0).any(dim=0)
    own_positive = torch.ones_like(others) if call.use_own is None else call.use_own | ~others

    def rescaled(tops: Tensor, masses: Tensor, with_own: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Returns the common maximum [b], the whole mass [b], each rank's factor [W, b] and the own pair's part [b]."""
        tops = tops.masked_fill(masses == 0, -torch.inf)
        own_top = own.masked_fill(~with_own, -torch.inf)
        common = torch.maximum(tops.amax(dim=0), own_top)
        factors = ((tops - common) * scale).exp()
        own_part = ((own_top - common) * scale).exp()
        return common, (masses * factors).sum(dim=0) + own_part, factors, own_part

    every = torch.ones_like(own_positive)
    common, whole, factors, own_part = rescaled(top, mass, every)
    p_common, p_whole, p_factors, p_own = rescaled(positive_top, positive_mass, own_positive)
    own_weight = own_part / whole - p_own / p_whole
    grad_query = query.new_zeros(query.shape[0], 0)
    if attended.shape[3]:
        of_all = ((factors / whole)[:, :, None] * attended[:, :, 0]).sum(dim=0)
        of_positive = ((p_factors / p_whole)[:, :, None] * attended[:, :, 1]).sum(dim=0)
        grad_query = (own_weight[:, None] * positive + of_all - of_positive) * scale
    loss = ((common - p_common) * scale).clamp(max=torch_share.LARGEST) + (whole.log() - p_whole.log())
    lse_all, lse_positive = common * scale + whole.log(), p_common * scale + p_whole.log()
    floats = [t.float() for t in (loss, lse_all, lse_positive, own_weight, grad_query)]
    stats = call.positives.new_empty(0, 3)
    if share.ranks.shape[2]:
        stats = _stats(share, own, own_positive, loss)
    return Sweep._make([*floats, stats])


class _Loss(torch.autograd.Function):
    """Differentiates `mil_nce` over shards; the backward pass is collective where the keys take a gradient."""

    @staticmethod
    def forward(
        ctx: Any, query: Tensor, positive: Tensor, rows: Tensor, call: LossCall, wants: tuple[bool, ...],
        want_stats: bool,
    ) -> tuple[Tensor, Tensor]:  # fmt: skip
        queries_of_all = _gather(call, wants, want_stats)
        out = _reduce(call, _shares(queries_of_all, wants[0]))
        here = queries_of_all.call
        for_keys = (
            rows,
            call.key_ids,
            out.lse_all,
            out.lse_positive,
            here.query,
            here.positives,
            here.query_ids,
        )
        ctx.save_for_backward(
            out.grad_query if wants[0] else None,
            query if wants[1] else None,
            out.own_weight if wants[1] else None,
            *(for_keys if wants[2] else (None,) * len(for_keys)),
        )
        ctx.dtypes = query.dtype, positive.dtype
        ctx.settings = (call.temperature, call.siblings, queries_of_all.batch, queries_of_all.shard)
        ctx.mark_non_differentiable(out.stats)
        return out.loss, out.stats

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_loss: Tensor, _: Any) -> tuple[Tensor | None, ...]:
        grad_query, query, own_weight, rows, key_ids, lse_all, lse_positive, queries, listed, query_ids = (
            ctx.saved_tensors
        )
        temperature, siblings, batch, shard = ctx.settings
        of_query = of_positive = of_keys = None
        if ctx.needs_input_grad[0]:
            of_query = (grad_loss[:, None] * grad_query).to(ctx.dtypes[0])
        if ctx.needs_input_grad[1]:
            of_positive = ((grad_loss * own_weight / temperature)[:, None] * query).to(ctx.dtypes[1])
        if ctx.needs_input_grad[2]:
            here = LossCall(queries, queries, rows, listed, temperature, query_ids, key_ids, None, siblings)
            of_keys = _keys_gradient(here, (grad_loss.float(), lse_all, lse_positive), batch, shard)
        return of_query, of_positive, of_keys, None, None, None


def _keys_gradient(here: LossCall, mine: Sequence[Tensor], batch: Sequence[int], shard: Shard) -> Tensor:
    """Returns d (sum of all ranks' grad_loss . loss) / d rows; `mine` is grad_loss, lse_all, lse_positive, each [b]."""
    batch = handshake(shard, "mil_nce backward", batch[shard.rank], [])
    given = gather_rows(shard, [torch.stack(list(mine), dim=1)], batch, "mil_nce, backward")[0]
    return _kernels(here.query.device).keys_gradient(here, given[:, 0], given[:, 1], given[:, 2])
