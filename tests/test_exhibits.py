"""Examples of modes as a file: it is read back unchanged for the review page, with the same bytes each time."""

from __future__ import annotations

from pathlib import Path

import pytest

from stages.core.errors import UsageError
from stages.pages import Gallery
from stages.records.tables import read_exhibits, write_exhibits
from stages.tasks.contract import Exhibit
from tests.report_samples import shelf

GALLERIES = {
    "M1": Gallery(
        [Exhibit("M1.1 - a digit", image=b"\x89PNG\r\n\x1a\n\x00\xff"), Exhibit("M1.2", image=b"1", drawn=b"2")],
        [Exhibit("M1.3 - <script>", text="new\n", original="", answers={"summary": "Ümlaut", "of what?": ""})],
        ids=["M1.1", "M1.2", "M1.3"],
    ),
    "M2": Gallery([Exhibit("M2.1", words=(("a ", ""), ("red", "colour")))], [], ids=["M2.1"]),
    "M3": Gallery([], []),
}
SHELVES = {mode: shelf(gallery) for mode, gallery in GALLERIES.items()}


def test_examples_come_back_as_they_were(tmp_path: Path) -> None:
    path = tmp_path / "exhibits.parquet"
    write_exhibits(path, {})
    assert read_exhibits(path, "") == {}
    write_exhibits(path, SHELVES)
    shown = read_exhibits(path, str(path))
    assert list(shown) == ["M1", "M2"]
    assert [(e.id, e.failed) for e in shown["M1"]] == [("M1.1", True), ("M1.2", True), ("M1.3", False)]
    for mode, examples in shown.items():
        assert [e.exhibit for e in examples] == [*GALLERIES[mode].failing, *GALLERIES[mode].passing]
    write_exhibits(tmp_path / "again.parquet", SHELVES)
    assert (tmp_path / "again.parquet").read_bytes() == path.read_bytes()


def test_what_is_no_such_file_is_told(tmp_path: Path) -> None:
    path = tmp_path / "exhibits.parquet"
    with pytest.raises(UsageError, match=r"exhibits.parquet is missing"):
        read_exhibits(path, str(path))
    path.write_text("no parquet")
    with pytest.raises(UsageError, match="cannot be read as a parquet file"):
        read_exhibits(path, str(path))
