"""Time of a search: a whole curve in a running process, and one result in a new process.

python benchmarks/search.py [--rounds 20] [--out docs/benchmarks]
"""

from __future__ import annotations

import argparse
import os
import platform
import subprocess
import sys
from pathlib import Path

from timing import interleaved, report

from ce_keras import search


def main() -> None:
    """Measure, print and write `search.md`."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--out", type=Path, default=Path(__file__).parents[1] / "docs/benchmarks")
    options = parser.parse_args()
    command = [sys.executable, "-m", "ce_keras.cli", "search", "resnext29", "--mode", "dual"]
    timings = interleaved(
        {
            "a curve over 256 widths (`resnext29-1x256d`)": lambda: search("resnext29-1x256d"),
            "`ce-keras search resnext29 --mode dual`, a new process": lambda: subprocess.run(
                command, check=True, capture_output=True
            ),
            "a new Python that imports NumPy and ends": lambda: subprocess.run(
                [sys.executable, "-c", "import numpy"], check=True
            ),
        },
        options.rounds,
    )
    curve, command_line, python = timings.values()
    verdict = (
        f"A whole curve takes {1e3 * curve.median:.1f} ms; the command takes "
        f"{1e3 * command_line.median:.0f} ms, Python with NumPy alone "
        f"{1e3 * python.median:.0f} ms."
    )
    lines = [
        "# Search",
        "",
        f"{os.cpu_count()} cores, {platform.machine()}; {options.rounds} rounds, interleaved.",
        "",
        "| search | median (quartiles) |",
        "|---|---:|",
        *(f"| {name} | {timing} |" for name, timing in timings.items()),
    ]
    report(options.out / "search.md", verdict, lines)


if __name__ == "__main__":
    main()
