"""Train the default judges: `python data/images/recipe/judge.py`, after the autoencoder of the recipe.

One judge a kind of picture. They learn what pictures show, never captions, from handwriting that the generator has
not seen, half of it as the autoencoder gives it back. On part of it they learn when to say nothing; what their
config.json notes of errors was measured on handwriting of people whose digits taught neither.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import AutoencoderKL
from networks import as_uint8, encode, make_autoencoder
from torch import Tensor
from torch.nn import functional
from world import (
    BACKGROUNDS,
    COLOURS,
    DIGITS,
    RELATIONS,
    SHAPES,
    SIZES,
    Picture,
    draw_digits,
    draw_scenes,
    glyphs,
    render,
)

from stages.tasks.text_to_image.judge_models import AttributeJudge, AttributeNet, JudgeForm, make_net, save_judge

SEED = 6
HERE = Path(__file__).parent
MNIST = HERE.parents[1] / "mnist" / "inputs" / "mnist.parquet"
LEARNT, CHOSEN = slice(9000, 11600), slice(11600, 12000)  # rows of MNIST's train split: for weights, for thresholds
HELD_OUT = ("discover", "trial")  # splits of MNIST for the note
NONE = "none"  # what a picture of one object shows where a second would be
ATTRIBUTES: dict[str, dict[str, Sequence[str]]] = {
    "digits": {"digit": DIGITS, "colour": tuple(COLOURS), "size": tuple(SIZES), "background": tuple(BACKGROUNDS)},
    "scenes": {
        "shape": SHAPES,
        "colour": tuple(COLOURS),
        "relation": (NONE, *RELATIONS),
        "other_shape": (NONE, *SHAPES),
        "other_colour": (NONE, *COLOURS),
        "background": tuple(BACKGROUNDS),
    },
}
PICTURES = {"digits": 26_000, "scenes": 12_000}
EPOCHS = {"digits": 7, "scenes": 6}
VALIDATION, TEST = 4000, 4000
BATCH, RATE = 128, 3e-3
ERROR = 0.015  # share of wrong readings that the thresholds allow on the validation part
FLOOR = 0.5  # less sure than this it never speaks
NOISE = 0.5  # largest deviation of noise on latents: strokes break and colours run, as a generator's do


@dataclass(frozen=True)
class Lessons:
    """Pictures (n, 3, 32, 32) uint8 with what they show, as (n,) value indices by attribute."""

    images: Tensor
    shown: dict[str, Tensor]


def main() -> None:
    """Train both judges and write them with what was measured of them."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--vae", type=Path, default=Path(".faded/images-recipe/vae"), help="the trained autoencoder")
    parser.add_argument("--out", type=Path, default=HERE.parent / "inputs", help="where the judges' folders go")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("kinds", nargs="*", default=list(ATTRIBUTES), help="which judges")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    vae = make_autoencoder().from_pretrained(arguments.vae).eval()
    for kind in arguments.kinds:
        train_judge(kind, vae, arguments.out / f"judge-{kind}")


def train_judge(kind: str, vae: AutoencoderKL, folder: Path) -> None:
    """Train, set temperatures and thresholds, measure, write."""
    rng = np.random.default_rng(SEED)
    torch.manual_seed(SEED)
    lessons = mixed(draw(kind, [("train", LEARNT)], PICTURES[kind], rng, warps=10), vae, rng)
    attributes = {name: tuple(values) for name, values in ATTRIBUTES[kind].items()}
    unset = dict.fromkeys(attributes, 1.0)
    form = JudgeForm(attributes=attributes, temperatures=unset, thresholds=dict.fromkeys(attributes, 0.0))
    net = train(make_net(form), lessons, EPOCHS[kind])
    form = calibrated(form, net, mixed(draw(kind, [("train", CHOSEN)], VALIDATION, rng), vae, rng))
    real = draw(kind, [(split, slice(None)) for split in HELD_OUT], TEST, rng)
    note: dict[str, Any] = {"pictures": len(real.images)}
    for name, images in (
        ("real", real.images),
        ("reconstructed", reconstructed(real.images, vae, 0.0, rng)),
        ("from noisy latents", reconstructed(real.images, vae, NOISE, rng)),
    ):
        note[name] = errors(AttributeJudge(form, net), Lessons(images, real.shown))
        print(f"{kind}, {name}: {note[name]}", flush=True)
    save_judge(form.model_copy(update={"note": note}), net, folder)


