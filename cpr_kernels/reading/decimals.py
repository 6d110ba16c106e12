"""Finds numbers that are written with a comma for the point, as spreadsheets of many countries write them."""

from __future__ import annotations

import re
from collections.abc import Sequence

WITH_A_POINT = "write decimals with a point"
NUMBER = re.compile(r"\s*[+-]?\d+(?:[.,]\d+)?(?:[eE][+-]?\d+)?\s*")


def decimal_comma(fields: Sequence[str]) -> str | None:
    """Returns the first field with a comma for the point, where all fields are numbers; else None."""
    if not all(map(NUMBER.fullmatch, fields)):
        return None
    return next((field for field in fields if "," in field), None)
