"""Reads Markdown pages: their code blocks, their links, the anchors of their titles."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any


def blocks(text: str, languages: str) -> list[str]:
    """Returns the bodies of the code blocks in any of the languages, as in ``bash|console``."""
    return re.findall(rf"^```(?:{languages})\n(.*?)^```", text, flags=re.DOTALL | re.MULTILINE)


def run_python(page: Path, scope: dict[str, Any] | None = None) -> dict[str, Any]:
    """Runs the Python blocks of a page in order, in one scope, and returns it."""
    scope = {} if scope is None else scope
    for block in blocks(page.read_text(encoding="utf-8"), "python"):
        exec(compile(block, str(page), "exec"), scope)
    return scope


def prose(text: str) -> str:
    """Returns a page without code blocks, inline code, generated sections and comments."""
    text = re.sub(r"<!-- (\w+):begin -->.*?<!-- \1:end -->", "", text, flags=re.DOTALL)
    text = re.sub(r"^```.*?^```", "", text, flags=re.DOTALL | re.MULTILINE)
    return re.sub(r"`[^`\n]*`|<!--.*?-->", "", text, flags=re.DOTALL)


def links(text: str) -> list[str]:
    """Returns the targets of a page's links and pictures."""
    return re.findall(r"\]\(([^)\s]+)\)", re.sub(r"^```.*?^```", "", text, flags=re.DOTALL | re.MULTILINE))


def anchors(text: str) -> set[str]:
    """Returns the anchors of a page's titles."""
    titles = re.findall(
        r"^#+ (.*)$", re.sub(r"^```.*?^```", "", text, flags=re.DOTALL | re.MULTILINE), re.MULTILINE
    )
    return {re.sub(r"[^\w\- ]", "", title.lower()).strip().replace(" ", "-") for title in titles}
