"""Latency as a cost: the time of every block over a grid of designs, interpolated between.

`ce_keras.rewrite.timing` measures the tables; here they are kept in files and read. Only NumPy is
needed.
"""

from __future__ import annotations

import functools
import hashlib
import importlib.metadata
import json
import logging
import os
import platform
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args

import numpy as np

from ce_keras import files
from ce_keras.checks import boolean, one_of, positive_int
from ce_keras.cost import Measured
from ce_keras.geometry import Design

logger = logging.getLogger("ce_keras")

Phase = Literal["train", "infer"]

# Largest fraction of the baseline's step that its blocks can take.
_MOST_OF_A_STEP = 0.95

# Channels that processors handle at once: multiples of it are faster, on a CPU in training 1.7
# times.
_ALIGNMENT = 8

# A cardinality of which not even one path is affordable.
_BELOW_ONE = 1 - 1e-6

# Of measuring. A file of another number is not read.
_METHOD = 3

#: Environment variable that names the folder of measured times.
CACHE_VARIABLE = "CE_KERAS_CACHE"


class Timing(NamedTuple):
    """What is timed.

    Attributes:
        batch: images in a step.
        phase: `"train"`: forward and backward pass and update. `"infer"`: a forward pass.
        remeasure: whether times that are known from before are measured again.
    """

    batch: int = 32
    phase: Phase = "train"
    remeasure: bool = False

    def checked(self) -> Timing:
        """Return it. Raise `ValueError` for a field that is not right."""
        positive_int("batch", self.batch)
        one_of("phase", self.phase, get_args(Phase))
        boolean("remeasure", self.remeasure)
        return self

    @property
    def name(self) -> str:
        """The step that is timed, in words."""
        step = "training step" if self.phase == "train" else "inference"
        return f"{step}, batch {self.batch}"


class Block(NamedTuple):
    """A block of a network, measured at several designs.

    Attributes:
        number: of such blocks in the network.
        designs: the designs; the last is the baseline's.
        seconds: of each design, the measured times.
        factor: the width of its paths over a design's, which is that of the narrowest block.
    """

    number: int
    designs: Sequence[Sequence[int]]
    seconds: Sequence[Sequence[float]]
    factor: float = 1.0


class Table(NamedTuple):
    """Measured times of a network.

    Attributes:
        whole: of a step of the baseline.
        blocks: of those of its blocks that a design changes.
    """

    whole: Sequence[float]
    blocks: Sequence[Block]


class LatencyCost:
    """The time of a step of the whole network, predicted from measured blocks.

    A block of m paths of width n takes a + m s(n), where a is the same for all designs. The
    logarithm of s(n) is interpolated in log n. Where the channels of all paths together are no
    multiple of 8, processors are slower, by a measured factor; a cardinality that is not whole
    stands for such channels if its width is no multiple of 8. One path alone is computed by other
    means, and has times of its own. The rest of the network takes the baseline's step less its
    blocks. Where blocks take longer alone than the whole step, their times are scaled down.

    Args:
        timing: what was timed.
        table: the measured times.
        width: the baseline's.
    """

    def __init__(self, timing: Timing, table: Table, width: int) -> None:
        self.name = timing.name
        self._blocks = [_BlockTime(Block(*block)) for block in table.blocks]
        self.baseline = float(np.median(table.whole))
        own = sum(block.of(np.ones(1), np.array([width]))[0] for block in self._blocks)
        # A block by itself may take longer than within its network.
        self._scale = min(1.0, _MOST_OF_A_STEP * self.baseline / own)
        self._rest = self.baseline - self._scale * own

    def of(self, m: Any, n: Any) -> np.ndarray:
        """Return the seconds of the network with cardinalities m of widths n."""
        m, n = np.asarray(m, float), np.asarray(n, float)
        return self._rest + self._scale * sum(block.of(m, n) for block in self._blocks)

    def affordable(self, n: np.ndarray, fraction: float) -> np.ndarray:
        """Return the real-valued cardinality that takes a fraction of the baseline's time."""
        n = np.asarray(n, float)
        fixed = self._rest + self._scale * sum(block.fixed for block in self._blocks)
        path = self._scale * sum(block.path(n) for block in self._blocks)
        m = (fraction * self.baseline - fixed) / path
        # Whether one path is affordable is known from its own time, not from that of several.
        alone = self.of(np.ones(n.shape), n) <= fraction * self.baseline * (1 + 1e-9)
        few = np.where(alone, np.maximum(m, 1), np.minimum(m, _BELOW_ONE))
        return np.where(m < 2, few, m)

    def module_of(self, m: np.ndarray, n: np.ndarray) -> np.ndarray:
        """Return the network's time relative to the baseline's: a block alone has none."""
        return self.of(m, n) / self.baseline

    module_affordable = affordable

    def log_error(self, m: np.ndarray, n: np.ndarray) -> np.ndarray:
        """Return the standard error of the logarithm of the predicted time.

        The error of the baseline's own time is left out: it moves all designs together.
        """
        m, n = np.asarray(m, float), np.asarray(n, float)
        variances = sum((block.of(m, n) * block.log_error(m, n)) ** 2 for block in self._blocks)
        return self._scale * np.sqrt(variances) / self.of(m, n)

    def measured(self, design: Design) -> tuple[Measured, ...]:
        """Return the predicted time of a design beside the baseline's measured one."""
        (seconds,) = self.of(*map(np.atleast_1d, design))
        return (Measured(self.name, "ms", 1e3 * self.baseline, 1e3 * float(seconds)),)


