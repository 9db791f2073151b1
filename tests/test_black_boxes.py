"""Classifiers that only answer, in ONNX or behind HTTP: prepared and searched like any other, and not repaired."""

import base64
import io
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest
import torch
from PIL import Image

from stages.core.errors import InfrastructureError, UsageError
from stages.tasks.classification import ImageClassification
from stages.tasks.classification.models import load_model
from tests.images import CLASSES
from tests.own_pictures import FOLDER, answers, check_search, fails, onnx_network, own_context, prepared, write_folder

METHOD = {"method": "all-layers", "epochs": 1, "batch_size": 4}


@pytest.fixture
def inputs(tmp_path):
    """data/own/inputs with nine pictures per class, of three classes."""
    folder = tmp_path / "own" / "inputs"
    folder.mkdir(parents=True)
    write_folder(folder / "photos", 9)
    return folder


# ONNX


@pytest.mark.parametrize(
    ("made", "named"),
    [
        ({}, {"outputs": "logits"}),
        ({"batch": 4}, {"outputs": "logits"}),
        ({"side": None}, {"outputs": "logits", "size": 16}),
        ({"probabilities": True}, {"outputs": "probabilities"}),
    ],
)
def test_a_network_in_onnx(inputs, made, named):
    net = onnx_network(inputs / "net.onnx", **made)
    named = {"onnx": "net.onnx", "classes": CLASSES, "mean": 0.5, "std": 0.25, **named}
    task = prepared(inputs, named, FOLDER)
    model = inputs.parent / "prepare" / "model"
    assert {path.name for path in model.iterdir()} == {"faded.json", "model.onnx"}
    pixels, logits = answers(task, 7)
    with torch.inference_mode():
        wanted = net((pixels - 0.5) / 0.25)
    wanted = wanted.log_softmax(1) if made.get("probabilities") else wanted
    assert torch.allclose(logits, wanted, atol=1e-4)
    assert torch.equal(answers(task, 7)[1], logits)
    check_search(task)
    assert task.clean_quality("discover").values.tolist() == [
        float(CLASSES[k] == label)
        for k, label in zip(answers(task, 12)[1].argmax(1), task.items.table["label"], strict=True)
    ]


@pytest.mark.parametrize(
    ("made", "named", "message"),
    [
        ({}, {"outputs": "logits", "classes": ["a", "b"]}, "2 names, the model has 3 classes"),
        ({}, {"outputs": "probabilities"}, "expected probabilities from 0 to 1"),
        ({}, {"outputs": "logits", "output": "logit"}, "has no output 'logit', did you mean 'logits'?"),
        ({}, {"outputs": "logits", "layout": "nhwc"}, "takes pictures of 16 channels"),
        ({"side": None}, {"outputs": "logits"}, "prepare.data.size: missing; neither model nor data say"),
    ],
)
def test_a_file_of_onnx_that_cannot_be_used(inputs, made, named, message):
    onnx_network(inputs / "net.onnx", **made)
    fails(inputs, {"onnx": "net.onnx", **named}, message.replace("?", r"\?"), FOLDER)
    (inputs / "net.onnx").write_bytes(b"junk")
    fails(inputs, {"onnx": "net.onnx", "outputs": "logits"}, "is not a network that ONNX Runtime can read", FOLDER)


# Behind HTTP


class Answering(BaseHTTPRequestHandler):
    """A classifier behind HTTP: the brighter the picture, the more probable is class 0."""

    form = "names"

    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        outputs = [self.answer(one["image"]) for one in body["inputs"]]
        content = json.dumps({"outputs": outputs}).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def answer(self, image):
        pixels = np.asarray(Image.open(io.BytesIO(base64.b64decode(image))))
        share = float(pixels.mean()) / 255
        scores = {"flat": share, "upright": (1 - share) * 0.75, "slanted": (1 - share) * 0.25}
        if self.form == "best two":
            del scores["slanted"]
        if self.form == "strange":
            scores["sideways"] = 0.0
        return {"scores": list(scores.values()) if self.form == "list" else scores}

    def log_message(self, *_):
        pass


@pytest.fixture
def server():
    class Handler(Answering):
        pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    server.url = f"http://127.0.0.1:{server.server_port}/classify"
    server.handler = Handler
    yield server
    server.shutdown()
    server.server_close()


