"""Trains with lightly: its projection heads and momentum update, our queue and loss instead of its NTXentLoss.

pip install lightly; python examples/lightly_moco.py
"""

import copy

import torch
from lightly.models.modules import MoCoProjectionHead
from lightly.models.utils import deactivate_requires_grad, update_momentum
from torch.nn.functional import normalize
from toy import augmented, clips, encoder

import cpr_kernels as cpr

QUEUE = 512


class TwoViewMoCo(torch.nn.Module):
    """Is lightly's MoCo with an encoder per view, and one queue that keeps both views of a clip in one slot."""

    def __init__(self) -> None:
        super().__init__()
        self.online = torch.nn.ModuleDict(
            {
                view: torch.nn.Sequential(encoder(32), MoCoProjectionHead(32, 64, 16))
                for view in ("rgb", "flow")
            }
        )
        self.momentum = copy.deepcopy(self.online)
        deactivate_requires_grad(self.momentum)
        self.queue = cpr.MultiViewQueue({"rgb": 16, "flow": 16}, size=QUEUE)
        self.schedule = cpr.cpr_schedule(("flow", "rgb"), num_keys=QUEUE, stages=5, topk=5)

    def training_step(
        self, batch: dict[str, torch.Tensor], mine: bool
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Returns the loss of a batch, as in a LightningModule, and what was mined."""
        index, queue = batch["index"], self.queue
        update_momentum(self.online, self.momentum, m=0.99)
        query = {view: normalize(self.online[view](augmented(batch[view])), dim=1) for view in self.online}
        with torch.no_grad():
            key = {
                view: normalize(self.momentum[view](augmented(batch[view])), dim=1) for view in self.online
            }
        ids = {"query_ids": index, "key_ids": queue.ids}
        found = cpr.cascade_topk(key, queue.views, self.schedule, **ids)[0] if mine else None
        losses = [cpr.mil_nce(query[v], key[v], queue.views[v], found, 0.1, **ids) for v in query]
        queue.enqueue(key, ids=index)
        return torch.stack(losses).sum(), found


def main(steps: int = 150, batch: int = 64) -> float:
    """Trains both views and mines once they have learnt something; returns the share of right ones at the end."""
    torch.manual_seed(0)
    rgb, flow, label = clips()
    model = TwoViewMoCo()
    optimizer = torch.optim.Adam(model.online.parameters(), lr=1e-3)
    shares = []
    for step in range(steps):
        index = torch.randint(len(rgb), (batch,))
        classes_of_queue = torch.where(model.queue.ids >= 0, label[model.queue.ids], -1)
        loss, found = model.training_step(
            {"rgb": rgb[index], "flow": flow[index], "index": index}, step > steps // 2
        )
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if found is not None:
            shares.append(cpr.positive_mining_recall(found, label[index], classes_of_queue))
    return float(torch.stack(shares[-20:]).mean())


if __name__ == "__main__":
    print(f"{main():.2f} of the mined positives are of their clip's class; 1 in 16 by chance")
