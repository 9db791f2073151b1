"""Tasks, concepts and explorers of other distributions, and what a change to them makes stale."""

import json
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from flows.graph import read_graph
from flows.workspace.pipeline import update_pipeline
from stages.code import read_stages
from stages.concepts.catalogue import with_plugins
from stages.concepts.images import CATALOGUE as IMAGES
from stages.concepts.images import ImageConcept
from stages.concepts.texts import CATALOGUE as TEXTS
from stages.concepts.texts import TextConcept
from stages.core import plugins
from stages.core.errors import UsageError
from stages.explorers.contract import make_explorer
from stages.params import load_params
from stages.tasks.load import task_class
from tests.workspace import ROOT


@pytest.fixture
def site(tmp_path, monkeypatch) -> Iterator[Path]:
    path = tmp_path / "site"
    path.mkdir()
    monkeypatch.syspath_prepend(path)
    yield path
    for name in [name for name in sys.modules if name.startswith("faded_")]:
        del sys.modules[name]


PLUGGED = "from tests.planted import PlantedTask\n\nclass Plugged(PlantedTask):\n    pass\n"


def install(
    site: Path, name: str, entries: str, group: str = plugins.TASKS, *, listed: bool = True, text: str = PLUGGED
) -> Path:
    """Install a distribution with one module, like pip; for development if it lists no files."""
    module = site / f"{name.replace('-', '_')}.py"
    module.write_text(text)
    info = site / f"{name.replace('-', '_')}-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(f"[{group}]\n{entries}\n")
    files = [info / "METADATA", info / "entry_points.txt", *([module] if listed else [])]
    (info / "RECORD").write_text("".join(f"{file.relative_to(site)},,\n" for file in files))
    return module


def test_tasks_of_other_distributions_are_found_by_name(site, own, monkeypatch):
    install(site, "faded-x-ray", "x-ray = faded_x_ray:Plugged")
    built_in = {"image-classification", "summarization", "text-to-image"}
    assert built_in | {"x-ray"} <= {*plugins.entry_points_of(plugins.TASKS)}
    monkeypatch.chdir(own.path)
    audit = load_params().audit("tiny")
    assert task_class("tiny", audit.model_copy(update={"task": "x-ray"})).__name__ == "Plugged"
    told = r"is not the name of an installed task, found: .*x-ray.*, did you mean 'x-ray'"
    with pytest.raises(UsageError, match=told):
        task_class("tiny", audit.model_copy(update={"task": "xray"}))


FOG = """import torch
from stages.concepts.images import ImageConcept
from stages.explorers.baselines import Random
def veil(images, levels, chance):
    return torch.lerp(images, torch.ones_like(images), levels)
FOG = ImageConcept('fog', 'white veil', 0, 1, 0, apply=veil)
class Dice(Random):
    name = 'dice'
"""


def test_concepts_and_explorers_of_other_distributions_are_found_by_name(site):
    install(site, "faded-fog", "fog = faded_fog:FOG", plugins.CONCEPTS, text=FOG)
    install(site, "faded-dice", "dice = faded_dice:Dice\nbroken = faded_dice:FOG", plugins.EXPLORERS, text=FOG)
    assert list(with_plugins(IMAGES, ImageConcept)) == [*IMAGES, "fog"]
    assert list(with_plugins(TEXTS, TextConcept)) == list(TEXTS) and make_explorer("dice", {}).name == "dice"
    with pytest.raises(UsageError, match=r"no explorer 'dise', found: .*dice, .*did you mean 'dice'"):
        make_explorer("dise", {})
    with pytest.raises(UsageError, match=r"broken \(faded_dice:FOG\) is not a valid explorer, it lacks Settings"):
        make_explorer("broken", {})


def test_one_name_in_two_distributions_is_an_error_that_names_both(site):
    install(site, "faded-one", "same = faded_one:Plugged")
    install(site, "faded-two", "same = faded_two:Plugged")
    with pytest.raises(UsageError, match=r"'same' .*faded-(one|two) .* and faded-(one|two) .*uninstall one"):
        plugins.entry_points_of(plugins.TASKS)


@pytest.mark.parametrize("listed", [True, False], ids=["installed", "for development"])
def test_what_a_distribution_adds_is_known_by_version_and_content(site, listed):
    module = install(site, "faded-x-ray", "x-ray = faded_x_ray:Plugged", listed=listed)
    (before,) = plugins.distributions().items()
    assert before[0] == "faded-x-ray" and before[1].startswith("1.0 ")
    assert plugins.distributions_of(["faded_x_ray"]) == dict([before])
    assert plugins.distributions_of(["tests.planted"]) == {}
    (site / "__pycache__").mkdir(exist_ok=True)
    assert plugins.distributions() == dict([before])
    module.write_text(module.read_text() + "# another\n")
    (changed,) = plugins.distributions().values()
    assert changed != before[1]
    module.unlink()
    if listed:  # its list of files may outlive them
        (gone,) = plugins.distributions().values()
        assert gone not in (before[1], changed)


@pytest.mark.slow
def test_an_upgrade_of_a_plugin_makes_stale_what_uses_it_and_another_plugin_nothing(toys, site, monkeypatch):
    monkeypatch.chdir(toys.path)
    module = install(site, "faded-x-ray", "x-ray = faded_x_ray:Plugged")
    params = toys.params()
    params["audits"]["tiny"]["task"] = "x-ray"
    toys.write_params(params)
    (told,) = update_pipeline()
    assert told.startswith("plugin faded-x-ray: none -> 1.0 ")
    done = toys.run(["dvc", "repro", "summarize@tiny"], PYTHONPATH=f"{site}:{ROOT}")
    assert done.returncode == 0, done.stdout
    fresh = {"prepare@tiny", "discover@tiny", "summarize@tiny"}
    assert not [stage for stage in read_graph() if stage.stale and stage.name in fresh]
    install(site, "faded-fog", "fog = faded_fog:Plugged", plugins.EXPLORERS)
    (told,) = update_pipeline()
    assert told.startswith("plugin faded-fog: none -> 1.0 ")
    assert not [stage for stage in read_graph() if stage.stale and stage.name in fresh]
    module.write_text(module.read_text() + "# another\n")
    update_pipeline()
    assert {stage.name for stage in read_graph() if "code changed" in stage.reasons} == fresh


def test_the_clone_says_that_it_has_no_plugins():
    assert json.loads((ROOT / "faded.json").read_text()) == {"schema": 1, "plugins": {}, "shards": {}}
    reads = {name for name, stage in read_stages().items() if {"faded.json": ["plugins"]} in stage["do"]["params"]}
    assert reads == {"code"}
