"""The neural tangent kernel of finite networks: kernels, samplers, Algorithm 1, exact theory.

Theory and samplers need only NumPy; `empirical_ntk` loads TensorFlow the first time it is used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from ce_keras.closed_form import KernelMoments, kernel_moments
from ce_keras.ntk.alpha import AlphaFit, fit_alpha, log_moment_ratio
from ce_keras.ntk.samplers import chain_kernels, stack_kernels

if TYPE_CHECKING:
    from ce_keras.ntk.kernel import empirical_ntk

__all__ = [
    "AlphaFit",
    "KernelMoments",
    "chain_kernels",
    "empirical_ntk",
    "fit_alpha",
    "kernel_moments",
    "log_moment_ratio",
    "stack_kernels",
]


def __getattr__(name: str) -> Any:
    if name == "empirical_ntk":
        return importlib.import_module("ce_keras.ntk.kernel").empirical_ntk
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
