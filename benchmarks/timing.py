"""Side by side in one process: contestants take turns, so that the machine drifts for all."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from ce_keras import files

# Frameworks' threads spin for a while after their last task, in the way of whoever comes next.
_SETTLE = 0.3

# A core that has slept is slow at first: a turn begins with so long of calls that do not count,
_WARM = 0.3
# and goes on with as many as take so long, whose mean counts.
_LONG = 0.1

# Fewer rounds are a trial, whose times say nothing, and which does not wait for them.
_FEWEST = 3


class Timing(NamedTuple):
    """Seconds of one contestant: the median, the quartiles around it, and those of every round."""

    median: float
    low: float
    high: float
    rounds: Sequence[float] = ()

    def __str__(self) -> str:
        return f"{1e3 * self.median:.1f} ms ({1e3 * self.low:.1f}-{1e3 * self.high:.1f})"


def interleaved(
    contestants: Mapping[str, Callable[[], object]],
    rounds: int,
    slow: float = 1.0,
    least: int = 3,
) -> dict[str, Timing]:
    """Run every contestant once a round, each time after calls that are not counted.

    Args:
        contestants: what to time, by name. Each must finish its work before it returns.
        rounds: how often.
        slow: a contestant slower than this many seconds runs only in the first `least` rounds.
        least: as it says.
    """
    seconds: dict[str, list[float]] = {name: [] for name in contestants}
    trial = rounds < _FEWEST
    for run in contestants.values():
        run()
    for round_number in range(rounds):
        for name, run in contestants.items():
            if round_number >= least and statistics.median(seconds[name]) > slow:
                continue
            time.sleep(0 if trial else _SETTLE)
            if not trial and (not seconds[name] or seconds[name][-1] < slow):
                _timed(run, _WARM)
            seconds[name].append(_timed(run, _LONG))
    return {name: _summary(values) for name, values in seconds.items()}


def fastest(
    contestants: Mapping[str, Callable[[], object]], rounds: int, turn: float = _LONG
) -> dict[str, Timing]:
    """Time calls of milliseconds, on a machine that does other work too.

    Of every turn of `turn` seconds the fastest call counts: whatever interrupts only ever adds.
    """
    seconds: dict[str, list[float]] = {name: [] for name in contestants}
    turn = turn if rounds >= _FEWEST else 0.0
    for _ in range(rounds):
        for name, run in contestants.items():
            run()
            begun = time.perf_counter()
            calls = [_timed(run, 0)]
            while time.perf_counter() - begun < turn:
                calls.append(_timed(run, 0))
            seconds[name].append(min(calls))
    return {name: _summary(values) for name, values in seconds.items()}


def _timed(run: Callable[[], object], least: float) -> float:
    """Seconds that a call takes, of as many as take `least` seconds together."""
    begun, calls = time.perf_counter(), 0
    while True:
        run()
        calls += 1
        if (seconds := time.perf_counter() - begun) >= least:
            return seconds / calls


def _summary(values: list[float]) -> Timing:
    low, median, high = statistics.quantiles(values, n=4, method="inclusive")
    return Timing(median, low, high, values)


def ratios(lines: Iterable[str], contestant: str) -> str:
    """Return the range of the ratios, the last column, in the rows of a contestant.

    >>> ratios(["| a | Keras | 2 ms | 2.04 |", "| b | Keras | 9 ms | 12.6 |"], "Keras")
    '2.0 to 13'
    """
    cells = [[cell.strip() for cell in line.split("|")] for line in lines]
    found = [float(row[-2]) for row in cells if len(row) > 3 and row[2] == contestant]
    shown = [f"{value:.1f}" if value < 10 else f"{value:.0f}" for value in sorted(found)]
    return f"{shown[0]} to {shown[-1]}" if shown else "an unknown number of"


def begin_with(verdict: str, lines: Sequence[str]) -> list[str]:
    """Return a page that begins, after its title, with the outcome in one sentence."""
    return [lines[0], "", f"**{verdict}**", *lines[1:]]


def report(path: Path, verdict: str, lines: Sequence[str]) -> None:
    """Write a page, and print it."""
    text = "\n".join(begin_with(verdict, lines)) + "\n"
    with files.replacing(path) as part:
        part.write_text(text)
    print(text)
