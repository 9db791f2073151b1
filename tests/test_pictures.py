"""Captioned pictures from any source become one table; unusable ones are reported."""

import io
import json

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from stages.core.errors import UsageError
from stages.tasks.sources import parse_source, source_errors
from stages.tasks.text_to_image.pictures import PICTURE_LOADERS, from_png, to_png
from tests.tiny_judges import BLUE, GREEN, RED, noisy, plain

WHERE = "prepare.data"


def jpeg(rgb: tuple[int, int, int]) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(plain(rgb)).save(buffer, format="JPEG")
    return buffer.getvalue()


def write_parquet(path, **columns) -> None:
    """Three pictures with captions; keyword arguments add columns or replace them."""
    images = [to_png(plain(rgb)) for rgb in (RED, GREEN, BLUE)]
    pd.DataFrame({"text": ["red", "green", "blue"], "image": images, **columns}).to_parquet(path)


def load(inputs, **block):
    return parse_source(block, PICTURE_LOADERS, WHERE).load(inputs)


def test_pixels_come_back_from_png_as_they_were():
    picture = noisy(1)[0]
    assert np.array_equal(from_png(to_png(picture)), picture)
    assert to_png(picture) == to_png(picture.copy())


def test_columns_sizes_and_kinds_of_rows_are_as_the_block_says(tmp_path):
    images = [{"bytes": jpeg(rgb), "path": None} for rgb in (RED, GREEN)]  # as the library datasets has them
    rows = {"caption": ["red", "green", "other"], "photo": [*images, {"bytes": b"broken"}], "kind": ["a", "a", "b"]}
    pd.DataFrame(rows).to_parquet(tmp_path / "p.parquet")
    table, skipped = load(tmp_path, parquet="p.parquet", text="caption", image="photo", where={"kind": "a"}, size=8)
    assert table.columns.tolist() == ["id", "text", "image", "split", "kind"]
    assert table["id"].tolist() == ["p-0", "p-1"] and skipped == []
    red = from_png(table["image"][0])
    assert red.shape == (8, 8, 3) and np.abs(red.astype(int) - RED).max() < 8


def test_unreadable_pictures_are_left_out_with_the_reason(tmp_path):
    images = [to_png(plain(RED)), to_png(plain(RED))[:40], None]
    write_parquet(tmp_path / "p.parquet", image=images)
    table, skipped = load(tmp_path, parquet="p.parquet", max_excluded=0.7)
    assert len(table) == 1
    assert [entry["file"] for entry in skipped] == ["p-1", "p-2"]
    assert "no picture that can be read" in skipped[0]["reason"] and "found NoneType" in skipped[1]["reason"]


@pytest.mark.parametrize(
    ("columns", "block", "told"),
    [
        ({"text": ["red", " ", "blue"]}, {}, r"1 of 3 pictures cannot be used.* p-1 \(no caption"),
        ({"kind": ["a", "b", "a"]}, {"where": {"kind": "c"}}, "no picture found where"),
        ({"id": ["a", "b", "a"]}, {}, "found 'a' more than once"),
    ],
)
def test_a_table_that_cannot_be_used_is_told(tmp_path, columns, block, told):
    write_parquet(tmp_path / "p.parquet", **columns)
    with pytest.raises(UsageError, match=told):
        load(tmp_path, parquet="p.parquet", **block)


@pytest.mark.parametrize("path", ["{outside}", "../secret.png", "in/../../secret.png"])
def test_a_table_chooses_no_files_beyond_the_inputs(tmp_path, path):
    inputs = tmp_path / "inputs"
    (inputs / "in").mkdir(parents=True)
    for place in (tmp_path / "secret.png", inputs / "in" / "own.png"):
        place.write_bytes(to_png(plain(RED)))
    paths = ["in/own.png", path.format(outside=tmp_path / "secret.png")]
    cells = [{"bytes": None, "path": path} for path in paths]
    pd.DataFrame({"text": ["a", "b"], "image": cells}).to_parquet(inputs / "p.parquet")
    table, skipped = load(inputs, parquet="p.parquet", max_excluded=0.5)
    assert table["id"].tolist() == ["p-0"]
    assert skipped[0]["file"] == "p-1" and "is not relative to the audit's inputs" in skipped[0]["reason"]


