"""`faded init`: what it recognises about models, data and labels, and which files it puts under an audit's inputs."""

import json
import shutil
import struct
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from flows.init.answers import look_at_model
from flows.init.files import Placed, place
from stages.core.errors import UsageError
from stages.core.files import content_hash
from stages.params import load_params
from stages.tasks.classification.init.models import RecognisedClassifier
from stages.tasks.classification.init.pictures import look_at_pictures
from stages.tasks.classification.init.questions import match_labels, read_labels
from stages.tasks.init import Model, json_lines, read_config, tensor_shapes
from stages.tasks.summarization.init import ArticlesInit
from stages.tasks.text_to_image.init import PromptsInit
from tests.own_model import CLASSES, SIDE, WEIGHTS, init, options, questions, write_pictures
from tests.own_pictures import tiny_vit
from tests.tiny_models import tiny_causal
from tests.workspace import ROOT

pytest_plugins = ("tests.own_repository",)


def test_hostile_descriptions_of_models_and_weights_whose_headers_lie_are_refused(tmp_path):
    for config in ("[" * 200_000, "\0", '{"architectures": 7}'):
        (tmp_path / "config.json").write_text(config)
        with pytest.raises(UsageError, match=r"config\.json"):
            read_config(tmp_path / "config.json")
    shapes = [{"w": {"dtype": "F32", "shape": [n], "data_offsets": [0, end]}} for n, end in ((2**40, 4), (1, 2**40))]
    for length, header in ((2**62, {}), *((None, one) for one in (*shapes, [[]]))):  # the first is beyond the file
        text = json.dumps(header).encode()
        (tmp_path / "x.safetensors").write_bytes(struct.pack("<Q", length or len(text)) + text + b"1234")
        with pytest.raises(UsageError, match="not a readable safetensors file"):
            tensor_shapes(tmp_path / "x.safetensors")
    lines = ["[" * 200_000, '{"a": ' * 100_000, f'{{"a": {"9" * 10_000}}}', '{"a": 1}']
    (tmp_path / "x.jsonl").write_text("\n".join(lines))
    assert list(json_lines(tmp_path / "x.jsonl", "x.jsonl")) == [{"a": 1}]


def test_files_are_linked_or_copied_and_links_out_of_the_repository_are_for_this_machine(repository, tmp_path):
    (tmp_path / "far.pth").write_bytes(b"x")
    near, far = Placed("near", repository / "shapes"), Placed("far", tmp_path / "far.pth")
    lines = place(repository, "a", [near, far], copy=False)
    inputs = repository / "data/a/inputs"
    assert (inputs / "near").readlink() == Path("../../../shapes")
    assert (inputs / "far").readlink() == tmp_path / "far.pth" and "on this machine only" in lines[1]
    assert place(repository, "a", [near, far], copy=False)  # a repetition is not an error
    with pytest.raises(UsageError, match=r"near is not .*far\.pth: remove it"):
        place(repository, "a", [Placed("near", tmp_path / "far.pth")], copy=False)
    place(repository, "b", [near], copy=True)
    copied = repository / "data/b/inputs/near"
    assert not copied.is_symlink() and len(list(copied.rglob("*.png"))) == 60


def test_of_a_list_only_what_it_names_is_linked_and_never_the_repository_it_lies_in(repository, measured):
    named = sorted(path.relative_to(repository) for path in (repository / "shapes").rglob("*.png"))
    lines = [{"image": str(path), "label": path.parent.name} | {"night": True} for path in named]
    lines = [json.dumps({**line, "camera": "B"} if i else line) for i, line in enumerate(lines)]
    (repository / "all.jsonl").write_text("\n".join(lines))
    told = init(given=options(answers={"data": "all.jsonl", "repair": False, "classes": ",".join(CLASSES)}))
    assert "with night, camera (of 59)" in told
    assert "data/all/inputs/all links to all.jsonl, and to 3 folder(s) it names" in told
    inputs = repository / "data/all/inputs/all"
    assert sorted(path.relative_to(inputs).as_posix() for path in inputs.rglob("*")) == [
        "all.jsonl", "shapes", *(f"shapes/{name}" for name in sorted(CLASSES))
    ]  # fmt: skip
    assert (inputs / "shapes/flat").readlink() == Path("../../../../../shapes/flat")
    assert load_params(repository / "params.yaml").audit("all").prepare["data"]["jsonl"] == "all/all.jsonl"
    assert look_at_pictures(inputs / "all.jsonl", "all.jsonl").items == 60
    content_hash([repository / "data/all/inputs"])  # no link points back


def test_a_folder_that_holds_the_workspace_or_a_home_is_refused(repository, monkeypatch):
    given = {"data": ".", "repair": False, "model": WEIGHTS, "classes": "shapes,b,c"}
    with pytest.raises(UsageError, match="holds the inputs of the audit itself"):
        init(given=options(answers=given))
    monkeypatch.setattr(Path, "home", lambda: repository / "shapes")
    with pytest.raises(UsageError, match="holds a home"):
        init(given=options(answers={"repair": False}))
    assert not (repository / "params.yaml").exists()


