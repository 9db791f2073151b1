"""Pictures: equal to the bare pipeline's, in any batch; broken ones are recognised."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from stages.core.environment import torch_threads
from stages.core.errors import UsageError
from stages.tasks.contract import Compute
from stages.tasks.text_to_image.config import SamplingConfig
from stages.tasks.text_to_image.models import DiffusersModel, load_pipeline
from stages.tasks.text_to_image.sample import PICTURES, Painter
from tests.tiny_pipelines import LENGTH, SIDE, tiny_pipeline

pytest.importorskip("diffusers")

PROMPTS = [
    f"a {colour} {shape} on a {ground} background"
    for colour in ("red", "green", "blue")
    for shape in ("circle", "square")
    for ground in ("black", "white", "blue")
]
SEEDS = range(len(PROMPTS))
QUICK = SamplingConfig(steps=2, guidance=3)


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """models/ with the result of `build` for each kind of pipeline."""
    home = tmp_path_factory.mktemp("sampling")
    for kind in ("sd", "sdxl"):
        tiny_pipeline(home / "inputs" / kind, kind=kind)
        DiffusersModel(diffusers=kind).build(home / "inputs", home / "models" / kind)
    return home


@pytest.fixture(autouse=True)
def one_thread():
    with torch_threads(1):
        yield


def painter(home, kind="sd", sampling=QUICK, batch_size=PICTURES):
    compute = Compute(threads=1, batch_size=batch_size)
    return Painter(load_pipeline(home / "models" / kind, compute, sampling), sampling, compute)


def pixels(drawings):
    return np.stack([drawing.pixels for drawing in drawings])


def off(some, others):
    """The largest difference between pixels, in steps of 255."""
    return np.abs(some.astype(int) - others.astype(int)).max()


def bare(pipeline, prompts, seeds, guidance=3.0, **options):
    generators = [torch.Generator().manual_seed(seed) for seed in seeds]
    asked = {"num_inference_steps": 2, "guidance_scale": guidance, "output_type": "np"}
    return np.rint(pipeline(list(prompts), generator=generators, **asked, **options).images * 255).astype(np.uint8)


@pytest.mark.parametrize(("kind", "guidance"), [("sd", 3.0), ("sdxl", 1.0), ("sdxl", 3.0)])
def test_pictures_are_those_of_the_bare_pipeline(home, kind, guidance):
    artist = painter(home, kind)
    drawn = pixels(artist.draw(PROMPTS[:4], SEEDS[:4], guidance))
    assert drawn.shape == (4, SIDE, SIDE, 3) and drawn.dtype == np.uint8
    assert off(drawn, bare(artist.pipeline, PROMPTS[:4], SEEDS[:4], guidance)) <= 1  # another size of the batch


def test_prompt_seed_and_guidance_each_change_the_picture(home):
    artist = painter(home)
    (one,) = pixels(artist.draw(PROMPTS[:1], [0]))
    for prompt, seed, guidance in ((PROMPTS[1], 0, None), (PROMPTS[0], 1, None), (PROMPTS[0], 0, 9.0)):
        assert off(pixels(artist.draw([prompt], [seed], guidance))[0], one) > 5


@pytest.mark.parametrize(("kind", "guidance"), [("sd", 1.0), ("sdxl", 3.0)])
def test_a_picture_is_the_same_to_the_bit_in_any_company(home, kind, guidance, monkeypatch):
    """Unrounded values are compared as well, as equal pixels could hide different sums."""
    artist, seen = painter(home, kind), []
    vae, decode = artist.pipeline.vae, artist.pipeline.vae.decode
    monkeypatch.setattr(vae, "decode", lambda latents, **o: seen.append(latents.clone()) or decode(latents, **o))
    together = pixels(artist.draw(PROMPTS, SEEDS, guidance))
    for start, stop in ((0, 1), (5, 12), (1, 18)):
        some = pixels(artist.draw(PROMPTS[start:stop], SEEDS[start:stop], guidance))
        assert np.array_equal(some, together[start:stop])
    assert np.array_equal(pixels(artist.draw(PROMPTS[::-1], SEEDS[::-1], guidance)), together[::-1])
    assert torch.equal(seen[3][:7], seen[0][5:12])


def test_the_size_of_the_batch_shifts_pixels_by_one_at_most(home):
    together = pixels(painter(home).draw(PROMPTS, SEEDS))
    assert np.array_equal(pixels(painter(home, batch_size=64).draw(PROMPTS, SEEDS)), together)
    assert off(pixels(painter(home, batch_size=3).draw(PROMPTS, SEEDS)), together) <= 1


def test_noise_that_no_seed_controls_is_refused(home, monkeypatch):
    artist = painter(home)
    scheduler, step = artist.pipeline.scheduler, artist.pipeline.scheduler.step
    monkeypatch.setattr(scheduler, "step", lambda noise, *a, **k: step(noise + torch.randn(noise.shape), *a, **k))
    with pytest.raises(UsageError, match="DDIMScheduler draws noise of its own"):
        artist.draw(PROMPTS[:1], [0])


@pytest.mark.parametrize("kind", ["sd", "sdxl"])
def test_the_negative_prompt_counts_with_guidance_and_only_then(home, kind):
    negative = QUICK.model_copy(update={"negative_prompt": "a blue square"})
    plain, told = painter(home, kind), painter(home, kind, negative)
    guided = pixels(told.draw(PROMPTS[:2], SEEDS[:2]))
    assert off(guided, pixels(plain.draw(PROMPTS[:2], SEEDS[:2]))) > 5
    assert off(guided, bare(told.pipeline, PROMPTS[:2], SEEDS[:2], negative_prompt=["a blue square"] * 2)) <= 1
    assert np.array_equal(pixels(told.draw(PROMPTS[:2], SEEDS[:2], 1)), pixels(plain.draw(PROMPTS[:2], SEEDS[:2], 1)))


def test_faults_of_pictures_are_told_apart(home, monkeypatch):
    artist = painter(home, batch_size=5)
    images = torch.full((5, 3, SIDE, SIDE), 0.5)
    images[1], images[3], images[4] = 0.02, 0.0, 0.02
    images[2, 0, 3, 3], images[4, :, 0, 0] = float("nan"), 0.9
    out = SimpleNamespace(images=images, nsfw_content_detected=[False, False, False, True, False])
    monkeypatch.setattr(type(artist.pipeline), "__call__", lambda self, **_: out)
    drawn = artist.draw(PROMPTS[:5], SEEDS[:5])
    assert [d.fault for d in drawn] == ["", "black", "not a number", "blanked by the safety checker", ""]
    assert drawn[2].pixels.max() == 0 and drawn[0].pixels.min() == 128


def test_a_prompt_beyond_the_token_limit_is_told_with_what_is_lost(home):
    artist = painter(home)
    long = "a red circle on a black background of a picture of a blue square on a white background, yes, zebra"
    (line,) = artist.too_long([PROMPTS[0], long, long])
    assert f"{artist.tokens(long)} tokens, the model reads {LENGTH}" in line
    assert line.endswith("zebra'") and artist.tokens(long) > LENGTH >= artist.tokens(PROMPTS[0])
    lost = line.partition("would not see ")[2].strip("'")
    assert artist.tokens(long.removesuffix(lost)) <= LENGTH
    assert artist.tokens(long.removesuffix(lost) + lost.split()[0]) > LENGTH