def test_a_data_set_chooses_no_files_beyond_its_folder(tmp_path):
    pytest.importorskip("datasets")
    (tmp_path / "secret.png").write_bytes(to_png(plain(RED)))
    own = tmp_path / "inputs" / "mine"
    own.mkdir(parents=True)
    (own / "own.png").write_bytes(to_png(plain(BLUE)))
    cells = [{"bytes": None, "path": str(path)} for path in (own / "own.png", tmp_path / "secret.png")]
    pd.DataFrame({"text": ["a", "b"], "image": cells}).to_parquet(own / "p.parquet")
    (own / "own.png").rename(own / "own.data")  # otherwise the folder is read as a folder of pictures
    (own / "own.png").symlink_to(own / "own.data")
    table, skipped = load(tmp_path / "inputs", datasets="mine", max_excluded=0.5)
    assert table["text"].tolist() == ["a"] and "lies outside the data set's folder" in skipped[0]["reason"]


@pytest.mark.parametrize("name", ["../mine", "{tmp}/mine"])
def test_a_data_set_outside_the_inputs_is_refused(tmp_path, name):
    write_folder(tmp_path / "mine", {"file_name": "red.jpg", "text": "red"})
    (tmp_path / "inputs").mkdir()
    block = {"datasets": name.format(tmp=tmp_path)}
    assert "lies outside" in source_errors(block, PICTURE_LOADERS, WHERE, tmp_path / "inputs")[0]


def as_png(picture: Image.Image, **options) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, format="PNG", **options)
    return buffer.getvalue()


def test_a_photograph_is_turned_upright_and_what_is_transparent_lies_on_white():
    picture = Image.fromarray(np.concatenate([plain(RED), plain(BLUE)], axis=1))
    exif = picture.getexif()
    exif[0x0112] = 3  # upside down
    assert np.array_equal(from_png(as_png(picture, exif=exif))[:, :16], plain(BLUE))
    pixels = np.concatenate([plain(RED), np.full((16, 16, 1), 255, np.uint8)], axis=2)
    pixels[:, :8, 3] = 0
    read = from_png(as_png(Image.fromarray(pixels)))
    assert (read[:, :8] == 255).all() and np.array_equal(read[:, 8:], plain(RED)[:, 8:])


def write_folder(folder, *lines: object) -> None:
    folder.mkdir()
    (folder / "red.jpg").write_bytes(jpeg(RED))
    (folder / "blue.png").write_bytes(to_png(plain(BLUE)))
    (folder / "metadata.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in lines))


def test_a_folder_of_pictures_with_metadata_is_read_without_those_that_are_missing(tmp_path):
    lines = [
        {"file_name": "red.jpg", "text": "red"},
        {"file_name": "blue.png", "text": "blue", "split": "repair"},
        {"file_name": "gone.png", "text": "gone"},
    ]
    write_folder(tmp_path / "mine", *lines)
    table, skipped = load(tmp_path, imagefolder="mine", max_excluded=0.5)
    assert table["id"].tolist() == ["red.jpg", "blue.png"]
    assert table["split"].tolist() == ["", "repair"]
    assert np.array_equal(from_png(table["image"][1]), plain(BLUE))
    assert skipped == [{"file": "gone.png", "reason": "cannot be read: No such file or directory"}]


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (b'{"file_name": "../secret.png", "text": "x"}', r"\.\./secret\.png leads out of"),
        (b'{"file_name": "red.jpg", "text": "\xe9"}', r"metadata\.jsonl is not UTF-8"),
        (b'{"file_name": "red.jpg", "text": "\\ud800"}', "line 1 is not JSON: .*surrogates not allowed"),
        (b'{"file_name": "a\\u0000", "text": "x"}', r"1 of 1 pictures cannot be used.*cannot be read: embedded null"),
    ],
)
def test_metadata_that_is_no_text_or_leads_out_is_told(tmp_path, content, told):
    write_folder(tmp_path / "mine")
    (tmp_path / "mine" / "metadata.jsonl").write_bytes(content)
    with pytest.raises(UsageError, match=told):
        load(tmp_path, imagefolder="mine")
