"""Makes the pictures of README.md and docs/ from a demo: `python -m bench pictures runs/demo`.

The pages that `cpr demo` wrote are opened in headless Chromium, and what is seen at the top of some of their parts is
kept as WebP files, each smaller than 150 kB.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from cpr_kernels.files import replacing

from ..harness.chromium import Page, browser, find

MOST = 150_000  # bytes of a picture


@dataclass(frozen=True)
class Picture:
    """Is one picture: its file, the page, the element at its top, and its height; all are WIDTH wide."""

    name: str
    page: str
    top: str
    height: int


WIDTH = 1200
TO_TOP = (
    "const top = document.querySelector('{}');"
    " if (top) scrollTo(0, scrollY + top.getBoundingClientRect().top - 16); return Boolean(top);"
)
AVERAGED = (  # what the explorer measures after it is drawn, for five seconds at most
    "for (let i = 0; i < 100 && document.querySelector('.share:not([data-done=true])'); i++)"
    " await new Promise((done) => setTimeout(done, 50));"
)
PICTURES = (
    Picture("report.webp", "report.html", "h1", 980),
    Picture("mined.webp", "report.html", "#mined", 645),
    Picture("explorer.webp", "report_inside.html", "h1", 900),
)


def take(tab: Page, demo: Path, out: Path) -> list[Path]:
    """Writes the pictures of a demo's pages into `out`; returns their paths.

    Raises:
        ValueError: a page or a part of it that is not there, or a picture that stays too large.
    """
    import cv2

    made = []
    for picture in PICTURES:
        page = demo / picture.page
        if not page.is_file():
            raise ValueError(f"demo: {demo} holds no {picture.page}; make it first: cpr demo --out {demo}")
        tab.emulate()
        tab.resize(WIDTH, picture.height)
        tab.open(page)
        if not tab.run(TO_TOP.format(picture.top)):
            raise ValueError(f"demo: {page} has no {picture.top}")
        tab.run(AVERAGED)
        tab.settle()
        path = out / picture.name
        with replacing([path]) as [part]:
            raw = part.with_suffix(".png")
            try:
                tab.screenshot(raw)
                seen = cv2.imread(str(raw))
            finally:
                raw.unlink(missing_ok=True)
            if seen is None:
                raise ValueError(f"demo: Chromium's picture of {page} cannot be read")
            for quality in (90, 80, 65, 50):
                body = cv2.imencode(".webp", seen, [cv2.IMWRITE_WEBP_QUALITY, quality])[1].tobytes()
                if len(body) <= MOST:
                    break
            else:
                raise ValueError(f"demo: the picture of {page} takes {len(body):,} bytes, more than {MOST:,}")
            part.write_bytes(body)
        made.append(path)
    return made


def main(argv: Sequence[str]) -> int:
    """Runs the command."""
    parser = argparse.ArgumentParser(prog="python -m bench pictures", description=(__doc__ or "").strip())
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("demo", type=Path, help="a folder that `cpr demo` has made")
    parser.add_argument(
        "--out", type=Path, default=Path("docs"), help="where the pictures go (default: docs)"
    )
    args = parser.parse_args(argv)
    if find() is None:
        raise ValueError("no Chromium on PATH: install it to take pictures of pages")
    with browser() as tab:
        for path in take(tab, args.demo, args.out):
            print(f"{path}  {path.stat().st_size:,} bytes")
    return 0
