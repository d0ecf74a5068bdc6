"""Time exported networks in LiteRT's and ONNX Runtime's interpreters: docs/benchmarks/exported.md.

    pip install 'ce-keras[export]' onnxruntime
    python benchmarks/exported.py --data IMAGES [--rounds 9] [--batch 1] [--out docs/benchmarks]

Baseline, primal and dual of ResNeXt-11 and ResNeXt-29, in float32 and in int8 by quantisation after
training, by one thread and by two. Ranges for int8 are found from images of a folder that
`ce-keras train` takes too, such as CIFAR-10 in `train/CLASS/` and `test/CLASS/`; without `--data`,
from noise.
"""

from __future__ import annotations

import argparse
import os
import platform
import tempfile
from collections.abc import Callable, Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import keras
import numpy as np
from timing import Timing, fastest, report
from tqdm.auto import tqdm

from ce_keras import zoo
from ce_keras.designs import DesignMode, choose_design
from ce_keras.geometry import Design
from ce_keras.litert import converted, runner
from ce_keras.training.datasets import sample_images

Run = Callable[[np.ndarray], np.ndarray]
Open = Callable[[int], Run]
FORMS = {"litert": "LiteRT", "onnx": "ONNX"}
THREADS = (1, 2)
MODES: tuple[DesignMode, ...] = ("baseline", "primal", "dual")
# Published weights where there are some: rounding matters for outputs that mean something.
TRAINED = ("resnext11c 1x64d", "resnext11c 7x7d")


class Row(NamedTuple):
    """A network in an interpreter: as Keras computes it, how far off, and how long."""

    network: str
    mode: str
    design: str
    form: str
    size: int
    difference: float
    agreement: float
    times: tuple[Timing, ...]


def build(name: str, design: Design) -> keras.Model:
    """Return a network of the zoo that gives logits."""
    m, n = design
    weights = "cifar10" if f"{name} {design}" in TRAINED else None
    make = getattr(zoo, name)
    return make(cardinality=m, width=n, weights=weights, classifier_activation=None)


def litert(model: keras.Model, batch: int, images: np.ndarray | None) -> tuple[bytes, Open]:
    """Return a LiteRT model, and what opens it for a number of threads."""
    content = converted(model, model.input_shape[1:], batch, images)
    return content, lambda threads: runner(content, threads)


def onnx(model: keras.Model, batch: int, images: np.ndarray | None) -> tuple[bytes, Open]:
    """Return the same of an ONNX model."""
    import onnxruntime

    with tempfile.TemporaryDirectory() as folder:
        content = _onnx_content(model, batch, images, Path(folder))

    def opened(threads: int) -> Run:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        session = onnxruntime.InferenceSession(content, options)
        name = session.get_inputs()[0].name
        return lambda images: session.run(None, {name: images})[0]

    return content, opened


def _onnx_content(model: keras.Model, batch: int, images: np.ndarray | None, folder: Path) -> bytes:
    from onnxruntime import quantization

    exact, prepared, rounded = (folder / f"{name}.onnx" for name in ("exact", "prepared", "int8"))
    signature = [keras.InputSpec(shape=(batch, *model.input_shape[1:]), dtype="float32", name="x")]
    model.export(exact, "onnx", verbose=False, input_signature=signature)
    if images is None:
        return exact.read_bytes()

    class Reader(quantization.CalibrationDataReader):
        given = _batches(images, batch)

        def get_next(self) -> Any:
            group = next(self.given, None)
            return None if group is None else {"x": group}

    quantization.quant_pre_process(exact, prepared)
    quantization.quantize_static(prepared, rounded, Reader(), per_channel=True)
    return rounded.read_bytes()


def _batches(images: np.ndarray, batch: int) -> Iterator[np.ndarray]:
    return (images[i : i + batch] for i in range(0, len(images) - batch + 1, batch))


def rows_of(
    name: str, designs: dict[str, Design], images: np.ndarray, batch: int, rounds: int
) -> list[Row]:
    """Export, compare and time designs of a network, side by side."""
    models = {design: build(name, design) for design in {*designs.values()}}
    ranges, inputs = np.split(images, 2)
    rows = []
    forms = [(form, kind) for form in (litert, onnx) for kind in ("float32", "int8")]
    for form, kind in tqdm(forms, name):
        exported = {
            design: form(model, batch, ranges if kind == "int8" else None)
            for design, model in models.items()
        }
        times = []
        for threads in THREADS:
            opened = {mode: exported[design][1](threads) for mode, design in designs.items()}
            calls = {mode: _call(run, inputs[:batch]) for mode, run in opened.items()}
            times.append(fastest(calls, rounds, turn=0.5))
        for mode, design in designs.items():
            content, opens = exported[design]
            run = opens(1)
            ours = np.concatenate([run(group) for group in _batches(inputs, batch)])
            theirs = models[design].predict(inputs[: len(ours)], verbose=0)
            rows.append(
                Row(
                    name,
                    mode,
                    str(design),
                    f"{FORMS[form.__name__]}, {kind}",
                    len(content),
                    float(np.linalg.norm(ours - theirs) / np.linalg.norm(theirs)),
                    float(np.mean(ours.argmax(-1) == theirs.argmax(-1))),
                    tuple(each[mode] for each in times),
                )
            )
    return rows


