"""A user's own captioned pictures from any source, and a text-to-image model behind HTTP."""

import base64
import io
import json

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from stages.core.errors import UsageError
from stages.tasks.sources import parse_source, source_errors
from stages.tasks.text_to_image import TextToImage
from stages.tasks.text_to_image.pictures import PICTURE_LOADERS, from_png, to_png
from tests.boxes import COLOURS, box_pixels, boxes
from tests.endpoints import served
from tests.tiny_judges import BLUE, GREEN, RED, plain

pytest.importorskip("diffusers")


def drawn(one):
    """A model that draws what the prompt says, in red if it names no colour; it refuses to show dogs."""
    colour = next((name for name in COLOURS if name in one["prompt"].split()), "red")
    pixels = box_pixels(colour, "white" if "white" in one["prompt"] else "black", jitter=one["seed"] % 4)
    blanked = {"blanked": True} if "dog" in one["prompt"] else {}
    return {"image": base64.b64encode(to_png(pixels)).decode(), **blanked}


def remote(inputs, url, **config):
    model = {"endpoint": url, "timeout": 10, "retries": 0, "batch_size": 3}
    return boxes(inputs, **{"model": model, **config})


@pytest.fixture
def inputs(tmp_path):
    boxes(tmp_path / "inputs")
    return tmp_path / "inputs"


def test_a_model_behind_http_is_a_peer_of_a_pipeline(inputs, tmp_path):
    bias = {"subject": "background", "attribute": "colour", "seeds": 8}
    with served(drawn) as model:
        sampling = {"steps": 3, "guidance": 2.0, "negative_prompt": "blur"}
        context = remote(inputs, model.url, bias=bias, sampling=sampling)
        (tmp_path / "prepare").mkdir()
        numbers = TextToImage.prepare(context, tmp_path / "prepare")
        task = TextToImage.load(context, tmp_path / "prepare")
        items, cells = task.items.ids("discover")[:2], np.array([[3, 1], [0, 2]])
        batch = task.probe(items, cells)
        assert np.array_equal(batch.discrepancy, task.again().probe(items, cells).discrepancy)
        assert all(task.exhibit(items, cells)[n].drawn for n in range(2)) and len(task.sheets("test")) > 0
        assert {tally.guidance for tally in task.tallies("discover")} == {1.0, 2.0}
        vectors = task.embed(task.items.ids("test"))
        assert len(task.clean_quality("test").values) == len(task.items.ids("test")) and np.isfinite(vectors).all()
        task._templates = ["a dog {colour} {background}"] * len(task._templates)
        blanked = task.probe(task.items.ids("discover"), np.zeros((5, 2), dtype=int))
    assert not blanked.valid.any() and not blanked.failed.any(), "pictures that the service blanked"
    assert numbers["origin"]["model"] == f"the model behind {model.url}"
    assert numbers["origin"]["data"] == "the file boxes.parquet" and numbers["origin"]["judge"] == "the folder judge"
    assert numbers["parameters"] is None and len(task.model_hash) == 16
    one = model.inputs[-1]
    assert set(one) == {"prompt", "seed", "steps", "guidance", "negative_prompt"} and one["steps"] == 3
    assert all(len(request["inputs"]) <= 3 for request in model.requests)
    assert sum("box" in one["prompt"] for one in model.inputs) > 20


def grows(one):
    return {"image": base64.b64encode(to_png(plain(RED, side=16 + one["seed"]))).decode()}


@pytest.mark.parametrize(
    ("answer", "told"),
    [
        (lambda _: {"picture": "x"}, r'expected {"image": PNG in base64}, found the keys picture'),
        (lambda _: {"image": "no base64!"}, "its image is not a base64-encoded PNG"),
        (lambda _: {"image": base64.b64encode(b"no picture").decode()}, "no picture that can be read"),
        (grows, "differ in size: 18 x 18 pixels, expected 17"),
    ],
)
def test_what_is_no_picture_or_of_another_size_is_told(inputs, tmp_path, answer, told):
    with served(answer) as model, pytest.raises(UsageError, match=told):
        TextToImage.prepare(remote(inputs, model.url), tmp_path)


