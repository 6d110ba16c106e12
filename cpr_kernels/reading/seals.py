"""Puts SHA-256 hashes into files and checks them: a flipped bit is found when the file is read."""

from __future__ import annotations

import hashlib
import json
import re
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any

SEAL, TEXT_SEAL = "sha256", "sha256_of_rest"
UNSEALED = "holds no content hash (written by an older cpr_kernels), so damage cannot be seen"
DAMAGED = (
    f"its content is not what its {SEAL} says: it was damaged, or changed by hand (then take that line out)"
)
TEXT_HEAD = re.compile(rb'\{\s*"%b":\s*"(?P<hash>[0-9a-f]{64})",' % TEXT_SEAL.encode())
# A zip file ends in 22 bytes, of which the last two count those of a comment after them.
END, MARK, DIGITS = b"PK\x05\x06", b"sha256:", 64
COMMENT = len(MARK) + DIGITS


def sealed(body: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the object with its own hash under `sha256`."""
    return {**body, SEAL: _hash(json.loads(json.dumps(body)))}


def check_seal(body: Mapping[str, Any]) -> bool:
    """Returns whether an object, as JSON gave it, carries a hash; one without is of an older version.

    Raises:
        ValueError: it carries another hash than its own.
    """
    if SEAL not in body:
        return False
    if body[SEAL] != _hash({name: value for name, value in body.items() if name != SEAL}):
        raise ValueError(DAMAGED)
    return True


def sealed_text(body: Mapping[str, Any], indent: int = 0) -> bytes:
    """Returns an object as JSON whose first member is the hash of the bytes after it, which costs no second parsing.

    indent: spaces a level, or 0 for one line.
    """
    import msgspec

    try:
        text = msgspec.json.format(msgspec.json.encode(body), indent=indent or -1)
    except UnicodeEncodeError:  # half of a surrogate pair, which only an escape can hold
        text = json.dumps(body, indent=indent or None).encode()
    return _text_head(rest := text[1:], indent) + rest


def text_seal(text: bytes) -> str:
    """Returns the hash that JSON begins with, of the bytes after it; empty where it has none.

    Raises:
        ValueError: it begins with another hash.
    """
    if not (found := TEXT_HEAD.match(text)):
        return ""
    rest = text[found.end() :]
    if found["hash"].decode() != hashlib.sha256(rest).hexdigest():
        raise ValueError(DAMAGED.replace(SEAL, TEXT_SEAL))
    return found["hash"].decode()


def _text_head(rest: bytes, indent: int) -> bytes:
    space = "\n" + indent * " " if indent else ""
    return f'{{{space}"{TEXT_SEAL}":{" " if indent else ""}"{hashlib.sha256(rest).hexdigest()}",'.encode()


def _hash(body: Mapping[str, Any]) -> str:
    """Returns the SHA-256 of an object as JSON gives it, whatever the order and the spacing of its text."""
    return hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()


def file_hash(path: Path) -> str:
    """Returns the SHA-256 of a file, hexadecimal."""
    with path.open("rb") as file:
        return _hash_of(file).hexdigest()


def _hash_of(file: IO[bytes], size: int | None = None) -> Any:
    """Returns the running SHA-256 of the next `size` bytes, or of all that follow."""
    digest = hashlib.sha256()
    while block := file.read(1 << 20 if size is None else min(1 << 20, size)):
        digest.update(block)
        size = None if size is None else size - len(block)
    return digest


def sealed_zip(body: bytes) -> bytes:
    """Returns a zip file with its own hash as the comment, which every reader of zip files skips."""
    whole = body[:-2] + struct.pack("<H", COMMENT)
    return whole + MARK + hashlib.sha256(whole).hexdigest().encode()


def check_zip(path: Path) -> bool:
    """Returns whether a zip file carries its hash; one without any comment does not.

    Raises:
        ValueError: its hash is another, or it is no zip file with or without a hash.
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        file.seek(max(0, size - COMMENT))
        tail = file.read()
        if tail.startswith(MARK):
            file.seek(0)
            if _hash_of(file, size - COMMENT).hexdigest().encode() != tail[len(MARK) :]:
                raise ValueError(
                    "its content is not what its hash says: it was damaged; take a whole copy of it"
                )
            return True
    if tail[-22:-18] == END and tail[-2:] == b"\x00\x00":
        return False
    raise ValueError("its end is damaged or missing, or it is of another format")


def tensors_hash(file: IO[bytes]) -> str:
    """Returns the SHA-256 of a safetensors file: of its header without a hash of its own, and of its tensors.

    Raises:
        ValueError: no safetensors file, or one that is cut short.
    """
    size = file.seek(0, 2)
    file.seek(0)
    length = int.from_bytes(file.read(8), "little")
    if not 2 <= length <= size - 8:
        raise ValueError("it is cut short, or no safetensors file")
    header = json.loads(file.read(length))
    facts = header.get("__metadata__", {}) if isinstance(header, dict) else None
    if not isinstance(facts, dict):
        raise ValueError("its header is none of a safetensors file")
    facts = {name: value for name, value in facts.items() if name != SEAL}
    digest = hashlib.sha256(_hash({**header, "__metadata__": facts}).encode())
    digest.update(_hash_of(file).digest())
    return digest.hexdigest()
