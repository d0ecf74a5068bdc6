"""Examples in docstrings are shown as code, not as quotations."""

from __future__ import annotations

import re
from typing import Any

import griffe

_EXAMPLE = re.compile(r"^( *)>>> .*\n(?:\1\S.*\n?)*", re.MULTILINE)


class Doctests(griffe.Extension):
    """Puts a fence around every run of lines that begins with a prompt."""

    def on_instance(self, *, obj: griffe.Object, **_: Any) -> None:
        """Change the docstring of whatever has one."""
        if obj.docstring is not None:
            obj.docstring.value = _EXAMPLE.sub(_fenced, obj.docstring.value + "\n")


def _fenced(match: re.Match[str]) -> str:
    indent, example = match[1], match[0].rstrip("\n")
    return f"\n{indent}```pycon\n{example}\n{indent}```\n"
