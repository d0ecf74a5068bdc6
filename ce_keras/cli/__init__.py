"""The command `ce-keras`: parses, calls the library, prints."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from typing import Any

from ce_keras.cli import networks, runs, theory


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; 0 is success, 2 an argument that does not fit."""
    parser = _parser()
    options = parser.parse_args(arguments)
    try:
        options.run(options)
    except (ValueError, ImportError, OSError) as error:
        print(f"ce-keras {options.command}: {error}", file=sys.stderr)
        return 2
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="ce-keras",
        description="Derive the optimal collegial ensemble of a network, without training one.",
        epilog="Start with: ce-keras demo",
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    def command(name: str, run: Any, description: str, example: str) -> argparse.ArgumentParser:
        added = commands.add_parser(
            name,
            help=description,
            description=description,
            epilog=f"example: {example}",
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        added.add_argument("--json", action="store_true", help="print JSON, for scripts")
        added.set_defaults(run=run)
        return added

    for room in (theory, networks, runs):
        room.add_commands(command)
    return parser