class _BlockTime:
    """The time of all blocks of one kind, as a function of the design.

    Attributes:
        fixed: the part that does not depend on the design.
    """

    def __init__(self, block: Block) -> None:
        designs = np.array(block.designs)
        seconds = block.number * np.array([np.median(each) for each in block.seconds])
        errors = np.array([_standard_error(each) for each in block.seconds])
        self._factor = block.factor
        m, n = designs.T
        aligned = self._is_aligned(m, n)
        self.fixed = _common_part(designs[aligned], seconds[aligned])
        # A path takes some time, however the noise of small blocks falls.
        path = np.maximum(seconds - self.fixed, 0.01 * seconds) / m
        self._one = _Curve.through(m == 1, n, path, errors)
        several = aligned & (m > 1)
        self._several = _Curve.through(several if several.any() else m == 1, n, path, errors)
        other = ~aligned & (m > 1)
        ratios = np.log(path[other]) - self._several.log_seconds(n[other])
        self._slower = max(0.0, float(ratios.mean())) if other.any() else 0.0
        self._error_of_slower = float(errors[other].mean()) if other.any() else 0.0

    def path(self, n: np.ndarray) -> np.ndarray:
        """Return the seconds of each of several paths of width n."""
        return self._path(np.full(n.shape, np.nan), n)

    def of(self, m: np.ndarray, n: np.ndarray) -> np.ndarray:
        """Return the seconds of m paths of width n."""
        one = np.exp(self._one.log_seconds(n))
        return self.fixed + np.where(m == 1, one, m * self._path(m, n))

    def log_error(self, m: np.ndarray, n: np.ndarray) -> np.ndarray:
        """Return the standard error of the logarithm of the time."""
        several = self._several.error(n)
        several = np.where(
            self._is_aligned(m, n), several, np.hypot(several, self._error_of_slower)
        )
        return np.where(m == 1, self._one.error(n), several)

    def _path(self, m: np.ndarray, n: np.ndarray) -> np.ndarray:
        slower = np.where(self._is_aligned(m, n), 0.0, self._slower)
        return np.exp(self._several.log_seconds(n) + slower)

    def _is_aligned(self, m: np.ndarray, n: np.ndarray) -> np.ndarray:
        """Return whether the channels are a multiple of 8, with any cardinality if not a whole."""
        n = np.rint(n * self._factor)
        return np.where(m == np.rint(m), m * n, n) % _ALIGNMENT == 0


class _Curve(NamedTuple):
    """Measured times by width."""

    log_width: np.ndarray
    log_time: np.ndarray
    errors: np.ndarray

    @classmethod
    def through(
        cls, chosen: np.ndarray, n: np.ndarray, seconds: np.ndarray, errors: np.ndarray
    ) -> _Curve:
        """Return the curve through some of the times; the first of each width counts."""
        widths, first = np.unique(n[chosen], return_index=True)
        return cls(np.log(widths), np.log(seconds[chosen][first]), errors[chosen][first])

    def log_seconds(self, n: np.ndarray) -> np.ndarray:
        """Return the logarithm of the time, interpolated, and along the outer lines beyond."""
        x, known, values = np.log(n), self.log_width, self.log_time
        inside = np.interp(x, known, values)
        if len(values) == 1:  # Time goes with the width.
            return inside + x - known[0]
        slopes = np.diff(values) / np.diff(known)
        below = values[0] + slopes[0] * (x - known[0])
        above = values[-1] + slopes[-1] * (x - known[-1])
        return np.select([x < known[0], x > known[-1]], [below, above], inside)

    def error(self, n: np.ndarray) -> np.ndarray:
        """Return the standard error of the logarithm."""
        return np.interp(np.log(n), self.log_width, self.errors)


