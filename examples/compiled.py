"""Compiles mining and loss with `torch.compile(fullgraph=True)`: the ops are single nodes of the graph.

python examples/compiled.py
"""

import time

import torch
from torch import Tensor
from torch.nn.functional import normalize
from toy import clips, encoder

import cpr_kernels as cpr

SCHEDULE = cpr.cpr_schedule(("flow", "rgb"), num_keys=512, stages=5, topk=5)


def step(
    model: torch.nn.Module,
    rgb: Tensor,
    flow: Tensor,
    ids: Tensor,
    queue: dict[str, Tensor],
    queue_ids: Tensor,
) -> tuple[Tensor, Tensor]:
    """Returns the loss of a batch, and the mined entries [B, 5]."""
    query = normalize(model(rgb), dim=1)
    keys = {"rgb": query.detach(), "flow": flow}
    positives, _ = cpr.cascade_topk(keys, queue, SCHEDULE, query_ids=ids, key_ids=queue_ids)
    return cpr.mil_nce(
        query, keys["rgb"], queue["rgb"], positives, query_ids=ids, key_ids=queue_ids
    ), positives


def main(backend: str = "inductor") -> tuple[bool, float]:
    """Returns whether compiled and plain mining agree, and the difference of their losses."""
    torch.manual_seed(0)
    rgb, flow, _ = clips(640)
    model, flow = encoder(), normalize(flow, dim=1)
    with torch.no_grad():
        queue = {"rgb": normalize(model(rgb[:512]), dim=1), "flow": flow[:512]}
    arguments = (model, rgb[512:], flow[512:], torch.arange(512, 640), queue, torch.arange(512))
    compiled = torch.compile(step, fullgraph=True, backend=backend)
    compiled(*arguments)  # compiles
    began = time.perf_counter()
    loss, mined = compiled(*arguments)
    loss.backward()
    print(f"a compiled step takes {1000 * (time.perf_counter() - began):.1f} ms")
    plain_loss, plain_mined = step(*arguments)
    return torch.equal(mined, plain_mined), float((loss - plain_loss).detach().abs())


if __name__ == "__main__":
    same, difference = main()
    print(f"same positives: {same}; losses differ by {difference:.1e}")
