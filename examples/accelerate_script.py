"""Trains with Accelerate: models, optimizer and data are prepared, the queue only moves to the device.

pip install accelerate; accelerate launch examples/accelerate_script.py    (or python examples/accelerate_script.py)
"""

import copy

import torch
from accelerate import Accelerator
from torch.nn.functional import normalize
from torch.utils.data import DataLoader, TensorDataset
from toy import augmented, clips, encoder

import cpr_kernels as cpr

QUEUE = 512


def main(steps: int = 150, mixed_precision: str = "no") -> dict[str, float]:
    """Trains RGB with positives mined from flow and RGB; returns accuracy at the start and at the end."""
    torch.manual_seed(0)
    accelerator = Accelerator(mixed_precision=mixed_precision, cpu=True)
    rgb, flow, _ = clips()
    flow = normalize(flow - flow.mean(dim=0), dim=1)  # the other view: any fixed features of the same clips
    online = encoder()
    momentum = copy.deepcopy(online).requires_grad_(False).to(accelerator.device)
    data = TensorDataset(rgb, flow, torch.arange(len(rgb)))
    online, optimizer, loader = accelerator.prepare(
        online,
        torch.optim.Adam(online.parameters(), lr=1e-3),
        DataLoader(data, 64, shuffle=True, drop_last=True),
    )
    queue = cpr.MultiViewQueue({"rgb": 16, "flow": 32}, size=QUEUE).to(accelerator.device)
    schedule = cpr.cpr_schedule(("flow", "rgb"), num_keys=QUEUE, stages=5, topk=5)
    top5 = []

    while len(top5) < steps:
        for clip, motion, index in loader:
            with accelerator.autocast():
                query = normalize(online(augmented(clip)), dim=1)
                with torch.no_grad():
                    cpr.ema_update_(accelerator.unwrap_model(online), momentum, 0.99)
                    key = {"rgb": normalize(momentum(augmented(clip)), dim=1).float(), "flow": motion}
                ids, found = {"query_ids": index, "key_ids": queue.ids}, None
                if len(top5) > steps // 2:
                    found, _ = cpr.cascade_topk(key, queue.views, schedule, **ids)
                loss, stats = cpr.mil_nce(
                    query, key["rgb"], queue.views["rgb"], found, 0.1, return_stats=True, **ids
                )
            queue.enqueue(key, index)  # gathers over the ranks
            optimizer.zero_grad()
            accelerator.backward(loss)
            optimizer.step()
            top5.append((stats.own_rank < 5).float().mean())
    log = accelerator.reduce(torch.stack(top5), "mean")
    return {"start": float(log[10:20].mean()), "end": float(log[-10:].mean())}


if __name__ == "__main__":
    print(
        "top-5 accuracy: {start:.2f} at the start, {end:.2f} at the end".format(
            **main(mixed_precision="bf16")
        )
    )
