"""CIFAR-10: error of designs against the exact variance, and against a narrower baseline."""

from ce_keras.reproduce.cifar10.analysis import summarize
from ce_keras.reproduce.cifar10.page import compare, details, draw, say, verdict
from ce_keras.reproduce.cifar10.trainings import SCALES, measure

TITLE = "CIFAR-10: which quantity predicts a design's error"

__all__ = [
    "SCALES",
    "TITLE",
    "compare",
    "details",
    "draw",
    "measure",
    "say",
    "summarize",
    "verdict",
]
