"""The device that the scripts for GPUs run on, and the time on it."""

from __future__ import annotations

import time
from collections.abc import Callable

import torch

BEGUN = time.perf_counter()
CUDA = torch.cuda.is_available()
DEVICE = "cuda" if CUDA else "cpu"


def synchronize() -> None:
    """Wait for the device."""
    if CUDA:
        torch.cuda.synchronize()


def seconds(function: Callable[[], None]) -> float:
    """Return the seconds that a call takes, with all that it starts on the device."""
    synchronize()
    begun = time.perf_counter()
    function()
    synchronize()
    return time.perf_counter() - begun


def say(text: str) -> None:
    """Print with the seconds since the start."""
    print(f"[{time.perf_counter() - BEGUN:6.1f}] {text}", flush=True)
