"""`faded init`: what it recognises, what it proposes, what it writes, and that a kill leaves nothing half-written."""

from __future__ import annotations

import io
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from rich.console import Console
from rich.prompt import Confirm, Prompt
from safetensors.torch import save_file

import flows.init.calibrate
from flows.init.answers import Answers, ask, shape_shown
from flows.init.architectures import guess_architecture
from flows.init.block import Draft, with_blocks, without
from flows.init.calibrate import nearest
from flows.init.data import look_at_articles, look_at_captions, look_at_pictures
from flows.init.files import Placed, place
from flows.init.labels import match_labels, read_labels
from flows.init.model import look_at_model
from flows.init.propose import Wanted, count_items, image_concepts, search_budget
from flows.init.questions import Questions
from flows.init.run import Options, init_audit
from stages.check import check_audits
from stages.errors import InfrastructureError, UsageError
from stages.files import stage_dir, write_json
from stages.landscape.intervals import Rate
from stages.params import load_params
from stages.screening import ConceptScreening, Screening, ScreenSettings
from tests.images import draw
from tests.news import articles
from tests.tiny_models import tiny_causal
from tests.workspace import ROOT, Workspace, make_workspace

CLASSES = {"flat": 0, "slanted": 2, "upright": 1}  # as `draw` numbers them
SIDE = 32
WEIGHTS = "test_resnet-shapes.safetensors"


def picture(kind: int, rng: np.random.Generator) -> np.ndarray:
    """A coloured bar: (32, 32, 3) uint8."""
    grey = draw(kind, rng).repeat(2, 0).repeat(2, 1).astype(float)
    return (grey[..., None] * rng.uniform(0.6, 1, 3)).clip(0, 255).astype(np.uint8)


def write_pictures(folder: Path, n: int, *, broken: int = 0) -> Path:
    """Pictures in a folder of each class; the last ones are no pictures."""
    rng = np.random.default_rng(0)
    for i in range(n):
        name, kind = list(CLASSES.items())[i % 3]
        path = folder / name / f"{i:03d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(picture(kind, rng)).save(path)
        if i >= n - broken:
            path.write_bytes(b"no picture")
    return folder


@pytest.fixture(scope="session")
def shapes(tmp_path_factory) -> Path:
    """A folder with 60 pictures and a small network of timm that tells them apart."""
    import timm

    home = tmp_path_factory.mktemp("own")
    write_pictures(home / "shapes", 60)
    rng = np.random.default_rng(1)
    kinds = np.arange(240) % 3
    pixels = np.stack([picture(list(CLASSES.values())[k], rng) for k in kinds])
    before = torch.get_num_threads()
    torch.set_num_threads(1)  # so small a network is far slower on two threads that are not alone
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = timm.create_model("test_resnet", num_classes=3)
        mean, std = (torch.tensor(net.default_cfg[key]).view(1, 3, 1, 1) for key in ("mean", "std"))
        inputs = (torch.from_numpy(pixels).permute(0, 3, 1, 2).float() / 255 - mean) / std
        optimizer = torch.optim.AdamW(net.parameters(), 3e-3)
        for _ in range(6):
            for rows in torch.randperm(240).split(48):
                optimizer.zero_grad()
                torch.nn.functional.cross_entropy(net(inputs[rows]), torch.from_numpy(kinds)[rows]).backward()
                optimizer.step()
    torch.set_num_threads(before)
    assert (net.eval()(inputs).argmax(1).numpy() == kinds).mean() > 0.9
    save_file(net.state_dict(), home / WEIGHTS)
    return home


@pytest.fixture
def repository(shapes, tmp_path, monkeypatch) -> Path:
    """A git repository with that model and these pictures, and the current folder."""
    home = tmp_path / "mine"
    shutil.copytree(shapes, home)
    for command in (
        ["git", "init", "--quiet", "--initial-branch=main"],
        ["git", "config", "user.name", "Ada"],
        ["git", "config", "user.email", "ada@example.org"],
        ["git", "commit", "--quiet", "--allow-empty", "--message", "start"],
    ):
        subprocess.run(command, cwd=home, check=True)
    monkeypatch.chdir(home)
    return home


