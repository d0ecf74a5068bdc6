"""Changes to pages while the site is built: formulas are typeset, links out of it become text."""

from __future__ import annotations

import html
import re
from typing import Any

from latex2mathml.converter import convert

_OUT_OF_SITE = re.compile(r"\[([^\]]+)\]\((?:\.\./)+ce_keras/[^)]*\)")
_FORMULA = re.compile(
    r'<(?P<tag>span|div) class="arithmatex">\\[(\[](?P<latex>.*?)\\[)\]]</(?P=tag)>', re.DOTALL
)


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Return the page with links into the package, which has no page, replaced by their text."""
    return _OUT_OF_SITE.sub(r"\1", markdown)


def on_page_content(content: str, **_: Any) -> str:
    """Return the page with every formula as MathML, which browsers draw without a script."""
    return _FORMULA.sub(_mathml, content)


def _mathml(match: re.Match[str]) -> str:
    display = "block" if match["tag"] == "div" else "inline"
    mathml = convert(html.unescape(match["latex"].strip()), display=display)
    return f'<{match["tag"]} class="arithmatex">{mathml}</{match["tag"]}>'
