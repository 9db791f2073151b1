"""A whole audit gives the same bytes on any x86-64 CPU with AVX2, whatever its kind and however many cores it has.

QEMU emulates other CPUs (Debian: qemu-user). It emulates neither AVX-512 nor the cores' caches of a real one.
"""

import hashlib
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest
import torch

from stages.core.arithmetic import _replace_operators
from stages.core.environment import ALIKE, DEFAULTS, is_alike
from stages.params import AuditConfig
from stages.params.audit import ComputeConfig
from stages.provenance import device_name
from stages.tasks.chat import Chat
from stages.tasks.classification.families import Form
from stages.tasks.classification.models import Classifier
from stages.tasks.load import task_class
from tests.images import write_images
from tests.workspace import FEW_PAIRS, ROOT, STAGES, Workspace, audit_params, make_workspace, repair_params

needs_avx2 = pytest.mark.skipif(not ALIKE, reason="this CPU has no AVX2, or is no x86-64")
needs_qemu = pytest.mark.skipif(shutil.which("qemu-x86_64") is None, reason="no qemu-x86_64 (Debian: qemu-user)")

# Reports and provenance name the revision, which each workspace has its own of.
_OF_THE_RUN = {"provenance.json", "report.html", "code.json"}


def stripes(path: Path, explorer: str = "auto") -> Workspace:
    """A workspace with a small audit of a small network, and its repair; no stage has run."""
    audit = audit_params(
        task="stages.tasks.classification:ImageClassification",
        prepare={
            "model": {"train": "small_cnn", "epochs": 2, "batch_size": 32},
            "data": {"parquet": "images.parquet"},
            "items": {"discover": 30, "repair": 60, "test": 40},
        },
        concepts={"rotation": [0, 15, 30], "darkening": [0, 0.4, 0.8], "noise": [0, 0.1, 0.2], "blur": [0, 1.0]},
        discover={"explorer": explorer, "baseline": "random", "budget": 200, "microscopic": {"items": 5, "budget": 50}},
    )
    restructure = {"method": "all-layers", "control": "as_used", "settings": {"epochs": 1}, "harm": FEW_PAIRS}
    repair = repair_params(restructure=restructure, gates={"target_failure_rate": {"change_max": 0.0}})
    workspace = make_workspace(path, {"stripes": audit}, {"stripes": repair})
    pools = {"train": 300, "discover": 30, "repair": 60, "test": 40}
    write_images(path / "data/stripes/inputs/images.parquet", pools=pools)
    return workspace


# One process for all stages, as each costs seconds of imports, and minutes on an emulated CPU.
STAGES_IN_ORDER = "import importlib, sys\nfor stage in sys.argv[2:]:\n"
STAGES_IN_ORDER += "    importlib.import_module(f'stages.{stage}').main(sys.argv[1])\n"


def run_on(workspace: Workspace, emulator: tuple[str, ...] = (), **env: str) -> dict[str, str]:
    """Run all stages on a CPU; return the hash of each file that they hand on."""
    # One core, because the processes that an emulated one starts are not emulated.
    env = {**workspace.env, **DEFAULTS, "LOKY_MAX_CPU_COUNT": "1", **env}
    command = [*emulator, sys.executable, "-c", STAGES_IN_ORDER, "stripes", "code", *STAGES]
    for _ in range(3):
        done = subprocess.run(command, cwd=workspace.path, env=env, capture_output=True, text=True, check=False)
        if done.returncode != -signal.SIGSEGV:  # the emulator's, now and then
            break
    assert done.returncode == 0, done.stdout + done.stderr
    home = workspace.path / "data/stripes"
    return {
        path.relative_to(home).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(home.rglob("*"))
        if path.is_file() and path.name not in _OF_THE_RUN and path.suffix != ".html"
    }


@pytest.fixture(scope="module")
def here(tmp_path_factory) -> dict[str, str]:
    """What is handed on by one core of this CPU."""
    return run_on(stripes(tmp_path_factory.mktemp("alike") / "here"), ("taskset", "--cpu-list", "0"))


def differing(one: dict[str, str], other: dict[str, str]) -> list[str]:
    assert one.keys() == other.keys() and len(one) > 30
    return [name for name in one if one[name] != other[name]]


@needs_avx2
@pytest.mark.slow
def test_more_threads_and_processes_hand_on_the_same_bytes(here, tmp_path):
    assert differing(here, run_on(stripes(tmp_path / "more"), LOKY_MAX_CPU_COUNT="2")) == []


@needs_avx2
@needs_qemu
@pytest.mark.nightly
@pytest.mark.parametrize("cpu", ["Haswell", "EPYC"])
def test_another_cpu_hands_on_the_same_bytes(here, tmp_path, cpu):
    assert differing(here, run_on(stripes(tmp_path / cpu), ("qemu-x86_64", "-cpu", cpu))) == []


