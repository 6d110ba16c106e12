"""Answers formed a second, dumber way, and what counts as the same answer."""

from __future__ import annotations

import math

import torch
from cases import integers, odd_bias, whole_bias, wide_bias
from hypothesis import strategies as st

from cpr_kernels.dispatch.calls import CascadeCall


def oracle(call: CascadeCall) -> tuple[list[list[int]], list[list[float]]]:
    """Python lists and `sorted`, one query and one entry at a time."""
    num_views, stages = len(call.queries), len(call.stage_keep)
    queries = [q.float().tolist() for q in call.queries]
    keys = [k.float().tolist() for k in call.keys]
    k = call.stage_keep[-1]
    all_indices, all_scores = [], []
    for b in range(call.queries[0].shape[0]):
        entries = []  # (index, score at each stage)
        for j in range(call.keys[0].shape[0]):
            if call.key_ids is not None:
                if call.key_ids[j] < 0 or (
                    call.query_ids is not None and call.key_ids[j] == call.query_ids[b]
                ):
                    continue
            if call.exclude is not None and call.exclude[b, j]:
                continue
            of_view = [sum(x * y for x, y in zip(queries[v][b], keys[v][j])) for v in range(num_views)]
            scores = []
            for s in range(stages):
                weights = call.stage_weights[s * num_views : (s + 1) * num_views]
                scores.append(sum(w * x for w, x in zip(weights, of_view) if w != 0))
            if call.key_bias is not None:  # a sum in float32
                scores[-1] = float(torch.tensor(scores[-1]) + call.key_bias[j])
            if not any(math.isnan(score) for score in scores):
                entries.append((j, scores))
        for s in range(stages):
            entries = sorted(entries, key=lambda entry: (-entry[1][s], entry[0]))[: call.stage_keep[s]]
        padding = k - len(entries)
        all_indices.append([j for j, _ in entries] + [-1] * padding)
        all_scores.append([scores[-1] for _, scores in entries] + [-math.inf] * padding)
    return all_indices, all_scores


def same(result: tuple[torch.Tensor, torch.Tensor], expected: tuple[torch.Tensor, torch.Tensor]) -> None:
    """Bit for bit (a zero's sign aside)."""
    assert result[0].dtype == torch.int64 and result[1].dtype == torch.float32
    torch.testing.assert_close(result[0], expected[0], rtol=0, atol=0)
    torch.testing.assert_close(result[1], expected[1], rtol=0, atol=0)


@st.composite
def cascade_calls(draw: st.DrawFn) -> CascadeCall:
    """Any shape, schedule, mask and mixture; few distinct values, so ties abound."""
    g = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    num_queries, num_keys = draw(st.integers(0, 40)), draw(st.integers(0, 300))
    num_views, stages = draw(st.integers(1, 3)), draw(st.integers(1, 6))
    dims = [draw(st.integers(1, 9)) for _ in range(num_views)]
    dtype = draw(st.sampled_from([torch.float32, torch.bfloat16, torch.float16]))
    high = draw(st.integers(0, 2))
    queries = [integers(g, num_queries, d, high=high).to(dtype) for d in dims]
    keys = [integers(g, num_keys, d, high=high).to(dtype) for d in dims]
    if draw(st.booleans()) and num_keys:
        keys[0][torch.rand(num_keys, generator=g) < 0.2] = float("nan")
    weights = [draw(st.sampled_from([0.0, 1.0, 1.0, -1.0, 0.5, 2.0])) for _ in range(stages * num_views)]
    for s in range(stages):
        if not any(weights[s * num_views : (s + 1) * num_views]):
            weights[s * num_views + draw(st.integers(0, num_views - 1))] = 1.0
    keep = sorted((draw(st.integers(1, max(1, num_keys + 5))) for _ in range(stages)), reverse=True)
    key_ids = torch.randint(-2, 12, (num_keys,), generator=g) if draw(st.booleans()) else None
    query_ids = None
    if key_ids is not None and draw(st.booleans()):
        query_ids = torch.randint(-2, 12, (num_queries,), generator=g)
    exclude = (
        torch.rand(num_queries, num_keys, generator=g) < draw(st.floats(0, 1))
        if draw(st.booleans())
        else None
    )
    added = draw(st.sampled_from([None, None, whole_bias, odd_bias, wide_bias]))
    key_bias = None if added is None else added(g, num_keys)
    return CascadeCall(queries, keys, weights, keep, query_ids, key_ids, exclude, key_bias)


def real(seed: int, queries: int, keys: int, dim: int) -> tuple[dict, dict]:
    """Unit vectors."""
    g = torch.Generator().manual_seed(seed)

    def unit(n: int) -> torch.Tensor:
        return torch.nn.functional.normalize(torch.randn(n, dim, generator=g), dim=1)

    return {"flow": unit(queries), "rgb": unit(queries)}, {"flow": unit(keys), "rgb": unit(keys)}
