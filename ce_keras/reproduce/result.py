"""What a reproduction gives, and how it is kept."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import importlib
import json
import shlex
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, Protocol, get_args

from ce_keras import files
from ce_keras.checks import brief, checked_seed, file_path, finite_number, one_of, whole_number
from ce_keras.solution import Mode

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Scale = Literal["small", "full"]

MODES: tuple[Mode, ...] = ("primal", "dual")

#: What can be reproduced, in the order of the paper.
NAMES = (
    "assumption1",
    "fig2",
    "lemma1",
    "theorem1",
    "fig3",
    "fig4",
    "alpha",
    "exact_law",
    "fig6",
    "cifar10",
    "table1",
    "table2",
)


#: Those of them that are computed without Keras.
NUMPY_ONLY = frozenset({"fig2", "lemma1", "theorem1", "fig3", "exact_law", "fig6", "table2"})


class NoSettings(NamedTuple):
    """Of what is exact: nothing is drawn, and nothing trained."""


EXACT: dict[Scale, NoSettings] = {"small": NoSettings(), "full": NoSettings()}

# Figures that differ and are named in a paragraph; the table has all.
_NAMED = 3


class Check(NamedTuple):
    """One figure of the paper, and ours.

    Attributes:
        quantity: what it is.
        paper: what the paper has.
        ours: what was computed or measured here.
        agrees: whether they are the same within the error that is stated; `None` if ours is too
            uncertain to tell.
    """

    quantity: str
    paper: str
    ours: str
    agrees: bool | None

    @classmethod
    def same(cls, quantity: str, paper: Any, ours: Any) -> Check:
        """Of what is the same or not."""
        return cls(quantity, str(paper), str(ours), paper == ours)

    @classmethod
    def rounded(cls, quantity: str, paper: str, ours: float, digits: int = 2) -> Check:
        """Of a figure that the paper prints, like `"3.3"`: ours must round to it."""
        decimals = len(paper.partition(".")[2])
        agrees = bool(abs(ours - float(paper)) <= 0.5 * 10**-decimals + 1e-9)
        return cls(quantity, paper, f"{ours:.{decimals + digits}f}", agrees)

    @classmethod
    def within(cls, quantity: str, paper: float, ours: float, error: float) -> Check:
        """Of what is measured with a standard error: ours may be three of them away."""
        agrees = bool(abs(ours - paper) <= 3 * error)  # Not NumPy's.
        return cls(quantity, f"{paper:g}", f"{ours:.3f} ± {error:.3f}", agrees)


class Points:
    """What is done of a long measurement, kept in a file point by point.

    Args:
        path: the file; `None` keeps nothing.
        key: what the points belong to: those of anything else are refused.

    Raises:
        ValueError: if the file has points of another measurement.
    """

    def __init__(self, path: Path | None = None, key: Any = None) -> None:
        self._path, self._key = path, files.plain(key)
        self._done: dict[str, Any] = {}
        self._begun, self._before = time.perf_counter(), 0.0
        if path is not None and path.exists():
            content = files.read_json(path, dict)
            if content.get("of") != self._key:
                raise ValueError(
                    f"out: {path} was begun with other settings, {content.get('of')}; delete it, "
                    "or give another folder"
                )
            self._done, self._before = content["points"], content["seconds"]

    @property
    def seconds(self) -> float:
        """Spent until now, in this process and in those that were stopped."""
        return self._before + time.perf_counter() - self._begun

    def __call__(self, name: str, measure: Callable[..., Any], *arguments: Any) -> Any:
        """The point of a name, measured if it is not there yet."""
        if name not in self._done:
            self._done[name] = files.plain(measure(*arguments))
            if self._path is not None:
                content = {"of": self._key, "seconds": self.seconds, "points": self._done}
                files.write_json(self._path, content)
        return self._done[name]

    @contextlib.contextmanager
    def folder(self) -> Iterator[Path]:
        """A folder for a point's own files: beside the points, or one that is removed again."""
        if self._path is not None:
            yield self._path.with_suffix("")
            return
        with tempfile.TemporaryDirectory() as folder:
            yield Path(folder)

    def end(self) -> None:
        """Remove all of it: the whole measurement is kept elsewhere."""
        if self._path is not None:
            self._path.unlink(missing_ok=True)
            shutil.rmtree(self._path.with_suffix(""), ignore_errors=True)


class Experiment(Protocol):
    """What a module of this package has."""

    TITLE: str
    SCALES: dict[Scale, Any]

    def measure(self, settings: Any, seed: int, points: Points) -> dict[str, Any]:
        """The figures, as plain numbers."""

    def compare(self, data: dict[str, Any]) -> list[Check]:
        """The paper's figures, and ours."""

    def say(self, data: dict[str, Any]) -> str:
        """One paragraph."""

    def draw(self, data: dict[str, Any], figure: Figure) -> None:
        """The picture."""


