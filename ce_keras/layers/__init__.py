"""Keras layers for collegial ensembles: grouped, block-diagonal, and the sum of the paths.

They are written in `keras.ops` and run on every Keras backend. On TensorFlow the grouped
convolution is one operation forward and two backward, correct and fast.
"""

from ce_keras.layers.batch_norm import FusedBatchNormalization
from ce_keras.layers.bottleneck import collegial_bottleneck
from ce_keras.layers.collegial import Aggregate, CollegialConv2D, CollegialDense
from ce_keras.layers.ensemble import CollegialEnsemble
from ce_keras.layers.layer_norm import CollegialLayerNormalization

__all__ = [
    "Aggregate",
    "CollegialConv2D",
    "CollegialDense",
    "CollegialEnsemble",
    "CollegialLayerNormalization",
    "FusedBatchNormalization",
    "collegial_bottleneck",
]
