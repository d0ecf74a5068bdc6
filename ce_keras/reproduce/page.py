"""Pages of reproductions, in Markdown."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

from ce_keras.reproduce.protocol import Check

# Rows that differ and are named in a sentence; the table has all of them.
_NAMED = 3


class Page(NamedTuple):
    """Content of one page.

    Attributes:
        title: title of the figure or table.
        stem: file name of the page and its picture, without suffix.
        verdict: the outcome in one sentence.
        paragraph: what was done and found.
        checks: rows of the table.
        command: shell command that computes it again.
        scale: `"small"` or `"full"`.
        seconds: time it took; `None` if unknown.
        variant: name of the settings, for a reproduction that has several pages; else empty.
        details: more Markdown, shown before the table.
    """

    title: str
    stem: str
    verdict: str
    paragraph: str
    checks: Sequence[Check]
    command: str
    scale: str
    seconds: float | None
    variant: str = ""
    details: str = ""

    def markdown(self) -> str:
        """Return the page: verdict, paragraph, picture, table and command."""
        rows = [
            f"| {check.quantity} | {check.paper or '—'} | {check.ours} | {_mark(check)} |"
            for check in self.checks
        ]
        time = ""
        if self.seconds is not None:
            time = f", {_duration(self.seconds)} on the machine that wrote this page"
        return "\n".join(
            [
                f"# {self.title}",
                "",
                f"**{self.verdict}**",
                "",
                self.paragraph,
                "",
                f"![{self.title}]({self.stem}.png)",
                "",
                *([self.details, ""] if self.details else []),
                "| | paper | ours | agrees |",
                "|---|---|---|---|",
                *rows,
                "",
                f"To compute it again: `{self.command}`{time}. The figures: "
                f"[{self.stem}.json]({self.stem}.json).",
                "",
            ]
        )


def table_of_pages(pages: Iterable[Page]) -> str:
    """Return a table of all pages, in Markdown; further pages of one figure stand below its own."""
    lines = [
        "# The paper, computed again",
        "",
        "One command for each figure and table: `ce-keras reproduce NAME`. Nothing is tuned to "
        "agree.",
        "",
        "| | outcome | figures that agree | scale | time |",
        "|---|---|--:|---|--:|",
    ]
    for page in pages:
        title = f"– {page.variant}" if page.variant else page.title
        agree, total = _counts(page.checks)
        lines.append(
            f"| [{title}]({page.stem}.md) | {page.verdict} | {agree} of {total} | {page.scale} | "
            f"{_duration(page.seconds)} |"
        )
    return "\n".join(lines) + "\n"


def agreement(checks: Sequence[Check]) -> str:
    """Return a sentence that counts the rows which agree, and names some that do not.

    Rows for which the paper has no figure are not counted.

    >>> agreement([Check("m", "12", "12.1", True), Check("rho", "2", "3", False)])
    "1 of 2 figures agree with the paper's; this one does not: rho."
    """
    agree, total = _counts(checks)
    if not total:
        return "The paper has none of these figures."
    differ = [check.quantity for check in checks if check.agrees is False]
    text = f"{agree} of {total} figures agree with the paper's"
    if differ:
        more = f"; and {len(differ) - _NAMED} more" if len(differ) > _NAMED else ""
        verb = "this one does" if len(differ) == 1 else "these do"
        text += f"; {verb} not: {'; '.join(differ[:_NAMED])}{more}"
    return f"{text}."


def _counts(checks: Sequence[Check]) -> tuple[int, int]:
    with_figure = [check for check in checks if check.paper is not None]
    return sum(check.agrees is True for check in with_figure), len(with_figure)


def _mark(check: Check) -> str:
    if check.paper is None:
        return "not in the paper"
    return "too uncertain to tell" if check.agrees is None else "yes" if check.agrees else "**no**"


def _duration(seconds: float | None) -> str:
    if seconds is None:
        return "—"
    return f"{seconds:.1f} s" if seconds < 100 else f"{seconds / 60:.0f} min"