@pytest.mark.parametrize("form", ["names", "list", "best two"])
def test_a_classifier_behind_http(inputs, server, form):
    server.handler.form = form
    named = {"endpoint": server.url, "classes": CLASSES, "size": 20, "batch_size": 5}
    task = prepared(inputs, named, FOLDER)
    pixels, logits = answers(task)
    share = pixels.mean((1, 2, 3))
    rest = [(1 - share) * 0.75, (1 - share) * 0.25 if form != "best two" else torch.full_like(share, 1e-12)]
    assert torch.allclose(logits, torch.stack([share, *rest], 1).log(), atol=0.02)
    check_search(task)
    assert {path.name for path in (inputs.parent / "prepare" / "model").iterdir()} == {"faded.json", "answers.json"}

    server.handler.answer = lambda self, image: {"scores": [0.2, 0.3, 0.5]}
    with pytest.raises(UsageError, match="answers differently than when prepared"):
        ImageClassification.load(task.context, inputs.parent / "prepare")


def test_a_server_that_does_not_answer_is_infrastructure(inputs, server):
    named = {"endpoint": server.url, "classes": CLASSES, "size": 20, "retries": 0}
    server.shutdown()
    server.server_close()
    with pytest.raises(InfrastructureError, match="ConnectError"):
        prepared(inputs, named, FOLDER)


# Repair


@pytest.mark.parametrize(
    "model",
    [
        {"onnx": "net.onnx", "outputs": "logits"},
        {"endpoint": "http://127.0.0.1:9/x", "classes": CLASSES, "size": 20},
    ],
)
def test_what_only_answers_is_not_repaired_and_says_so(inputs, model):
    counts = dict.fromkeys(("discover", "repair", "test"), 5)
    config = {**own_context(inputs, model, FOLDER).config, "items": counts}
    context = own_context(inputs, model, FOLDER, config=config)
    errors = ImageClassification.check_repair(context, METHOD)
    assert len(errors) == 1
    assert "cannot be repaired (no weights)" in errors[0]
    trained = {**config, "model": {"train": "small_cnn"}}
    assert ImageClassification.check_repair(own_context(inputs, {}, {}, config=trained), METHOD) == []


def test_weights_beside_a_file_of_onnx_are_kept_in_it(inputs):
    import onnx

    net = onnx_network(inputs / "plain.onnx")
    onnx.save_model(
        onnx.load(str(inputs / "plain.onnx")), str(inputs / "net.onnx"),
        save_as_external_data=True, location="net.data", size_threshold=0,
    )  # fmt: skip
    task = prepared(inputs, {"onnx": "net.onnx", "outputs": "logits", "classes": CLASSES}, FOLDER)
    (inputs / "net.data").unlink()
    pixels, logits = answers(task)
    with torch.inference_mode():
        assert torch.allclose(load_model(inputs.parent / "prepare" / "model")(pixels), logits)
        assert torch.allclose(logits, net(pixels), atol=1e-4)


def test_a_key_is_asked_for_where_the_model_is_asked(inputs, server, monkeypatch):
    monkeypatch.delenv("NO_SUCH_KEY", raising=False)
    named = {"endpoint": server.url, "classes": CLASSES, "size": 20, "key_env": "NO_SUCH_KEY"}
    context = own_context(inputs, named, FOLDER)
    assert ImageClassification.check(context) == [] and ImageClassification.prefetch(context) == []
    fails(inputs, named, "NO_SUCH_KEY is not set", FOLDER)


def test_an_endpoint_that_answers_something_else(inputs, server):
    named = {"endpoint": server.url, "classes": CLASSES, "size": 20}
    server.handler.form = "strange"
    fails(inputs, named, "scores a class 'sideways'", FOLDER)
    server.handler.answer = lambda self, image: {"scores": [0.5, 0.5]}
    fails(inputs, named, "a number for each of the 3 classes, by name or in their order; found 2 scores", FOLDER)
    server.handler.answer = lambda self, image: {"label": "flat"}
    fails(inputs, named, "found the keys label", FOLDER)
    server.handler.answer = lambda self, image: {"scores": [2, 0, 0]}
    fails(inputs, named, r"gives scores from 0 to 2, expected probabilities from 0 to 1", FOLDER)
    fails(inputs, {k: v for k, v in named.items() if k != "size"}, r"prepare\.data\.size: missing", FOLDER)
