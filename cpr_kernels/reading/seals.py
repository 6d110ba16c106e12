"""Puts the SHA-256 of a JSON object into the object, and checks it: a flipped bit is found when it is read."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

SEAL = "sha256"
UNSEALED = "holds no content hash (written by an older cpr_kernels), so damage cannot be seen"


def sealed(body: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the object with its own hash under `sha256`."""
    return {**body, SEAL: _hash(body)}


def check_seal(body: Mapping[str, Any]) -> bool:
    """Returns whether an object, as JSON gave it, carries a hash; one without is of an older version.

    Raises:
        ValueError: it carries another hash than its own.
    """
    if SEAL not in body:
        return False
    if body[SEAL] != _hash({name: value for name, value in body.items() if name != SEAL}):
        raise ValueError(
            f"its content is not what its {SEAL} says: it was damaged, or changed by hand (then take that line out)"
        )
    return True


def _hash(body: Mapping[str, Any]) -> str:
    """Returns the SHA-256 of an object, whatever the order and the spacing of its text."""
    return hashlib.sha256(json.dumps(json.loads(json.dumps(body)), sort_keys=True).encode()).hexdigest()
