"""A model saved with our layers loads after no more than `import ce_keras`.

Keras finds a layer's class only if something has registered it, and importing the layers means
importing Keras: seconds that a search does not need. So they are imported when Keras is, by
whoever does that.
"""

from __future__ import annotations

import importlib
import logging
import sys
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

logger = logging.getLogger("ce_keras")


def register_with_keras() -> None:
    """Import `ce_keras.layers` now if Keras is loaded, and else as soon as it is."""
    if "keras" in sys.modules:
        importlib.import_module("ce_keras.layers")
    elif not any(isinstance(finder, _KerasFinder) for finder in sys.meta_path):
        sys.meta_path.insert(0, _KerasFinder())


class _KerasFinder:
    """Finds Keras where the other finders do, and has its loader import our layers after it."""

    def find_spec(self, name: str, path: Any, target: Any = None) -> ModuleSpec | None:
        if name != "keras":
            return None
        # Whoever asks may only want to know whether Keras is there, as TensorFlow does: the finder
        # leaves when Keras is loaded, not when it is found.
        others = [finder for finder in sys.meta_path if finder is not self]
        specs = (finder.find_spec(name, path, target) for finder in others)
        spec = next((spec for spec in specs if spec is not None), None)
        if spec is None or spec.loader is None:
            return spec
        execute = spec.loader.exec_module

        def execute_and_register(module: ModuleType) -> None:
            execute(module)
            sys.meta_path.remove(self)
            try:
                importlib.import_module("ce_keras.layers")
            except ImportError as error:
                # Whoever imports Keras may want nothing of ours: it must not fail for them.
                logger.warning("the layers of ce_keras are not registered with Keras: %s", error)

        spec.loader.exec_module = execute_and_register  # type: ignore[method-assign]
        return spec