def _call(run: Run, images: np.ndarray) -> Callable[[], Any]:
    return lambda: run(images)


def table(rows: list[Row]) -> list[str]:
    """Return the rows in Markdown, each time beside the baseline's in the same form."""
    threads = " | ".join(
        f"{count} thread{'s' * (count > 1)} | of the baseline" for count in THREADS
    )
    lines = [
        f"| network | form | design | file | {threads} | difference | same class |",
        "|---|---|---|---:|" + "---:|---:|" * len(THREADS) + "---:|---:|",
    ]
    for row in rows:
        base = next(each for each in rows if (each.network, each.form) == (row.network, row.form))
        times = " | ".join(
            f"{_shown(own)} | {own.median / other.median:.2f}"
            for own, other in zip(row.times, base.times, strict=True)
        )
        lines.append(
            f"| {row.network} | {row.form} | {row.mode} {row.design} | {row.size / 1e6:.2f} MB "
            f"| {times} | {row.difference:.1e} | {row.agreement:.0%} |"
        )
    return lines


def _shown(time: Timing) -> str:
    return f"{1e3 * time.median:.2f} ms ({1e3 * time.low:.2f}-{1e3 * time.high:.2f})"


def _range(rows: list[Row], mode: str, kind: str) -> str:
    """Return the lowest and highest time of a mode by one thread, relative to the baseline's."""
    found = []
    for row in rows:
        if row.mode == mode and row.form.endswith(kind):
            base = next(
                each for each in rows if (each.network, each.form) == (row.network, row.form)
            )
            found.append(row.times[0].median / base.times[0].median)
    return f"{min(found):.1f} to {max(found):.1f}"


def main() -> None:
    """Measure, and write the page."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, help="folder of images")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--networks", nargs="+", default=["resnext11c", "resnext29"])
    parser.add_argument("--out", type=Path, default=Path(__file__).parents[1] / "docs/benchmarks")
    parser.add_argument("--small", action="store_true", help="tiny: only whether it runs")
    options = parser.parse_args()
    count = 8 if options.small else 256
    if options.data is None:
        images = np.random.default_rng(0).normal(size=(count, 32, 32, 3)).astype("float32")
    else:
        images = np.float32(sample_images(str(options.data), count))
    rows = []
    for name in ["resnext11c"] if options.small else options.networks:
        designs = {mode: choose_design(name, mode) for mode in MODES}
        if options.small:
            designs = dict.fromkeys(MODES, Design(2, 1))
        rows += rows_of(name, designs, images, options.batch, options.rounds)
    verdict = (
        f"Exported, by one thread, the dual takes {_range(rows, 'dual', 'float32')} times the "
        f"baseline's time in float32 and {_range(rows, 'dual', 'int8')} times in int8; the primal "
        f"{_range(rows, 'primal', 'float32')} and {_range(rows, 'primal', 'int8')} times."
    )
    source = "images of noise" if options.data is None else "images"
    packages = ("tensorflow", "keras", "ai-edge-litert", "tf2onnx", "onnxruntime")
    versions = ", ".join(f"{name} {version(name)}" for name in packages)
    lines = [
        "# Exported networks, in interpreters",
        "",
        f"{os.cpu_count()} cores, {platform.machine()}, load {os.getloadavg()[0]:.0f}; {versions}. "
        f"32x32 pixels, batches of {options.batch}. Medians (quartiles) of {options.rounds} "
        "rounds, of each the fastest call; the three designs side by side. Int8: weights and "
        "features, with ranges from "
        f"{len(images) // 2} {source}; inputs and outputs stay floats. Difference: of the logits "
        f"of as many other {source} from Keras', relative to their norm; same class: how many have "
        f"the same highest logit. Weights are trained for {' and '.join(TRAINED)}, and random "
        "otherwise.",
        "",
        *table(rows),
    ]
    report(options.out / "exported.md", verdict, lines)


if __name__ == "__main__":
    main()
