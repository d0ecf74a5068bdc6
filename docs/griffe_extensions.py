"""Extensions of the reference: doctests are shown as code, functions of no file are found."""

from __future__ import annotations

import os
import re
from typing import Any

import griffe

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

_EXAMPLE = re.compile(r"^( *)>>> .*\n(?:\1\S.*\n?)*", re.MULTILINE)


class Doctests(griffe.Extension):
    """A fence around every example in a docstring."""

    def on_instance(self, *, obj: griffe.Object, **_: Any) -> None:
        """Fence the examples of one object's docstring."""
        if obj.docstring is not None:
            obj.docstring.value = _EXAMPLE.sub(_fenced, obj.docstring.value + "\n")


def _fenced(match: re.Match[str]) -> str:
    indent, example = match[1], match[0].rstrip("\n")
    return f"\n{indent}```pycon\n{example}\n{indent}```\n"


class MadeFunctions(griffe.Extension):
    """The zoo's ResNets, which one function makes at import, and what is imported on first use."""

    def on_package(self, *, pkg: griffe.Module, **_: Any) -> None:
        """Put them into the module, in which a parser sees none of them."""
        made = griffe.inspect("resnext", filepath=None, parent=pkg["zoo"])
        module = pkg["zoo.resnext"]
        for name, member in made.members.items():
            if not member.is_alias and member.is_function and name.startswith("res"):
                module.set_member(name, member)
        lazy = griffe.Alias("accelerate", "ce_keras.rewrite.acceleration.accelerate")
        pkg["layers"].set_member("accelerate", lazy)
