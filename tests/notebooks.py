"""The notebooks of docs/: `python -m tests.notebooks` runs them, and writes them as pages of the site."""

from __future__ import annotations

import json
import re
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


def page_of(path: Path) -> Path:
    """The page of a notebook: docs/notebook-audit.md for docs/notebooks/audit.ipynb."""
    return path.parents[1] / f"notebook-{path.stem}.md"


def as_page(notebook: Any) -> str:
    """A notebook as a page of the site."""
    parts = []
    for cell in notebook["cells"]:
        source = "".join(cell["source"])
        parts.append(source.replace("](../", "](") if cell["cell_type"] == "markdown" else f"```python\n{source}\n```")
        parts += [_shown(output["data"]) for output in cell.get("outputs", ()) if "data" in output]
    return "\n\n".join(parts) + "\n"


def _shown(data: Any) -> str:
    if "text/html" not in data:
        return f"```text\n{''.join(data['text/plain'])}\n```"
    plain = re.sub(r"<style.*?</style>", "", "".join(data["text/html"]), flags=re.DOTALL)  # pages have their own
    return re.sub(r"\n\s*\n", "\n", plain).strip()


def main() -> None:
    """Run all notebooks, and write their pages."""
    for path in NOTEBOOKS:
        path.write_text(json.dumps(executed(path), indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
        page_of(path).write_text(as_page(read(path)), encoding="utf-8")


if __name__ == "__main__":
    main()
