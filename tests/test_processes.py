"""Work shared with further processes gives the same result as in one, whatever happens to them."""

import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from functools import partial

import numpy as np
import psutil
import pytest

from flows.graph import Graph, Stage
from flows.results.estimate import processes_line
from stages.core import processes
from stages.core.errors import UsageError
from stages.core.processes import Crew
from stages.params import Params
from stages.tasks.classification import ImageClassification
from tests.images import image_context, stripes
from tests.workspace import audit_params


class Doubler:
    """An object that every process of a crew has a copy of."""

    def __init__(self, by: int) -> None:
        self.by = by

    def times(self, number: int) -> tuple[int, int]:
        """The product, and the process that computed it."""
        time.sleep(0.2)
        return self.by * number, os.getpid()

    def dies_elsewhere(self, number: int, parent: int) -> int:
        """The product; any process but the parent dies."""
        if os.getpid() != parent:
            os._exit(9)
        return self.by * number

    def refuses(self, number: int) -> int:
        """The product of an even number; odd ones raise an error."""
        if number % 2:
            raise UsageError(f"{number} is odd")
        return number


def square(number: int) -> tuple[int, int]:
    time.sleep(0.2)
    return number**2, os.getpid()


@pytest.fixture(autouse=True)
def roomy(monkeypatch):
    """A machine with memory for any number of copies, however many tests run in parallel."""
    monkeypatch.setattr(processes, "_fitting", lambda wanted: wanted)


@pytest.mark.slow
def test_functions_and_methods_are_called_by_all_and_answer_in_order_once_the_work_is_worth_it():
    assert Crew(2).ask(square, [(5,)]) == [(25, os.getpid())], "one piece is nobody else's"
    crew = Crew(2, partial(Doubler, 3), after=0.3)
    assert {who for _, who in crew.ask(Doubler(3).times, [(1,), (2,)])} == {os.getpid()}
    for do, by, wanted in (
        (square, Crew(2), [k**2 for k in range(6)]),
        (Doubler(3).times, crew, [3 * k for k in range(6)]),
    ):
        found = by.ask(do, [(k,) for k in range(6)])
        assert [value for value, _ in found] == wanted and len({who for _, who in found}) == 2


@pytest.mark.slow
def test_what_a_dead_process_had_begun_is_done_here(capsys):
    crew = Crew(2, partial(Doubler, 2))
    pieces = [(k, os.getpid()) for k in range(5)]
    assert crew.ask(Doubler(2).dies_elsewhere, pieces) == [0, 2, 4, 6, 8]
    assert "has died, so this one continues alone" in capsys.readouterr().out
    assert {who for _, who in crew.ask(Doubler(2).times, [(1,), (2,)])} == {os.getpid()}


@pytest.mark.slow
def test_errors_are_those_of_one_process_and_a_copy_that_cannot_be_loaded_is_no_loss():
    with pytest.raises(UsageError, match="3 is odd"):
        Crew(2, partial(Doubler, 2)).ask(Doubler(2).refuses, [(2,), (3,), (4,), (6,)])
    assert Crew(2, partial(Doubler)).ask(Doubler(2).refuses, [(2,), (4,), (6,)]) == [2, 4, 6]  # its copies lack `by`


def test_memory_that_a_container_may_use_bounds_the_copies(monkeypatch, tmp_path):
    monkeypatch.undo()
    own = psutil.Process().memory_info().rss
    for name, size in (("_LIMIT", 5.5 * own), ("_USED", own)):
        (tmp_path / name).write_text(str(int(size)))
        monkeypatch.setattr(processes, name, tmp_path / name)
    assert processes._fitting(7) == 2  # half of the remaining 4.5 times its own size
    monkeypatch.setattr(processes, "_LIMIT", tmp_path / "none")
    monkeypatch.setattr(psutil, "virtual_memory", lambda: type("free", (), {"available": 0.5 * own}))
    assert processes._fitting(7) == 0


def test_others_end_with_a_stage_that_is_killed():
    code = (
        "import psutil, stages.core.processes, time\n"
        "stages.core.processes._fitting = lambda wanted: wanted\n"
        "crew = stages.core.processes.Crew(2)\n"
        "crew.ask(time.sleep, [(0.2,)] * 6)\n"
        "print(*(other.pid for other in psutil.Process().children(recursive=True)), flush=True)\ntime.sleep(60)"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as stage:
        assert stage.stdout is not None and "2 processes" in stage.stdout.readline()
        others = [psutil.Process(int(other)) for other in stage.stdout.readline().split()]
        assert others
        os.kill(stage.pid, signal.SIGKILL)
    assert psutil.wait_procs(others, timeout=20)[1] == []


def test_a_model_answers_alike_to_the_last_bit():
    """Every kind of model is shared by the same function of `LoadedTask`."""
    context = image_context(stripes() / "inputs")
    context = replace(context, compute=replace(context.compute, processes=2))
    load = partial(ImageClassification.load, context, stripes() / "prepare")
    alone, shared = load(), load()
    shared.crew = Crew(2, load)
    rng = np.random.default_rng(0)
    items, cells = rng.choice(alone.items.ids("discover"), 70).tolist(), alone.concepts.sample(70, rng)
    one, other = alone.probe(items, cells), shared.probe(items, cells)
    assert shared.crew._pool is not None
    np.testing.assert_array_equal(one.discrepancy, other.discrepancy)
    assert one.outputs == other.outputs


def test_plan_says_how_many_processes_hold_the_model(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    weights = tmp_path / "data/tiny/prepare/model/weights.bin"
    weights.parent.mkdir(parents=True)
    weights.write_bytes(bytes(1500))
    tiny = audit_params(task="tests.planted:PlantedTask", compute={"backend": "eager"})
    params = Params.model_validate({"audits": {"tiny": tiny}, "repairs": {}})

    def said(*stale: str, cores: int) -> str:
        monkeypatch.setenv("LOKY_MAX_CPU_COUNT", str(cores))
        kinds = ("prepare", "discover", "summarize", "report")
        stages = [Stage(f"{k}@tiny", k, "tiny", n, (), None, ("edited",) * (k in stale)) for n, k in enumerate(kinds)]
        return processes_line(params, Graph({stage.name: stage for stage in stages}), "tiny") or ""

    wanted = "tiny: up to 2 processes answer probes at once, each with a copy of the model (1.5 kB on disk)"
    assert said("discover", cores=2) == wanted
    assert [said("discover", cores=1), said(cores=2), said("prepare", cores=2)] == [""] * 3
