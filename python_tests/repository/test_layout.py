"""The arrows between files, and what `import cpr_kernels` does to the process."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from pathlib import Path

import pytest

import cpr_kernels

PACKAGE = Path(cpr_kernels.__file__).parent
FILES = sorted(PACKAGE.rglob("*.py"))
REFERENCES = ("mining.reference", "losses.reference")


def name_of(path):
    """mining/reference.py is `mining.reference`, mining/__init__.py is `mining`."""
    return ".".join(path.relative_to(PACKAGE).with_suffix("").parts).removesuffix("__init__").rstrip(".")


def imports(path, top_level=False):
    """Dotted names that a file imports; ours as from the package's root: `..calls` in mining is `.calls`."""
    tree, found = ast.parse(path.read_text()), set()
    package = list(path.relative_to(PACKAGE).parent.parts)
    for node in ast.walk(tree) if not top_level else tree.body:
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            found.add(str(node.module))
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - (node.level - 1)] + (node.module or "").split(".")
            base = [part for part in base if part]
            if node.module:
                found.add("." + ".".join(base))
            found |= {"." + ".".join([*base, alias.name]) for alias in node.names}
    return {f".{name[12:]}" if name.startswith("cpr_kernels.") else name for name in found}


def reaches(name, room):
    return name == f".{room}" or name.startswith(f".{room}.")


def test_the_helper_sees_imports():
    assert {".mining", ".calls", ".losses"} <= imports(PACKAGE / "ops.py")
    assert ".calls.CascadeCall" in imports(PACKAGE / "mining" / "reference.py")
    assert reaches(".mining.schedule", "mining") and not reaches(".mining_x", "mining")


def test_mining_and_losses_never_import_each_other():
    for path in FILES:
        room = name_of(path).split(".")[0]
        if room in ("mining", "losses"):
            other = "losses" if room == "mining" else "mining"
            assert not [name for name in imports(path) if reaches(name, other)], path


def test_nobody_imports_the_trainer_but_the_console_script_lazily():
    for path in FILES:
        if name_of(path).split(".")[0] == "train":
            continue
        found = {name for name in imports(path) if reaches(name, "train")}
        assert not found, path
        if name_of(path) != "__main__":
            assert "cpr_kernels.train" not in path.read_text(), path
    assert "cpr_kernels.train" in (PACKAGE / "__main__.py").read_text()  # by name, when a command is run


def test_a_view_or_an_encoder_knows_nothing_of_the_loop():
    """So that a modality or a network is one file: what it stands on is below it, what uses it is above."""
    above = {"model", "loop", "plan", "methods", "evaluate", "finetune", "report", "cli", "clips", "quality"}
    below = ("crops", "encoders", "s3d", "store", "sources", "splits", "r3d", "resnet", "sound", "compute")
    files = [
        *(PACKAGE / "train" / "views").glob("*.py"),
        *(PACKAGE / "train" / f"{name}.py" for name in below),
    ]
    for path in files:
        found = imports(path, top_level=True)
        assert not [name for room in above for name in found if reaches(name, f"train.{room}")], path


def test_nobody_imports_the_command_line_but_the_console_script():
    for path in FILES:
        if name_of(path).split(".")[0] not in ("cli", "__main__"):
            assert not [name for name in imports(path) if reaches(name, "cli")], path
    assert not [name for name in imports(PACKAGE / "__main__.py", top_level=True) if name.startswith(".")]


def test_a_trained_model_is_used_without_the_trainer_and_without_the_ops():
    for path in FILES:
        room = name_of(path).split(".")[0]
        if room == "deploy":
            ours = {name for name in imports(path) if name.startswith(".")}
            assert all(
                any(reaches(name, room) for room in ("deploy", "files", "video_files")) for name in ours
            ), path
        elif room not in ("cli", "train"):
            assert not [name for name in imports(path) if reaches(name, "deploy")], path


