"""The command `ce-keras`: parse arguments, call the library, print the result."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from typing import Any, NoReturn

from ce_keras import __version__
from ce_keras.checks import shortened
from ce_keras.cli import compress, networks, output, runs, theory

# Exit codes: argparse's for bad arguments, and a shell's for signals.
_WRONG = 2
_INTERRUPTED = 130
_BROKEN_PIPE = 141

# Largest number of characters of a message.
_LONGEST = 800


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command and return its exit code.

    Returns:
        0: success. 2: an error, explained by one line on standard error, or by a traceback with
        `--debug`. 130: Ctrl-C. 141: the reader of the output has closed it.
    """
    options = _parser().parse_args(arguments)
    output.set_debug(options.debug)
    if sys.stdout is None:  # The shell has closed it.
        _complain(options.command, "standard output is closed; send it to a file or /dev/null")
        return _WRONG
    try:
        options.run(options)
        sys.stdout.flush()
    except BrokenPipeError:
        # Otherwise Python reports the same error when it closes the stream.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return _BROKEN_PIPE
    except KeyboardInterrupt as interrupt:
        _complain(options.command, str(interrupt) or "interrupted")
        return _INTERRUPTED
    except Exception as error:
        if options.debug:
            raise
        _complain(options.command, _line(error))
        return _WRONG
    return 0


def _line(error: Exception) -> str:
    """Return the message of an error, on one line."""
    message = shortened(" ".join(str(error).split()), _LONGEST)
    if isinstance(error, MemoryError):
        return f"out of memory{message and f': {message}'}"
    # Messages of these types are written for users; of others the type is needed too.
    if message and isinstance(error, ValueError | ImportError | OSError | RuntimeError):
        return message
    return f"{type(error).__name__}: {message} (--debug shows where)"


def _complain(command: str, message: str) -> None:
    print(f"ce-keras {command}: {message}", file=sys.stderr)


class _Parser(argparse.ArgumentParser):
    """A parser that shortens long arguments in messages."""

    def error(self, message: str) -> NoReturn:
        super().error(shortened(message, _LONGEST))


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="ce-keras",
        description="Derive the optimal collegial ensemble of a network, without training one.",
        epilog="Start with: ce-keras demo",
    )
    parser.add_argument("--version", action="version", version=f"ce-keras {__version__}")
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
        added.add_argument(
            "--debug", action="store_true", help="show tracebacks, and what TensorFlow writes"
        )
        added.set_defaults(run=run)
        return added

    for module in (theory, networks, compress, runs):
        module.add_commands(command)
    return parser