def options(**changes: Any) -> Options:
    """A command line that says what cannot be guessed."""
    answers = {"model": WEIGHTS, "data": "shapes", **changes.pop("answers", {})}
    return Options(answers, **{"yes": True, "probes": 150, **changes})


def init(folder: Path = Path(), given: Options | None = None) -> str:
    """Run it in this process; what it printed."""
    out = io.StringIO()
    init_audit(folder, given or options(), Console(file=out, width=200), asks=False)
    return out.getvalue()


def screening(now: float, proposed: float | None, levels: list[float], clean: float = 0.0) -> Screening:
    """One of a single concept, in which so many fail with the levels there were, and with those proposed."""
    no = Rate(0.0, -0.1, 0.1, 20)
    concept = ConceptScreening(
        name="rotation",
        unit="°",
        alone_at="20°",
        alone=no,
        alone_fails=no,
        share=no,
        verdict="effect",
        levels=[0.0, 5.0, 10.0, 20.0],
        proposed=levels,
        change="kept" if proposed is None else "widened",
    )

    def rate(value: float) -> Rate:
        return Rate(value, max(0.0, value - 0.05), min(1.0, value + 0.05), 100)

    return Screening(
        settings=ScreenSettings(),
        probes=150,
        items=20,
        clean=rate(clean),
        now=rate(now),
        proposed=None if proposed is None else rate(proposed),
        concepts=[concept],
    )


@pytest.fixture
def measured(monkeypatch) -> Callable[[Screening | Exception], None]:
    """Has calibration find this, or fail so, without a model being asked."""

    def set_to(found: Screening | BaseException) -> None:
        def measure(_params: Any, name: str, _probes: int, _console: Console, prepared: Callable[[], object]) -> Any:
            if isinstance(found, BaseException):
                raise found
            write_json(stage_dir(name, "prepare") / "metrics.json", {"clean_accuracy": {"discover": 0.95}})
            prepared()
            return found

        monkeypatch.setattr(flows.init.calibrate, "measure_concepts", measure)
        monkeypatch.setattr(flows.init.calibrate, "_probe_seconds", lambda _params, _name: 0.05)

    set_to(screening(0.02, 0.2, [0.0, 20.0, 40.0, 80.0]))
    return set_to


# A whole one


def test_a_model_and_pictures_become_a_calibrated_audit_that_plan_accepts(repository):
    here = Workspace(repository)
    told = here.faded("init", "--model", WEIGHTS, "--data", "shapes", "--no-repair", "--yes")
    assert told.returncode == 0, told.stdout
    assert "test_resnet of timm, 3 classes, 3 channels" in told.stdout
    assert "60 pictures in 3 classes, most of them 32x32, 3 channels" in told.stdout
    assert "faded audit shapes" in told.stdout
    text = (repository / "params.yaml").read_text()
    audit = load_params(repository / "params.yaml").audit("shapes")
    assert audit.prepare["model"] == {"timm": "test_resnet", "weights": WEIGHTS}
    assert audit.prepare["data"] == {"imagefolder": "shapes", "size": SIDE}
    assert "Calibrated by" in text
    assert "Not calibrated" not in text
    assert (repository / f"data/shapes/inputs/{WEIGHTS}").readlink() == Path(f"../../../{WEIGHTS}")
    planned = here.faded("plan", "shapes")
    assert planned.returncode == 0, planned.stdout
    assert "screened" in planned.stdout  # what was measured is about the levels that were written
    assert "prepare@shapes" not in planned.stdout  # it ran for the calibration, and is not run again


@pytest.mark.slow
def test_an_audit_of_ones_own_model_runs_to_its_verdict(repository):
    here = Workspace(repository)
    told = here.faded("init", "--model", WEIGHTS, "--data", "shapes", "--no-repair", "--budget", "60", "--yes")
    assert told.returncode == 0, told.stdout
    audited = here.faded("audit", "shapes")
    assert audited.returncode in (0, 1), audited.stdout  # of so few probes the gate may fail
    assert "max_failure_rate" in audited.stdout
    assert (repository / "data/shapes/summarize/report.html").exists()


@pytest.mark.slow
def test_a_repair_of_ones_own_model_runs_to_its_verdict_too(repository):
    here = Workspace(repository)
    told = here.faded("init", "--model", WEIGHTS, "--data", "shapes", "--repair", "--budget", "200", "--yes")
    assert told.returncode == 0, told.stdout
    audited = here.faded("audit", "shapes")
    assert audited.returncode in (0, 1), audited.stdout
    assert (repository / "data/shapes/re_evaluate/report.html").exists(), audited.stdout


