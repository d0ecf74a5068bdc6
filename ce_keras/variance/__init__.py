"""The distribution of the tangent kernel over random weights: law, closed form, draws, fits.

A search needs Var(K) / E[K]^2 of one path as a function of its width. It is known exactly for ReLU
networks (`closed_form`), drawn without networks for ReLU stacks (`samplers`), drawn by Keras
networks for anything else (`networks`), and fitted by the paper's Algorithm 1 (`fit`). `law` is
what a search reads, whichever of these it comes from. All of it needs only NumPy, but `networks`.

The kernel of a *given* model is another subject: `ce_keras.ntk`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ce_keras.lazy import lazy_names

if TYPE_CHECKING:
    from ce_keras.variance.closed_form import (
        KernelMoments,
        infinite_width_kernel,
        kernel_moments,
        variance_coefficients,
    )
    from ce_keras.variance.correlation import measure_correlation
    from ce_keras.variance.fit import AlphaFit, fit_alpha, log_moment_ratio
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

# Imported when they are asked for: the geometry of modules reads the closed form, and the laws read
# the geometry.
_LAZY = {
    "AlphaFit": "fit",
    "KernelMoments": "closed_form",
    "chain_kernels": "samplers",
    "fit_alpha": "fit",
    "infinite_width_kernel": "closed_form",
    "kernel_moments": "closed_form",
    "log_moment_ratio": "fit",
    "measure_correlation": "correlation",
    "stack_kernels": "samplers",
    "variance_coefficients": "closed_form",
}

__getattr__, __dir__ = lazy_names(__name__, _LAZY, __all__)
