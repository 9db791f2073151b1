"""A stored answer of DVC is reused only while nothing that it depends on has changed."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

import flows.graph.known_graph
from flows.graph import RUNS_NOW, read_graph
from flows.graph.known_graph import KNOWN, recall
from tests.finished import finished_toys, inside
from tests.workspace import Workspace


class Asked(Exception):
    """DVC was queried."""


@pytest.fixture(scope="module")
def ran(tmp_path_factory) -> Workspace:
    workspace = finished_toys().copy(tmp_path_factory.mktemp("known") / "ws")
    with inside(workspace):
        read_graph()  # records what DVC does not have yet
    return workspace


@pytest.fixture
def here(ran, monkeypatch) -> Workspace:
    """A workspace as the current folder; a test undoes what it changes there."""
    monkeypatch.chdir(ran.path)
    monkeypatch.setattr(flows.graph.known_graph, "SETTLED_NS", -(10**18))
    return ran


@pytest.fixture
def known(here) -> Workspace:
    """The same, in which DVC has just been queried."""
    read_graph()
    assert Path(KNOWN).exists()
    return here


def refuse(monkeypatch: pytest.MonkeyPatch) -> None:
    """Forbid queries of DVC from here on."""

    def asked(*_args: object, **_more: object) -> None:
        raise Asked

    monkeypatch.setattr("dvc.repo.Repo.__init__", asked)


def test_where_nothing_changed_dvc_is_not_asked_and_the_answer_is_the_same(known, monkeypatch):
    with monkeypatch.context() as forgetful:
        forgetful.setattr(flows.graph.known_graph, "recall", lambda *_, **__: None)
        before = read_graph(), read_graph(looks=True)
    refuse(monkeypatch)
    assert recall(Path(), looks=True) is not None
    assert read_graph(looks=True) == before[1]


def _edit(path: str, add: str) -> Callable[[Path], object]:
    return lambda root: (root / path).write_text((root / path).read_text() + add)


def _same_size_and_time(root: Path) -> None:
    """Change a file like an editor that hides its traces."""
    path = root / "data/tiny/report/verdict.json"
    before = path.stat()
    data = path.read_bytes()
    path.chmod(0o644)
    path.write_bytes(data.replace(b"1", b"2", 1) if b"1" in data else data[::-1])
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


def _linked(root: Path, name: str) -> None:
    """Make the task's module a link to a file elsewhere."""
    module, target = root / "planted.py", root.with_name(f"{name}.py")
    target.write_text(f"{module.read_text()}# {name}\n")
    module.unlink()
    module.symlink_to(target)


CHANGES = [
    *(_edit(name, "\n") for name in ("params.yaml", "dvc.lock")),
    _edit("planted.py", "X = 1\n"),
    lambda root: _linked(root, "first"),
    lambda root: _linked(root, "second"),
    lambda root: (root / "numpy.py").write_text("shadows the library's"),
    lambda root: (root / "data/tiny/inputs/new").write_text("1"),
    _same_size_and_time,
    lambda root: (root / "data/tiny/prepare/items.parquet").unlink(),
    lambda root: shutil.rmtree(root / ".dvc/cache"),
    lambda root: (root / ".dvc/tmp/rwlock").write_text(json.dumps({"write": {"x": {"pid": 1, "cmd": "dvc"}}})),
]


def test_whatever_changes_dvc_is_asked(ran, tmp_path, monkeypatch):
    copy = ran.copy(tmp_path / "w")
    monkeypatch.chdir(copy.path)
    monkeypatch.setattr(flows.graph.known_graph, "SETTLED_NS", -(10**18))
    for change in CHANGES:  # one after the other
        for _ in range(1 + (change in CHANGES[3:8])):  # records code that is new
            read_graph()
        assert recall(Path(), looks=False) is not None
        change(copy.path)
        with monkeypatch.context() as patch, pytest.raises(Asked):
            refuse(patch)
            read_graph()


def test_what_a_command_that_only_looks_was_told_is_not_enough_to_run(here, monkeypatch):
    Path(KNOWN).unlink(missing_ok=True)
    read_graph(looks=True)
    refuse(monkeypatch)
    read_graph(looks=True)
    with pytest.raises(Asked):
        read_graph()


def test_an_answer_is_not_kept_where_a_file_may_yet_change_unseen(here, monkeypatch):
    monkeypatch.setattr(flows.graph.known_graph, "SETTLED_NS", 10**18)
    Path(KNOWN).unlink(missing_ok=True)
    read_graph()
    assert not Path(KNOWN).exists()


def _held(name: str) -> str:
    """DVC's record that this process writes a file."""
    return json.dumps({"write": {str(Path(name).resolve()): {"pid": os.getpid(), "cmd": "dvc repro"}}})


def test_nothing_is_kept_where_a_stage_starts_ends_or_fails_while_dvc_is_asked(here, monkeypatch):
    rwlock, snapshot = Path(".dvc/tmp/rwlock"), flows.graph._snapshot
    for before, after in (("{}", _held("elsewhere")), (_held("elsewhere"), "{}")):
        Path(KNOWN).unlink(missing_ok=True)
        rwlock.write_text(before)

        def slow(*args: object, after: str = after) -> object:
            told = snapshot(*args)
            rwlock.write_text(after)
            return told

        with monkeypatch.context() as patch:
            patch.setattr("flows.graph._snapshot", slow)
            read_graph(looks=True)
        assert not Path(KNOWN).exists()
    rwlock.write_text(_held("data/tiny/discover"))
    assert read_graph(looks=True).stages["discover@tiny"].reasons == (RUNS_NOW,)
    assert not Path(KNOWN).exists()
    rwlock.write_text("{}")  # interrupted or failed without writing anything
    assert read_graph(looks=True).stages["discover@tiny"].reasons == ()


@pytest.mark.slow
def test_a_stage_that_failed_is_not_told_to_be_as_it_was(ran, tmp_path, monkeypatch):
    copy = ran.copy(tmp_path / "w")
    monkeypatch.chdir(copy.path)
    assert not read_graph().stages["discover@tiny"].stale
    copy.toy(discover__tiny={"exit": 2})
    assert copy.run(["dvc", "repro", "--force", "--single-item", "discover@tiny"]).returncode != 0
    assert read_graph(looks=True).stages["discover@tiny"].stale and read_graph().stages["discover@tiny"].stale


def test_what_an_input_links_to_is_marked(known, tmp_path, monkeypatch):
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "a.txt").write_text("1")
    Path("data/tiny/inputs/link").symlink_to(outside)
    try:
        before = read_graph()
        refuse(monkeypatch)
        assert read_graph() == before
        (outside / "a.txt").write_text("2")
        with pytest.raises(Asked):
            read_graph()
    finally:
        Path("data/tiny/inputs/link").unlink()


def test_nothing_is_kept_where_a_stage_reads_what_lies_elsewhere(here):
    path = here.path / "dvc.yaml"
    before = path.read_text()
    graph = yaml.safe_load(before)
    graph["stages"]["prepare"]["do"]["deps"].append("http://127.0.0.1:9/data.csv")
    path.write_text(yaml.safe_dump(graph, sort_keys=False))
    Path(KNOWN).unlink(missing_ok=True)
    read_graph(looks=True)
    path.write_text(before)
    assert not Path(KNOWN).exists()


def test_a_damaged_memory_is_put_aside(here):
    Path(KNOWN).write_bytes(b"{}")
    assert read_graph().stages and read_graph() == read_graph()
