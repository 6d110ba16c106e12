"""Runs a function of the benchmarks in a process that has done nothing else, or a module in a new interpreter."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import traceback
from collections.abc import Callable, Mapping
from multiprocessing.connection import Connection
from typing import Any

from cpr_kernels.processes import process_context

from .. import CHECKOUT


def returned_by(function: Callable[..., Any], *arguments: Any, what: str, limit_s: float) -> Any:
    """Returns `function(*arguments)`, called in a process of its own, which has imported torch and no more.

    Raises:
        RuntimeError: the call failed, ended its process or took longer than `limit_s`; the message begins with `what`.
    """
    context = process_context(function.__module__)
    here, there = context.Pipe(duplex=False)
    process = context.Process(target=_call, args=(there, function, arguments), daemon=True)
    process.start()
    there.close()
    try:
        if not here.poll(limit_s):
            raise RuntimeError(f"{what} took longer than {limit_s:.0f} s")
        good, answer = here.recv()
    except EOFError:
        process.join()
        raise RuntimeError(f"{what} failed: its process ended with code {process.exitcode}") from None
    finally:
        process.kill()
        process.join()
    if not good:
        raise RuntimeError(f"{what} failed:\n{answer}")
    return answer


def _call(pipe: Connection, function: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
    try:
        pipe.send((True, function(*arguments)))
    except Exception:
        pipe.send((False, traceback.format_exc()[-2000:]))


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
