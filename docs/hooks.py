"""What the site shows differently from the files it is made of."""

from __future__ import annotations

import re
from typing import Any

_ELSEWHERE = re.compile(r"\[([^\]]+)\]\(\.\./ce_keras/[^)]*\)")


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Links into the package have no page here: their text stays."""
    return _ELSEWHERE.sub(r"\1", markdown)
