"""Fan-ins, parameters and FLOPs of modules and networks, as functions of one width.

A *path* is a list of :class:`Layer`. A *module* is the path of a given width, repeated
`cardinality` times (Eq. 4). A *network* is modules stacked, with the parts that no design changes:
stem, shortcuts, classifier. Everything accepts arrays of widths and computes all of them at once.

>>> block = bottleneck(channels=256, width=128)
>>> block.params(1, 128), block.params(37, 10)
(212992, 222740)
>>> resnext("resnext29").params(37, 10)
13743646

Only NumPy is needed here.
"""

from ce_keras.geometry.modules import Design, Layer, Module, Network, Stack, Width, conv, dense
from ce_keras.geometry.networks import (
    BASELINES,
    BOTTLENECK_ALPHA,
    RESNEXTS,
    ResNeXt,
    baseline,
    bottleneck,
    first_order_alpha,
    fully_connected,
    resnext,
    scaled_widths,
)

__all__ = [
    "BASELINES",
    "BOTTLENECK_ALPHA",
    "RESNEXTS",
    "Design",
    "Layer",
    "Module",
    "Network",
    "ResNeXt",
    "Stack",
    "Width",
    "baseline",
    "bottleneck",
    "conv",
    "dense",
    "first_order_alpha",
    "fully_connected",
    "resnext",
    "scaled_widths",
]
