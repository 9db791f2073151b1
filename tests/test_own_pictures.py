"""A user's own text-to-image model and pictures: behind HTTP, in the hub's cache, in their own files."""

import base64
import json

import numpy as np
import pytest

pytest.importorskip("diffusers")

from stages.core.errors import UsageError
from stages.tasks.sources import parse_source, source_errors
from stages.tasks.text_to_image import TextToImage
from stages.tasks.text_to_image.models import MODEL_LOADERS, load_pipeline_form
from stages.tasks.text_to_image.pictures import PICTURE_LOADERS, to_png
from tests.boxes import COLOURS, box_pixels, boxes
from tests.endpoints import served
from tests.hubs import in_cache
from tests.tiny_judges import BLUE, RED, plain
from tests.tiny_pipelines import tiny_pipeline


def drawn(one):
    """A model that draws what the prompt says, in red if it names no colour; it refuses to show dogs."""
    colour = next((name for name in COLOURS if name in one["prompt"].split()), "red")
    ground = "white" if "white" in one["prompt"] else "black"
    pixels = box_pixels(colour, ground, jitter=one["seed"] % 4)
    blanked = {"blanked": True} if "dog" in one["prompt"] else {}
    return {"image": base64.b64encode(to_png(pixels)).decode(), **blanked}


def remote(inputs, url, **config):
    model = {"endpoint": url, "timeout": 10, "retries": 0, "batch_size": 3}
    return boxes(inputs, **{"model": model, **config})


@pytest.fixture
def inputs(tmp_path):
    boxes(tmp_path / "inputs")
    return tmp_path / "inputs"


# A model behind HTTP


def test_a_model_behind_http_is_a_peer_of_a_pipeline(inputs, tmp_path):
    bias = {"subject": "background", "attribute": "colour", "seeds": 8}
    with served(drawn) as model:
        context = remote(
            inputs, model.url, bias=bias, sampling={"steps": 3, "guidance": 2.0, "negative_prompt": "blur"}
        )
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
    asked = [json.dumps(one) for one in model.inputs if "box" in one["prompt"]]
    assert len(asked) > 20


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


# Models in the hub's cache


def test_a_pipeline_of_the_hub_is_read_from_the_cache(inputs, tmp_path, monkeypatch):
    commit = in_cache(monkeypatch, tmp_path / "hub", "org/tiny", tiny_pipeline(tmp_path / "made"))
    source = parse_source({"diffusers": "org/tiny"}, MODEL_LOADERS, "prepare.model")
    assert source.errors(inputs) == []
    source.build(inputs, tmp_path / "model")
    form = load_pipeline_form(tmp_path / "model")
    assert (form.revision, form.origin) == (commit, f"org/tiny of the Hugging Face hub at {commit}")
    with pytest.raises(UsageError, match=r"org/none is not a folder in .*faded prefetch"):
        parse_source({"diffusers": "org/none"}, MODEL_LOADERS, "prepare.model").build(inputs, tmp_path / "none")


# Pictures in a user's own files


def lines_of(folder, *lines):
    folder.mkdir(parents=True)
    (folder / "a").mkdir()
    (folder / "a" / "red.png").write_bytes(to_png(plain(RED)))
    (folder / "blue.png").write_bytes(to_png(plain(BLUE)))
    (folder / "all.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in lines))


@pytest.mark.parametrize(
    ("line", "block", "told"),
    [
        (
            {"file": "blue.png", "said": "x"},
            {"image": "fil"},
            r"image: mine/all\.jsonl, line 1, has no 'fil', did",
        ),
        ({"file": "blue.png", "said": "x"}, {"where": {"kind": 1}}, r"prepare\.data\.where\.kind: .* has no 'kind'"),
        ({"file": "../blue.png", "said": "x"}, {}, r"file \.\./blue\.png leads out of mine"),
        ({"file": "gone.png", "said": "x"}, {}, r"cannot be read: No such file"),
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
