"""Tables of the formats that well-kept libraries read, and mining plans, small and whole, to be damaged."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import numpy as np
import torch

from .reading import read_table, resealed_json
from .runner import Target

ROWS = np.random.default_rng(0).standard_normal((6, 4)).astype(np.float32)


def write_hdf5(folder: Path) -> None:
    import h5py

    with h5py.File(folder / "a.h5", "w") as file:
        file["flow"], file["ids"] = ROWS, np.arange(6)


def write_torch(folder: Path) -> None:
    torch.save({"flow": torch.from_numpy(ROWS), "ids": torch.arange(6)}, folder / "a.pt")


def write_arrow(folder: Path) -> None:
    import pyarrow
    from pyarrow import feather, parquet

    table = pyarrow.table({"flow": list(ROWS), "ids": np.arange(6), "name": list("abcdef")})
    parquet.write_table(table, folder / "a.parquet")
    feather.write_feather(table, folder / "a.feather")


def write_csv(folder: Path) -> None:
    lines = [",".join([f"v{n}", str(n), *map(str, row)]) for n, row in enumerate(ROWS)]
    (folder / "a.csv").write_text("\n".join(["name,ids,f0,f1,f2,f3", *lines]))


def as_arrays(whole: Any, got: Any, folder: Path) -> bool:
    """A user's table has no hash: a changed number cannot be seen; a crash, a traceback or columns of unequal lengths can."""
    return all(isinstance(value, np.ndarray) and value.ndim in (1, 2) for value in got.values())


def write_plan(folder: Path) -> None:
    from cpr_kernels import tune_schedule

    generator = torch.Generator().manual_seed(0)
    base = torch.randn(60, 6, generator=generator)
    views = {name: base + torch.randn(60, 6, generator=generator) for name in ("flow", "rgb")}
    tune_schedule(views, topk=2, sample=60, progress=False).save(folder / "plan.json")


def read_plan(folder: Path) -> Any:
    from cpr_kernels import MiningPlan

    return MiningPlan.load(folder / "plan.json")


def is_plan(whole: Any, got: Any, folder: Path) -> bool:
    """Right is a plan that prints, and mines what it is given or says why not."""
    return type(got) is type(whole) and bool(str(got))


def targets() -> list[Target]:
    """The kinds whose libraries are installed."""
    found = [
        Target("a.csv", write_csv, ("a.csv",), read_table("a.csv"), as_arrays),
        Target("a.pt", write_torch, ("a.pt",), read_table("a.pt"), as_arrays),
        Target(
            "plan",
            write_plan,
            ("plan.json", "plan.safetensors"),
            read_plan,
            is_plan,
            {"plan.json": resealed_json},
        ),
    ]
    if importlib.util.find_spec("h5py"):
        found.append(Target("a.h5", write_hdf5, ("a.h5",), read_table("a.h5"), as_arrays))
    if importlib.util.find_spec("pyarrow"):
        for name in ("a.parquet", "a.feather"):
            found.append(Target(name, write_arrow, (name,), read_table(name), as_arrays))
    return found