@dataclass(frozen=True)
class Result:
    """A figure or table of the paper, computed again.

    Attributes:
        name: one of `NAMES`.
        scale: `"small"` or `"full"`.
        seed: of its random numbers.
        seconds: that it took; `None` if that was not kept.
        data: the figures, as plain numbers.
        stem: of its files' names; the name, unless it is one of several.
    """

    name: str
    scale: Scale
    seed: int
    seconds: float | None
    data: dict[str, Any]
    stem: str = ""

    @property
    def file(self) -> str:
        """Name of its files, without what comes behind the dot."""
        return self.stem or self.name

    @property
    def title(self) -> str:
        """What it is."""
        which = self.file.removeprefix(self.name).replace("_", " ").strip()
        return experiment(self.name).TITLE + (f" ({which})" if which else "")

    @property
    def checks(self) -> list[Check]:
        """The paper's figures, and ours."""
        return experiment(self.name).compare(self.data)

    @property
    def paragraph(self) -> str:
        """What was found, and whether it agrees with the paper."""
        checks = self.checks
        differ = [check.quantity for check in checks if check.agrees is False]
        agree = sum(check.agrees is True for check in checks)
        verdict = f"{agree} of {len(checks)} figures agree with the paper's"
        if differ:
            more = f"; and {len(differ) - _NAMED} more" if len(differ) > _NAMED else ""
            verdict += f"; these do not: {'; '.join(differ[:_NAMED])}{more}"
        return f"{experiment(self.name).say(self.data)} {verdict}."

    def page(self) -> str:
        """The paragraph, the picture and the table, in Markdown."""
        rows = [
            f"| {check.quantity} | {check.paper} | {check.ours} | {_mark(check.agrees)} |"
            for check in self.checks
        ]
        return "\n".join(
            [
                f"# {self.title}",
                "",
                self.paragraph,
                "",
                f"![{self.title}]({self.file}.png)",
                "",
                "| | paper | ours | agrees |",
                "|---|---|---|---|",
                *rows,
                "",
                f"`{self._command()}`: {_duration(self.seconds)} on the machine that wrote this "
                f"page. The figures: [{self.file}.json]({self.file}.json).",
                "",
            ]
        )

    def _command(self) -> str:
        """What computes it again."""
        usual = files.plain(experiment(self.name).SCALES[self.scale]._asdict())
        own = {
            key: value
            for key, value in self.data["settings"].items()
            if value != usual.get(key, value)
        }
        told = (
            f"{key}={value if isinstance(value, str) else json.dumps(value)}"
            for key, value in own.items()
        )
        changes = "".join(f" --set {shlex.quote(change)}" for change in told)
        return f"ce-keras reproduce {self.name} --scale {self.scale} --seed {self.seed}{changes}"

    def digest(self) -> str:
        """What a picture is marked with, to tell whether it is of these figures."""
        return hashlib.sha256(json.dumps(self.data, sort_keys=True).encode()).hexdigest()

    def save_picture(self, path: str | Path) -> None:
        """Draw the picture into a file."""
        path = file_path("path", path)
        one_of("path: its suffix", path.suffix, (".png", ".svg", ".pdf"))
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure

        figure = Figure(figsize=(10, 4.2), layout="constrained", dpi=120)
        FigureCanvasAgg(figure)
        experiment(self.name).draw(self.data, figure)
        with files.replacing(path) as part:
            figure.savefig(part, metadata={"Description": self.digest()})

    def save(self, folder: str | Path) -> None:
        """Write `NAME.json`, `NAME.png` and `NAME.md` into a folder."""
        folder = file_path("folder", folder)
        files.write_json(folder / f"{self.file}.json", dataclasses.asdict(self))
        self.save_picture(folder / f"{self.file}.png")
        with files.replacing(folder / f"{self.file}.md") as part:
            part.write_text(self.page())

    @classmethod
    def load(cls, path: str | Path) -> Result:
        """Return what `save` wrote, from its JSON.

        Raises:
            ValueError: if the file is damaged, or of something else.
        """
        path = file_path("path", path)
        if not path.is_file():
            raise ValueError(f"path: there is no file {path}")
        try:
            content = files.read_json(path, dict)
        except ValueError as error:
            raise ValueError(f"path: {error}") from None
        fields = {field.name for field in dataclasses.fields(cls)}
        if not {"name", "data"} <= content.keys() <= fields:
            raise ValueError(f"path: {path} is no figure or table of this package")
        return cls(**content)


