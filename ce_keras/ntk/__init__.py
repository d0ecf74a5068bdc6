"""The neural tangent kernel of finite networks: samplers, Algorithm 1, exact theory."""

from ce_keras.closed_form import KernelMoments, kernel_moments
from ce_keras.ntk.alpha import AlphaFit, fit_alpha, log_moment_ratio
from ce_keras.ntk.samplers import chain_kernels, stack_kernels

__all__ = [
    "AlphaFit",
    "KernelMoments",
    "chain_kernels",
    "fit_alpha",
    "kernel_moments",
    "log_moment_ratio",
    "stack_kernels",
]
