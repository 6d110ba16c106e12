"""The layers of folders: imports go down, never up and never in a circle; and what `import cpr_kernels` does."""

from __future__ import annotations

import ast
import json
import subprocess
import sys

import pytest
from import_graph import MODULES, PACKAGES, circles, edges, files, graph, imported
from places import ROOT

import cpr_kernels

PACKAGE = ROOT / "cpr_kernels"
# A module imports from its own folder and from later entries; folders of one entry never import each other.
LAYERS = {
    "cpr_kernels": [
        {"__main__"}, {"cli"}, {"train"}, {"__init__"}, {"tuning"}, {"ops", "explain", "metrics", "flops"},
        {"mining", "losses", "memory", "deploy"}, {"networks"},
        {"dispatch", "video", "files", "processes", "progress", "errors", "reading"}, {"video_files", "plot_style", "_core"},
    ],
    "cpr_kernels.train": [
        {"demo"}, {"update", "export", "pages"}, {"evaluate", "adapt"}, {"pretrain"}, {"batches"}, {"views"},
        {"s3d", "checkpoint"}, {"data", "encoders"}, {"runtime"}, {"__init__"},
    ],
    "bench": [
        {"__main__"}, {"cli"}, {"studies"}, {"plans"}, {"ops", "scale", "data"}, {"peers", "sharded", "tables"}, {"harness"}, {"__init__"},
    ],
}  # fmt: skip
MAX_MODULES = 12
CORE = {"cpr_kernels", "cpr_kernels.dispatch.native"}  # importers of the compiled core
REFERENCES = ("mining", "losses")


def levels(folder: str) -> dict[str, int]:
    return {name: number for number, names in enumerate(LAYERS[folder]) for name in names}


def test_the_helper_sees_every_kind_of_import() -> None:
    text = "def f():\n    from ..losses import reference\nif TYPE_CHECKING:\n    from .. import ops\nimport cpr_kernels.video"
    found = set(imported(PACKAGE / "mining" / "x.py", text))
    assert found == {"cpr_kernels.losses.reference", "cpr_kernels.ops", "cpr_kernels.video"}
    assert ("ops", "dispatch") in edges("cpr_kernels") and ("pretrain", "views") in edges("cpr_kernels.train")


@pytest.mark.parametrize("folder", LAYERS)
def test_imports_go_down(folder: str) -> None:
    level = levels(folder)
    for module, target in sorted(edges(folder)):
        assert {module, target} <= level.keys(), (
            f"{folder}: {module} or {target} has no layer; add it to LAYERS"
        )
        assert level[target] > level[module], f"{folder}: {module} imports {target}, which is not below it"


def test_every_room_has_a_layer() -> None:
    for folder in LAYERS:
        path = ROOT.joinpath(*folder.split("."))
        rooms = {
            entry.stem
            for entry in path.iterdir()
            if entry.suffix == ".py" or (entry / "__init__.py").is_file()
        }
        assert rooms - {"test_bench_ops"} <= levels(folder).keys() | {"__init__"}


@pytest.mark.parametrize("package", PACKAGES)
def test_no_module_imports_itself_through_others(package: str) -> None:
    assert circles(package) == []


def test_no_folder_is_crowded() -> None:
    for top in (*PACKAGES, "python_tests", "examples"):
        for folder in {path.parent for path in (ROOT / top).rglob("*.py")} - {
            ROOT / "python_tests" / "support"
        }:
            modules = [path for path in folder.glob("*.py") if path.name != "__init__.py"]
            assert len(modules) <= MAX_MODULES, f"{folder.relative_to(ROOT)} holds {len(modules)} modules"


def test_one_module_imports_the_compiled_core() -> None:
    assert {
        module for module, targets in graph("cpr_kernels").items() if "cpr_kernels._core" in targets
    } == CORE


def test_every_folder_opens_with_its_question() -> None:
    for package in PACKAGES:
        for path in files(package):
            if path.name == "__init__.py" and path.parent != ROOT / package:
                doc = ast.get_docstring(ast.parse(path.read_text())) or ""
                assert "?" in doc.splitlines()[0], f"{path.relative_to(ROOT)} does not open with a question"


@pytest.mark.parametrize("folder", REFERENCES)
def test_a_reference_needs_torch_and_the_calls_only(folder: str) -> None:
    module = f"cpr_kernels.{folder}.reference"
    assert graph("cpr_kernels")[module] <= {"cpr_kernels.dispatch.calls"}
    tree = ast.parse(MODULES[module].read_text())
    names = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    names |= {
        str(node.module) for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) if not node.level
    }
    assert {name.split(".")[0] for name in names} <= {"torch", "typing", "collections", "__future__"}


def test_a_trained_model_needs_neither_the_trainer_nor_the_ops() -> None:
    links = graph("cpr_kernels")
    for module, targets in links.items():
        if module.startswith("cpr_kernels.deploy"):
            others = {target for target in targets if not target.startswith("cpr_kernels.deploy")}
            below = ("errors", "files", "networks", "progress", "reading", "video")
            assert {target.split(".")[1] for target in others} <= set(below), module


def test_optional_packages_are_imported_where_they_are_used() -> None:
    optional = {
        "safetensors",
        "faiss",
        "triton",
        "torchmetrics",
        "cv2",
        "av",
        "lmdb",
        "matplotlib",
        "jinja2",
    }
    for path in files("cpr_kernels"):
        parts = path.relative_to(PACKAGE).parts
        if parts[0] == "train" or parts == ("metrics", "streaming.py"):
            continue
        body = ast.parse(path.read_text()).body
        roots = {
            alias.name.split(".")[0] for node in body if isinstance(node, ast.Import) for alias in node.names
        }
        roots |= {
            str(node.module).split(".")[0]
            for node in body
            if isinstance(node, ast.ImportFrom) and not node.level
        }
        allowed = (
            {"triton"} if path.name in ("triton_kernels.py", "triton_stats.py", "triton_rerank.py") else set()
        )
        assert not roots & (optional - allowed), path


def test_the_package_is_typed_and_every_public_name_exists():
    assert (PACKAGE / "py.typed").is_file()
    assert sorted(cpr_kernels.__all__) == list(cpr_kernels.__all__)
    for name in cpr_kernels.__all__:
        assert getattr(cpr_kernels, name).__doc__, name


PROBE = """
import json, sys, warnings
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
import cpr_kernels
print(json.dumps({"before": before, "after": state(),
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
    heavy = {"torchmetrics", "faiss", "triton", "cv2", "av", "matplotlib", "lmdb", "tyro"}
    heavy |= {"tqdm", "safetensors", "tensorboard", "scipy", "sklearn", "pandas", "torchvision"}
    assert not heavy & set(fresh["loaded"])
    assert "cpr_kernels" in fresh["loaded"]
