"""What a call takes at its peak, measured in a process that has imported torch and done nothing else."""

from __future__ import annotations

import pytest
from forked import run_python

_PROGRAM = """
import torch, cpr_kernels as c
def status(name):
    return int(next(line for line in open("/proc/self/status") if line.startswith(name)).split()[1])
{inputs}
try:
    open("/proc/self/clear_refs", "w").write("5")
except OSError:
    raise SystemExit(77)
before, files = status("VmRSS"), status("RssFile")
{call}
print(status("VmHWM") - before - max(status("RssFile") - files, 0))
"""


def peak_kib(inputs: str, call: str) -> int:
    """KiB by which `call` raises the high-water mark of resident memory, after `inputs`: lines of Python, where `c`
    is cpr_kernels; pages of libraries that it loads are taken off. The test is skipped where the system does not let a process reset the mark.
    """
    code = _PROGRAM.format(inputs=inputs, call=call)
    run = run_python("-c", code)
    if run.returncode == 77:
        pytest.skip("this system does not let a process reset its high-water mark")
    assert run.returncode == 0, run.stderr
    return int(run.stdout)
