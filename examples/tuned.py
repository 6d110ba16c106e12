"""Trains the MoCo loop of moco.py with mining that chooses its own settings from the filled queue, without labels.

python examples/tuned.py
"""

import copy

import torch
from torch.nn.functional import normalize
from toy import augmented, clips, encoder

import cpr_kernels as cpr

BATCH, QUEUE, STEPS, REFIT = 64, 512, 300, 50


def main() -> dict[str, float]:
    """Trains an RGB encoder; returns PMR, R@1, and how well the views agree on what was mined last."""
    torch.manual_seed(0)
    rgb, flow, label = clips()
    online = encoder()
    momentum = copy.deepcopy(online).requires_grad_(False)
    optimizer = torch.optim.Adam(online.parameters(), lr=1e-3)
    queue = cpr.MultiViewQueue({"rgb": 16, "flow": 32}, size=QUEUE)
    miner, right = None, []

    for step in range(STEPS):
        batch = torch.randint(len(rgb), (BATCH,))  # also the ids
        query = normalize(online(augmented(rgb[batch])), dim=1)
        with torch.no_grad():
            cpr.ema_update_(online, momentum, 0.99)
            keys = {"rgb": normalize(momentum(augmented(rgb[batch])), dim=1), "flow": flow[batch]}
        if step == STEPS // 3:  # RGB is informative by now: the views choose how to mine
            plan = cpr.tune_schedule(queue.views, queue.ids)
            miner = cpr.Miner(plan, queue)
        mined = None if miner is None else miner(keys, batch)
        loss = cpr.mil_nce(
            query, keys["rgb"], queue.views["rgb"], None if mined is None else mined.indices, query_ids=batch,
            key_ids=queue.ids, siblings=2,
        )  # fmt: skip
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if miner is None or mined is None:
            queue.enqueue(keys, batch, label[batch])
            continue
        right.append(cpr.positive_mining_recall(mined.indices, label[batch], queue.labels))
        miner.enqueue(mined, batch, label[batch])  # what each key needs enters the queue with it
        if step % REFIT == 0:
            miner.refit()  # the encoder has moved: whiteners and keys anew

    with torch.no_grad():
        features = normalize(online(rgb), dim=1)
    found = cpr.retrieval_recall_at_k(features[:256], features[256:], label[:256], label[256:], (1,))
    agreement = cpr.estimate_agreement(queue.views, plan, queue.ids)
    return {"pmr": float(torch.stack(right).mean()), "recall": found[1], "agreement": agreement}


if __name__ == "__main__":
    print(
        "R@1 {recall:.2f}; {pmr:.2f} of the mined positives are of the same class; agreement {agreement:.2f}".format(
            **main()
        )
    )
