"""Opens a file of arrays by its ending: one reader a format, whose package is imported on use."""

from __future__ import annotations

import importlib
import re
from collections.abc import Callable
from pathlib import Path

from .column import Column, reading

ADDRESS = re.compile(r"[a-zA-Z][\w+.-]+:/")  # s3://bucket, which `Path` writes as s3:/bucket
READERS = {
    ".npz": "numpy_files.npz",
    ".npy": "numpy_files.npy",
    ".safetensors": "tensor_files.safetensors",
    ".pt": "tensor_files.pt",
    ".pth": "tensor_files.pt",
    ".h5": "hdf5_files.hdf5",
    ".hdf5": "hdf5_files.hdf5",
    ".parquet": "arrow_files.parquet",
    ".feather": "arrow_files.feather",
    ".csv": "arrow_files.delimited",
    ".tsv": "arrow_files.delimited",
}
READS = tuple(READERS)


def open_file(path: Path, name: str) -> list[Column]:
    """Returns the arrays of a file as they are stored."""
    if ADDRESS.match(str(path)) and not path.exists():
        raise ValueError(f"{path}: is an address, and only files are read; copy it here first")
    suffix = path.suffix.lower()
    if suffix not in READERS:
        what = suffix or "a file without suffix"
        raise ValueError(f"{path}: cannot read {what}; give {', '.join(READS)}, or a folder of .npy or .npz")
    if not path.is_file():
        raise ValueError(f"{path}: no such file")
    module, _, function = READERS[suffix].partition(".")
    try:
        reader: Callable[[Path, str], list[Column]] = getattr(
            importlib.import_module(f"{__package__}.{module}"), function
        )
        with reading(path):
            return reader(path, name)
    except ImportError as error:
        package = (error.name or "a package").partition(".")[0]
        extra = "safetensors" if package == "safetensors" else "'cpr_kernels[tables]'"
        raise ImportError(f"{path}: reading needs {package}: pip install {extra}", name=error.name) from error