@pytest.mark.parametrize("reference", REFERENCES)
def test_a_reference_needs_torch_and_the_calls_only(reference):
    path = PACKAGE.joinpath(*reference.split(".")).with_suffix(".py")
    ours = {name for name in imports(path) if name.startswith(".")}
    others = {name.split(".")[0] for name in imports(path) if not name.startswith(".")}
    assert all(reaches(name, "calls") for name in ours)
    assert others <= {"torch", "typing", "collections", "__future__"}


def test_checks_metrics_momentum_and_queue_stay_below_the_ops():
    allowed = {
        "checks": {"calls"},
        "metrics": {"mining", "streaming_metrics"},
        "momentum": set(),
        "queue": {"checks"},
        "shards": set(),
        "eager": set(),
        "sharded_queue": {"checks", "eager", "queue", "shards"},
        "bank": {"checks", "queue"},
    }
    for name, rooms in allowed.items():
        ours = [found for found in imports(PACKAGE / f"{name}.py") if found.startswith(".")]
        assert {found.split(".")[1] for found in ours} <= rooms, name


def test_optional_packages_are_imported_where_they_are_used():
    optional = {"safetensors", "faiss", "triton", "torchmetrics", "cv2", "av", "lmdb", "tyro", "rich"}
    for path in FILES:
        room = name_of(path).split(".")[0]
        if room not in ("train", "streaming_metrics"):
            roots = {name.split(".")[0] for name in imports(path, top_level=True)}
            allowed = {"triton"} if path.name in ("triton_kernels.py", "triton_rerank.py") else set()
            assert not roots & (optional - allowed), path


def test_the_package_is_typed_and_every_public_name_exists():
    assert (PACKAGE / "py.typed").is_file()
    assert sorted(cpr_kernels.__all__) == list(cpr_kernels.__all__)
    for name in cpr_kernels.__all__:
        assert getattr(cpr_kernels, name).__doc__, name


PROBE = """
import json, sys, time, warnings
import torch
def state():
    return {
        "dtype": str(torch.get_default_dtype()), "threads": torch.get_num_threads(),
        "interop": torch.get_num_interop_threads(), "precision": torch.get_float32_matmul_precision(),
        "deterministic": torch.are_deterministic_algorithms_enabled(), "grad": torch.is_grad_enabled(),
        "filters": str(warnings.filters), "hook": sys.excepthook is sys.__excepthook__,
        "seed": torch.initial_seed(), "random": torch.get_rng_state().sum().item(), "path": sys.path[:],
    }
before, loaded = state(), set(sys.modules)
started = time.perf_counter()
import cpr_kernels
seconds = time.perf_counter() - started
print(json.dumps({"before": before, "after": state(), "seconds": seconds,
                  "loaded": sorted({m.split(".")[0] for m in set(sys.modules) - loaded})}))
"""


@pytest.fixture(scope="module")
def fresh(tmp_path_factory):
    """What a new process tells of `import cpr_kernels`, after `import torch`."""
    ran = subprocess.run(
        [sys.executable, "-c", PROBE],
        capture_output=True,
        text=True,
        cwd=tmp_path_factory.mktemp("fresh"),
        check=True,
    )
    return json.loads(ran.stdout)


def test_importing_changes_nothing_global(fresh):
    assert fresh["after"] == fresh["before"]


def test_importing_loads_nothing_heavy(fresh):
    heavy = {"torchmetrics", "faiss", "triton", "cv2", "av", "matplotlib", "kornia", "lmdb", "rich", "tyro"}
    heavy |= {"tqdm", "safetensors", "tensorboard", "scipy", "sklearn", "pandas", "torchvision"}
    assert not heavy & set(fresh["loaded"])
    assert "cpr_kernels" in fresh["loaded"]


def test_importing_takes_well_under_a_second_beyond_torch(fresh):
    assert fresh["seconds"] < 1.0
