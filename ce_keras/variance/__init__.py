"""The distribution of the tangent kernel over random weights.

A search needs Var(K) / E[K]^2 of one path as a function of its width. `closed_form` has it exactly
for ReLU networks. `samplers` draws kernels of ReLU stacks without building networks, `networks`
draws those of any Keras network, and `fit` fits the paper's law to them (Algorithm 1). `law` is the
interface that a search uses. `attention` draws kernels of heads, and of blocks of them by
TensorFlow. All else but `networks` and `measure_correlation` needs only NumPy.

The kernel of a *given* model is in `ce_keras.ntk`.
"""

from ce_keras.variance.alpha_fit import AlphaFit
from ce_keras.variance.closed_form import (
    KernelMoments,
    infinite_width_kernel,
    kernel_moments,
    variance_coefficients,
)
from ce_keras.variance.feature_maps import measure_correlation
from ce_keras.variance.fit import fit_alpha, log_moment_ratio
from ce_keras.variance.samplers import chain_kernels, stack_kernels

__all__ = [
    "AlphaFit",
    "KernelMoments",
    "chain_kernels",
    "fit_alpha",
    "infinite_width_kernel",
    "kernel_moments",
    "log_moment_ratio",
    "measure_correlation",
    "stack_kernels",
    "variance_coefficients",
]
