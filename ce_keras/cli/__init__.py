"""The command `ce-keras`: parses, calls the library, prints."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from typing import Any, NoReturn

from ce_keras import __version__
from ce_keras.checks import shortened
from ce_keras.cli import networks, output, runs, theory

# Exit codes: those of a shell for a signal, and argparse's own for what does not fit.
_WRONG = 2
_INTERRUPTED = 130
_BROKEN_PIPE = 141

# Characters of a message: it is a line, not a page.
_LONGEST = 800


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command and return its exit code.

    Returns:
        0: success. 2: what was asked for cannot be had, and one line on standard error says why;
        with `--debug` there is a traceback instead. 130: Ctrl-C. 141: nobody reads the output.
    """
    options = _parser().parse_args(arguments)
    output.set_debug(options.debug)
    if sys.stdout is None:  # As Python has it where the shell has closed it.
        _complain(options.command, "standard output is closed; send it to a file or /dev/null")
        return _WRONG
    try:
        options.run(options)
        sys.stdout.flush()
    except BrokenPipeError:
        # Python would complain once more when it closes the stream.
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
    """Return what went wrong, on one line."""
    message = shortened(" ".join(str(error).split()), _LONGEST)
    if isinstance(error, MemoryError):
        return f"out of memory{message and f': {message}'}"
    # The messages of these are for users; of others the kind is half of what they say.
    if message and isinstance(error, ValueError | ImportError | OSError | RuntimeError):
        return message
    return f"{type(error).__name__}: {message} (--debug shows where)"


def _complain(command: str, message: str) -> None:
    print(f"ce-keras {command}: {message}", file=sys.stderr)


class _Parser(argparse.ArgumentParser):
    """A parser that does not repeat the whole of a long argument."""

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

    for module in (theory, networks, runs):
        module.add_commands(command)
    return parser
