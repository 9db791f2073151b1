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
    """Find a user's JSON lines file.

    Args:
        inputs: the folder of the audit's own files.
        name: path in that folder.
        where: the block that names it as `jsonl`, for messages.

    Raises:
        UsageError: if it is missing, outside that folder, or a folder itself.
    """
    path = local_file(inputs, name, f"{where}.jsonl")
    if not path.is_file():
        raise UsageError(f"{where}.jsonl: {path} is a folder, expected a file with one JSON object a line")
    return path


def check_lines_file(inputs: Path, name: str, named: Mapping[str, str | None], where: str) -> None:
    """Check that a JSON lines file exists and that its first line has the named fields.

    A missing field is most likely a typo, so it is reported once rather than for every line. If the first line is not a
    JSON object, the code that reads all lines reports it.

    Args:
        inputs: the folder of the audit's own files.
        name: path in that folder.
        named: {key of the block: field}; None for no field.
        where: the block, for messages.

    Raises:
        UsageError: as for `lines_file`, or with one line per field.
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
    """Count the non-empty lines of a file, up to `enough`."""
    with path.open("rb") as lines:
        return sum(1 for _ in islice(filter(bytes.strip, lines), enough))
