"""A page in headless Chromium: what its document holds after its scripts ran."""

from __future__ import annotations

import base64
import hashlib
import html
import json
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
from bench_tools import ROOT  # noqa: F401  puts the repository's root on the path

from bench.harness.chromium import find


def browser() -> str:
    """Chromium's path; the test skips where there is none."""
    found = find()
    if found is None:
        pytest.skip("no Chromium on PATH: the page is not opened")
    return found


def evaluate_in_page(page: Path, script: str, profile: Path, fragment: str = "", width: int = 1200) -> Any:
    """Returns what `script`, the body of an async function run after the page's own, returns, as plain values.

    The page's own Content-Security-Policy holds, with the probe allowed; what it forbids to the page is an error.
    """
    probe = page.with_suffix(".probe.html")
    body = (
        "(async () => { let result; try { result = await (async () => {" + script + "})(); }"
        " catch (error) { result = {error: String(error)}; }"
        " const pre = document.createElement('pre'); pre.id = 'probe';"
        " pre.textContent = JSON.stringify(result); document.body.replaceChildren(pre); })()"
    )
    text, policy = page.read_text(), "script-src "
    allowed = f"'sha256-{base64.b64encode(hashlib.sha256(body.encode()).digest()).decode()}'"
    if policy not in text:
        policy = "default-src 'none'; "
        allowed = f"script-src {allowed};"
    assert policy in text, "the page has no Content-Security-Policy"
    text = text.replace(policy, f"{policy}{allowed} ", 1)
    before, end, after = text.rpartition("</body>")
    probe.write_text(f"{before}<script>{body}</script>{end}{after}")
    ran = subprocess.run(
        [
            browser(), "--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={profile}",
            f"--window-size={width},1000", "--virtual-time-budget=20000", "--dump-dom", "--enable-logging=stderr",
            f"file://{probe}{fragment}",
        ],
        capture_output=True, text=True, timeout=240,
    )  # fmt: skip
    found = re.search(r'<pre id="probe">(.*?)</pre>', ran.stdout, re.DOTALL)
    assert found, ran.stderr[-2000:] + ran.stdout[-500:]
    forbidden = [line for line in ran.stderr.splitlines() if "Content Security Policy" in line]
    assert not forbidden, forbidden
    result = json.loads(html.unescape(found[1]))
    assert not (isinstance(result, dict) and "error" in result), result
    return result
