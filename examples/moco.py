"""Trains a plain MoCo loop, and the same with mined positives: the changed lines are marked `# CPR`.

python examples/moco.py
"""

import copy

import torch
from torch.nn.functional import normalize
from toy import augmented, clips, encoder

import cpr_kernels as cpr

BATCH, QUEUE, STEPS = 64, 512, 300


def main(mine: bool = True) -> dict[str, float]:
    """Trains an RGB encoder, with mining or (mine=False) as MoCo does; returns PMR and R@1."""
    torch.manual_seed(0)
    rgb, flow, label = clips()
    flow = normalize(flow - flow.mean(dim=0), dim=1)  # the other view: any fixed features of the same clips
    online = encoder()
    momentum = copy.deepcopy(online).requires_grad_(False)
    optimizer = torch.optim.Adam(online.parameters(), lr=1e-3)
    queue = cpr.MultiViewQueue({"rgb": 16, "flow": 32}, size=QUEUE)
    schedule = cpr.cpr_schedule(("flow", "rgb"), num_keys=QUEUE, stages=5, topk=5)
    right = []

    for step in range(STEPS):
        batch = torch.randint(
            len(rgb), (BATCH,)
        )  # also the ids: two crops of one clip are never each other's find
        query = normalize(online(augmented(rgb[batch])), dim=1)
        with torch.no_grad():
            cpr.ema_update_(online, momentum, 0.99)
            keys = {"rgb": normalize(momentum(augmented(rgb[batch])), dim=1), "flow": flow[batch]}
        positives = None
        if mine and step > STEPS // 3:  # first InfoNCE, until RGB is informative
            ids = {"query_ids": batch, "key_ids": queue.ids}
            positives, _ = cpr.cascade_topk(keys, queue.views, schedule, **ids)  # CPR
            right.append(cpr.positive_mining_recall(positives, label[batch], queue.labels))
        loss = cpr.mil_nce(  # CPR: without positives this is MoCo's InfoNCE
            query, keys["rgb"], queue.views["rgb"], positives, query_ids=batch, key_ids=queue.ids, siblings=2
        )
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        queue.enqueue(
            keys, batch, label[batch]
        )  # both views of a clip in one slot; its class only for the figures

    with torch.no_grad():
        features = normalize(online(rgb), dim=1)
    found = cpr.retrieval_recall_at_k(features[:256], features[256:], label[:256], label[256:], (1,))
    return {"pmr": float(torch.stack(right).mean()) if right else 0.0, "recall": found[1]}


if __name__ == "__main__":
    print("MoCo:    R@1 {recall:.2f}".format(**main(mine=False)))
    print(
        "and CPR: R@1 {recall:.2f}; {pmr:.2f} of the mined positives are of the same class".format(**main())
    )