def draw(
    kind: str, sources: Sequence[tuple[str, slice]], count: int, rng: np.random.Generator, warps: int = 0
) -> Lessons:
    """Paint pictures of a kind; `warps` is how often each glyph is bent first; with any, scenes are bent too."""
    if kind == "digits":
        read = [glyphs(MNIST, split, rows) for split, rows in sources]
        handwriting, labels = np.concatenate([g for g, _ in read]), np.concatenate([y for _, y in read])
        if warps:
            handwriting, labels = (
                np.concatenate([warped(handwriting, rng) for _ in range(warps)]),
                np.tile(labels, warps),
            )
        pictures = draw_digits(labels, rng, count, plants=False)
    else:
        handwriting, pictures = np.zeros(0), draw_scenes(rng, count)
    images = render(pictures, handwriting, rng)
    if warps and kind == "scenes":
        images = bent(images, rng)
    return Lessons(as_uint8(images), {n: shown(pictures, n, v) for n, v in ATTRIBUTES[kind].items()})


def shown(pictures: Sequence[Picture], attribute: str, values: Sequence[str]) -> Tensor:
    """What pictures show of one attribute: (n,) indices into its values."""
    told = [picture.shows.get(attribute.replace("_", " "), NONE) for picture in pictures]
    return torch.tensor([list(values).index(value) for value in told])


