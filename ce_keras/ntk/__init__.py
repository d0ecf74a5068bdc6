"""The neural tangent kernel of a given Keras model, and the analysis of kernels.

`analysis` and `gradient_flow` need only NumPy; functions of a model load Keras when they are used,
and run on TensorFlow, JAX and PyTorch. The distribution of kernels over random weights is in
`ce_keras.variance`, whose functions are here too.

Read the modules in this order: `empirical`, the public function; `engines`, which chooses an
engine and keeps it; `autodiff`, the simple engine; `structured`, the fast one, with `recording`,
`layer_rules` and `contractions`. `backends` has what each backend of Keras does in its own way.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ce_keras.lazy import lazy_names
from ce_keras.ntk.analysis import alignment, condition_number, label_alignment, spectrum
from ce_keras.ntk.gradient_flow import max_learning_rate, predict
from ce_keras.variance.alpha_fit import AlphaFit
from ce_keras.variance.closed_form import KernelMoments, infinite_width_kernel, kernel_moments
from ce_keras.variance.fit import fit_alpha, log_moment_ratio
from ce_keras.variance.samplers import chain_kernels, stack_kernels

if TYPE_CHECKING:
    from ce_keras.ntk.empirical import empirical_ntk
    from ce_keras.ntk.regression import NTKRegressor, ntk_vector_product

__all__ = [
    "AlphaFit",
    "KernelMoments",
    "NTKRegressor",
    "alignment",
    "chain_kernels",
    "condition_number",
    "empirical_ntk",
    "fit_alpha",
    "infinite_width_kernel",
    "kernel_moments",
    "label_alignment",
    "log_moment_ratio",
    "max_learning_rate",
    "ntk_vector_product",
    "predict",
    "spectrum",
    "stack_kernels",
]

_LAZY = {
    "empirical_ntk": "empirical",
    "NTKRegressor": "regression",
    "ntk_vector_product": "regression",
}

__getattr__, __dir__ = lazy_names(__name__, _LAZY, __all__)
