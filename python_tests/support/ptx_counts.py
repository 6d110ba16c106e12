"""Prints what the compiled CUDA kernels execute, counted on a CPU, and the times predicted from it. A script:
`python python_tests/support/ptx_counts.py [--write]`; `--write` puts both into bench/gpu_notes.md. Needs nvcc and g++.
"""

from __future__ import annotations

import sys

from cuda_tools import emulated, nvcc
from ptx.build import compiled, kernels_of
from ptx.counts import counts, works
from ptx.predict import NOTES, section, written


def main() -> int:
    """Count, print, and write where wanted."""
    if nvcc() is None:
        print("ptx_counts: nvcc is not on PATH: there is no PTX to count", file=sys.stderr)
        return 2
    core, named = emulated(), {work.kernel for work in works()}
    translated = kernels_of("90a")
    found = {one.kernel.name: one for one in compiled(translated[name] for name in named)}
    for name, one in found.items():
        core.replace_kernel(name, one.address, one.stack)
    made = section(
        list(counts(core, found)), {name: kernel.instructions for name, kernel in translated.items()}
    )
    print(made)
    if "--write" in sys.argv:
        NOTES.write_text(written(NOTES.read_text(), made))
    return 0


if __name__ == "__main__":
    sys.exit(main())