def warped(handwriting: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Bend glyphs (n, 28, 28) as other hands might: turned, slanted, stretched, wavy, thicker or thinner."""
    n = len(handwriting)
    ink = torch.from_numpy(handwriting)[:, None]
    thick, thin = functional.max_pool2d(ink, 3, 1, 1), -functional.max_pool2d(-ink, 3, 1, 1)
    much = torch.from_numpy(rng.uniform(-0.4, 0.6, (n, 1, 1, 1)) * (rng.random((n, 1, 1, 1)) < 0.6)).float()
    ink = ink + much.clamp(min=0) * (thick - ink) - much.clamp(max=0) * (thin - ink)
    turn, slant = rng.uniform(-0.22, 0.22, n), rng.uniform(-0.25, 0.25, n)
    wide, high = rng.uniform(0.88, 1.18, n), rng.uniform(0.88, 1.18, n)
    matrix = np.zeros((n, 2, 3))
    matrix[:, 0] = np.stack([wide * np.cos(turn), slant - np.sin(turn), rng.uniform(-0.1, 0.1, n)], axis=1)
    matrix[:, 1] = np.stack([np.sin(turn), high * np.cos(turn), rng.uniform(-0.1, 0.1, n)], axis=1)
    grid = functional.affine_grid(torch.from_numpy(matrix).float(), [n, 1, 28, 28], align_corners=False)
    waves = torch.from_numpy(rng.normal(0, 0.06, (n, 2, 5, 5))).float()
    grid = grid + functional.interpolate(waves, (28, 28), mode="bicubic").permute(0, 2, 3, 1)
    return functional.grid_sample(ink, grid, align_corners=False)[:, 0].clamp(0, 1).numpy()


def bent(images: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Pictures (n, 3, 32, 32) in [0, 1] with shapes as a generator draws them: wavy, with soft corners."""
    n, clear = len(images), torch.from_numpy(images)
    soft = functional.avg_pool2d(functional.pad(clear, (1, 1, 1, 1), mode="replicate"), 3, 1)
    clear = torch.lerp(clear, soft, torch.from_numpy(rng.uniform(0, 1, (n, 1, 1, 1))).float())
    waves = torch.from_numpy(rng.normal(0, 0.06, (n, 2, 8, 8)) * rng.uniform(0, 1, (n, 1, 1, 1))).float()
    grid = functional.affine_grid(torch.eye(2, 3).expand(n, 2, 3), [n, 1, 32, 32], align_corners=False)
    grid = grid + functional.interpolate(waves, (32, 32), mode="bicubic").permute(0, 2, 3, 1)
    return functional.grid_sample(clear, grid, padding_mode="border", align_corners=False).numpy()


def reconstructed(images: Tensor, vae: AutoencoderKL, noise: float, rng: np.random.Generator) -> Tensor:
    """Pictures (n, 3, 32, 32) uint8 as the autoencoder gives them back; each from latents with noise up to `noise`."""
    latents = encode(vae, images)
    much = torch.from_numpy(rng.uniform(0, noise, (len(images), 1, 1, 1))).float()
    latents += much * torch.from_numpy(rng.standard_normal(latents.shape)).float()
    with torch.no_grad():
        parts = [vae.decode(part).sample.clamp(-1, 1) / 2 + 0.5 for part in latents.split(250)]
    return as_uint8(torch.cat(parts).numpy())


def mixed(lessons: Lessons, vae: AutoencoderKL, rng: np.random.Generator) -> Lessons:
    """Half as it is, a quarter given back by the autoencoder, a quarter given back from noisy latents."""
    images, n = lessons.images.clone(), len(lessons.images)
    for rows, noise in ((slice(0, n // 4), 0.0), (slice(n // 4, n // 2), NOISE)):
        images[rows] = reconstructed(images[rows], vae, noise, rng)
    return Lessons(images, lessons.shown)


def train(net: AttributeNet, lessons: Lessons, epochs: int) -> AttributeNet:
    """Train on all attributes at once; pictures are moved, tinted and made grainy a little."""
    net.to(memory_format=torch.channels_last)
    steps = epochs * (len(lessons.images) // BATCH)
    optimizer = torch.optim.AdamW(net.parameters(), lr=RATE, weight_decay=0.02)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, RATE, total_steps=steps, pct_start=0.15)
    losses = []
    for epoch in range(epochs):
        order = torch.randperm(len(lessons.images))[: steps // epochs * BATCH]
        for rows in order.split(BATCH):
            _, logits = net(unsettled(lessons.images[rows].float() / 127.5 - 1))
            loss = torch.stack([functional.cross_entropy(logits[n], y[rows]) for n, y in lessons.shown.items()]).sum()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            losses.append(loss.item())
        print(f"judge: epoch {epoch + 1} of {epochs}, loss {np.mean(losses[-len(order) // BATCH :]):.4f}", flush=True)
    return net.eval()


def unsettled(batch: Tensor) -> Tensor:
    """A batch in [-1, 1], moved by a pixel or two, tinted and made grainy."""
    top, left = torch.randint(5, (2,)).tolist()
    batch = functional.pad(batch, (2, 2, 2, 2), mode="replicate")[..., top : top + 32, left : left + 32]
    tint = 1 + 0.05 * torch.randn(len(batch), 3, 1, 1)
    grain = 0.06 * torch.rand(len(batch), 1, 1, 1) * torch.randn_like(batch)
    return (batch * tint + 0.05 * torch.randn(len(batch), 3, 1, 1) + grain).to(memory_format=torch.channels_last)


def calibrated(form: JudgeForm, net: AttributeNet, lessons: Lessons) -> JudgeForm:
    """Temperatures that make probabilities likely, and the lowest thresholds that keep wrong readings rare."""
    plain = AttributeJudge(form, net).read(list(lessons.images.permute(0, 2, 3, 1).numpy()))
    temperatures, thresholds = {}, {}
    for name, truth in lessons.shown.items():
        logits = torch.from_numpy(plain.probabilities[name]).clamp_min(1e-30).log()
        tried = np.geomspace(1, 4, 61)  # never surer than the network
        fits = [functional.cross_entropy(logits / temperature, truth).item() for temperature in tried]
        temperatures[name] = round(float(tried[np.argmin(fits)]), 3)
        sure, best = (logits / temperatures[name]).softmax(1).max(1)
        wrong = best != truth
        levels = [level for level in np.arange(FLOOR, 0.99, 0.01) if wrong[sure >= level].float().mean() <= ERROR]
        thresholds[name] = round(float(levels[0] if levels else 0.99), 2)
    return form.model_copy(update={"temperatures": temperatures, "thresholds": thresholds})


def errors(judge: AttributeJudge, lessons: Lessons) -> dict[str, dict[str, float]]:
    """By attribute: share of readings that are wrong, of those it does not abstain from, and share of abstentions."""
    reading = judge.read(list(lessons.images.permute(0, 2, 3, 1).numpy()))
    found = {}
    for name, truth in lessons.shown.items():
        unsure = reading.abstained[name]
        wrong = reading.probabilities[name].argmax(1) != truth.numpy()
        found[name] = {"error": round(float(wrong[~unsure].mean()), 4), "abstained": round(float(unsure.mean()), 4)}
    return found


if __name__ == "__main__":
    main()
