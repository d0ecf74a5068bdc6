"""KerasTuner without the sweep: oracles that propose what the theory answers.

    tuner = CollegialTuner(build, "val_accuracy", baseline="resnext29", mode="dual")
    tuner.search(x, y, validation_data=...)

`build(hp)` is an ordinary hypermodel that asks for `hp.Int("cardinality", ...)` and
`hp.Int("width", ...)`. KerasTuner comes with `pip install 'ce-keras[tuner]'`.
"""

from ce_keras.tuner.budget import BudgetOracle
from ce_keras.tuner.oracles import NAMES, CollegialOracle
from ce_keras.tuner.space import designs_of
from ce_keras.tuner.tuning import CollegialHyperModel, CollegialTuner
from ce_keras.tuner.wrapping import WrappedOracle

__all__ = [
    "NAMES",
    "BudgetOracle",
    "CollegialHyperModel",
    "CollegialOracle",
    "CollegialTuner",
    "WrappedOracle",
    "designs_of",
]
