"""The notebook of the site, made of its script and run.

python docs/make_notebook.py
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jupytext

DOCS = Path(__file__).parent
SCRIPT = DOCS.parent / "examples/walkthrough.py"
NOTEBOOK = DOCS / "walkthrough.ipynb"


def unrun() -> Any:
    """The script as a notebook without outputs."""
    notebook = jupytext.read(SCRIPT)
    for number, cell in enumerate(notebook.cells):
        cell.id = f"cell-{number}"  # The same every time.
    return notebook


def main() -> None:
    """Run it, and keep what it shows; what libraries log is left out."""
    from nbclient import NotebookClient

    notebook = unrun()
    NotebookClient(notebook, timeout=600).execute()
    for cell in notebook.cells:
        cell.metadata.pop("execution", None)
        if cell.cell_type == "code":
            cell.outputs = [out for out in cell.outputs if out.get("name") != "stderr"]
    notebook.metadata.pop("language_info", None)
    jupytext.write(notebook, NOTEBOOK, fmt="ipynb")


if __name__ == "__main__":
    main()
