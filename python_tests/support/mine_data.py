"""A small two-view table in every file format, for the tests of `cpr mine`."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np

from cpr_kernels.__main__ import main

N, K = 60, 4


def table(seed=0, rows=N):
    """Two views of `rows` clips of 3 classes; three clips a source."""
    draw = np.random.default_rng(seed)
    label = np.arange(rows) % 3
    noise = {"flow": (0.8, 8), "rgb": (1.2, 6)}
    views = {}
    for name, (spread, dim) in noise.items():
        centres = np.random.default_rng(99 + dim).normal(size=(3, dim))
        views[name] = (centres[label] + spread * draw.normal(size=(rows, dim))).astype(np.float32)
    source = np.array([f"v{i // 9}" for i in range(rows)])  # three clips of each class from one video
    return {**views, "label": label, "video": source, "clip": np.arange(rows)}


def make_data(tmp_path):
    """A folder with the table as `.npz` and `.npy`, and a table of other queries."""
    arrays, others = table(), table(seed=5, rows=25)
    np.savez(tmp_path / "t.npz", **arrays)
    np.savez(tmp_path / "q.npz", **others)
    for name, array in arrays.items():
        np.save(tmp_path / f"{name}.npy", array)
    return SimpleNamespace(folder=tmp_path, arrays=arrays, others=others, npz=str(tmp_path / "t.npz"))


def run(*arguments, status=0):
    """Runs `cpr mine` in this process."""
    assert main(["mine", *map(str, arguments)]) == status
