"""Work shared with further processes comes out as if one had done it, whatever happens to them."""

import os
import signal
import subprocess
import sys
import time
from functools import partial

import numpy as np
import psutil
import pytest

from stages import processes
from stages.errors import UsageError
from stages.processes import Crew
from stages.tasks.classification import ImageClassification
from stages.tasks.contract import Compute, is_remote
from tests.images import image_context, write_images


class Doubler:
    """What a crew has a copy of."""

    def __init__(self, by: int) -> None:
        self.by = by

    def times(self, number: int) -> tuple[int, int]:
        """The product, and who made it."""
        time.sleep(0.2)
        return self.by * number, os.getpid()

    def dies_elsewhere(self, number: int, parent: int) -> int:
        """The product, unless another process is asked."""
        if os.getpid() != parent:
            os._exit(9)
        return self.by * number

    def refuses(self, number: int) -> int:
        """No product of odd numbers."""
        if number % 2:
            raise UsageError(f"{number} is odd")
        return number


def square(number: int) -> tuple[int, int]:
    time.sleep(0.2)
    return number**2, os.getpid()


@pytest.fixture(autouse=True)
def roomy(monkeypatch):
    """A machine with memory for as many copies as are asked for, however many tests run beside this one."""
    monkeypatch.setattr(processes, "_fitting", lambda wanted: wanted)


def test_functions_and_methods_are_called_by_all_and_answer_in_order():
    for do, crew, wanted in (
        (square, Crew(2), [k**2 for k in range(6)]),
        (Doubler(3).times, Crew(2, partial(Doubler, 3)), [3 * k for k in range(6)]),
    ):
        found = crew.ask(do, [(k,) for k in range(6)])
        assert [value for value, _ in found] == wanted
        assert len({who for _, who in found}) == 2


def test_others_start_only_when_the_work_is_worth_it():
    crew = Crew(2, partial(Doubler, 2), after=0.3)
    alone = [crew.ask(Doubler(2).times, [(1,), (2,)]) for _ in range(2)]
    assert {who for found in alone[:1] for _, who in found} == {os.getpid()}
    assert len({who for _, who in crew.ask(Doubler(2).times, [(k,) for k in range(8)])}) == 2


def test_one_piece_is_nobody_elses():
    assert Crew(2).ask(square, [(5,)]) == [(25, os.getpid())]


def test_what_a_dead_process_had_begun_is_done_here(capsys):
    crew = Crew(2, partial(Doubler, 2))
    pieces = [(k, os.getpid()) for k in range(5)]
    assert crew.ask(Doubler(2).dies_elsewhere, pieces) == [0, 2, 4, 6, 8]
    assert "has died, so this one goes on alone" in capsys.readouterr().out
    assert {who for _, who in crew.ask(Doubler(2).times, [(1,), (2,)])} == {os.getpid()}


def test_a_copy_that_cannot_be_loaded_is_no_loss():
    assert Crew(2, partial(Doubler)).ask(Doubler(2).refuses, [(2,), (4,), (6,)]) == [2, 4, 6]  # it lacks `by`


def test_errors_are_those_of_one_process():
    with pytest.raises(UsageError, match="3 is odd"):
        Crew(2, partial(Doubler, 2)).ask(Doubler(2).refuses, [(2,), (3,), (4,), (6,)])


def test_memory_that_a_container_may_use_bounds_the_copies(monkeypatch, tmp_path):
    monkeypatch.undo()
    own = psutil.Process().memory_info().rss
    for name, size in (("_LIMIT", 5.5 * own), ("_USED", own)):
        (tmp_path / name).write_text(str(int(size)))
        monkeypatch.setattr(processes, name, tmp_path / name)
    assert processes._fitting(7) == 2  # half of the 4.5 times its own size that are left
    monkeypatch.setattr(processes, "_LIMIT", tmp_path / "none")
    monkeypatch.setattr(psutil, "virtual_memory", lambda: type("free", (), {"available": 0.5 * own}))
    assert processes._fitting(7) == 0


def test_others_end_with_a_stage_that_is_killed():
    code = (
        "from stages.processes import Crew\nfrom tests.test_processes import square\nimport stages.processes, time\n"
        "stages.processes._fitting = lambda wanted: wanted\n"
        "print(*(who for _, who in Crew(2).ask(square, [(k,) for k in range(6)])), flush=True)\ntime.sleep(60)"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as stage:
        assert stage.stdout is not None
        assert "2 processes" in stage.stdout.readline()
        other = next(int(who) for who in stage.stdout.readline().split() if int(who) != stage.pid)
        assert psutil.pid_exists(other)
        os.kill(stage.pid, signal.SIGKILL)
    ended = psutil.wait_procs([psutil.Process(other)] if psutil.pid_exists(other) else [], timeout=20)
    assert not ended[1]


def test_a_classifier_answers_alike_to_the_last_bit(tmp_path):
    write_images(tmp_path / "inputs" / "images.parquet")
    (tmp_path / "prepare").mkdir()
    context = image_context(tmp_path / "inputs", compute=Compute(threads=1, batch_size=8))
    ImageClassification.prepare(context, tmp_path / "prepare")
    load = partial(ImageClassification.load, context, tmp_path / "prepare")
    alone, shared = load(), load()
    shared.crew = Crew(2, load)
    rng = np.random.default_rng(0)
    items, cells = rng.choice(alone.items.ids("discover"), 60).tolist(), alone.concepts.sample(60, rng)
    one, other = alone.probe(items, cells), shared.probe(items, cells)
    assert shared.crew._pool is not None
    np.testing.assert_array_equal(one.discrepancy, other.discrepancy)
    assert one.outputs == other.outputs


def test_a_service_is_not_asked_by_several():
    assert is_remote({"model": {"endpoint": "http://localhost:1"}})
    assert not is_remote({"model": {"train": "small_cnn"}})
