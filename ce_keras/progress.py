"""Progress bars of long work, on terminals and in notebooks only."""

from __future__ import annotations

import sys
from typing import Any


def progress(*arguments: Any, disable: bool = False, **options: Any) -> Any:
    """Return a `tqdm` bar on standard error, if that is a terminal; arguments are `tqdm`'s."""
    from tqdm.auto import tqdm

    watched = sys.stderr.isatty() or "ipykernel" in sys.modules
    return tqdm(*arguments, disable=disable or not watched, **options)