@pytest.mark.slow
@pytest.mark.parametrize("seconds", [4, 7, 10, 13])
def test_killed_at_any_moment_it_goes_on_and_params_are_whole_in_between(repository, seconds):
    here = Workspace(repository)
    command = ("init", "--model", WEIGHTS, "--data", "shapes", "--no-repair", "--yes")
    process = here.start(*command)
    time.sleep(seconds)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    if (repository / "params.yaml").exists():
        yaml.safe_load((repository / "params.yaml").read_text())
    told = here.faded(*command)
    finished = "audit of that name already" in told.stdout  # the kill came too late
    assert told.returncode == 0 or finished, told.stdout
    text = (repository / "params.yaml").read_text()
    assert text.count("  shapes:") == 1
    assert "Calibrated by" in text
    load_params(repository / "params.yaml")


# What is written, and when


def test_the_levels_that_were_found_are_written_with_what_they_mean(repository, measured):
    told = init()
    text = (repository / "params.yaml").read_text()
    assert "rotation: [0, 20, 40, 80]" in text
    assert "# turn about the centre, counter-clockwise, in degrees" in text
    assert "20% of 100 probes fail with these levels (15% to 25%)" in " ".join(text.replace("#", " ").split())
    assert "20% of 100 probes fail" in told
    audit = load_params(repository / "params.yaml").audit("shapes")
    assert audit.discover.budget == search_budget(0.05)
    assert audit.prepare["items"] == {"discover": 20, "repair": 20, "test": 20}
    assert not list((repository / ".faded/init").glob("*.json"))


@pytest.mark.parametrize(
    ("found", "said"),
    [
        (screening(0.01, 0.06, [0.0, 20.0, 40.0, 80.0]), "fewer than the 15% to 30% wanted"),
        (screening(0.8, 0.5, [0.0, 1.0, 2.0, 3.0]), "more than the 15% to 30% wanted"),
    ],
)
def test_a_range_that_is_out_of_reach_is_told_and_the_nearest_levels_are_kept(repository, measured, found, said):
    measured(found)
    told = init()
    assert said in told
    assert "the nearest that was found is kept" in told
    levels = ", ".join(f"{level:g}" for level in found.concepts[0].proposed)
    assert f"rotation: [{levels}]" in (repository / "params.yaml").read_text()


def test_a_model_that_fails_on_unchanged_items_is_told_apart(repository, measured, monkeypatch):
    measured(screening(0.7, None, [0.0, 5.0], clean=0.6))
    monkeypatch.setattr("flows.init.calibrate.read_json", lambda _path: {"clean_accuracy": {"discover": 0.35}})
    assert "fails on 65% of unchanged items already" in init()


def test_levels_there_were_stay_where_those_proposed_are_further_off():
    levels, rate = nearest(screening(0.32, 0.05, [0.0, 1.0]))
    assert (levels, rate.value) == ({"rotation": [0.0, 5.0, 10.0, 20.0]}, 0.32)
    levels, rate = nearest(screening(0.5, 0.2, [0.0, 1.0]))
    assert (levels, rate.value) == ({"rotation": [0.0, 1.0]}, 0.2)


def test_what_was_stopped_is_whole_and_goes_on_where_it_was(repository, measured):
    measured(InfrastructureError("the disk is full"))
    with pytest.raises(InfrastructureError, match="disk"):
        init()
    between = (repository / "params.yaml").read_text()
    assert "Not calibrated yet" in between
    load_params(repository / "params.yaml").audit("shapes")
    measured(screening(0.02, 0.2, [0.0, 20.0]))
    told = init(given=Options({}, yes=True))  # its answers are remembered
    assert "did not finish" in told
    after = (repository / "params.yaml").read_text()
    assert after.count("  shapes:") == 2  # under audits: and repairs:
    assert "rotation: [0, 20]" in after


def test_other_answers_take_the_place_of_what_was_not_finished(repository, measured):
    measured(InfrastructureError("the disk is full"))
    with pytest.raises(InfrastructureError):
        init()
    measured(screening(0.02, 0.2, [0.0, 20.0]))
    init(given=options(answers={"repair": False}))
    params = load_params(repository / "params.yaml")
    assert list(params.audits) == ["shapes"]
    assert params.repairs == {}