@needs_avx2
def test_a_stage_that_dvc_alone_starts_computes_alike_tells_nobody_and_fetches_nothing(tmp_path):
    script = tmp_path / "probe.py"
    script.write_text(
        "import os, numpy; from stages.command import stage_main; from stages.core.environment import is_alike\n"
        "told = ('HF_HUB_OFFLINE', 'DVC_NO_ANALYTICS')\n"
        "stage_main(lambda audit: print(is_alike(), *(os.environ[name] for name in told)))\n"
    )
    env = {k: v for k, v in os.environ.items() if k not in ALIKE and not k.startswith(("HF_", "DVC_"))}
    command = [sys.executable, str(script), "stripes"]
    for told, printed in (({}, "True 1 true"), ({"MKL_CBWR": "AUTO", "HF_HUB_OFFLINE": "0"}, "False 0 true")):
        env_of = {**env, "PYTHONPATH": str(ROOT), **told}
        done = subprocess.run(command, env=env_of, capture_output=True, text=True, check=True)
        assert done.stdout.strip() == printed and not done.stderr


@needs_avx2
def test_a_task_may_choose_speed_instead(monkeypatch):
    for name, value in ALIKE.items():
        monkeypatch.setenv(name, value)
    for task in ("classification:ImageClassification", "chat:Chat", "text_to_image:TextToImage"):
        task_class("stripes", AuditConfig.model_validate(audit_params(task=f"stages.tasks.{task}")))
        assert is_alike() and device_name(ComputeConfig(device="cpu")) != "cpu"
    assert device_name(ComputeConfig(device="cpu", dtype="bfloat16")) == "cpu"
    monkeypatch.setattr(Chat, "alike", False)
    task_class("stripes", AuditConfig.model_validate(audit_params(task="stages.tasks.chat:Chat")))
    assert not is_alike() and device_name(ComputeConfig(device="cpu")) == "cpu"


# Two steps of training: products of several sizes, attention, roots of numbers, and those of the optimiser.
TRAINED = """
import hashlib, torch
from stages.core.arithmetic import compute_alike
compute_alike()
torch.set_num_threads(1)
torch.manual_seed(0)
net = torch.nn.TransformerEncoderLayer(128, 4, 512, dropout=0.0, batch_first=True)
x, optimizer = torch.rand(6, 40, 128), torch.optim.AdamW(net.parameters(), fused=False)
for _ in range(2):
    loss = (net(x.sqrt()) * x**0.5).square().mean()
    loss.backward()
    optimizer.step()
    optimizer.zero_grad()
print(hashlib.sha256(b"".join(p.detach().numpy().tobytes() for p in net.parameters())).hexdigest())
"""


@needs_avx2
@needs_qemu
@pytest.mark.nightly
def test_a_transformer_trains_to_the_same_bytes_on_another_cpu():
    found = set()
    for emulator in ((), ("qemu-x86_64", "-cpu", "Haswell"), ("qemu-x86_64", "-cpu", "EPYC")):
        command, env = [*emulator, sys.executable, "-c", TRAINED], {**os.environ, **DEFAULTS, "PYTHONPATH": str(ROOT)}
        done = subprocess.run(command, env=env, capture_output=True, text=True, check=True)
        found.add(done.stdout)
    assert len(found) == 1 and len(found.pop().strip()) == 64


def test_classifiers_that_consist_of_products_compute_alike(monkeypatch):
    started = list[type]()
    form = Form(family="small_cnn", architecture="small_cnn", classes=["a", "b"], shape=(3, 8, 8), origin="")
    for layer in (torch.nn.BatchNorm2d(3), torch.nn.LayerNorm(8)):
        monkeypatch.setattr("stages.tasks.classification.models.compute_alike", partial(started.append, type(layer)))
        Classifier(form, torch.nn.Sequential(layer, torch.nn.Flatten(), torch.nn.Linear(192, 2)))
    assert started == [torch.nn.LayerNorm]


@pytest.fixture
def ours() -> Iterator[None]:
    """Torch with our operators, whatever this machine, until the test ends."""
    replaced = _replace_operators.__wrapped__()
    yield
    replaced._destroy()


def test_sums_of_a_row_do_not_depend_on_how_many_others_there_are(ours):
    torch.manual_seed(0)
    net, rows = torch.nn.Linear(192, 256), torch.randn(300, 192)
    whole = net(rows)
    for n in (2, 3, 7, 8, 64, 299):
        assert torch.equal(net(rows[:n]), whole[:n])


def test_operators_are_torchs_but_for_the_last_bits(ours):
    torch.manual_seed(0)
    x, weight, bias = torch.rand(5, 200) + 0.1, torch.randn(100, 200), torch.randn(100)
    given = [one.requires_grad_() for one in (x, weight, bias)]
    exact = [one.detach().double().requires_grad_() for one in given]
    for of in (given, exact):
        (torch.nn.functional.linear(*of).square().sum() + of[0].sqrt().sum() + (of[0] ** 0.5).sum()).backward()
    for one, other in zip(given, exact, strict=True):
        torch.testing.assert_close(one.grad, other.grad.float(), rtol=1e-4, atol=1e-3)
    for odd in (torch.rand(()), torch.rand(3, 4).t(), torch.arange(4), torch.rand(2).bfloat16(), torch.tensor([-1.0])):
        root = odd.sqrt()
        assert torch.allclose(root, odd.double().sqrt().to(root.dtype), equal_nan=True, rtol=1e-2)
        assert root.stride() == odd.stride() and (odd**2).dtype == odd.dtype and root.dtype.is_floating_point
    for one, other, error in ((x, x, "shapes"), (x, weight[0], "matrix"), (x, weight.t().double(), "dtype")):
        with pytest.raises(RuntimeError, match=error):
            torch.mm(one, other)
