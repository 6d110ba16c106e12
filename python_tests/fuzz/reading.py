"""What kinds of files share: how a table is read, and how JSON with a hash is changed."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from cpr_kernels.cli.tables import open_columns
from cpr_kernels.reading.seals import SEAL, TEXT_SEAL, sealed, sealed_text

Change = Callable[[Any], Any]


def resealed_json(body: bytes, change: Change) -> bytes:
    """JSON with its hash made right after a change, where it has one."""
    held = json.loads(body)
    seal = next((name for name in (SEAL, TEXT_SEAL) if held.pop(name, None)), "")
    made = change(held)
    if seal == TEXT_SEAL and isinstance(made, dict) and made:
        return sealed_text(made)
    return json.dumps(sealed(made) if seal == SEAL and isinstance(made, dict) else made).encode()


def read_table(name: str) -> Callable[[Path], dict[str, Any]]:
    """Reads all columns, whole, as arrays."""
    return lambda folder: {
        column: np.asarray(found.load()) for column, found in open_columns(folder / name).items()
    }
