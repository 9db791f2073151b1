"""`faded init` checks before it writes: classes and their order, numbers and names; a refusal leaves nothing."""

from __future__ import annotations

import io
import shlex
import shutil
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console
from rich.prompt import Confirm

from flows.init.run import init_audit
from stages.core.errors import UsageError
from stages.params import load_params
from stages.tasks.classification.init.trial import Order
from tests.own_model import WEIGHTS, init, options
from tests.workspace import Workspace

pytest_plugins = ("tests.own_repository",)


def left(repository: Path) -> set[str]:
    """All files except git's own and the remembered answers."""
    held = {path.relative_to(repository).as_posix() for path in repository.rglob("*") if ".git/" not in str(path)}
    return {name for name in held if not name.startswith(".faded")}


# Order of the classes


def order(counts: list[list[int]]) -> Order:
    return Order([chr(ord("a") + i) for i in range(len(counts))], np.array(counts))


@pytest.mark.parametrize(
    ("counts", "proposed", "sure"),
    [
        ([[18, 1, 1], [2, 17, 1], [0, 3, 17]], "abc", False),  # in the order of the names
        ([[1, 18, 1], [1, 2, 17], [17, 0, 3]], "cab", True),
        ([[19, 0, 1], [0, 1, 19], [1, 18, 1]], "acb", True),  # two are swapped
        ([[0, 2, 0], [0, 0, 2], [2, 0, 0]], "cab", False),  # likely, but from two pictures each
        ([[0, 20, 0], [0, 20, 0], [0, 0, 20]], "abc", False),  # one class is classified as another: that is a failure
        ([[10, 10, 0], [10, 9, 1], [0, 0, 20]], "bac", False),  # a model that confuses two classes
        ([[0, 20, 0], [0, 0, 20], [0, 0, 0]], "cab", True),  # there are no pictures of c
    ],
)
def test_the_order_of_outputs_is_read_off_the_answers_and_said_to_be_sure_only_if_it_is(counts, proposed, sure):
    found = order(counts)
    assert ("".join(found.proposed), found.sure) == (proposed, sure)


@pytest.mark.slow
def test_classes_in_another_order_are_refused_with_the_order_to_type_before_anything_is_written(repository):
    before, here = left(repository), Workspace(repository)
    command = ("init", "--model", WEIGHTS, "--data", "shapes", "--no-repair", "--yes", "--classes")
    told = here.faded(*command, "upright,flat,slanted")
    assert told.returncode == 2, told.stdout
    assert "0% of 60 unchanged pictures are right" in told.stdout
    assert "Say --classes flat,slanted,upright" in told.stdout
    assert "faded audit" not in told.stdout
    assert left(repository) == before


def test_two_swapped_classes_are_seen_and_the_right_order_is_offered(repository, measured, monkeypatch):
    answers = {"classes": "flat,upright,slanted", "repair": False, "name": "a", "size": "32"}
    given = options(answers={**answers, "architecture": "test_resnet"}, yes=False)
    asked = []
    monkeypatch.setattr(Confirm, "ask", lambda question, **_: asked.append(question) or True)
    out = io.StringIO()
    init_audit(Path(), given, Console(file=out, width=200), asks=True)
    assert asked == ["Take the classes in that order", "Write this audit and measure each concept"]
    assert "upright" in out.getvalue() and "slanted (" in out.getvalue()
    model = load_params(repository / "params.yaml").audit("a").prepare["model"]
    assert model["classes"] == ["flat", "slanted", "upright"]


# Names and counts of classes


def test_a_missing_an_emptied_and_an_extra_class_are_named_with_what_to_type(repository):
    for picture in (repository / "shapes/slanted").iterdir():
        picture.unlink()
    with pytest.raises(UsageError) as told:
        init(given=options(answers={"repair": False}))
    assert (
        "the model has 3 outputs, and the data 2 classes: flat (20), upright (20); without a picture: slanted"
        in str(told.value)
    )
    assert "say --classes flat,slanted,upright" in str(told.value)
    (repository / "shapes/slanted").rmdir()
    with pytest.raises(UsageError, match=r"1 more is of the model alone: .* --classes flat,upright,NAME1"):
        init(given=options(answers={"repair": False}))
    for name in ("slanted", "won't do"):
        shutil.copytree(repository / "shapes/flat", repository / "shapes" / name)
    (repository / "shapes/won't do/000.png").unlink()
    with pytest.raises(UsageError) as told:
        init(given=options(answers={"repair": False}))
    assert "4 classes: flat (20), slanted (20), upright (20), won't do (19)" in str(told.value)
    assert "--classes flat,slanted,upright" in str(told.value)
    assert shlex.split(str(told.value).partition("--label ")[2]) == ["won't do=CLASS"]  # as a shell reads it
    assert not (repository / "params.yaml").exists()


# Refusals leave nothing


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"probes": 50}, "--probes 50: too few for 9 concepts, expected 100 or more"),
        ({"budget": 10**7}, "--budget 10000000: more than there are pairs"),
        ({"answers": {"architecture": "resnet18"}}, "weights"),
    ],
)
def test_what_would_be_refused_later_is_refused_before_anything_is_written(repository, given, said):
    before = left(repository)
    with pytest.raises(UsageError, match=said):
        init(given=options(**given))
    assert left(repository) == before


# Architectures


# Formats