def _common_part(designs: np.ndarray, seconds: np.ndarray) -> float:
    """Return the part of a block's time that does not depend on the design.

    It is the intercept of the two cardinalities of the width that was measured at two.
    """
    for width in np.unique(designs[:, 1]):
        (same,) = np.nonzero((designs[:, 1] == width) & (designs[:, 0] > 1))
        if len(same) > 1:
            low, high = same[np.argsort(designs[same, 0])][[0, -1]]
            slope = (seconds[high] - seconds[low]) / (designs[high, 0] - designs[low, 0])
            fixed = seconds[low] - slope * designs[low, 0]
            return float(np.clip(fixed, 0, 0.9 * seconds.min()))
    return 0.0


def _standard_error(seconds: Sequence[float]) -> float:
    """Return the standard error of the logarithm of the median of some times."""
    logs = np.log(np.asarray(seconds))
    if len(logs) < 2:
        return 0.0
    # A median's error is 1.25 times a mean's; quartiles are safe from a single slow step.
    low, high = np.quantile(logs, [0.25, 0.75])
    return float(1.25 * (high - low) / 1.35 / np.sqrt(len(logs)))


# The file of measured times ----------------------------------------------------------------------


def known_table(key: dict[str, Any], timing: Timing, measure: Callable[[], Table]) -> Table:
    """Return the table of a key from its file; measure it, and write the file, if there is none.

    Files lie in the folder that the environment variable `CE_KERAS_CACHE` names, by default
    `~/.cache/ce_keras`. A file that cannot be read is measured again; where the folder cannot be
    written, the times are not kept, with a warning.

    Args:
        key: what identifies the network; device, versions and settings are added.
        timing: what is timed.
        measure: called without arguments, measures the table.
    """
    whole, path = _place(key, timing)
    if is_known(key, timing):
        try:
            found = files.read_json(path, dict)
            return Table(found["whole"], [Block(*block) for block in found["blocks"]])
        except (ValueError, KeyError, TypeError) as error:
            logger.warning("%s cannot be read, and is measured again: %s", path, error)
    table = measure()
    try:
        files.write_json(path, {"of": whole, "whole": table.whole, "blocks": table.blocks})
    except OSError as error:
        logger.warning("measured times are not kept: %s", error)
    return table


def is_known(key: dict[str, Any], timing: Timing) -> bool:
    """Return whether there is a file of a key's times, so that nothing is to be measured."""
    return not timing.remeasure and _place(key, timing)[1].is_file()


def _place(key: dict[str, Any], timing: Timing) -> tuple[dict[str, Any], Path]:
    """Return all that the times of a key depend on, and their file."""
    how = {"batch": timing.batch, "phase": timing.phase, "method": _METHOD}
    whole = {**key, **how, **device_and_versions()}
    text = json.dumps(whole, sort_keys=True)
    return whole, _folder() / f"latency-{hashlib.sha256(text.encode()).hexdigest()[:20]}.json"


def device_and_versions() -> dict[str, str]:
    """Return what a time depends on beside the network, without loading a backend."""
    versions = {}
    for package in ("keras", "tensorflow", "jax", "torch"):
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return {
        "device": _device(),
        "backend": os.environ.get("KERAS_BACKEND") or _configured_backend(),
        **versions,
        "threads": " ".join(map(str, _threads())),
        "visible_gpus": os.environ.get("CUDA_VISIBLE_DEVICES", ""),
    }


def _threads() -> list[Any]:
    """Return the numbers of threads that are set, in the environment or for TensorFlow."""
    names = ("OMP_NUM_THREADS", "TF_NUM_INTRAOP_THREADS", "TF_NUM_INTEROP_THREADS")
    found: list[Any] = [os.environ.get(name) for name in names]
    if "tensorflow" in sys.modules:
        threading = sys.modules["tensorflow"].config.threading
        found.append(threading.get_intra_op_parallelism_threads())
        found.append(threading.get_inter_op_parallelism_threads())
    return [number for number in found if number]


def _configured_backend() -> str:
    """Return the backend that Keras' own configuration file names."""
    try:
        return str(
            files.read_json(files.keras_home() / "keras.json", dict).get("backend", "tensorflow")
        )
    except (OSError, ValueError):
        return "tensorflow"


@functools.cache
def _device() -> str:
    """Return the names of the processor and of the graphics cards."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    cards = sorted(Path("/proc/driver/nvidia/gpus").glob("*/information"))
    names = [card.read_text().partition("\n")[0] for card in cards]
    return "; ".join([f"{_processor()}, {cores} cores", *names])


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def _folder() -> Path:
    named = os.environ.get(CACHE_VARIABLE)
    return Path(named) if named else Path.home() / ".cache" / "ce_keras"
