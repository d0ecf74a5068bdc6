"""The site builds, what it shows runs, and what is generated is not stale."""

import importlib
import os
import re
import shlex
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import ce_keras
from ce_keras.cli import main

ROOT = Path(__file__).parent.parent
SHOWN = [ROOT / "docs/index.md", *sorted(ROOT.glob("docs/guides/*.md"))]
# These build ResNet-50s, or train.
SLOW = ("collegialize", "compress", "training", "zoo")
PAGES = [
    pytest.param(path, id=path.stem, marks=[pytest.mark.slow] * (path.stem in SLOW))
    for path in SHOWN
    if "```python" in path.read_text()
]
CONSOLE = [
    pytest.param(block, id=f"{path.stem}-{number}")
    for path in SHOWN
    for number, block in enumerate(
        re.findall(r"^```console\n(.*?)^```$", path.read_text(), re.M | re.S)
    )
]
PACKAGES = ("geometry", "layers", "ntk", "training", "tuner", "variance", "zoo")
LONGEST_LINE = 79  # Longer ones are cut off at the right edge of a page.


@pytest.fixture(autouse=True)
def docs_modules(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "docs"))


@pytest.mark.slow
def test_the_site_builds_without_a_warning_and_no_link_leads_nowhere(tmp_path):
    from check_links import broken_links

    site = tmp_path / "site"
    result = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--quiet", "--site-dir", site],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "NO_MKDOCS_2_WARNING": "1"},
    )
    assert result.returncode == 0, result.stdout + result.stderr
    assert broken_links(site) == []
    home = (site / "index.html").read_text()
    reference = (site / "api/search.html").read_text()
    assert "How do I start?" in home
    # Examples of docstrings are code there.
    assert "near_optimal" in reference
    assert "&gt;&gt;&gt;" not in re.sub(r"<code>.*?</code>", "", reference, flags=re.DOTALL)
    assert 'id="ce_keras.search"' in reference
    # Functions made at import have their documentation too.
    assert "classifier_activation" in (site / "api/zoo.html").read_text()
    # Formulas are typeset, and none is left as it was written.
    theory = (site / "theory.html").read_text()
    assert "<mfrac>" in theory
    assert r"\frac" not in theory
    # Pages opened from disk find something.
    assert (site / "search/search_index.js").exists()
    walk = (site / "walkthrough.html").read_text()
    assert "test error" in walk


def test_links_that_lead_nowhere_are_found(tmp_path):
    from check_links import broken_links

    (tmp_path / "one.html").write_text(
        '<a href="two.html#here"></a><a href="two.html#there"></a><a href="three.html"></a>'
        '<a href="https://example.org"></a><img src="https://example.org/a.png"><a href="#"></a>'
    )
    (tmp_path / "two.html").write_text('<p id="here"></p><a href="../outside.html"></a>')
    assert broken_links(tmp_path) == [
        "one.html: https://example.org/a.png",
        "one.html: three.html",
        "one.html: two.html#there",
        "two.html: ../outside.html",
    ]


@pytest.mark.parametrize("page", PAGES)
def test_what_a_page_shows_runs(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    namespace = {}
    for block in re.findall(r"^```python\n(.*?)^```$", page.read_text(), re.M | re.S):
        exec(block, namespace)


@pytest.mark.parametrize("block", CONSOLE)
def test_console_blocks_print_what_is_printed(block, capsys):
    command, _, output = block.removeprefix("$ ").partition("\n")
    assert main(shlex.split(command)[1:]) == 0
    assert capsys.readouterr().out == output


def test_lines_of_code_are_not_cut_off():
    for page in SHOWN:
        for code in re.findall(
            r"^```(?:python|sh|toml)\n(.*?)^```$", page.read_text(), re.M | re.S
        ):
            for line in code.splitlines():
                assert len(line) <= LONGEST_LINE, f"{page.name}: {line}"


def test_guides_end_in_links_to_the_reference():
    for page in ROOT.glob("docs/guides/*.md"):
        assert "](../api/" in page.read_text().rpartition("\n---\n")[2], page.name


def test_every_public_name_is_in_the_reference():
    text = "".join(path.read_text() for path in ROOT.glob("docs/api/*.md"))
    shown = set(re.findall(r"^::: (\S+)$", text, re.M))
    # Of functions that two packages have, one entry is enough.
    objects = {id(_found(name)) for name in shown}
    public = [f"ce_keras.{name}" for name in ce_keras.__all__ if name not in PACKAGES]
    for package in PACKAGES:
        module = importlib.import_module(f"ce_keras.{package}")
        public += [f"ce_keras.{package}.{name}" for name in module.__all__]
    assert [name for name in public if name not in shown and id(_found(name)) not in objects] == []


def _found(name):
    package, _, attribute = name.rpartition(".")
    return getattr(importlib.import_module(package), attribute)


def test_the_drawings_are_their_script(tmp_path, monkeypatch):
    import drawings

    kept = {path.name: path.read_text() for path in drawings.IMAGES.glob("*.svg")}
    monkeypatch.setattr(drawings, "IMAGES", tmp_path)
    drawings.main()
    assert {path.name: path.read_text() for path in tmp_path.glob("*.svg")} == kept


def test_the_notebook_is_its_script():
    import jupytext
    import make_notebook

    kept = jupytext.read(make_notebook.NOTEBOOK)
    made = make_notebook.unrun()
    assert [(cell.cell_type, cell.source) for cell in kept.cells] == [
        (cell.cell_type, cell.source) for cell in made.cells
    ]
    assert all(cell.outputs for cell in kept.cells if "print(" in cell.source)


def test_the_version_is_one():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    version = project["version"]
    assert ce_keras.__version__ == version
    assert f"\nversion: {version}\n" in (ROOT / "CITATION.cff").read_text()
    assert f"## {version} (" in (ROOT / "CHANGELOG.md").read_text()
    for name in ("CITATION.cff", "README.md"):
        assert re.search(rf"version *= \{{{re.escape(version)}\}}", (ROOT / name).read_text())


def test_files_that_contributors_are_sent_to_exist():
    text = (ROOT / "CONTRIBUTING.md").read_text()
    paths = re.findall(r"[` ]((?:ce_keras|tests|docs|benchmarks|recipes|zoo)/[\w./]*)", text)
    assert len(paths) > 20
    for path in paths:
        # Pages come into being when the site is built.
        assert (ROOT / path).exists(), path


def test_the_extras_that_are_named_are_those_of_the_package():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    for page in ("README.md", "docs/index.md"):
        (extras,) = re.findall(r"'ce-keras\[(\w+)\]'`(.*?)\.\s", (ROOT / page).read_text(), re.S)
        named = {extras[0], *re.findall(r"`(\w+)`", extras[1])}
        assert named == set(project["optional-dependencies"]), page
