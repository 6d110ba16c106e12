"""HOW FAST, HOW LEAN, HOW GOOD? The benchmarks of cpr_kernels: ``python -m bench`` from the root of a checkout.

It measures the package that is installed. A checkout's own `cpr_kernels` folder counts only when its native
core was built in place; else it would hide the installed one, because Python looks in the current folder first.
"""

from __future__ import annotations

import sys
from pathlib import Path

CHECKOUT = Path(__file__).resolve().parents[1]
RESULTS = CHECKOUT / "bench" / "results"


def _load_package() -> None:
    """Imports cpr_kernels, from the checkout only where its core is built there."""
    kept = sys.path[:]
    if not any((CHECKOUT / "cpr_kernels").glob("_core.*")):
        sys.path[:] = [entry for entry in sys.path if Path(entry or ".").resolve() != CHECKOUT]
    try:
        import cpr_kernels  # noqa: F401
    except ImportError as error:
        raise ImportError(
            f"bench measures the installed cpr_kernels; run `pip install .` first ({error})"
        ) from error
    finally:
        sys.path[:] = kept


_load_package()
