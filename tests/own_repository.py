"""Fixtures: a user's own repository with a model and pictures, and the result of a sweep there.

Test modules import it as a plugin.
"""

import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

import flows.init.run
from stages.screening.sweep import Sweep
from tests.own_model import CLASSES, WEIGHTS, picture, swept, write_pictures


@pytest.fixture(scope="session")
def shapes(tmp_path_factory) -> Path:
    """A folder with 60 pictures and a small timm network that classifies them."""
    import timm

    home = tmp_path_factory.mktemp("own")
    write_pictures(home / "shapes", 60)
    rng = np.random.default_rng(1)
    kinds = np.arange(240) % 3
    pixels = np.stack([picture(list(CLASSES.values())[k], rng) for k in kinds])
    before = torch.get_num_threads()
    torch.set_num_threads(1)  # this small network is far slower on two threads if the machine is busy
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
    """A git repository with this model and these pictures, as the current folder."""
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


@pytest.fixture
def measured(monkeypatch) -> Callable[[tuple[Sweep, float] | BaseException], None]:
    """Replace the sweep: it returns this result, or raises this exception, without probing a model."""

    def set_to(found: tuple[Sweep, float] | BaseException) -> None:
        def measure(*_: Any) -> tuple[Sweep, float]:
            if isinstance(found, BaseException):
                raise found
            return found

        monkeypatch.setattr(flows.init.run, "sweep_concepts", measure)

    set_to(swept([0, 20, 40, 80]))
    return set_to
