"""Damages files: turned bits, cuts, swapped and repeated parts, other types of JSON fields. Every draw is seeded."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from typing import Any

VALUES: tuple[Any, ...] = (
    None, True, False, 0, 1, -1, 2**31, 2**63, 10**400, 0.5, 1e7, -0.0, 1e308, "", "x", "nan", "1e999999999", [], [0],
    {}, {"a": 1}, [[]], "\ud800", "../../x", "/etc/passwd", "a" * 5000,
)  # fmt: skip
TOKENS = (b"NaN", b"Infinity", b"1e999", b"\x00", b"\xff\xfe", b"{", b"]", b'"', b"null", b"-", b"9" * 30)

Mutation = Callable[[bytes, random.Random], bytes]


def flip(body: bytes, rng: random.Random) -> bytes:
    """Turns one to eight bits."""
    made = bytearray(body)
    for _ in range(rng.choice((1, 1, 1, 2, 8))):
        made[rng.randrange(len(made))] ^= 1 << rng.randrange(8)
    return bytes(made)


def flip_at_an_end(body: bytes, rng: random.Random) -> bytes:
    """Turns a bit in the first or the last 200 bytes, where headers and tables are."""
    made = bytearray(body)
    at = rng.randrange(min(200, len(made)))
    made[at if rng.random() < 0.5 else -1 - at] ^= 1 << rng.randrange(8)
    return bytes(made)


def cut(body: bytes, rng: random.Random) -> bytes:
    """Keeps the beginning, or the end, or leaves out a part."""
    first, last = sorted(rng.randrange(len(body) + 1) for _ in range(2))
    return rng.choice((body[:first], body[first:], body[:first] + body[last:]))


def swap(body: bytes, rng: random.Random) -> bytes:
    """Exchanges two parts of equal length."""
    size = rng.randrange(1, max(2, len(body) // 4))
    a, b = sorted(
        (
            rng.randrange(max(1, len(body) // 2 - size + 1)),
            len(body) // 2 + rng.randrange(max(1, len(body) // 2 - size + 1)),
        )
    )
    return body[:a] + body[b : b + size] + body[a + size : b] + body[a : a + size] + body[b + size :]


def insert(body: bytes, rng: random.Random) -> bytes:
    """Puts a token, zeros or a repeated part somewhere."""
    at, start = rng.randrange(len(body) + 1), rng.randrange(len(body))
    piece = rng.choice(
        (rng.choice(TOKENS), bytes(rng.randrange(1, 64)), body[start : start + rng.randrange(1, 64)])
    )
    return body[:at] + piece + body[at:]


def overwrite(body: bytes, rng: random.Random) -> bytes:
    """Writes a token, or a number with all bits set, over a part."""
    piece = rng.choice((*TOKENS, b"\xff" * 4, b"\xff" * 8, b"\x7f" + b"\xff" * 7, bytes(8)))
    at = rng.randrange(len(body))
    return body[:at] + piece + body[at + len(piece) :]


BYTES: tuple[Mutation, ...] = (flip, flip, flip_at_an_end, cut, swap, insert, overwrite)


def changed_json(body: Any, rng: random.Random) -> Any:
    """Returns JSON values of which one, somewhere, has another type or value, is missing or is there under another name."""
    made = json.loads(json.dumps(body))
    places: list[tuple[Any, Any]] = []
    todo = [made]
    while todo:
        value = todo.pop()
        items = (
            value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
        )
        for key, inner in items:
            places.append((value, key))
            todo.append(inner)
    if not places:
        return rng.choice(VALUES)
    holder, key = rng.choice(places)
    what = rng.random()
    if what < 0.15:
        del holder[key]
    elif what < 0.25 and isinstance(holder, dict):
        holder[rng.choice(("x", f"{key} ", str(key).upper()))] = holder.pop(key)
    elif what < 0.4 and isinstance(holder[key], (int, float)) and not isinstance(holder[key], bool):
        holder[key] = rng.choice(
            (float(holder[key]), str(holder[key]), [holder[key]], holder[key] * 10**6, -holder[key] - 1)
        )
    else:
        holder[key] = rng.choice(VALUES)
    return made
