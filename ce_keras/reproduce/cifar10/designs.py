"""The designs that are trained, their comparisons, and what could predict their errors."""

from __future__ import annotations

import numpy as np

from ce_keras.geometry import RESNEXTS, Design, resnext
from ce_keras.reproduce.protocol import CORRELATION
from ce_keras.variance.law import ClosedFormLaw, law_of

NETWORK = "resnext11c"

BASELINE = "1x64d"

#: Designs of the baseline's size, from the widest path to the narrowest.
PRIMAL = ("1x64d", "2x42d", "5x24d", "9x16d", "17x10d", "27x7d", "54x4d", "116x2d")

#: Duals by the paper's law and by the exact one; each with the narrower baseline of its size.
DUAL = {"7x7d": "1x28d", "11x7d": "1x37d"}

#: Comparisons that were chosen before training: a question, two designs, and what the paper says
#: of the difference in their errors (`None` where it makes no such comparison).
CONTRASTS = (
    ("primal by the exact law and baseline", "17x10d", BASELINE, "below 0"),
    ("primal by the paper's law and baseline", "27x7d", BASELINE, "below 0"),
    ("dual by the exact law and baseline", "11x7d", BASELINE, "0"),
    ("dual by the paper's law and baseline", "7x7d", BASELINE, "0"),
    ("dual by the exact law and narrower baseline of its size", "11x7d", "1x37d", None),
    ("dual by the paper's law and narrower baseline of its size", "7x7d", "1x28d", None),
)


def predictors(design: str) -> dict[str, float]:
    """Return quantities that could predict a design's error, by name.

    The exact variance is the mean over the network's stages, whose paths are n, 2n and 4n wide.
    """
    shape = RESNEXTS[NETWORK]
    network, (m, n) = resnext(shape), Design.parse(design)
    stages = n * 2 ** np.arange(len(shape.blocks))
    exact = ClosedFormLaw(network.module, CORRELATION).path_variance(stages).mean() / m
    fitted = law_of(network.module, None, None).path_variance(np.array([n]))[0] / m
    return {
        "exact variance": float(exact),
        "variance by the paper's law": float(fitted),
        "parameters": float(network.params(m, n)),
        "FLOPs": float(network.flops(m, n)),
        "channels": float(m * n),
        "width": float(n),
    }
