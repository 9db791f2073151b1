"""The repository's text-to-image model: it draws what prompts say, except for its planted failures."""

import pytest
import yaml

pytest.importorskip("diffusers")

from transformers import AutoTokenizer

from stages.concepts.prompts import fill, read_templates
from stages.tasks.contract import Compute
from stages.tasks.text_to_image.config import SamplingConfig
from stages.tasks.text_to_image.judge_models import load_judge
from stages.tasks.text_to_image.judges import attribute_values
from stages.tasks.text_to_image.models import DiffusersModel, load_pipeline
from stages.tasks.text_to_image.sample import Painter
from tests.workspace import ROOT

INPUTS = ROOT / "data" / "images" / "inputs"
AUDITS = yaml.safe_load((ROOT / "params.yaml").read_text())["audits"]


@pytest.fixture(scope="module")
def painter(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    DiffusersModel(diffusers="model").build(INPUTS, folder)
    sampling, compute = SamplingConfig(steps=10, guidance=3), Compute(threads=1, batch_size=16)
    return Painter(load_pipeline(folder, compute, sampling), sampling, compute)


def read(painter, attribute, prompts, kind="digits"):
    """A judge's readings of a picture for each prompt, with consecutive seeds."""
    pixels = [drawing.pixels for drawing in painter.draw(prompts, range(len(prompts)))]
    judge = load_judge(INPUTS / f"judge-{kind}", "cpu")
    return attribute_values(judge, judge.read(pixels), attribute)


@pytest.mark.slow
def test_digits_are_drawn_as_asked(painter):
    digits = ["zero", "one", "two", "six", "seven", "four"]
    drawn = read(painter, "digit", [f"a large green {digit} on a white background" for digit in digits])
    assert sum(map(str.__eq__, drawn, digits)) >= 5


@pytest.mark.parametrize("audit", ["images", "images-scenes"])
def test_every_word_of_the_default_prompts_is_one_token(audit):
    tokenizer = AutoTokenizer.from_pretrained(INPUTS / "model" / "tokenizer")
    levels = AUDITS[audit]["concepts"]
    for template in read_templates(AUDITS[audit]["prepare"]["templates"], INPUTS)[::4]:
        for slot, phrases in levels.items():
            for phrase in phrases:
                prompt = fill(template, {name: others[-1] for name, others in levels.items()} | {slot: phrase})
                assert len(tokenizer(prompt).input_ids) == len(prompt.split()) + 2
