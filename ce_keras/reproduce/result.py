"""Result of a reproduction: its figures, and the files they are kept in."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ce_keras import files
from ce_keras.checks import file_path, one_of
from ce_keras.reproduce.page import Page, agreement, table_of_pages
from ce_keras.reproduce.protocol import NAMES, Check, Scale, experiment


@dataclass(frozen=True)
class Result:
    """A figure or table of the paper, computed again.

    Attributes:
        name: one of `NAMES`.
        scale: `"small"` or `"full"`.
        seed: of its random numbers.
        seconds: time it took; `None` if unknown.
        data: the figures, as plain numbers.
        stem: name of its files without suffix, if it is not `name`: `"fig4_mnist"`.
    """

    name: str
    scale: Scale
    seed: int
    seconds: float | None
    data: dict[str, Any]
    stem: str = ""

    @property
    def file(self) -> str:
        """Name of its files, without suffix."""
        return self.stem or self.name

    @property
    def title(self) -> str:
        """Title of the figure or table."""
        return experiment(self.name).TITLE + (f" ({self._variant})" if self._variant else "")

    @functools.cached_property
    def checks(self) -> list[Check]:
        """Rows of the table: the paper's figures, and ours."""
        return experiment(self.name).compare(self._summarized)

    @functools.cached_property
    def verdict(self) -> str:
        """The outcome in one sentence."""
        module = experiment(self.name)
        return (
            module.verdict(self._summarized)
            if hasattr(module, "verdict")
            else agreement(self.checks)
        )

    @functools.cached_property
    def paragraph(self) -> str:
        """A paragraph: what was found, and how many figures agree with the paper's."""
        return f"{experiment(self.name).say(self._summarized)} {agreement(self.checks)}"

    def page(self) -> str:
        """Return the page in Markdown: verdict, paragraph, picture and table."""
        return self._page.markdown()

    def digest(self) -> str:
        """Return the hash of the figures that is written into the picture."""
        return hashlib.sha256(json.dumps(self.data, sort_keys=True).encode()).hexdigest()

    def save_picture(self, path: str | Path) -> None:
        """Draw the picture into a PNG, SVG or PDF file."""
        path = file_path("path", path)
        one_of("path: its suffix", path.suffix, (".png", ".svg", ".pdf"))
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure

        figure = Figure(figsize=(10, 4.2), layout="constrained", dpi=120)
        FigureCanvasAgg(figure)
        experiment(self.name).draw(self._summarized, figure)
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
        """Return the result that `save` wrote, from its JSON.

        Raises:
            ValueError: if the file is damaged, or is not a result.
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

    @property
    def _variant(self) -> str:
        return self.file.removeprefix(self.name).replace("_", " ").strip()

    @functools.cached_property
    def _summarized(self) -> dict[str, Any]:
        """The figures, with the module's summary of them."""
        module: Any = experiment(self.name)
        if not hasattr(module, "summarize"):
            return self.data
        return {**self.data, "summary": module.summarize(self.data)}

    @property
    def _page(self) -> Page:
        return Page(
            title=self.title,
            stem=self.file,
            verdict=self.verdict,
            paragraph=self.paragraph,
            checks=self.checks,
            command=self._command(),
            scale=self.scale,
            seconds=self.seconds,
            variant=self._variant,
            details=getattr(experiment(self.name), "details", lambda _: "")(self._summarized),
        )

    def _command(self) -> str:
        """Return the shell command that computes it again."""
        if "command" in self.data:
            return self.data["command"]
        defaults = files.plain(experiment(self.name).SCALES[self.scale]._asdict())
        changes = "".join(
            " --set "
            + shlex.quote(f"{key}={value if isinstance(value, str) else json.dumps(value)}")
            for key, value in self.data["settings"].items()
            if value != defaults.get(key, value)
        )
        return f"ce-keras reproduce {self.name} --scale {self.scale} --seed {self.seed}{changes}"


def index(folder: str | Path) -> str:
    """Return a table of all results in a folder, in Markdown."""
    # Other JSON files may lie there too.
    paths = [path for path in Path(folder).glob("[!.]*.json") if path.stem.startswith(NAMES)]
    results = [Result.load(path) for path in paths]
    results.sort(key=lambda result: (NAMES.index(result.name), result.file))
    return table_of_pages(result._page for result in results)