def seen_as(given: Path | str, *, yes: bool = False) -> tuple[str | None, Model]:
    kind, model = look_at_model(str(given), questions({}, yes=yes))
    return kind, model


def test_weights_are_known_by_their_names_and_shapes(repository, tmp_path):
    import timm

    _, model = seen_as(WEIGHTS, yes=True)
    assert isinstance(model, RecognisedClassifier)
    assert (model.block, model.n_classes, model.shape[0]) == ({"timm": "test_resnet"}, 3, 3)
    path = tmp_path / "test_resnet.safetensors"
    save_file(timm.create_model("test_resnet", num_classes=7, in_chans=1).state_dict(), path)
    assert seen_as(path, yes=True)[1].block == {"timm": "test_resnet", "channels": 1}  # for grey pictures
    torch.save(torch.nn.Linear(2, 2), tmp_path / "whole.pth")
    with pytest.raises(UsageError, match=r"holds more than tensors.*save_file\(model.state_dict") as told:
        seen_as(tmp_path / "whole.pth")
    assert "weights_only" not in str(told.value), "no advice to run its code"


@pytest.mark.parametrize("name", ["efficientnet_b0", "vit_b_16"])
def test_classes_and_channels_are_read_off_the_layers_whatever_their_names_sort_to(tmp_path, monkeypatch, name):
    import timm
    from torchvision import models

    make = timm.create_model if timm.is_model(name) else models.get_model
    with torch.device("meta"):
        net = make(name, num_classes=7)
    shapes_of = {key: tuple(value.shape) for key, value in sorted(net.state_dict().items())}
    monkeypatch.setattr("stages.tasks.classification.init.models.weight_shapes", lambda _path: shapes_of)
    path = tmp_path / f"{name}.safetensors"
    path.touch()
    _, seen = seen_as(path, yes=True)
    assert isinstance(seen, RecognisedClassifier) and (seen.n_classes, seen.shape[0]) == (7, 3)


def test_a_folder_of_transformers_is_known_by_its_architecture(tmp_path):
    from tests.tiny_models import tiny_seq2seq
    from tests.tiny_pipelines import tiny_pipeline

    tiny_vit(tmp_path / "vit", ["cat", "dog"])
    kind, seen = seen_as(tmp_path / "vit")
    assert isinstance(seen, RecognisedClassifier)
    assert (kind, list(seen.classes), seen.shape) == ("image-classification", ["cat", "dog"], (3, 32, 32))
    for made in (tiny_causal(tmp_path / "chat"), tiny_seq2seq(tmp_path / "bart")):
        assert seen_as(made)[0] == "summarization"
    assert seen_as(tiny_pipeline(tmp_path / "sd"))[0] == "text-to-image"


def test_an_onnx_network_says_what_it_takes_and_weights_beside_it_are_copied_with_it(tmp_path, repository):
    onnx = pytest.importorskip("onnx")
    from onnx import TensorProto, helper, numpy_helper

    takes = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 3, 8, 8])
    gives = helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 5])
    weights = numpy_helper.from_array(np.ones((192, 5), np.float32), "w")
    steps = (("Flatten", "x", "f"), ("MatMul", "fw", "m"), ("Softmax", "m", "s"), ("Identity", "s", "y"))
    nodes = [helper.make_node(name, [*given], [made]) for name, given, made in steps]
    net = helper.make_model(helper.make_graph(nodes, "g", [takes], [gives], [weights]))
    onnx.save_model(net, str(tmp_path / "m.onnx"), save_as_external_data=True, location="m.data", size_threshold=0)
    (tmp_path / "other").write_text("not for it")
    _, model = seen_as(tmp_path / "m.onnx")
    assert isinstance(model, RecognisedClassifier)
    assert (model.named("m.onnx"), model.outputs) == ({"onnx": "m.onnx"}, "probabilities")
    assert (model.n_classes, model.shape, model.black_box) == (5, (3, 8, 8), True)  # so it cannot be repaired
    assert model.beside == ["m.data"]
    place(repository, "a", [Placed("m", tmp_path / "m.onnx", model.beside)], copy=False)
    placed = repository / "data/a/inputs/m"
    assert sorted(path.name for path in placed.iterdir()) == ["m.data", "m.onnx"]
    onnx.load(str(placed / "m.onnx"))  # refuses weights behind links


def test_what_is_no_model_is_told(repository):
    (repository / "broken.safetensors").write_bytes(b"broken")
    for given, said in (
        ("test_resnet-shape.safetensors", "did you mean 'test_resnet-shapes.safetensors'"),
        ("shapes", "expected a folder with config.json"),
        ("shapes/flat/000.png", "expected a file that ends in"),
        ("broken.safetensors", "not a readable safetensors"),
    ):
        with pytest.raises(UsageError, match=said):
            seen_as(given)


def test_classes_whose_order_nobody_said_are_told(repository, measured):
    told = init()
    assert "classes: flat, slanted, upright: the data's, in their order, for nothing names the model's" in told
    named = {"classes": "flat,upright,slanted", "name": "again", "reorder": False}
    assert "nothing names the model's" not in init(given=options(answers=named))