def reproduce(
    name: str,
    scale: Scale = "small",
    out: str | Path | None = None,
    *,
    seed: int = 0,
    settings: dict[str, Any] | None = None,
) -> Result:
    """Compute a figure or table of the paper again.

    Args:
        name: one of `NAMES`.
        scale: `"small"`: minutes on two CPU cores. `"full"`: the paper's settings.
        out: a folder for `NAME.json`, `NAME.png` and `NAME.md`. What is done of a long
            measurement is kept there too, and a later call goes on from it.
        seed: for reproducible random numbers.
        settings: some of the module's own, instead of the scale's.

    Raises:
        ValueError: for an unknown name, scale or setting; or a folder in which a measurement with
            other settings was begun.

    >>> reproduce("table2").data["rows"][0]["design"]
    '1x64d'
    """
    if out is not None:
        out = file_path("out", out)
    module = experiment(name)
    one_of("scale", scale, get_args(Scale))
    if checked_seed(seed) is None:
        raise ValueError("seed: got None; it must be a number: results can be had again")
    chosen = module.SCALES[scale]
    if settings is not None and not isinstance(settings, Mapping):
        raise ValueError(f"settings: got {brief(settings)}; it must be a dictionary")
    unknown = {*map(str, settings or {})} - {*chosen._fields}
    if unknown:
        raise ValueError(
            f"settings: {name} has no {brief(sorted(unknown))}; it has "
            f"{', '.join(chosen._fields) or 'none'}"
        )
    usual = chosen._asdict()
    own = {key: _checked_setting(key, value, usual[key]) for key, value in (settings or {}).items()}
    chosen = chosen._replace(**own)
    key = {"name": name, "seed": seed, "settings": chosen._asdict()}
    points = Points(None if out is None else Path(out) / f".{name}.part.json", key)
    data = files.plain(
        {"settings": chosen._asdict(), **module.measure(chosen, seed=seed, points=points)}
    )
    result = Result(name, scale, seed, round(points.seconds, 1), data)
    if out is not None:
        result.save(out)
        points.end()
        with files.replacing(Path(out) / "index.md") as part:
            part.write_text(index(out))
    return result


# The largest number that a setting may be.
_MOST = 10**9


def _checked_setting(name: str, value: Any, usual: Any) -> Any:
    """Return a setting's value, of the kind of its usual value and in its range.

    Raises:
        ValueError: if it is of another kind, or a number below the least that makes sense.
    """
    argument = f"settings.{name}"
    if value is None and usual is None:
        return None
    if isinstance(usual, tuple | list):
        if not isinstance(value, tuple | list) or not value:
            raise ValueError(f"{argument}: got {brief(value)}; it must be a list, like {usual}")
        return tuple(_checked_setting(name, each, usual[0]) for each in value)
    if isinstance(usual, float):
        bound = {"above": 0.0} if usual else {"least": 0.0}
        return finite_number(argument, value, **bound)
    if isinstance(usual, int) or usual is None:
        return whole_number(argument, value, 1 if usual != 0 else 0, _MOST)
    if not isinstance(value, type(usual)):
        raise ValueError(f"{argument}: got {brief(value)}; it must be like {usual!r}")
    return value


def index(folder: str | Path) -> str:
    """All results of a folder in one table, in Markdown."""
    # Files of other people's may lie there too.
    ours = [path for path in Path(folder).glob("[!.]*.json") if path.stem.startswith(NAMES)]
    results = [Result.load(path) for path in ours]
    results.sort(key=lambda result: (NAMES.index(result.name), result.file))
    lines = [
        "# The paper, computed again",
        "",
        "One command for each figure and table: `ce-keras reproduce NAME`. Nothing is tuned to "
        "agree.",
        "",
        "| | figures that agree | scale | took |",
        "|---|--:|---|--:|",
    ]
    for result in results:
        verdicts = [check.agrees for check in result.checks]
        lines.append(
            f"| [{result.title}]({result.file}.md) | {verdicts.count(True)} of {len(verdicts)} | "
            f"{result.scale} | {_duration(result.seconds)} |"
        )
    return "\n".join(lines) + "\n"


def experiment(name: str) -> Experiment:
    """The module of a name."""
    one_of("name", name, NAMES)
    return importlib.import_module(f"ce_keras.reproduce.{name}")


def _mark(agrees: bool | None) -> str:
    return "too uncertain to tell" if agrees is None else "yes" if agrees else "**no**"


def _duration(seconds: float | None) -> str:
    if seconds is None:
        return "a time that was not kept"
    return f"{seconds:.1f} s" if seconds < 100 else f"{seconds / 60:.0f} min"