def lines_of(folder, *lines):
    folder.mkdir(parents=True)
    (folder / "blue.png").write_bytes(to_png(plain(BLUE)))
    (folder / "all.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in lines))


@pytest.mark.parametrize(
    ("line", "block", "told"),
    [
        ({"file": "blue.png", "said": "x"}, {"image": "fil"}, r"image: mine/all\.jsonl, line 1, has no 'fil', did"),
        ({"file": "blue.png", "said": "x"}, {"where": {"kind": 1}}, r"prepare\.data\.where\.kind: .* has no 'kind'"),
        ({"file": "../blue.png", "said": "x"}, {}, r"file \.\./blue\.png leads out of mine"),
        ({"file": 3, "said": "x"}, {}, r"line 1 names no file: "),
    ],
)
def test_wrong_lines_are_told(tmp_path, line, block, told):
    lines_of(tmp_path / "mine", line)
    block = {"jsonl": "mine/all.jsonl", "image": "file", "text": "said", **block}
    with pytest.raises(UsageError, match=told):
        if errors := source_errors(block, PICTURE_LOADERS, "prepare.data", tmp_path):
            raise UsageError("\n".join(errors))
        parse_source(block, PICTURE_LOADERS, "prepare.data").load(tmp_path)


def saved(pixels: np.ndarray, kind: str = "PNG", **options) -> bytes:
    Image.fromarray(pixels).save(buffer := io.BytesIO(), format=kind, **options)
    return buffer.getvalue()


def jpeg(rgb: tuple[int, int, int]) -> bytes:
    return saved(plain(rgb), "JPEG")


def write_parquet(path, **columns) -> None:
    """Three pictures with captions; keyword arguments add columns or replace them."""
    images = [to_png(plain(rgb)) for rgb in (RED, GREEN, BLUE)]
    pd.DataFrame({"text": ["red", "green", "blue"], "image": images, **columns}).to_parquet(path)


def load(inputs, **block):
    return parse_source(block, PICTURE_LOADERS, "prepare.data").load(inputs)


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
    write_parquet(tmp_path / "p.parquet", image=[to_png(plain(RED)), to_png(plain(RED))[:40], None])
    table, skipped = load(tmp_path, parquet="p.parquet", max_excluded=0.7)
    assert len(table) == 1 and [entry["file"] for entry in skipped] == ["p-1", "p-2"]
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


@pytest.mark.parametrize("path", ["{outside}", "in/../../secret.png"])
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


def test_a_data_set_outside_the_inputs_is_refused(tmp_path):
    write_pictures(tmp_path / "mine", {"file_name": "red.jpg", "text": "red"})
    (tmp_path / "inputs").mkdir()
    for name in ("../mine", str(tmp_path / "mine")):
        [error] = source_errors({"datasets": name}, PICTURE_LOADERS, "prepare.data", tmp_path / "inputs")
        assert "lies outside" in error


def test_a_photograph_is_turned_upright_and_what_is_transparent_lies_on_white():
    exif = Image.Exif()
    exif[0x0112] = 3  # upside down
    turned = from_png(saved(np.concatenate([plain(RED), plain(BLUE)], axis=1), exif=exif))
    assert np.array_equal(turned, np.concatenate([plain(BLUE), plain(RED)], axis=1))
    pixels = np.concatenate([plain(RED), np.full((16, 16, 1), 255, np.uint8)], axis=2)
    pixels[:, :8, 3] = 0
    read = from_png(saved(pixels))
    assert (read[:, :8] == 255).all() and np.array_equal(read[:, 8:], plain(RED)[:, 8:])


def write_pictures(folder, *lines: object) -> None:
    folder.mkdir()
    (folder / "red.jpg").write_bytes(jpeg(RED))
    (folder / "blue.png").write_bytes(to_png(plain(BLUE)))
    (folder / "metadata.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in lines))


def test_a_folder_of_pictures_with_metadata_is_read_without_those_that_are_missing(tmp_path):
    blue = {"file_name": "blue.png", "text": "blue", "split": "repair"}
    red, gone = ({"file_name": name, "text": name[:3]} for name in ("red.jpg", "gone.png"))
    write_pictures(tmp_path / "mine", red, blue, gone)
    table, skipped = load(tmp_path, imagefolder="mine", max_excluded=0.5)
    assert table["id"].tolist() == ["red.jpg", "blue.png"] and table["split"].tolist() == ["", "repair"]
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
    write_pictures(tmp_path / "mine")
    (tmp_path / "mine" / "metadata.jsonl").write_bytes(content)
    with pytest.raises(UsageError, match=told):
        load(tmp_path, imagefolder="mine")