def test_a_kill_between_two_writes_is_no_difference(repository, measured, monkeypatch):
    """Remembered is what was, and what is to be: whichever params.yaml holds is found."""
    measured(InfrastructureError("the disk is full"))
    with pytest.raises(InfrastructureError):
        init()

    def killed(*_arguments: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr("flows.init.run.replace_file", killed)
        init(given=options(answers={"repair": False}))
    measured(screening(0.02, 0.2, [0.0, 20.0]))
    init(given=options(answers={"repair": False}))
    assert load_params(repository / "params.yaml").repairs == {}


def test_wrong_input_leaves_params_as_they_were(repository, measured):
    init()
    before = (repository / "params.yaml").read_bytes()
    measured(UsageError("the weights do not fit"))
    with pytest.raises(UsageError, match="do not fit"):
        init(given=options(answers={"name": "other"}))
    assert (repository / "params.yaml").read_bytes() == before
    assert not list((repository / ".faded/init").glob("*.json"))


def test_a_name_that_is_taken_is_refused_and_another_one_is_added(repository, measured):
    init()
    with pytest.raises(UsageError, match="audit of that name already"):
        init(given=options(answers={"name": "shapes"}))
    (repository / "below").mkdir()
    init(repository / "below")  # in the same workspace; its name is guessed from the data
    assert list(load_params(repository / "params.yaml").audits) == ["shapes", "shapes-2"]


def test_in_a_clone_of_faded_an_audit_is_added_to_those_there_are(tmp_path, shapes, measured, monkeypatch):
    clone = make_workspace(tmp_path / "clone").path
    before = {name: (clone / name).read_bytes() for name in ("dvc.yaml", ".gitignore")}
    params = (clone / "params.yaml").read_text()
    monkeypatch.chdir(clone)
    init(given=options(answers={"model": str(shapes / WEIGHTS), "data": str(shapes / "shapes"), "repair": False}))
    audits = load_params(clone / "params.yaml").audits
    assert list(audits) == ["tiny", "shapes"]
    assert audits["shapes"].code == "stages/tasks/classification"
    assert all(line in (clone / "params.yaml").read_text().splitlines() for line in params.splitlines())
    assert {name: (clone / name).read_bytes() for name in before} == before


def test_another_pipeline_of_the_repository_stays_as_it_is(repository, measured):
    own = repository / "training"
    own.mkdir()
    (own / "dvc.yaml").write_text("stages:\n  train:\n    cmd: echo train\n")
    (own / "params.yaml").write_text("learning_rate: 0.1\n")
    before = {path.name: path.read_bytes() for path in own.iterdir()}
    with pytest.raises(UsageError, match="not Faded's"):
        init(own)
    init()
    assert {path.name: path.read_bytes() for path in own.iterdir()} == before


def test_a_repository_without_a_commit_is_told_that_it_needs_one(repository, measured):
    assert "no commit yet" not in init()
    shutil.rmtree(repository / ".git")
    subprocess.run(["git", "init", "--quiet"], check=True)
    assert "no commit yet" in init()


def test_a_folder_in_no_git_repository_is_refused(tmp_path):
    with pytest.raises(UsageError, match="git init"):
        init(tmp_path)


def test_a_model_of_the_hub_that_is_not_here_is_written_and_not_measured(repository, measured, monkeypatch):
    monkeypatch.setenv("HF_HUB_CACHE", str(repository / "none"))
    given = options(answers={"model": "nobody/no-such-model", "kind": "image-classification", "repair": False})
    assert "faded prefetch shapes" in init(given=given)
    audit = load_params(repository / "params.yaml").audit("shapes")
    assert audit.prepare["model"] == {"transformers": "nobody/no-such-model"}
    assert "Not calibrated yet" in (repository / "params.yaml").read_text()


# Text of params.yaml


def test_every_other_byte_of_params_stays():
    text = (ROOT / "params.yaml").read_text()
    draft = Draft(
        "a", {"task": "x:Y", "concepts": {"word": ["", "on", "a, b"]}}, {"gates": {}}, {"concepts": "Levels."}
    )
    after = with_blocks(text, None, draft)
    assert without(after, (draft.audit_text, draft.repair_text)) == text
    assert yaml.safe_load(after)["audits"]["a"]["concepts"]["word"] == ["", "on", "a, b"]


@pytest.mark.parametrize("text", ["", "audits: {}\nrepairs: {}  # none\nshards: {}\n", "audits:\n  b: {x: 1}\n"])
def test_an_audit_finds_its_place_in_any_layout(text):
    draft = Draft("a", {"x": 1e-7}, {"gpus": 0})
    whole = yaml.safe_load(with_blocks(text, None, draft))
    assert whole["audits"]["a"] == {"x": 1e-7}
    assert whole["repairs"] == {"a": {"gpus": 0}}


def test_a_layout_that_would_have_to_change_is_refused():
    with pytest.raises(UsageError, match="write there yourself"):
        with_blocks("audits: {b: {x: 1}}\nrepairs: {}\n", None, Draft("a", {"x": 2}, None))


# Files


def test_files_outside_the_repository_are_linked_for_this_machine_and_said_so(repository, tmp_path):
    (tmp_path / "far.pth").write_bytes(b"x")
    near, far = Placed("near", repository / "shapes"), Placed("far", tmp_path / "far.pth")
    lines = place(repository, "a", [near, far], copy=False)
    inputs = repository / "data/a/inputs"
    assert (inputs / "near").readlink() == Path("../../../shapes")
    assert (inputs / "far").readlink() == tmp_path / "far.pth"
    assert "on this machine only" in lines[1]
    assert place(repository, "a", [near, far], copy=False)  # again is no error
    with pytest.raises(UsageError, match="something else"):
        place(repository, "a", [Placed("near", tmp_path / "far.pth")], copy=False)


def test_copies_are_taken_where_they_are_wanted(repository):
    place(repository, "a", [Placed("shapes", repository / "shapes")], copy=True)
    copied = repository / "data/a/inputs/shapes"
    assert not copied.is_symlink()
    assert len(list(copied.rglob("*.png"))) == 60


# Models and data


def unasked(_guess: str | None, _check: object) -> str:
    raise AssertionError("the architecture was asked for")


def test_weights_are_known_by_their_names_and_shapes(repository):
    from torchvision import models

    shapes_of = {k: tuple(v.shape) for k, v in models.resnet18(num_classes=7).state_dict().items()}
    assert guess_architecture("model", shapes_of) == "resnet18"
    model = look_at_model(WEIGHTS, lambda guess, _check: guess or "")
    assert (model.block, model.n_classes, model.shape[0]) == ({"timm": "test_resnet"}, 3, 3)


def test_a_folder_of_transformers_is_known_by_its_architecture(tmp_path):
    from transformers import ViTConfig, ViTForImageClassification

    from tests.tiny_models import tiny_seq2seq
    from tests.tiny_pipelines import tiny_pipeline

    config = ViTConfig(
        hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16, image_size=32, patch_size=8
    )
    config.id2label = {0: "cat", 1: "dog"}
    ViTForImageClassification(config).save_pretrained(tmp_path / "vit")
    seen = look_at_model(str(tmp_path / "vit"), unasked)
    assert (seen.kind, list(seen.classes), seen.shape) == ("image-classification", ["cat", "dog"], (3, 32, 32))
    for made in (tiny_causal(tmp_path / "chat"), tiny_seq2seq(tmp_path / "bart")):
        assert look_at_model(str(made), unasked).kind == "summarization"
    assert look_at_model(str(tiny_pipeline(tmp_path / "sd")), unasked).kind == "text-to-image"


def test_an_onnx_network_says_what_it_takes_and_cannot_be_repaired(tmp_path):
    onnx = pytest.importorskip("onnx")
    from onnx import TensorProto, helper

    takes = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 3, 32, 32])
    gives = helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 5])
    nodes = [helper.make_node("Flatten", ["x"], ["f"]), helper.make_node("Softmax", ["f"], ["y"])]
    onnx.save(helper.make_model(helper.make_graph(nodes, "g", [takes], [gives])), str(tmp_path / "m.onnx"))
    model = look_at_model(str(tmp_path / "m.onnx"), unasked)
    assert model.named("m.onnx") == {"onnx": "m.onnx", "outputs": "probabilities"}
    assert (model.n_classes, model.shape, model.black_box) == (5, (3, 32, 32), True)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ("test_resnet-shape.safetensors", "did you mean 'test_resnet-shapes.safetensors'"),
        ("shapes", "expected a folder with config.json"),
        ("shapes/flat/000.png", "expected a file that ends in"),
        ("broken.safetensors", "no readable safetensors"),
    ],
)
def test_what_is_no_model_is_told(repository, given, said):
    (repository / "broken.safetensors").write_bytes(b"broken")
    with pytest.raises(UsageError, match=said):
        look_at_model(given, unasked)


