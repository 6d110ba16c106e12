"""Runs the console script `cpr` as `python -m cpr_kernels`."""

from __future__ import annotations

import sys

from cpr_command import COMMANDS, main

__all__ = ["COMMANDS", "main"]

if __name__ == "__main__":
    sys.exit(main())
