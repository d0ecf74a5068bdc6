"""The paper's figures and tables, computed again: one module for each.

Every module has the same five parts: `SCALES`, its settings at each scale; `measure`, which returns
plain numbers; and, from those numbers alone, `compare` (the paper's figures beside ours), `say` (a
paragraph) and `draw` (a picture). So what was measured once can be told and drawn again.

>>> result = reproduce("fig3")
>>> [check.agrees for check in result.checks]
[True, True, True, False]
"""

from ce_keras.reproduce.result import NAMES, NUMPY_ONLY, Check, Result, Scale, reproduce

__all__ = ["NAMES", "NUMPY_ONLY", "Check", "Result", "Scale", "reproduce"]