def test_pictures_that_cannot_be_read_are_counted(tmp_path):
    data = look_at_pictures(write_pictures(tmp_path / "pets", 30, broken=3), "pets")
    assert "30 pictures in 3 classes" in data.said
    assert "3 unreadable" in data.said
    assert (data.items, data.shape) == (27, (3, SIDE, SIDE))


def test_a_folder_without_pictures_is_told(tmp_path):
    (tmp_path / "empty" / "cats").mkdir(parents=True)
    with pytest.raises(UsageError, match="no picture"):
        look_at_pictures(tmp_path / "empty", "empty")


def test_columns_of_articles_are_found(tmp_path):
    rows = [{"document": text, "highlights": "A summary."} for text in articles(12)]
    (tmp_path / "news.jsonl").write_text("\n".join(map(json.dumps, rows)))
    data = look_at_articles(tmp_path / "news.jsonl", "news.jsonl")
    assert data.block == {"text": "document", "summary": "highlights"}
    assert data.items == 12
    (tmp_path / "other.jsonl").write_text('{"words": "x"}\n')
    with pytest.raises(UsageError, match="found words"):
        look_at_articles(tmp_path / "other.jsonl", "other.jsonl")


def test_words_of_captioned_pictures_are_found():
    data = look_at_captions(ROOT / "data/images/inputs/pictures.parquet", "pictures.parquet")
    assert "red" in data.columns["colour"]


