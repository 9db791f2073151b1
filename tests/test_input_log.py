"""Production inputs are kept as they come, and can be measured."""

import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import faded
from stages.core.errors import UsageError


def test_texts_and_rows_are_lines_however_many_threads_write(tmp_path: Path) -> None:
    path = tmp_path / "new" / "asked.jsonl"
    log = faded.InputLog(path, share=1)
    texts = [f"Grüße {k} " + "x" * (k % 50) for k in range(400)]
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(log, texts))
    log({"age": 40, "region": "south"})
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    assert sorted(row["text"] for row in rows[:-1]) == sorted(texts) and rows[-1] == {"age": 40, "region": "south"}
    assert path.stat().st_mode & 0o077 == 0, "inputs of people are nobody else's"


@pytest.mark.parametrize(
    "picture",
    [
        np.full((4, 5), 0.5, np.float32),
        np.full((4, 5, 1), 128, np.uint8),
        np.full((4, 5, 3), 0.5),
        Image.new("RGB", (5, 4), (128, 128, 128)),
    ],
    ids=["grey", "one channel", "colour", "PIL"],
)
def test_pictures_are_files_of_the_same_pixels(tmp_path: Path, picture: Any) -> None:
    faded.InputLog(tmp_path / "seen", share=1)(picture)
    (kept,) = (tmp_path / "seen").iterdir()
    with Image.open(kept) as shown:
        assert shown.size == (5, 4) and np.asarray(shown.convert("L")).tolist() == [[128] * 5] * 4


def test_a_share_is_kept_and_no_more_than_most(tmp_path: Path) -> None:
    log = faded.InputLog(tmp_path / "a.jsonl", share=0.2, most=150)
    for k in range(500):
        log(str(k))
    assert 50 < len((tmp_path / "a.jsonl").read_text().splitlines()) < 150  # 100 +- 9
    for k in range(2000):
        log(str(k))
    assert len((tmp_path / "a.jsonl").read_text().splitlines()) == 150


@pytest.mark.parametrize(
    ("path", "share", "received", "found"),
    [
        ("a", 0.0, "x", "0.0"),
        ("a", 1.5, "x", "1.5"),
        ("a", 1.0, "a text", "str"),
        ("a", 1.0, np.zeros((2, 2, 7)), "(2, 2, 7)"),
        ("a.jsonl", 1.0, np.zeros((2, 2)), "ndarray"),
    ],
)
def test_what_cannot_be_kept_is_said(tmp_path: Path, path: str, share: float, received: Any, found: str) -> None:
    with pytest.raises(UsageError) as told:
        faded.InputLog(tmp_path / path, share=share)(received)
    assert found in str(told.value)
    assert not list(tmp_path.iterdir())
