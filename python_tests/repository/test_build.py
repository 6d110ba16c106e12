"""The sdist, and the wheel built from it: in plain isolation, without torch, complete, free of what lay about."""

from __future__ import annotations

import email
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest
from places import ROOT

import cpr_kernels

SOURCES = (
    "cpr_kernels", "cpr_command", "csrc", "python_tests", "CMakeLists.txt", "Makefile", "pyproject.toml", "README.md", "CHANGELOG.md",
    "CITATION.cff", "LICENSE", ".gitignore",
)  # fmt: skip
STALE = "cpr_kernels/_core.cpython-30-stale.so"

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def sdist(tmp_path_factory):
    """The source archive that `python -m build` makes of a copy of the sources, in build isolation."""
    pytest.importorskip("build", reason="sdists are made by the package `build`: pip install build")
    if not (ROOT / "CMakeLists.txt").is_file():
        pytest.skip("the sources are not beside the tests")
    source, out = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("sdist")
    for name in SOURCES:
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("*.so", "__pycache__"))
        else:
            shutil.copy(ROOT / name, source / name)
    (source / STALE).write_bytes(b"left by an earlier build")
    (source / "runs").mkdir()
    (source / "runs" / "checkpoint.pt").write_bytes(b"left by an earlier training")
    _run(sys.executable, "-m", "build", "--sdist", "--outdir", out, source)
    [made] = out.glob("*.tar.gz")
    return made


