"""The choice of the units of a trained chain that its paths begin with.

The last hidden layer comes first: of its units as many are kept as the paths have room for, those
from which the exit's outputs are predicted best, and units that read the same are put into one
path. Then every path takes, layer by layer towards the entry, the units from which its own next
units are predicted best; two paths may take the same.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import keras
import numpy as np

from ce_keras.rewrite.calibration.graph import FlatGraph
from ce_keras.rewrite.chains import Chain
from ce_keras.rewrite.splitting import Channels, Units, at_every_pixel

_TINY = np.finfo(np.float64).tiny


class Links:
    """Which layer of a chain reads whose units.

    Layers are numbered as in `chain.linear`. The values of a gate meet those of a layer before, so
    that both have the same units: those of that layer.

    Attributes:
        owners: for every hidden linear layer, the layer whose units its outputs are.
        reads: for every linear layer but the first, the layer whose units it reads.
        intermediate: for every intermediate layer, the layer whose units it reads.
    """

    def __init__(self, graph: FlatGraph, chain: Chain) -> None:
        self.owners = _owners(chain)
        number = {id(each.layer): index for index, each in enumerate(chain.linear)}
        units: dict[int, int] = {}
        reads: dict[int, int] = {}
        for call in graph.calls:
            known = [units[id(tensor)] for tensor in call.inputs if id(tensor) in units]
            index = number.get(id(call.operation))
            if known:
                reads[id(call.operation)] = known[0]
            if index is None and known:
                units.update((id(tensor), known[0]) for tensor in call.outputs)
            elif index is not None and index < len(self.owners):
                units[id(call.outputs[0])] = self.owners[index]
        self.reads = [reads[id(each.layer)] for each in chain.linear[1:]]
        self.intermediate = [reads[id(each.layer)] for each in chain.intermediate]

    def units(self, chain: Chain, own: Mapping[int, Channels]) -> Units:
        """Return the channels of all layers, from those of the layers that own units."""
        return Units(
            [own[owner] for owner in self.owners],
            [
                at_every_pixel(own[read], each.inputs, each.base)
                for read, each in zip(self.reads, chain.linear[1:], strict=True)
            ],
            [
                at_every_pixel(own[read], each.channels, each.base)
                for read, each in zip(self.intermediate, chain.intermediate, strict=True)
            ],
        )

    def reader(self, owner: int) -> int:
        """Return the last linear layer that reads a layer's units."""
        return max(index for index, read in enumerate(self.reads, 1) if read == owner)


def _owners(chain: Chain) -> list[int]:
    owners: list[int] = []
    last = 0
    for index, each in enumerate(chain.linear[:-1]):
        if not each.gate:
            last = index
        same = each.outputs == chain.linear[last].outputs
        owners.append(last if same else index)
    return owners


def chosen_units(
    chain: Chain,
    links: Links,
    covariances: Mapping[int, np.ndarray],
    cardinality: int,
    path_width: Callable[[int], int],
    rng: np.random.Generator,
) -> Units:
    """Return the channels of a chain that its paths take.

    Args:
        chain: of the trained model.
        links: of its layers.
        covariances: by the number of a layer, of the units that it reads, over pixels too.
        cardinality: the number of paths.
        path_width: returns a path's width, from the chain's.
        rng: for the first clusters.
    """
    units: dict[int, Channels] = {}
    last = len(chain.linear) - 1
    # Those that are read last come first: whoever reads units has chosen its own.
    for owner in sorted(set(links.owners), key=links.reader, reverse=True):
        size = path_width(chain.linear[owner].outputs)
        reader = links.reader(owner)
        kernel, covariance = _kernel(chain, reader), covariances[reader]
        if reader == last:
            order = ranked(covariance, _importance(kernel), len(covariance))
            profiles = np.ones((len(order), 1))
            if owner:
                variances = np.diag(covariances[owner])[:, None]
                profiles = np.sqrt((_kernel(chain, owner) ** 2).sum(0) * variances).T
            units[owner] = _shared_out(order, profiles, cardinality, size, rng)
        else:
            units[owner] = [
                ranked(covariance, _importance(kernel[..., own], covariance), size)
                for own in units[links.owners[reader]]
            ]
    return links.units(chain, units)


def _kernel(chain: Chain, index: int) -> np.ndarray:
    """Return a layer's kernel as `(pixels, units, outputs)`."""
    each = chain.linear[index]
    kernel = keras.ops.convert_to_numpy(each.layer.kernel).astype(np.float64)
    return kernel.reshape(-1, each.base, kernel.shape[-1])


