"""The notebooks of docs/: `python -m tests.notebooks` runs them and keeps their outputs."""

import json
from pathlib import Path
from typing import Any

NOTEBOOKS = sorted((Path(__file__).parents[1] / "docs" / "notebooks").glob("*.ipynb"))


def read(path: Path) -> Any:
    """A notebook as plain data."""
    return json.loads(path.read_text(encoding="utf-8"))


def executed(path: Path) -> Any:
    """A notebook as plain data, with the outputs of a new run."""
    import nbformat
    from nbclient import NotebookClient

    notebook = nbformat.read(path, as_version=4)
    NotebookClient(notebook, timeout=300, resources={"metadata": {"path": str(path.parent)}}).execute()
    for cell in notebook.cells:
        cell.metadata.pop("execution", None)  # when it ran
    return json.loads(nbformat.writes(notebook))


def main() -> None:
    """Run all notebooks."""
    for path in NOTEBOOKS:
        path.write_text(json.dumps(executed(path), indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
