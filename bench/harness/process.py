"""Runs a module of the benchmarks in a process of its own, with an environment that is read when it starts."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from typing import Any

from .. import CHECKOUT


def answer_of(
    module: str,
    request: Mapping[str, Any],
    environment: Mapping[str, str],
    what: str,
    limit_s: float | None = None,
) -> Any:
    """Returns the JSON that `python -m module REQUEST` prints last.

    Raises:
        RuntimeError: the process failed; its last lines are in the message, after `what`.
    """
    done = subprocess.run(
        [sys.executable, "-m", module, json.dumps(request)],
        cwd=CHECKOUT,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=limit_s,
        check=False,
    )
    if done.returncode != 0:
        raise RuntimeError(f"{what} failed:\n{done.stderr[-2000:]}")
    return json.loads(done.stdout.splitlines()[-1])
