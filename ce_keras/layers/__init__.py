"""Keras layers for collegial ensembles: grouped, block-diagonal, and the sum of the paths.

They are written in `keras.ops` and run on every Keras backend. On TensorFlow the grouped
convolution is one operation forward and two backward, correct and fast.
"""

from __future__ import annotations

import importlib
from typing import Any

from ce_keras.layers.batch_norm import FusedBatchNormalization
from ce_keras.layers.bottleneck import collegial_bottleneck
from ce_keras.layers.collegial import Aggregate, CollegialConv2D
from ce_keras.layers.collegial_dense import CollegialDense
from ce_keras.layers.ensemble import CollegialEnsemble
from ce_keras.layers.layer_norm import CollegialLayerNormalization
from ce_keras.layers.replacements import GroupedConv1D, GroupedConv3D

__all__ = [
    "Aggregate",
    "CollegialConv2D",
    "CollegialDense",
    "CollegialEnsemble",
    "CollegialLayerNormalization",
    "FusedBatchNormalization",
    "GroupedConv1D",
    "GroupedConv3D",
    "accelerate",
    "collegial_bottleneck",
]


def __getattr__(name: str) -> Any:
    if name == "accelerate":  # It copies models, which is the subject of a package above this.
        return importlib.import_module("ce_keras.rewrite.acceleration").accelerate
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