def test_labels_are_matched_by_how_they_are_written():
    matched = match_labels(
        ["cat", "Sea_Lion", "tabby", "hrse", "zebra"], ["cat", "sea lion", "tabby, tabby cat", "horse"]
    )
    assert matched.sure == {"Sea_Lion": "sea lion", "tabby": "tabby, tabby cat"}
    assert matched.guessed == {"hrse": "horse"}
    assert matched.unknown == ["zebra"]
    with pytest.raises(UsageError, match="did you mean 'zebra'"):
        read_labels(["zebr=horse"], ["zebra"], ["horse"])


# Proposals


def wanted(**changes: Any) -> Wanted:
    given = {"name": "a", "kind": "image-classification", "model": {}, "data": {}, "repair": True, "budget": None}
    return Wanted(**{**given, "items": 60, **changes})


def test_grey_pictures_have_no_colour_to_lose():
    assert "saturation" in image_concepts((3, 32, 32))
    assert "saturation" not in image_concepts((1, 32, 32))


def test_items_follow_from_how_many_there_are():
    assert count_items(wanted(items=60)) == {"discover": 20, "repair": 20, "test": 20}
    assert count_items(wanted(items=10_000)) == {"discover": 200, "repair": 2000, "test": 1000}
    assert count_items(wanted(items=60, repair=False)) == {"discover": 60}
    assert count_items(wanted(items=60, pools={"discover": 12, "repair": 30, "test": 18}))["discover"] == 12
    with pytest.raises(UsageError, match="--no-repair"):
        count_items(wanted(items=60, pools={"discover": 50, "repair": 10}))
    with pytest.raises(UsageError, match="too few items"):
        count_items(wanted(items=5, repair=False))


def test_the_budget_fits_what_a_probe_takes():
    assert search_budget(0.0001) == 4000
    assert search_budget(0.2) == 1200
    assert search_budget(100) == 200


@pytest.fixture
def checked(monkeypatch) -> None:
    """Has calibration only check what was written, as `faded plan` does, and find that it will do."""

    def measure(params: Any, name: str, *_more: object) -> Screening:
        check_audits(params, [name])
        raise InfrastructureError("checked")

    monkeypatch.setattr(flows.init.calibrate, "measure_concepts", measure)


