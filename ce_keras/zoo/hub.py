"""ResNets and ResNeXts of the Hugging Face Hub, as timm stores them, and their preprocessing.

An address is `hf://owner/name`, or `hf://owner/name@revision`. A repository has the network's
description in `config.json` and its weights in `model.safetensors`; no other file is read. The
weights are converted once, into a file that has the commit and the description in its header.
"""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ce_keras import files
from ce_keras.checks import brief, shortened, text
from ce_keras.geometry import RESNEXTS, Design, ResNeXt
from ce_keras.zoo.convert import zoo_arrays, zoo_name
from ce_keras.zoo.weight_files import read_state
from ce_keras.zoo.weights import find_weights, is_address

logger = logging.getLogger("ce_keras")

_ADDRESS = re.compile(r"hf://([\w.-]+/[\w.-]+)(?:@([\w./-]+))?")
_COMMIT = re.compile(r"[0-9a-f]{40}")

# Names of timm's networks that are those of the zoo, and why others are not. A name is needed: what
# some variants do differently leaves no trace in their weights.
_PLAIN = re.compile(r"resnet(50|101|152)|resnext(50|101|152)_(\d+)x(\d+)d|wide_resnet(50|101)_2")
_VARIANTS = {
    r"(legacy_)?se|eca|gc|sk|resnetrs|resnest|cbam": "has attention in its blocks",
    r"res(net|next)(aa|blur)": "filters before it subsamples",
    r"res(net|next)\d+_gn": "has group normalisation",
    r"res(net|next)\d+[cdst]": "has a deep stem",
    r"resnet(10|18|34)": "has blocks of two 3x3 convolutions",
}


def find_resnext_weights(
    weights: str | Path | None, name: str, shape: ResNeXt, design: Design
) -> Path | None:
    """Return the file that the argument `weights` of a ResNeXt means; from the Hub, if it says so.

    Args:
        weights: an address of the Hub, or what `find_weights` takes.
        name: name of the model.
        shape: its shape.
        design: its design.

    Raises:
        ValueError: if there is no such file, or it is of a network that computes another function.
        ImportError: without `huggingface_hub`, if it is needed.
    """
    if not is_address(weights):
        return find_weights(weights, name)
    address = str(weights)
    repository, commit, config = description(address)
    _check_fits(address, config, shape, design)
    path = _converted(repository, commit)
    if not path.is_file():
        state = read_state("weights", _download(address, repository, "model.safetensors", commit))
        names = {zoo_name(each) for each in state} - set(state)
        header = {"source": f"hf://{repository}@{commit}", "config": json.dumps(config)}
        from safetensors.numpy import save_file

        arrays = zoo_arrays(state, f"weights: {address}", names)
        arrays = {each: array.copy() for each, array in arrays.items()}  # In order, not transposed.
        with files.replacing(path) as part:
            save_file(arrays, part, metadata=header)
    logger.info("weights: hf://%s@%s, converted in %s", repository, commit, path)
    return path


def description(address: str) -> tuple[str, str, dict[str, Any]]:
    """Return the repository, the commit and the content of `config.json` that an address means.

    Without a revision, it is the newest commit; offline, the newest one downloaded before.

    Raises:
        ValueError: for an address that is malformed, or cannot be read.
        ImportError: without `huggingface_hub`, unless the commit is given and was converted before.
    """
    match = _ADDRESS.fullmatch(text("weights", address))
    if match is None:
        raise ValueError(
            f"weights: got {brief(address)}; it must be hf://owner/name or hf://owner/name@revision"
        )
    repository, revision = match[1], match[2]
    if revision and _COMMIT.fullmatch(revision) and _converted(repository, revision).is_file():
        from safetensors import safe_open

        with safe_open(_converted(repository, revision), "np") as file:
            return repository, revision, json.loads(file.metadata()["config"])
    path = _download(address, repository, "config.json", revision)
    config = files.read_json(path, dict)
    if "architecture" not in config or not isinstance(config.get("pretrained_cfg"), dict):
        raise ValueError(
            f"weights: {address}: its config.json is not one of timm's: it lacks 'architecture' "
            "or 'pretrained_cfg'"
        )
    return repository, path.parent.name, config  # The folder is named after the commit.


def _converted(repository: str, commit: str) -> Path:
    return files.keras_home() / "ce_keras" / f"{repository.replace('/', '--')}@{commit}.safetensors"


def _download(address: str, repository: str, name: str, revision: str | None) -> Path:
    """Return a file of a repository, downloaded unless it was before.

    Raises:
        ValueError: if it cannot be had.
        ImportError: if `huggingface_hub` is not installed.
    """
    try:
        import huggingface_hub
        from huggingface_hub.errors import HfHubHTTPError
    except ImportError:
        raise ImportError(
            f"weights: {address} needs huggingface_hub; run: pip install 'ce-keras[hub]'"
        ) from None
    try:
        return Path(huggingface_hub.hf_hub_download(repository, name, revision=revision))
    except (HfHubHTTPError, OSError, ValueError) as error:
        reason = shortened(" ".join(str(error).split()), 300)
        raise ValueError(f"weights: {address}: {name} cannot be had: {reason}") from error


def _check_fits(address: str, config: Mapping[str, Any], shape: ResNeXt, design: Design) -> None:
    """Raise `ValueError` unless a description is of a network of this shape and design."""
    name = str(config["architecture"])
    match = _PLAIN.fullmatch(name)
    if match is None:
        known = "resnet50, 101 and 152, resnext50_32x4d and its like, and wide_resnet50_2 and 101_2"
        reasons = (why for like, why in _VARIANTS.items() if re.match(like, name))
        raise ValueError(
            f"weights: {address} is {brief(name)}, which {next(reasons, 'the zoo lacks')}; "
            f"those that fit are {known}"
        )
    settings = {"global_pool": config.get("global_pool", "avg"), **config.get("model_args", {})}
    usual = {"global_pool": "avg", "in_chans": 3, "num_classes": config.get("num_classes")}
    if unusual := {k: v for k, v in settings.items() if k not in usual or v != usual[k]}:
        raise ValueError(
            f"weights: {address} was built with {brief(unusual)}, which the zoo does not have"
        )
    resnet, resnext, m, n, wide = match.groups()
    theirs = RESNEXTS[f"resnext{resnet or resnext or wide}"]
    parts = ("blocks", "stem", "filters", "stem_kernel", "stem_strides", "pool")
    wanted = Design(int(m or 1), int(n or (128 if wide else 64)))
    if design != wanted or any(getattr(shape, part) != getattr(theirs, part) for part in parts):
        family = f"{'resnet' if resnet else 'resnext'}{resnet or resnext or wide}"
        arguments = "" if resnet else f"cardinality={wanted.cardinality}, width={wanted.width}, "
        raise ValueError(
            f"weights: {address} is of {name}, but the network is {sum(shape.blocks) * 3 + 2} "
            f"layers of {design}; build it by {family}({arguments}weights=...)"
        )
