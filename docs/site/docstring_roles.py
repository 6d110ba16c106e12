"""Turns Sphinx roles in docstrings (as in ``:func:`mil_nce` ``) into links of the site, or into code."""

from __future__ import annotations

import re
from typing import Any

import griffe

import cpr_kernels

ROLE = re.compile(r":(?:func|class|meth|attr|mod|data|exc):`~?([\w.]+)`")


class DocstringRoles(griffe.Extension):
    """Rewrites every docstring as it is loaded."""

    def on_object(self, *, obj: griffe.Object, **_: Any) -> None:
        """Replaces the roles of one docstring."""
        if obj.docstring is not None:
            obj.docstring.value = ROLE.sub(_link, obj.docstring.value)


def _link(role: re.Match[str]) -> str:
    name = role[1].removeprefix("cpr_kernels.")
    if name == "explain":  # the module of the same name hides it
        return f"[`{name}`][cpr_kernels.explain.explain]"
    if name.split(".")[0] in cpr_kernels.__all__:
        return f"[`{name}`][cpr_kernels.{name}]"
    return f"`{name}`"
