"""Turns Sphinx roles in docstrings (as in ``:func:`mil_nce` ``) into links of the site, and shows examples as code."""

from __future__ import annotations

import re
from typing import Any

import griffe

import cpr_kernels

EXAMPLE = re.compile(r"^(\s*)Example:$", flags=re.MULTILINE)  # the parser knows the plural only
ROLE = re.compile(r":(?:func|class|meth|attr|mod|data|exc):`~?([\w.]+)`")


class DocstringRoles(griffe.Extension):
    """Rewrites every docstring as it is loaded."""

    def on_object(self, *, obj: griffe.Object, **_: Any) -> None:
        """Replaces the roles and the title of the example of one docstring."""
        if obj.docstring is not None:
            text = EXAMPLE.sub(r"\1Examples:", obj.docstring.value)
            obj.docstring.value = ROLE.sub(_link, text)


def _link(role: re.Match[str]) -> str:
    name = role[1].removeprefix("cpr_kernels.")
    if name == "explain":  # the module of the same name hides it
        return f"[`{name}`][cpr_kernels.explain.explain]"
    if name.split(".")[0] in cpr_kernels.__all__:
        return f"[`{name}`][cpr_kernels.{name.split('.')[0]}]"  # an attribute may have no place of its own
    return f"`{name}`"
