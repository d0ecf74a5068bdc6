"""Check that every link inside the built site leads to a file, and to a place in it.

python docs/check_links.py [build/site]

Links to other sites are not followed: a build needs no network. But nothing that a page shows, a
picture, style or script, may come from elsewhere.
"""

from __future__ import annotations

import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit


class _Page(HTMLParser):
    """The links of a page, and the places in it that a link can name."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.links: list[str] = []
        self.loads: list[str] = []
        self.places: set[str] = set()
        self.feed(path.read_text())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = {name: value for name, value in attrs if value is not None}
        self.places |= {values[name] for name in ("id", "name") if name in values}
        if tag == "a" and "href" in values:
            self.links.append(values["href"])
        elif tag == "link" and values.get("rel") in ("stylesheet", "icon"):
            self.loads.append(values["href"])
        elif "src" in values:
            self.loads.append(values["src"])


def broken_links(site: Path) -> list[str]:
    """Return a line for every link that leads nowhere, `page: link`."""
    site = site.resolve()
    pages = {path: _Page(path) for path in sorted(site.rglob("*.html"))}
    found = []
    for path, page in pages.items():
        for link in sorted({*page.links, *page.loads}):
            target = urlsplit(link)
            outside = bool(target.scheme or target.netloc)
            if (outside and link in page.loads and target.scheme != "data") or (
                not outside and not _leads_somewhere(site, path, link, pages)
            ):
                found.append(f"{path.relative_to(site)}: {link}")
    return found


def _leads_somewhere(site: Path, path: Path, link: str, pages: dict[Path, _Page]) -> bool:
    target = urlsplit(link)
    file = (path.parent / unquote(target.path)).resolve() if target.path else path
    if target.path.startswith("/") or not file.is_file() or not file.is_relative_to(site):
        # The page for addresses that do not exist is shown at any of them: its links are absolute.
        return path.name == "404.html" and target.path.startswith("/")
    place = unquote(target.fragment)
    return not place or file not in pages or place in pages[file].places


if __name__ == "__main__":
    lines = broken_links(Path(sys.argv[1] if len(sys.argv) > 1 else "build/site"))
    sys.exit("\n".join([f"{len(lines)} links lead nowhere:", *lines]) if lines else 0)
