"""Mines positives for embeddings in NumPy arrays, without training.

python examples/numpy_arrays.py

From files, `cpr mine features.npz --out mined.npz` does the same without a line of code.
"""

import numpy as np
import torch
from toy import clips

import cpr_kernels as cpr


def positives_of(views: dict[str, np.ndarray], schedule: cpr.Schedule, source: np.ndarray) -> np.ndarray:
    """Returns, for each row, the rows that survive the cascade, best first: [M, k], padded with -1.

    `views` are float32 arrays [M, D] of the same M samples; rows of one `source` never find each other.
    """
    tensors = {name: torch.from_numpy(rows) for name, rows in views.items()}  # shares the memory
    ids = torch.from_numpy(source)
    indices, _ = cpr.cascade_topk(tensors, tensors, schedule, query_ids=ids, key_ids=ids)
    return indices.numpy()


def unit(rows: np.ndarray) -> np.ndarray:
    """Returns centred rows of length 1, whose inner products are cosines."""
    centred = rows - rows.mean(axis=0)
    return centred / np.linalg.norm(centred, axis=1, keepdims=True)


def main() -> dict[str, float]:
    """Returns the share of found rows that have the right class, by schedule."""
    rgb, flow, label = (tensor.numpy() for tensor in clips())
    views = {"rgb": unit(rgb), "flow": unit(flow)}
    source = np.arange(len(label))
    schedules = {
        "flow alone": cpr.coclr_schedule("flow"),
        "cascade": cpr.cpr_schedule(("flow", "rgb"), num_keys=len(label), stages=7),
        "both views at once": cpr.oracle_schedule(("rgb", "flow")),
    }
    found = {name: positives_of(views, schedule, source) for name, schedule in schedules.items()}
    return {name: float((label[rows] == label[:, None]).mean()) for name, rows in found.items()}


if __name__ == "__main__":
    for name, share in main().items():
        print(f"{name:<20} {share:.2f} of the found are of the same class")
