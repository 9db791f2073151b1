"""Linked folders in inputs: their content counts as much as that of the inputs themselves."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from flows.graph import read_graph
from tests.finished import inside
from tests.workspace import Workspace, make_workspace

Linked = tuple[Workspace, Path]


def fill(pictures: Path) -> Path:
    """Make a folder hold one picture of a cat."""
    shutil.rmtree(pictures, ignore_errors=True)
    (pictures / "cat").mkdir(parents=True)
    (pictures / "cat" / "1.png").write_text("one")
    return pictures


@pytest.fixture(scope="module")
def prepared(tmp_path_factory) -> Workspace:
    """A workspace of toys whose first stage ran on a linked folder."""
    home = tmp_path_factory.mktemp("linked")
    toys = make_workspace(home / "toys", toys=True)
    (toys.path / "data/tiny/inputs/pictures").symlink_to(fill(home / "pictures"))
    assert stale(toys) == ("never ran",)
    done = toys.run(["dvc", "repro", "--single-item", "prepare@tiny"])
    assert done.returncode == 0, done.stdout
    return toys


@pytest.fixture
def linked(prepared, tmp_path) -> Iterator[Linked]:
    """A copy of it, with its own folder of pictures; nothing is stale yet."""
    toys = prepared.copy(tmp_path / "toys")
    link, pictures = toys.path / "data/tiny/inputs/pictures", fill(tmp_path / "pictures")
    link.unlink()
    link.symlink_to(pictures)
    assert stale(toys) == ()
    yield toys, pictures


def stale(toys: Workspace) -> tuple[str, ...]:
    with inside(toys):
        return read_graph().stages["prepare@tiny"].reasons


def _behind_another_link(pictures: Path) -> None:
    more = pictures.with_name("more")
    more.mkdir()
    (more / "2.png").write_text("three")
    (pictures / "more").symlink_to(more)


CHANGES: list[Callable[[Path], object]] = [
    lambda pictures: (pictures / "cat" / "1.png").write_text("two"),
    lambda pictures: (pictures / "cat" / "2.png").write_text("one"),
    lambda pictures: (pictures / "cat" / "1.png").unlink(),
    lambda pictures: (pictures / "cat").rename(pictures / "dog"),
    _behind_another_link,
]


@pytest.mark.slow
def test_any_change_makes_the_audit_stale(linked):
    toys, pictures = linked
    for change in CHANGES:
        change(fill(pictures))
        assert stale(toys) == ("data/tiny/inputs modified",)
    fill(pictures)
    assert stale(toys) == ()


def test_what_changes_no_content_makes_nothing_stale(linked):
    toys, pictures = linked
    os.utime(pictures / "cat" / "1.png", (1, 1))
    for name in (".git", "__pycache__"):
        (pictures / name).mkdir()
        (pictures / name / "index").write_text("x")
    (pictures / "cat" / "loop").symlink_to(pictures)
    assert stale(toys) == ()
