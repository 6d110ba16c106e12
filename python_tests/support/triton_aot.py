"""Compile a Triton kernel ahead of time, with no GPU, and read what it needs of one."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path
from typing import Any, NamedTuple


class Needs(NamedTuple):
    """A compiled kernel's resources."""

    registers: int
    local_bytes: int  # of spilled registers, per thread
    shared_bytes: int
    cubin: Path

    def sass(self) -> str:
        """Its machine code, as text."""
        return _cuobjdump("-sass", self.cubin)


def _cuobjdump(*words: str | Path) -> str:
    import triton

    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    done = subprocess.run([tool, *words], capture_output=True, text=True, check=True)
    return done.stdout + done.stderr


def compile_for(kernel: Any, arch: int, types: dict[str, str], constants: dict[str, Any], warps: int, stages: int,
                folder: Path) -> Needs:  # fmt: skip
    """`kernel` for sm_`arch`: run-time argument types by name (pointers count as 16-byte aligned), constants."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    signature = {name: types.get(name, "constexpr") for name in kernel.arg_names}
    missing = [n for n, t in signature.items() if t == "constexpr" and n not in constants]
    assert not missing, f"no type and no value for {missing}"
    attrs = {(i,): [["tt.divisibility", 16]] for i, t in enumerate(signature.values()) if t.startswith("*")}
    source = ASTSource(fn=kernel, signature=signature, constexprs=constants, attrs=attrs)
    options = {"num_warps": warps, "num_stages": stages, "enable_fp_fusion": False}
    compiled = triton.compile(source, target=GPUTarget("cuda", arch, 32), options=options)
    cubin = folder / f"{kernel.__name__}_{arch}_{warps}.cubin"
    cubin.write_bytes(compiled.asm["cubin"])
    usage = _cuobjdump("-res-usage", cubin)
    found = re.search(r"REG:(\d+) STACK:(\d+) SHARED:(\d+) LOCAL:(\d+)", usage)
    assert found, usage
    registers, stack, _, local = map(int, found.groups())
    return Needs(registers, stack + local, compiled.metadata.shared, cubin)
