"""The private names of KerasTuner that are used."""

import inspect

import keras_tuner

from ce_keras.tuner import keras_tuner_private as private


def test_keras_tuners_private_names_are_as_they_were_read():
    changed = []
    for (owner, name), wanted in private.PRIVATE.items():
        method = getattr(owner, name, None)
        found = method and tuple(inspect.signature(method).parameters)
        if found != wanted:
            changed.append(f"{owner.__name__}.{name} has the parameters {found}, not {wanted}")
    if not isinstance(getattr(keras_tuner.Oracle, "_project_dir", None), property):
        changed.append("Oracle._project_dir is no property")
    for owner, names in private.PLANS.items():
        if missing := set(names) - vars(owner("val_loss")).keys():
            changed.append(f"{owner.__name__} has no {missing}")
    assert not changed, (
        f"KerasTuner {keras_tuner.__version__} differs from {private.VERSION}: "
        f"{'; '.join(changed)}; adapt ce_keras/tuner/keras_tuner_private.py"
    )
