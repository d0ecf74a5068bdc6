"""Registration of our layers with Keras after `import ce_keras`, so that saved models load.

Keras deserialises registered classes only (serialization_lib.py of Keras 3.15; it imports modules
of its own packages, but of no others), and registering ours takes Keras itself: seconds of import
that a search does not need. A hook that waits for Keras to be imported is the only way to have
both a fast `import ce_keras` and saved models that load after it.
"""

from __future__ import annotations

import importlib
import importlib.util
import logging
import sys
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

logger = logging.getLogger("ce_keras")


def register_with_keras() -> None:
    """Import `ce_keras.layers` now if Keras is loaded, and otherwise as soon as it is."""
    if "keras" in sys.modules:
        importlib.import_module("ce_keras.layers")
    elif _KerasFinder not in sys.meta_path:
        sys.meta_path.insert(0, _KerasFinder)


class _KerasFinder:
    """A finder of Keras that makes its loader import our layers too."""

    @classmethod
    def find_spec(cls, name: str, path: Any, target: Any = None) -> ModuleSpec | None:  # noqa: ARG003
        if name != "keras":
            return None
        sys.meta_path.remove(cls)
        spec = importlib.util.find_spec(name)
        sys.meta_path.insert(0, cls)  # TensorFlow looks for Keras without importing it.
        if spec is None or spec.loader is None:
            return spec
        load = spec.loader.exec_module

        def load_and_register(module: ModuleType) -> None:
            load(module)
            sys.meta_path.remove(cls)
            try:
                importlib.import_module("ce_keras.layers")
            except ImportError as error:  # Importing Keras must not fail because of us.
                logger.warning("the layers of ce_keras are not registered with Keras: %s", error)

        spec.loader.exec_module = load_and_register  # type: ignore[method-assign]
        return spec
