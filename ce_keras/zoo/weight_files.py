"""Read the weight files of PyTorch and safetensors.

The format is recognised by the first bytes. No code in a file is run: PyTorch's files are read with
`weights_only=True`.
"""

from __future__ import annotations

import argparse
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from ce_keras.checks import brief, file_path, shortened

# Keys under which training scripts store the weights.
_NESTED = ("state_dict", "model_state_dict", "model", "state_dict_ema", "model_ema", "params")

# Prefixes of names that several devices, compilation and training libraries add.
_WRAPPERS = ("module.", "_orig_mod.", "model.", "backbone.", "net.")

_NO_WEIGHTS = {
    b"version https://git-lfs": "is a pointer of Git LFS, not the file itself: run `git lfs pull`",
    b"<": "is a page (HTML or XML), not weights: the download went elsewhere",
}


def read_state(argument: str, path: str | Path) -> dict[str, Any]:
    """Return the arrays or tensors of a PyTorch or `.safetensors` file, by name.

    Args:
        argument: the caller's name of the path, for messages.
        path: path of the file.

    Raises:
        ValueError: for a file that is missing, empty, damaged, or of another format; the message
            names it.
        ImportError: for a file of PyTorch if PyTorch is not installed.
    """
    path = file_path(argument, path)
    check_file(argument, path)
    with path.open("rb") as file:
        head = file.read(16)
    if zipfile.is_zipfile(path) or head.startswith((b"\x80\x02", b"\x80\x03", b"\x80\x04")):
        return plain_state(argument, _read_torch(argument, path), path)
    if head[8:9] == b"{":  # After the length of the header.
        return _read_safetensors(argument, path)
    raise ValueError(
        f"{argument}: {path} is neither a .safetensors file nor one of PyTorch's, or is damaged"
    )


def check_file(argument: str, path: Path) -> None:
    """Check that there is a file that may have weights.

    Raises:
        ValueError: for a file that is missing, empty, or known to be something else.
    """
    if not path.is_file():
        raise ValueError(f"{argument}: there is no file {shortened(str(path), 300)}")
    with path.open("rb") as file:
        head = file.read(64).lstrip()
    if not head:
        raise ValueError(f"{argument}: {path} is empty")
    for begins, what in _NO_WEIGHTS.items():
        if head.startswith(begins):
            raise ValueError(f"{argument}: {path} {what}")


def _read_safetensors(argument: str, path: Path) -> dict[str, Any]:
    from safetensors import SafetensorError
    from safetensors.numpy import load_file

    try:
        return load_file(path)
    # An AttributeError is NumPy's for 8-bit floats, which it lacks.
    except (SafetensorError, TypeError, ValueError, KeyError, OSError, AttributeError) as error:
        raise ValueError(f"{argument}: {path} cannot be read: {shortened(str(error))}") from None


def _read_torch(argument: str, path: Path) -> Any:
    try:
        import torch
    except ImportError:
        raise ImportError(
            f"{argument}: {path} needs PyTorch to be read: pip install torch"
        ) from None
    # Many files have the settings of a command line beside the weights.
    with torch.serialization.safe_globals([argparse.Namespace]):
        try:
            return torch.load(path, map_location="cpu", weights_only=True)
        # A damaged file, or one with objects in it, raises errors of many types.
        except Exception as error:
            raise ValueError(
                f"{argument}: {path} is damaged, or has more than weights in it, such as a whole "
                "network: save its state_dict() with torch.save "
                f"({shortened(' '.join(str(error).split()))})"
            ) from None


def plain_state(argument: str, content: Any, where: str | Path) -> dict[str, Any]:
    """Return the weights in a checkpoint, without the prefixes that wrappers add to names.

    Args:
        argument: the caller's name of the checkpoint, for messages.
        content: a state dictionary, or a dictionary with one in it.
        where: path or description of the source.

    Raises:
        ValueError: if there are no weights, or several sets of them.
    """
    if not isinstance(content, Mapping):
        raise ValueError(
            f"{argument}: {where} holds a {type(content).__name__}; it must be a state dictionary"
        )
    while inner := _inner(argument, content, where):
        content = inner
    state = {str(name): value for name, value in content.items() if _is_array(value)}
    state.pop("n_averaged", None)  # A counter of PyTorch's averaged models.
    if not state:
        raise ValueError(f"{argument}: {where} has no weights, but {brief(list(content))}")
    while wrapper := next((w for w in _WRAPPERS if all(n.startswith(w) for n in state)), None):
        state = {name.removeprefix(wrapper): value for name, value in state.items()}
    return state


def _inner(argument: str, content: Mapping[Any, Any], where: str | Path) -> Any:
    """Return the mapping in a checkpoint that has the weights: by its usual key, or the only one.

    Raises:
        ValueError: if there are several.
    """
    found = {name: value for name, value in content.items() if _has_weights(value)}
    for name in _NESTED:
        if name in found:
            return found[name]
    if any(_is_array(value) and value.ndim for value in content.values()):
        return None  # `content` itself has them.
    if len(found) > 1:
        raise ValueError(
            f"{argument}: {where} has weights under each of {brief(list(found))}; give one of them"
        )
    return next(iter(found.values()), None)


def _has_weights(value: Any, depth: int = 2) -> bool:
    """Return whether a value is a mapping of arrays, or of mappings of arrays."""
    return isinstance(value, Mapping) and any(
        bool(each.ndim) if _is_array(each) else depth > 1 and _has_weights(each, depth - 1)
        for each in value.values()
    )


def _is_array(value: Any) -> bool:
    return isinstance(value, np.ndarray) or hasattr(value, "detach")
