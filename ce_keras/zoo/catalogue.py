"""Networks of the zoo by name."""

from __future__ import annotations

import difflib
import fnmatch
import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import keras

from ce_keras.checks import brief, text
from ce_keras.designs import DESIGN_MODES, PUBLISHED, choose_design, published
from ce_keras.geometry import RESNEXTS, Design
from ce_keras.zoo import perceptron, resnext, wide_resnet
from ce_keras.zoo.resnext import Constructor

#: Functions that build the ResNeXts, by name.
NETWORKS: dict[str, Constructor] = {name: getattr(resnext, name) for name in RESNEXTS}

_RESNETS: dict[str, Constructor] = {
    name: getattr(resnext, name) for name in ("resnet50", "resnet101", "resnet152")
}

#: The network that Table 1 of the paper compares with.
WIDE_RESNET = "wide_resnet28_10"

# Number of characters of a name that are compared with the known ones.
_LONGEST = 100


class Entry(NamedTuple):
    """A network with a name.

    Attributes:
        name: name, for `create`.
        family: name of the function that builds it.
        design: cardinality and width; `None` for a Wide ResNet.
        mode: `"primal"`, `"dual"`, `"baseline"` or `"resnext"`.
        origin: `"published"` in the paper, or `"derived"` by the search.
        table: table of the paper; empty for a derived design.
    """

    name: str
    family: str
    design: Design | None
    mode: str
    origin: str
    table: str


@functools.cache
def entries() -> tuple[Entry, ...]:
    """Return all networks with names, the paper's first."""
    found = [
        Entry(
            f"{row.network}_{row.design}", row.network, row.design, row.mode, "published", row.table
        )
        for row in PUBLISHED
    ]
    found.append(Entry(WIDE_RESNET, "wide_resnet", None, "baseline", "published", "1"))
    for family in RESNEXTS:
        for mode in DESIGN_MODES:
            if mode != "resnext" and not published(family, mode):
                design = choose_design(family, mode)
                found.append(Entry(f"{family}_{design}", family, design, mode, "derived", ""))
    for name in _RESNETS:
        design = choose_design(name.replace("resnet", "resnext"), "baseline")
        origin, table = ("derived", "") if name == "resnet152" else ("published", "2")
        found.append(Entry(name, name, design, "baseline", origin, table))
    for mode in ("baseline", "primal", "dual"):
        design = perceptron.connected_design((28, 28, 1), 10, 6, 200, mode, None, None)
        name = f"fully_connected_{design}"
        found.append(Entry(name, "fully_connected", design, mode, "derived", ""))
    return tuple(found)


def list_models(pattern: str = "*") -> list[str]:
    """Return the names of networks, for `create`.

    Args:
        pattern: pattern of the names, with `*` and `?` as in a shell.

    >>> list_models("resnext50_1*")
    ['resnext50_12x10d', 'resnext50_15x8d', 'resnext50_1x64d']
    """
    text("pattern", pattern)
    return sorted(fnmatch.filter({entry.name for entry in entries()}, pattern))


def create(name: str, /, **options: Any) -> keras.Model:
    """Build a network by name.

    Args:
        name: a name of `list_models`, a family (in its default design), or a family with any
            design: `"resnext50_6x10d"`.
        options: arguments of the family's function.

    Raises:
        ValueError: for an unknown name; the message has the nearest known one.

    >>> create("resnext11_3x5d", classes=7).output_shape
    (None, 7)
    """
    text("name", name)
    if name == WIDE_RESNET:
        return wide_resnet.wide_resnet(**options)
    families: dict[str, Callable[..., keras.Model]] = {
        **NETWORKS,
        **_RESNETS,
        "fully_connected": perceptron.fully_connected,
    }
    if name in families:
        return families[name](**options)
    family, _, design = name.rpartition("_")
    if family in families:
        try:
            m, n = Design.parse(design)
        except ValueError as error:
            raise ValueError(f"name: {error}") from None
        return families[family](cardinality=m, width=n, **options)
    known = [*list_models(), *families]
    (near,) = difflib.get_close_matches(name[:_LONGEST], known, 1, cutoff=0)
    raise ValueError(f"name: got {brief(name)}; did you mean {near!r}? ce_keras.zoo.list_models()")
