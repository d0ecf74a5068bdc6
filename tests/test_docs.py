"""The site builds, what it shows runs, and what is generated is not stale."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PAGES = sorted(
    path
    for path in [ROOT / "docs/index.md", *ROOT.glob("docs/guides/*.md")]
    if "```python" in path.read_text()
)


@pytest.mark.slow
def test_the_site_builds_without_a_warning(tmp_path):
    command = [sys.executable, "-m", "mkdocs", "build", "--quiet", "--site-dir", tmp_path / "site"]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout + result.stderr
    home = (tmp_path / "site/index.html").read_text()
    reference = (tmp_path / "site/api/search/index.html").read_text()
    assert "Quick start" in home
    # Examples of docstrings are code there.
    assert "near_optimal" in reference
    assert "&gt;&gt;&gt;" not in re.sub(r"<code>.*?</code>", "", reference, flags=re.DOTALL)
    walk = (tmp_path / "site/walkthrough/index.html").read_text()
    assert "test error" in walk


@pytest.mark.parametrize("page", PAGES, ids=[page.stem for page in PAGES])
def test_what_a_page_shows_runs(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    namespace = {}
    for block in re.findall(r"^```python\n(.*?)^```$", page.read_text(), re.M | re.S):
        exec(block, namespace)


def test_the_notebook_is_its_script():
    import jupytext

    sys.path.insert(0, str(ROOT / "docs"))
    try:
        import make_notebook
    finally:
        sys.path.pop(0)
    kept = jupytext.read(make_notebook.NOTEBOOK)
    made = make_notebook.unrun()
    assert [(cell.cell_type, cell.source) for cell in kept.cells] == [
        (cell.cell_type, cell.source) for cell in made.cells
    ]
    assert all(cell.outputs for cell in kept.cells if "print(" in cell.source)
