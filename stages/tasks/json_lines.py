"""Files of the user with one JSON object a line."""

from __future__ import annotations

import json
from collections.abc import Mapping
from itertools import islice
from pathlib import Path

from stages.errors import UsageError
from stages.files import local_file
from stages.tasks.hub_data import check_columns


def lines_file(inputs: Path, name: str, where: str) -> Path:
    """Find such a file.

    Args:
        inputs: the folder of the audit's own files.
        name: path in it.
        where: the block that names it as `jsonl`, for messages.

    Raises:
        UsageError: when it is missing, lies elsewhere or is a folder.
    """
    path = local_file(inputs, name, f"{where}.jsonl")
    if not path.is_file():
        raise UsageError(f"{where}.jsonl: {path} is a folder, expected a file with one JSON object a line")
    return path


def check_lines_file(inputs: Path, name: str, named: Mapping[str, str | None], where: str) -> None:
    """Look at such a file, and at its first line: a field that it lacks is mistyped, most likely.

    So that is one error, not one for each line. A first line that is no JSON object is left to who reads all of them.

    Args:
        inputs: the folder of the audit's own files.
        name: path in it.
        named: {key of the block: field}; None is none.
        where: the block, for messages.

    Raises:
        UsageError: as `lines_file`, or with one line per field.
    """
    with lines_file(inputs, name, where).open("rb") as lines:
        first = next((line for line in lines if line.strip()), b"")
    try:
        row = json.loads(first)
    except ValueError:
        return
    if isinstance(row, dict):
        check_columns(list(row), named, where, f"{name}, line 1,")


def count_lines(path: Path, enough: int) -> int:
    """Count the lines of a file that are not empty, up to so many."""
    with path.open("rb") as lines:
        return sum(1 for _ in islice(filter(bytes.strip, lines), enough))
