"""Docstrings, comments and strings use the field's terms: a few words of a private vocabulary fail here."""

from __future__ import annotations

import io
import re
import tokenize
from collections.abc import Iterator
from pathlib import Path

import pytest
from places import ROOT

FOLDERS = ("cpr_kernels", "bench", "csrc", "docs")
SUFFIXES = {".py", ".h", ".cpp", ".cu", ".md", ".sh", ".js", ".html", ".jinja"}
RECORDS = ROOT / "bench" / "results"  # measurements, kept as they were written
WORDS = re.compile(
    r"\b(told|asked for|unasked|the (long|short) way|doors?|goes on|lies in|settle[sd]?|brings)\b",
    re.IGNORECASE,
)
CPP_TEXT = re.compile(r'//[^\n]*|/\*.*?\*/|"(?:\\.|[^"\\\n])*"', re.DOTALL)

pytestmark = pytest.mark.skipif(not (ROOT / "csrc").is_dir(), reason="the sources are not beside the tests")


def pieces(path: str, text: str) -> Iterator[tuple[int, str]]:
    """Yields (line, text) of a file's comments and strings; of a page or script, of all its text."""
    if path.endswith(".py"):
        for token in tokenize.generate_tokens(io.StringIO(text).readline):
            if (
                token.type in (tokenize.COMMENT, tokenize.STRING)
                or "FSTRING" in tokenize.tok_name[token.type]
            ):
                yield token.start[0], token.string
    elif path.endswith((".h", ".cpp", ".cu")):
        for match in CPP_TEXT.finditer(text):
            yield text.count("\n", 0, match.start()) + 1, match.group()
    else:
        yield 1, text


def findings(path: str, text: str) -> list[str]:
    """Returns `path:line: word` for every private word in a file's text."""
    return [
        f"{path}:{line + piece.count(chr(10), 0, match.start())}: {match.group()!r}"
        for line, piece in pieces(path, text)
        for match in WORDS.finditer(piece)
    ]


def sources() -> list[Path]:
    inside = [
        path for folder in FOLDERS for path in sorted((ROOT / folder).rglob("*")) if path.suffix in SUFFIXES
    ]
    return [ROOT / "README.md", *(path for path in inside if RECORDS not in path.parents)]


@pytest.mark.parametrize(
    ("path", "text", "found"),
    [
        ("a.py", 'x = 1\n"""A sentence.\n\nIt goes on."""\n', ["a.py:4: 'goes on'"]),
        ("a.py", "told = asked_for(x)  # the door\n", ["a.py:1: 'door'"]),
        ("a.py", 'raise ValueError(f"{x} was asked for")\n', ["a.py:1: 'asked for'"]),
        ("a.h", '#include "door.h"\nint told;  // settled\n/* one\n   Brings */\n', [
            "a.h:1: 'door'", "a.h:2: 'settled'", "a.h:4: 'Brings'",
        ]),
        ("a.md", "one\nthe long way, outdoors; it was asked\n", ["a.md:2: 'the long way'"]),
    ],
)  # fmt: skip
def test_the_lint_sees_text_and_not_names(path: str, text: str, found: list[str]) -> None:
    assert findings(path, text) == found


def test_no_private_words() -> None:
    texts = {str(path.relative_to(ROOT)): path.read_text() for path in sources()}
    assert len(texts) > 200
    found = [line for path, text in texts.items() for line in findings(path, text)]
    assert not found, "say it in the field's terms:\n" + "\n".join(found)