def test_pictures_beside_a_list_are_linked_one_by_one_and_copies_are_of_these_alone(repository):
    names = [f"{i}.png" for i in range(3)]
    for name in names:
        shutil.copy(repository / "shapes/flat/000.png", repository / name)
    (repository / "all.jsonl").write_text("")
    (repository / "below").mkdir()
    for copy in (False, True):
        audit = f"a{copy}"
        [line] = place(repository, audit, [Placed("all", repository / "all.jsonl", [*names, "gone.png"])], copy=copy)
        inputs = repository / "data" / audit / "inputs/all"
        assert "3 file(s) it names" in line
        assert sorted(path.name for path in inputs.iterdir()) == ["0.png", "1.png", "2.png", "all.jsonl"]
        assert all(path.is_symlink() is not copy and path.is_file() for path in inputs.iterdir())
        [again] = place(repository, audit, [Placed("all", repository / "all.jsonl", names)], copy=copy)
        assert ("already exists" in again) is copy


def test_a_folder_that_holds_the_inputs_is_not_linked_into_them(repository):
    (repository / "data").mkdir()
    shutil.copy(repository / "shapes/flat/000.png", repository / "data/0.png")
    (repository / "all.jsonl").write_text("")
    place(repository, "a", [Placed("all", repository / "all.jsonl", ["data/0.png"])], copy=False)
    placed = repository / "data/a/inputs/all/data"
    assert not placed.is_symlink() and (placed / "0.png").readlink() == Path("../../../../0.png")


@pytest.mark.filterwarnings("error")
def test_pictures_that_cannot_be_read_or_have_too_many_pixels_are_counted(tmp_path, monkeypatch):
    data = look_at_pictures(write_pictures(tmp_path / "pets", 30, broken=3), "pets")
    assert "30 pictures in 3 classes" in data.said and "3 unreadable" in data.said
    assert (data.items, data.shape) == (27, (3, SIDE, SIDE))
    (tmp_path / "empty" / "cats").mkdir(parents=True)
    with pytest.raises(UsageError, match="no picture"):
        look_at_pictures(tmp_path / "empty", "empty")
    small = Image.new("RGB", (8, 8))
    for path in sorted((tmp_path / "pets").rglob("*.png"))[1:]:
        small.save(path)
    for most in (SIDE**2 - 1, SIDE**2 // 4):  # Pillow warns of the first, and refuses the second
        monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", most)
        told = look_at_pictures(tmp_path / "pets", "pets").said
        assert "1 unreadable (flat/000.png: more than 0 million pixels)" in told


def test_without_a_folder_to_search_the_pictures_of_test_are_taken(tmp_path):
    write_pictures(tmp_path / "set/train", 6)
    write_pictures(tmp_path / "set/test", 30)
    data = look_at_pictures(tmp_path / "set", "set")
    assert (data.path, data.items, data.pools) == (tmp_path / "set/test", 30, {})
    assert "there is no folder `val` to search" in data.said
    write_pictures(tmp_path / "set/val", 12)
    assert look_at_pictures(tmp_path / "set", "set").pools == {"discover": 12, "repair": 6, "test": 30}


def test_columns_of_articles_and_words_of_captioned_pictures_are_found(tmp_path):
    (tmp_path / "other.jsonl").write_text('{"words": "x"}\n')
    with pytest.raises(UsageError, match=r"holds the articles \(words\)"):
        ArticlesInit().data(tmp_path / "other.jsonl", "other.jsonl", questions({}))
    data = PromptsInit().data(ROOT / "data/images/inputs/pictures.parquet", "pictures.parquet", questions({}))
    assert "red" in data.columns["colour"]


def test_labels_are_matched_by_how_they_are_written_and_never_by_similarity():
    classes = ["sea lion", "tabby, tabby cat", "horse", "grade 1", "crane, bird", "crane, machine"]
    matched = match_labels(["Sea_Lion", "tabby", "hrse", "grade 2", "CRANE"], classes)
    assert matched == {"Sea_Lion": "sea lion", "tabby": "tabby, tabby cat"}
    with pytest.raises(UsageError, match="did you mean 'zebra'"):
        read_labels(["zebr=horse"], ["zebra"], ["horse"])


def test_no_label_is_guessed_unasked(repository, measured):
    (repository / "shapes/flat").rename(repository / "shapes/flatt")
    (repository / "shapes/upright").rename(repository / "shapes/Upright")
    tiny_vit(repository / "vit", list(CLASSES))
    tell = {"model": str(repository / "vit"), "repair": False, "reorder": False}
    with pytest.raises(UsageError, match=r"1 labels? .* match no class of the model: 'flatt'.*'flat'.* --label flatt="):
        init(given=options(answers=tell))
    told = init(given=options(answers={**tell, "label": ["flatt=flat"]}))
    assert "2 are written otherwise than the model's classes: Upright is upright, flatt is flat" in told
    labels = load_params(repository / "params.yaml").audit("shapes").prepare["data"]["labels"]
    assert labels == {"Upright": "upright", "flatt": "flat"}
