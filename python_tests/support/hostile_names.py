"""Names of classes, files and runs that a page or a plot could take for more than text."""

from __future__ import annotations

RUNS = "window.ran = 1"  # what no name may achieve

NAMES = [
    "<!--<script",
    f"</script><script>{RUNS}</script>",
    f'"><img src=x onerror="{RUNS}">',
    f"'-({RUNS})-'",
    r"$\frac{",
    "$a_b$ & ${7*7}{{7*7}}",
    "行走 跑步 打篮球",
    "\u0645\u0634\u064a \u202eleft\u202c 5 %",
    "bell\x07 \ufffe __proto__",
]