@pytest.fixture(scope="module")
def wheel(sdist, tmp_path_factory):
    """The wheel that `pip wheel` makes of the sdist alone, in build isolation, in a hurry: without optimisation, for
    one instruction set, and without the CUDA kernels; the installed core has them all.
    """
    out = tmp_path_factory.mktemp("wheel")
    defined = {
        "CPR_CUDA": "OFF", "CPR_ISAS": "generic", "CPR_OPTIMIZATION": "-O0", "CMAKE_CXX_FLAGS_RELEASE": "-O0",
        "CMAKE_INTERPROCEDURAL_OPTIMIZATION": "OFF",
    }  # fmt: skip
    quick = [word for name, value in defined.items() for word in ("-C", f"cmake.define.{name}={value}")]
    _run(sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-cache-dir", *quick, "-w", out, sdist)
    [made] = out.glob("*.whl")
    return made


def _run(*command):
    ran = subprocess.run(command, capture_output=True, text=True)
    output = ran.stdout + ran.stderr
    if ran.returncode and "No matching distribution found for scikit-build-core" in output:
        pytest.skip("build isolation needs a package index, none can be reached")
    assert ran.returncode == 0, output


@pytest.fixture(scope="module")
def names(wheel):
    with zipfile.ZipFile(wheel) as archive:
        return archive.namelist()


@pytest.fixture(scope="module")
def metadata(wheel):
    with zipfile.ZipFile(wheel) as archive:
        [name] = [name for name in archive.namelist() if name.endswith(".dist-info/METADATA")]
        return email.message_from_bytes(archive.read(name))


def test_the_sdist_holds_what_a_build_and_a_test_need_and_nothing_built(sdist):
    with tarfile.open(sdist) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    assert {
        "CMakeLists.txt",
        "csrc/bindings/module.cpp",
        "python_tests/support/cases.py",
        "CITATION.cff",
        "LICENSE",
    } <= names
    assert not [name for name in names if name.endswith((".so", ".pyc", ".pt")) or name.startswith("runs")]
    assert sdist.stat().st_size < 1 << 20


def test_every_source_file_is_in_and_nothing_else(names):
    tracked = [
        path.relative_to(ROOT).as_posix()
        for package in ("cpr_kernels", "cpr_command")
        for path in (ROOT / package).rglob("*")
        if path.is_file() and path.suffix not in (".so", ".pyc")
    ]
    packed = [name for name in names if ".dist-info/" not in name]
    cores = [name for name in packed if name.startswith("cpr_kernels/_core.") and name.endswith(".so")]
    assert len(cores) == 1 and STALE not in packed
    assert sorted(set(packed) - set(cores)) == sorted(tracked)
    assert "cpr_kernels/py.typed" in packed
    assert any(name.endswith("/licenses/LICENSE") for name in names)


def test_the_metadata_asks_for_torch_without_an_upper_limit(metadata):
    required = [text for text in metadata.get_all("Requires-Dist") if "extra ==" not in text]
    assert sorted(required) == ["msgspec>=0.19", "numpy>=1.26", "torch>=2.11", "tqdm>=4.66", "tyro>=0.9"]
    assert metadata["Requires-Python"] == ">=3.10"
    assert metadata["Version"] == cpr_kernels.__version__
    assert metadata["License-Expression"] == "Apache-2.0"
    assert {"train", "deploy", "metrics", "triton", "faiss", "test", "dev"} <= set(
        metadata.get_all("Provides-Extra")
    )


def test_the_build_itself_needs_no_torch(wheel):
    if sys.version_info < (3, 11):
        pytest.skip("reads pyproject.toml with tomllib, which Python 3.10 lacks")
    import tomllib

    build = tomllib.loads((ROOT / "pyproject.toml").read_text())["build-system"]
    assert not [text for text in build["requires"] if "torch" in text]


PROBE = """
import sys
# an editable install of the checkout finds the package first; here the unpacked wheel must
sys.meta_path = [f for f in sys.meta_path if "Editable" not in str(type(f)) and "Redirecting" not in str(type(f))]
sys.path.insert(0, sys.argv[1])
import cpr_kernels as cpr, torch
assert cpr.__file__.startswith(sys.argv[1]), cpr.__file__
assert cpr._core.__file__.startswith(sys.argv[1]), cpr._core.__file__
keys = {"v": torch.eye(4)}
print(cpr.cascade_topk(keys, keys, cpr.coclr_schedule("v", 1), backend="native")[0].flatten().tolist())
"""


def test_the_unpacked_wheel_works(wheel, tmp_path):
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(tmp_path)
    ran = subprocess.run(
        [sys.executable, "-c", PROBE, tmp_path], capture_output=True, text=True, cwd=tmp_path.parent
    )
    assert ran.stdout == "[0, 1, 2, 3]\n", ran.stderr


def test_the_core_brings_no_torch_and_no_second_openmp(wheel, tmp_path):
    """Only system libraries: torch's own libgomp.so.1 serves by its name."""
    readelf = shutil.which("readelf")
    if readelf is None:
        pytest.skip("readelf is not installed")
    with zipfile.ZipFile(wheel) as archive:
        [core] = [name for name in archive.namelist() if name.endswith(".so")]
        archive.extract(core, tmp_path)
    for built in (tmp_path / core, Path(cpr_kernels._core.__file__)):
        shown = subprocess.run([readelf, "-d", built], capture_output=True, text=True, check=True).stdout
        needed = [line.split("[")[1].rstrip("]") for line in shown.splitlines() if "(NEEDED)" in line]
        assert "libgomp.so.1" in needed
        assert not [name for name in needed if "torch" in name or "python" in name or "cuda" in name]


@pytest.mark.parametrize(
    ("missing", "sentence"),
    [("CXX=/no/compiler", "no C++ compiler was found; install one"), ("", "has no OpenMP; install it")],
)
def test_what_a_build_lacks_is_one_sentence(missing, sentence, tmp_path):
    if shutil.which("cmake") is None or shutil.which("c++") is None:
        pytest.skip("no CMake and no compiler on PATH")
    pybind11 = pytest.importorskip("pybind11")
    off = "-DCMAKE_DISABLE_FIND_PACKAGE_OpenMP=ON" if not missing else "-DCPR_CUDA=OFF"
    ran = subprocess.run(
        ["env", *missing.split(), "cmake", "-S", ROOT, "-B", tmp_path, f"-DPython_EXECUTABLE={sys.executable}", off,
         f"-Dpybind11_DIR={pybind11.get_cmake_dir()}"],
        capture_output=True, text=True,
    )  # fmt: skip
    said = " ".join(ran.stderr.split())
    assert ran.returncode != 0 and sentence in said and said.count("CMake Error") == 1


def test_cuda_is_configured_without_an_error(tmp_path):
    """A configure-only check: CMake refuses targets whose GPU architectures are not known."""
    if shutil.which("cmake") is None or shutil.which("nvcc") is None:
        pytest.skip("no CMake and no nvcc on PATH")
    pybind11 = pytest.importorskip("pybind11")
    ran = subprocess.run(
        ["cmake", "-S", ROOT, "-B", tmp_path, "-DCPR_CUDA=ON", f"-DPython_EXECUTABLE={sys.executable}",
         f"-Dpybind11_DIR={pybind11.get_cmake_dir()}"],
        capture_output=True, text=True,
    )  # fmt: skip
    assert ran.returncode == 0 and "Error" not in ran.stderr, ran.stderr
