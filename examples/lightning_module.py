"""Trains as a Lightning module: queue and loss are part of it, so checkpoints, devices and precisions are Lightning's.

pip install lightning; python examples/lightning_module.py
"""

import copy

import lightning.pytorch as lightning
import torch
from torch.nn.functional import normalize
from torch.utils.data import DataLoader, TensorDataset
from toy import augmented, clips, encoder

import cpr_kernels as cpr

QUEUE = 512


class CascadeModule(lightning.LightningModule):
    """Is an encoder per view with momentum twins, and one queue, which the checkpoint holds too."""

    def __init__(self, warm_up: int = 100) -> None:
        super().__init__()
        self.online = torch.nn.ModuleDict({view: encoder() for view in ("rgb", "flow")})
        self.momentum = copy.deepcopy(self.online).requires_grad_(False)
        self.queue = cpr.MultiViewQueue({"rgb": 16, "flow": 16}, size=QUEUE)
        self.schedule = cpr.cpr_schedule(("flow", "rgb"), num_keys=QUEUE, stages=5, topk=5)
        self.warm_up = warm_up

    def training_step(self, batch, _):
        """Returns the sum of both views' losses; the queue takes the batch before Lightning's backward pass."""
        rgb, flow, index = batch
        clip, queue = {"rgb": rgb, "flow": flow}, self.queue
        cpr.ema_update_(self.online, self.momentum, 0.99)
        query = {view: normalize(self.online[view](augmented(clip[view])), dim=1) for view in clip}
        with torch.no_grad():
            key = {view: normalize(self.momentum[view](augmented(clip[view])), dim=1) for view in clip}
        ids, found, losses = {"query_ids": index, "key_ids": queue.ids}, None, []
        if self.global_step >= self.warm_up:
            found, _ = cpr.cascade_topk(key, queue.views, self.schedule, **ids)
        for view in clip:
            loss, stats = cpr.mil_nce(
                query[view], key[view], queue.views[view], found, 0.1, return_stats=True, **ids
            )
            losses.append(loss)
            self.log_dict({f"loss/{view}": loss, f"top5/{view}": (stats.own_rank < 5).float().mean()})
        queue.enqueue({view: rows.float() for view, rows in key.items()}, index)
        return torch.stack(losses).sum()

    def configure_optimizers(self):
        """Returns Adam over what is trained."""
        return torch.optim.Adam(self.online.parameters(), lr=1e-3)


def main(steps: int = 150, precision: str = "32-true") -> dict[str, float]:
    """Trains on the CPU; returns what was logged last."""
    lightning.seed_everything(0, verbose=False)
    rgb, flow, _ = clips()
    data = TensorDataset(rgb, flow, torch.arange(len(rgb)))
    trainer = lightning.Trainer(
        max_steps=steps, max_epochs=-1, accelerator="cpu", devices=1, precision=precision, logger=False,
        enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
    )  # fmt: skip
    trainer.fit(
        CascadeModule(warm_up=steps // 2), DataLoader(data, batch_size=64, shuffle=True, drop_last=True)
    )
    return {name: float(value) for name, value in trainer.logged_metrics.items()}


if __name__ == "__main__":
    print(main(precision="bf16-mixed"))