def test_an_audit_of_a_summarizer_is_accepted(repository, checked):
    tiny_causal(repository / "chat")
    rows = [{"article": text, "summary": "A summary."} for text in articles(40)]
    (repository / "news.jsonl").write_text("\n".join(map(json.dumps, rows)))
    with pytest.raises(InfrastructureError, match="checked"):
        init(given=options(answers={"model": "chat", "data": "news.jsonl"}))
    audit = load_params(repository / "params.yaml").audit("news")
    assert audit.prepare["data"] == {"jsonl": "news.jsonl", "text": "article", "summary": "summary"}
    assert audit.prepare["items"] == {"discover": 13, "repair": 13, "test": 14}


def test_an_audit_of_a_text_to_image_model_is_accepted(repository, checked):
    images = ROOT / "data/images/inputs"
    (repository / "prompts.txt").write_text(
        "a {size} {colour} {digit}\n{digit}, {size} and {colour}\nthe {digit} {size} {colour}\n"
    )
    answers = {
        "model": str(images / "model"),
        "data": str(images / "pictures.parquet"),
        "templates": "prompts.txt",
        "judge": str(images / "judge-digits"),
        "name": "digits",
    }
    with pytest.raises(InfrastructureError, match="checked"):
        init(given=options(answers=answers, words=["size=small,large", "digit=two, three"]))
    audit = load_params(repository / "params.yaml").audit("digits")
    assert audit.prepare["judge"] == {"attributes": "judge-digits"}
    assert audit.concepts["size"] == ["", "small", "large"]
    assert "red" in audit.concepts["colour"]  # as the table of the pictures names them


# Questions


def questions(given: dict[str, Any], **how: Any) -> Questions:
    return Questions(Console(file=io.StringIO()), given, **{"asks": False, "yes": False, **how})


def test_without_a_terminal_a_missing_answer_names_its_option():
    with pytest.raises(UsageError, match="--model"):
        questions({}).text("model", "The model")
    with pytest.raises(UsageError, match="--name, or --yes to take what was guessed: pets"):
        questions({}).text("name", "Name", "pets")
    with pytest.raises(UsageError, match="--repair or --no-repair"):
        questions({}).confirm("repair", "Repair", True)
    assert questions({}, yes=True).text("name", "Name", "pets") == "pets"
    with pytest.raises(UsageError, match="did you mean 'summarization'"):
        questions({"kind": "sumarization"}).choice("kind", "Kind", ["summarization", "text-to-image"])


def test_on_a_terminal_it_asks_again_until_the_answer_will_do(monkeypatch):
    typed = iter(["", "nothing", "pets"])
    monkeypatch.setattr(Prompt, "ask", lambda *_a, **_k: next(typed))

    def check(answer: str) -> None:
        if answer == "nothing":
            raise UsageError("there is no such file")

    assert questions({}, asks=True).text("data", "Data", check=check) == "pets"
    monkeypatch.setattr(Confirm, "ask", lambda *_a, **_k: False)
    assert questions({}, asks=True).confirm("repair", "Repair", True) is False


def asked(repository: Path, **given: Any) -> Answers:
    answers = {"model": WEIGHTS, "data": "shapes", **given}
    return ask(questions(answers, yes=True), repository, [], labels=[], words=[], budget=None)


def test_small_pictures_are_shown_as_they_are_and_black_boxes_are_not_repaired(repository):
    found = asked(repository)
    assert found.wanted.data == {"imagefolder": "shapes", "size": SIDE}
    assert shape_shown(found) == (3, SIDE, SIDE)
    url = asked(repository, model="http://127.0.0.1:1/", kind="image-classification")
    assert url.wanted.model == {"endpoint": "http://127.0.0.1:1/", "classes": list(CLASSES), "size": SIDE}
    assert not url.wanted.repair
    assert any("cannot be repaired" in line for line in url.said)
    with pytest.raises(UsageError, match="--repair"):
        asked(repository, model="http://127.0.0.1:1/", kind="image-classification", repair=True)
    with pytest.raises(UsageError, match="for image-classification"):
        asked(repository, kind="summarization")


def test_help_needs_no_heavy_library():
    """People see it at once: nothing of torch, transformers or onnx is imported for it."""
    code = "import sys, flows.cli; print([m for m in ('torch', 'transformers', 'timm', 'onnx') if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"
