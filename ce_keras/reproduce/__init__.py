"""The paper's figures and tables, computed again: one module for each.

Every module has the same parts: `SCALES`, its settings at each scale; `measure`, which returns
plain numbers; and, from those numbers alone, `compare` (the paper's figures beside ours), `verdict`
(one sentence), `say` (a paragraph) and `draw` (a picture). A saved measurement can so be described
and drawn again.

>>> result = reproduce("fig3")
>>> [check.agrees for check in result.checks]
[True, True, True, False]
"""

from ce_keras.reproduce.protocol import NAMES, NUMPY_ONLY, Check, Scale
from ce_keras.reproduce.result import Result
from ce_keras.reproduce.runner import reproduce

__all__ = ["NAMES", "NUMPY_ONLY", "Check", "Result", "Scale", "reproduce"]
