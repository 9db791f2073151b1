"""Linked folders in inputs: their content counts as much as that of the inputs themselves."""

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

import flows.graph.known_graph
from flows.graph import read_graph
from flows.graph.known_graph import NOTE
from stages.core.errors import UsageError
from tests.finished import inside
from tests.workspace import FADED, Workspace, make_workspace

Linked = tuple[Workspace, Path]


def fill(pictures: Path) -> Path:
    """Make a folder hold one picture of a cat."""
    shutil.rmtree(pictures, ignore_errors=True)
    (pictures / "cat").mkdir(parents=True)
    (pictures / "cat" / "1.png").write_text("one")
    return pictures


@pytest.fixture(scope="module")
def prepared(tmp_path_factory) -> Linked:
    """A workspace of toys whose first stage ran on a linked folder, and that folder."""
    home = tmp_path_factory.mktemp("linked")
    toys = make_workspace(home / "toys", toys=True)
    (toys.path / "data/tiny/inputs/pictures").symlink_to(fill(home / "pictures"))
    assert stale(toys) == ("never ran",)
    done = toys.run(["dvc", "repro", "--single-item", "prepare@tiny"])
    assert done.returncode == 0, done.stdout
    return toys, home / "pictures"


@pytest.fixture
def linked(prepared) -> Linked:
    """The same as it was then; nothing is stale."""
    toys, pictures = prepared
    fill(pictures)
    link = toys.path / "data/tiny/inputs/pictures"
    link.unlink(missing_ok=True)
    link.symlink_to(pictures)
    assert stale(toys) == ()
    return prepared


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


def test_a_note_cut_short_by_a_kill_is_written_again_and_one_of_no_link_is_taken_away(linked):
    toys, _ = linked
    note = toys.path / "data/tiny/inputs" / NOTE
    whole = note.read_text()
    note.write_text(whole[:20])
    assert stale(toys) == ()
    assert note.read_text() == whole
    (toys.path / "data/tiny/inputs/pictures").unlink()
    assert stale(toys) == ("data/tiny/inputs modified",)
    assert not note.exists()


def test_a_folder_that_cannot_be_read_is_told(linked, monkeypatch):
    toys, _ = linked

    def denied(*_arguments: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(flows.graph.known_graph, "_held", denied)
    with pytest.raises(UsageError, match=f"data/tiny/inputs links to a folder.*{NOTE}.*Permission denied; copy"):
        stale(toys)


@pytest.mark.slow
def test_inputs_that_may_only_be_read(tmp_path):
    toys = make_workspace(tmp_path / "toys", toys=True)
    inputs = toys.path / "data/tiny/inputs"
    mount = f"mount --bind {inputs} {inputs} && mount -o remount,bind,ro {inputs}"
    if toys.run(["unshare", "--mount", "sh", "-c", mount]).returncode:
        pytest.skip("nothing can be mounted here")
    done = toys.run(["unshare", "--mount", "sh", "-c", f"{mount} && exec {FADED} plan"])
    assert done.returncode == 0, done.stdout
    assert "prepare@tiny" in done.stdout
