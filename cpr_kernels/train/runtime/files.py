"""Reads JSON files with helpful errors, and replaces files whole."""

from __future__ import annotations

import errno
from pathlib import Path
from typing import Any

from ...files import replacing
from ...reading.records import as_record
from ...reading.records import read_json as json_of
from .. import TrainError

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)  # no space, a used-up quota, a limit on file sizes


def read_json(path: Path, kind: str, advice: str, schema: Any = None) -> dict[str, Any]:
    """Returns the JSON object that a file of the trainer holds, checked against a type where one is given.

    Raises:
        TrainError: it holds something else; the sentence begins with `kind` and ends with `advice`.
    """
    try:
        body = json_of(path.read_bytes())
        if not isinstance(body, dict):
            raise ValueError(f"a {type(body).__name__} where an object belongs")
        if schema is not None:
            as_record(body, schema)
    except (ValueError, OSError) as error:
        raise TrainError(f"{kind}: {path} is damaged ({error}); {advice}") from None
    return body


def write_atomically(path: Path, body: bytes) -> None:
    """Replaces a file whole: a reader, or a kill at any moment, sees the old one or the new one."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacing([path]) as [part]:
            part.write_bytes(body)
    except OSError as error:
        if error.errno not in FULL:
            raise
        raise TrainError(
            f"out: {path} cannot be written ({error.strerror}); what was there before is whole: free some space, "
            "then resume as after a stop"
        ) from error