def _importance(kernel: np.ndarray, covariance: np.ndarray | None = None) -> np.ndarray:
    """Return the matrix M for which an error `e` of the units costs `e @ M @ e` behind a layer.

    Pixels are taken to be independent. With a covariance, outputs count relative to their variance.
    """
    if covariance is not None:
        variance = np.einsum("pio,ij,pjo->o", kernel, covariance, kernel, optimize=True)
        kernel = kernel / np.sqrt(np.maximum(variance, _TINY))
    return np.einsum("pio,pjo->ij", kernel, kernel, optimize=True)


def ranked(covariance: np.ndarray, importance: np.ndarray, count: int) -> np.ndarray:
    """Return units from which the others are predicted best, the most useful first.

    Each time the unit is taken that most reduces the error of a linear prediction of all units
    from those taken, as it arrives behind the next layer: a pivoted Cholesky decomposition.

    Args:
        covariance: of the units' activations.
        importance: an error `e` of the activations costs `e @ importance @ e`.
        count: of the units to take.

    >>> twins = np.array([[1.0, 1.0, 0.0], [1.0, 1.0, 0.0], [0.0, 0.0, 0.5]])
    >>> ranked(twins, np.eye(3), 2).tolist()
    [0, 2]
    """
    left = covariance.astype(np.float64)
    behind = importance @ left
    least = max(1e-9 * np.diag(left).max(), _TINY)
    taken: list[int] = []
    for _ in range(count):
        variance = np.diag(left)
        gains = np.einsum("ij,ij->j", left, behind) / np.maximum(variance, least)
        gains[variance <= least] = 0
        gains[taken] = -1
        unit = int(np.argmax(gains))
        taken.append(unit)
        if variance[unit] > least:
            row = left[unit] / left[unit, unit]
            behind = behind - np.outer(behind[:, unit], row)
            left = left - np.outer(left[:, unit], row)
    return np.array(taken)


# Sharing out --------------------------------------------------------------------------------------

_ROUNDS = 20


def _shared_out(
    order: np.ndarray, profiles: np.ndarray, count: int, size: int, rng: np.random.Generator
) -> Channels:
    """Return `count` sets of `size` units, alike in each: the first of the order, each once.

    Where there is room for more, sets take further units, each unit as often as any other.
    """
    kept = order[: count * size]
    sizes = [len(part) for part in np.array_split(kept, count)]
    sets = [list(kept[rows]) for rows in clusters(profiles[kept], sizes, rng)]
    waiting: list[int] = []
    for own in sets:
        while len(own) < size:
            if all(unit in own for unit in waiting):
                waiting += list(order)
            own.append(waiting.pop(next(i for i, unit in enumerate(waiting) if unit not in own)))
    return [np.sort(own) for own in sets]


def clusters(profiles: np.ndarray, sizes: list[int], rng: np.random.Generator) -> list[np.ndarray]:
    """Return sets of given sizes of rows that point the same way: balanced spherical k-means.

    Args:
        profiles: a row for each unit.
        sizes: of the sets, together as many as rows.
        rng: for the first sets.

    >>> rows = np.array([[1.0, 0], [0, 1], [2, 0], [0, 2]])
    >>> sets = clusters(rows, [2, 2], np.random.default_rng(0))
    >>> sorted(each.tolist() for each in sets)
    [[0, 2], [1, 3]]
    """
    lengths = np.linalg.norm(profiles, axis=1, keepdims=True)
    profiles = profiles / np.maximum(lengths, _TINY)
    bounds = np.cumsum(sizes)[:-1]
    sets = np.split(rng.permutation(len(profiles)), bounds)
    best = -np.inf
    for _ in range(_ROUNDS):
        centres = np.array([profiles[rows].sum(0) for rows in sets])
        lengths = np.linalg.norm(centres, axis=1)
        alike = profiles @ (centres / np.maximum(lengths, _TINY)[:, None]).T
        free, found = list(sizes), np.full(len(profiles), -1)
        # The surest first; a full set takes no more.
        for flat in np.argsort(-alike, axis=None, kind="stable"):
            row, of = divmod(int(flat), len(sizes))
            if found[row] < 0 and free[of]:
                found[row] = of
                free[of] -= 1
        total = alike[np.arange(len(found)), found].sum()
        if total <= best:
            break
        best, sets = total, np.split(np.argsort(found, kind="stable"), bounds)
    return sets
