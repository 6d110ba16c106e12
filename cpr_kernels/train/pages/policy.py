"""Restricts what a page may do, so that no name that stands in it can load, run or send anything."""

from __future__ import annotations

import base64
import hashlib


def content_policy(style: str, *scripts: str, worker: str = "") -> str:
    """Returns the Content-Security-Policy of a page with one `<style>` and with `<script>`s of just these texts.

    Nothing else runs or loads; pictures are those that the page holds itself. `worker` names the page's policy of
    trusted types by which it starts a worker from a text of its own; without it, no worker starts.
    """
    parts = ["default-src 'none'", "base-uri 'none'", "form-action 'none'", "img-src data: blob:"]
    parts.append(f"style-src {_hashed(style)}")
    if scripts:
        parts += [f"script-src {' '.join(map(_hashed, scripts))}", "require-trusted-types-for 'script'"]
        parts.append(f"trusted-types {worker}" if worker else "trusted-types 'none'")
    if worker:
        parts.append("worker-src blob:")
    return "; ".join(parts)


def isolated(name: str) -> str:
    """Returns a name between Unicode's isolates, so that its direction does not reorder the text around it."""
    return f"\u2068{name}\u2069"


def _hashed(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"
