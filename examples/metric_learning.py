"""Uses the cascade as a miner for pytorch-metric-learning: returns the `indices_tuple` that its losses take.

pip install pytorch-metric-learning; python examples/metric_learning.py
"""

import torch
from pytorch_metric_learning.losses import CrossBatchMemory, SupConLoss
from pytorch_metric_learning.miners import BaseMiner
from torch import Tensor
from torch.nn.functional import normalize
from toy import augmented, clips, encoder

import cpr_kernels as cpr


class CascadeMiner(BaseMiner):
    """Mines positives that another view of the same samples agrees with.

    Use it where `labels` are sample numbers (self-supervised): `other[label]` is the sample's embedding in the other
    view. Positives are other crops of the anchor's own sample, and what the cascade finds; the rest are negatives.
    """

    def __init__(self, other: Tensor, schedule: cpr.Schedule) -> None:
        super().__init__()
        self.other, self.schedule = normalize(other, dim=1), schedule

    def mine(self, embeddings: Tensor, labels: Tensor, ref_emb: Tensor, ref_labels: Tensor):
        """Returns (anchors, positives, anchors, negatives), as indices into the batch and into the references."""
        queries = {"trained": normalize(embeddings, dim=1), "other": self.other[labels]}
        keys = {"trained": normalize(ref_emb, dim=1), "other": self.other[ref_labels]}
        found, _ = cpr.cascade_topk(queries, keys, self.schedule, query_ids=labels, key_ids=ref_labels)
        own = labels[:, None] == ref_labels
        if embeddings is ref_emb or torch.equal(embeddings, ref_emb):
            own.fill_diagonal_(False)
        positive = torch.cat([own, own.new_zeros(len(own), 1)], dim=1)
        positive.scatter_(1, found % positive.shape[1], True)  # the padding, -1, marks the last column
        positive = positive[:, :-1]
        negative = ~positive & (labels[:, None] != ref_labels)
        return *positive.nonzero(as_tuple=True), *negative.nonzero(as_tuple=True)


def main(steps: int = 120, memory: int = 512, batch: int = 64) -> float:
    """Trains an RGB encoder with flow as the other view; returns the share of right ones among the mined."""
    torch.manual_seed(0)
    rgb, flow, label = clips()
    model = encoder()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    miner = CascadeMiner(flow - flow.mean(dim=0), cpr.parse_schedule("other:50,trained:5"))
    criterion = CrossBatchMemory(SupConLoss(0.1), embedding_size=16, memory_size=memory, miner=miner)
    for _ in range(steps):
        sample = torch.randint(len(rgb), (batch,)).repeat(2)  # two crops of each
        loss = criterion(model(augmented(rgb[sample])), sample)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    with torch.no_grad():
        anchors, positives, _, _ = miner(model(rgb), torch.arange(len(rgb)))
    return float((label[anchors] == label[positives]).float().mean())


if __name__ == "__main__":
    print(f"{main():.2f} of the mined pairs are of one class; 1 in 16 by chance")
