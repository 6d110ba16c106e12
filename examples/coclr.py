"""Patches a training step in the order of the published CoCLR and CPR loops: the five changed lines are marked `# CPR`.

There, logits and a mask are made of the queue, then the batch is written to it, and then come loss and backward pass.
"""

import copy

import torch
from torch.nn.functional import normalize
from toy import augmented, clips, encoder

import cpr_kernels as cpr

QUEUE, TOPK, TEMPERATURE = 512, 5, 0.07


class Model(torch.nn.Module):
    """Is an RGB encoder with its momentum twin, and a queue that is full from the start, as there."""

    def __init__(self, rgb, flow):
        super().__init__()
        self.online = encoder()
        self.momentum = copy.deepcopy(self.online).requires_grad_(False)
        self.queue = cpr.MultiViewQueue({"rgb": 16, "flow": 32}, size=QUEUE)
        self.queue.enqueue(self.features(rgb[:QUEUE], flow[:QUEUE])[1], torch.arange(QUEUE))

    def features(self, rgb, flow):
        """Returns the query [B, 16] and the key of each view, the momentum encoder moved before."""
        query = normalize(self.online(augmented(rgb)), dim=1)
        with torch.no_grad():
            cpr.ema_update_(self.online, self.momentum, 0.99)
            key = normalize(self.momentum(augmented(rgb)), dim=1)
        return query, {"rgb": key.float(), "flow": normalize(augmented(flow), dim=1)}

    def published_step(self, rgb, flow, source, use_own):
        """Returns loss [], top-1 and top-5 hits [B] by tables of all logits."""
        query, key = self.features(rgb, flow)
        own = (query * key["rgb"]).sum(dim=1, keepdim=True)
        logits = torch.cat([own, query.float() @ self.queue.views["rgb"].clone().T], dim=1) / TEMPERATURE
        siblings = source[:, None] == self.queue.ids[None, :]
        near = (key["flow"] @ self.queue.views["flow"].T).masked_fill(siblings, -torch.inf)
        mask = siblings.scatter(1, near.topk(TOPK).indices, True)
        mask = torch.cat([torch.ones_like(mask[:, :1]), mask], dim=1)
        hits = mask.gather(1, logits.topk(5).indices)
        mask[mask.sum(dim=1) > 1, 0] = use_own  # most steps leave the own pair out, where it is not alone
        self.queue.enqueue(key, source)
        return -(logits.softmax(dim=1) * mask).sum(dim=1).log().mean(), hits[:, 0], hits.any(dim=1)

    def step(self, rgb, flow, source, use_own):
        """Returns the same; writing to the queue before the backward pass is right, as nothing of it is kept."""
        query, key = self.features(rgb, flow)
        pair = query, key["rgb"], self.queue.views["rgb"]
        ids = {"query_ids": source, "key_ids": self.queue.ids}  # CPR
        found, _ = cpr.cascade_topk(key, self.queue.views, cpr.coclr_schedule("flow", TOPK), **ids)  # CPR
        masks = {**ids, "use_own": torch.full(source.shape, use_own)}  # CPR
        loss, stats = cpr.mil_nce(*pair, found, TEMPERATURE, return_stats=True, **masks)  # CPR
        hits = [stats[1] + (stats.own_rank < 1) > 0, stats[2] + (stats.own_rank < 5) > 0]  # CPR
        self.queue.enqueue(key, source)
        return loss, *hits


def main(step: str = "step", steps: int = 40, precision: torch.dtype = torch.float32) -> torch.Tensor:
    """Trains by one of the two steps; returns loss, top-1 and top-5 accuracy of every step, [steps, 3]."""
    torch.manual_seed(0)
    rgb, flow, _ = clips()
    model, log = Model(rgb, flow), []
    optimizer = torch.optim.Adam(model.online.parameters())
    for _ in range(steps):
        batch, use_own = torch.randint(len(rgb), (64,)), bool(torch.rand(()) > 0.9)
        with torch.autocast("cpu", precision, enabled=precision != torch.float32):
            loss, *hits = getattr(model, step)(rgb[batch], flow[batch], batch, use_own)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        log.append(torch.stack([loss.detach(), *(hit.float().mean() for hit in hits)]))
    return torch.stack(log)


if __name__ == "__main__":
    print("differences of loss and accuracies:", (main("published_step") - main("step")).abs().amax(dim=0))
