"""Adds to the site what is outside docs/: README.md as its home, the changelog, and benchmark files."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

ROOT = Path(__file__).resolve().parents[2]
PAGES = {"index.md": "README.md", "changelog.md": "CHANGELOG.md"}
ASSETS = (
    "bench/*.md",
    "bench/results/*.md",
    "bench/results/*.json",
    "bench/results/*.svg",
    "bench/results/*.png",
)


def on_files(files: Files, config: Any) -> Files:
    """Puts the files in place, as if they were in docs/."""
    for name, source in PAGES.items():
        text = re.sub(r"\]\(docs/", "](", (ROOT / source).read_text(encoding="utf-8"))
        files.append(File.generated(config, name, content=text))
    for pattern in ASSETS:
        for path in sorted(ROOT.glob(pattern)):
            files.append(File.generated(config, path.relative_to(ROOT).as_posix(), abs_src_path=str(path)))
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, files: Files) -> str:
    """Leads links that leave docs/ to the copies in the site, and drops the note for readers of the sources."""
    return re.sub(r"^> `make docs` renders.*\n", "", markdown, flags=re.MULTILINE).replace(
        "](../bench/", "](bench/"
    )
