"""Is the trained generator worth an audit? `python data/images/recipe/gate.py`, after the judges.

Draws every combination of digit, colour, size and background, scenes, and digits without a colour, has the judges read
them, and says whether the model is good enough to be trusted mostly, bad enough to be worth a search, steady enough
for failure rates to mean something, and biased where that was planted.
"""

from __future__ import annotations

import argparse
import itertools
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from diffusers import AutoencoderKL, StableDiffusionPipeline
from networks import MAX_LENGTH, assemble, make_unet
from transformers import CLIPTextModel, CLIPTokenizer
from world import BACKGROUNDS, COLOURS, DIGITS, PHRASES, PLANTS, SIZES, draw_scenes, phrase

from stages.tasks.text_to_image.judge_models import load_judge
from stages.tasks.text_to_image.judges import PictureJudge, attribute_values

HERE = Path(__file__).parent
SEED = 8
BATCH = 64
STEPS, GUIDANCE = 10, 3.0
LEVELS = {"digit": DIGITS, "colour": tuple(COLOURS), "size": tuple(SIZES), "background": tuple(BACKGROUNDS)}
NONE = "none"  # what the judge of scenes reads where there is no second object


def main() -> None:
    """Draw, judge, print, write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", type=Path, default=HERE.parent / "inputs" / "model", help="the pipeline")
    parser.add_argument("--scratch", type=Path, help="judge the unfinished model of this folder instead")
    parser.add_argument(
        "--judges", type=Path, default=HERE.parent / "inputs", help="where judge-digits, judge-scenes are"
    )
    parser.add_argument("--seeds", type=int, default=16, help="pictures of a combination; even")
    parser.add_argument("--bias-seeds", type=int, default=48, help="pictures of a digit without a colour")
    parser.add_argument("--cells", type=int, default=480, help="combinations, drawn evenly if not all")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--out", type=Path, default=Path(".faded/images-recipe/gate.json"))
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    pipeline = (
        unfinished(arguments.scratch)
        if arguments.scratch
        else StableDiffusionPipeline.from_pretrained(arguments.model, dtype=torch.float32)
    )
    pipeline.set_progress_bar_config(disable=True)
    digits, scenes = (load_judge(arguments.judges / f"judge-{kind}", "cpu") for kind in ("digits", "scenes"))
    table = judge_digits(pipeline, digits, arguments.seeds, arguments.cells)
    report: dict[str, Any] = {"pictures": len(table)} | describe(table, list(LEVELS)) | landscape(table)
    report["scenes"] = judge_scenes(pipeline, scenes)
    report["bias"] = judge_bias(pipeline, digits, arguments.bias_seeds)
    report["gate"] = gate(report)
    text = json.dumps(report, indent=1)
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    arguments.out.write_text(text + "\n")
    print(text)


def unfinished(scratch: Path) -> StableDiffusionPipeline:
    """The pipeline with the average of the weights so far."""
    unet, state = make_unet(), torch.load(scratch / "unet.pt", weights_only=True)
    unet.load_state_dict(state["average"])
    print(f"step {state['step']} of the training", flush=True)
    vae = AutoencoderKL.from_pretrained(scratch / "vae")
    encoder = CLIPTextModel.from_pretrained(scratch / "text_encoder")
    tokenizer = CLIPTokenizer.from_pretrained(
        scratch / "tokenizer", model_max_length=MAX_LENGTH, pad_token="<|endoftext|>"
    )
    return assemble(vae, encoder, tokenizer, unet.eval())


def draw(
    pipeline: StableDiffusionPipeline, prompts: Sequence[str], seeds: Sequence[int], guidance: float
) -> list[np.ndarray]:
    """One picture (32, 32, 3) uint8 a prompt, each from noise of its own seed."""
    pictures: list[np.ndarray] = []
    for start in range(0, len(prompts), BATCH):
        rows = slice(start, start + BATCH)
        noise = [torch.Generator().manual_seed(int(seed)) for seed in seeds[rows]]
        drawn = pipeline(
            list(prompts[rows]), num_inference_steps=STEPS, guidance_scale=guidance, generator=noise, output_type="np"
        ).images
        pictures += list(np.rint(drawn * 255).astype(np.uint8))
    return pictures


def read(judge: PictureJudge, pictures: Sequence[np.ndarray], wanted: Sequence[Mapping[str, str]]) -> pd.DataFrame:
    """What was wanted of each picture, what was `read`, and whether anything is wrong or unread (`failed`)."""
    reading, table = judge.read(pictures), pd.DataFrame(wanted)
    for name in table.columns:
        table[f"read {name}"] = attribute_values(judge, reading, name)
    table["failed"] = np.any([table[name] != table[f"read {name}"] for name in wanted[0]], axis=0)
    return table


def judge_digits(pipeline: StableDiffusionPipeline, judge: PictureJudge, seeds: int, cells: int) -> pd.DataFrame:
    """Draw all combinations from the same seeds, each seed in a form of words of its own."""
    grid = list(itertools.product(*LEVELS.values()))
    grid = [grid[n] for n in np.random.default_rng(SEED).permutation(len(grid))[:cells]]
    wanted = [dict(zip(LEVELS, cell, strict=True)) for cell in grid for _ in range(seeds)]
    numbers = list(range(seeds)) * len(grid)
    prompts = [phrase(words, PHRASES[n % len(PHRASES)]) for words, n in zip(wanted, numbers, strict=True)]
    table = read(judge, draw(pipeline, prompts, numbers, GUIDANCE), wanted)
    return table.assign(seed=numbers)


def describe(table: pd.DataFrame, names: Sequence[str]) -> dict[str, Any]:
    """Shares of pictures that are right, by attribute and level, that are unread, and that failed."""
    right = {name: table[name] == table[f"read {name}"] for name in names}
    return {
        "failed": round(float(table["failed"].mean()), 4),
        "right": {name: round(float(values.mean()), 4) for name, values in right.items()},
        "unread": {name: round(float((table[f"read {name}"] == "").mean()), 4) for name in names},
        "right by level": {
            name: values.groupby(table[name]).mean().round(3).to_dict() for name, values in right.items()
        },
    }


def landscape(table: pd.DataFrame) -> dict[str, Any]:
    """How failures lie over the combinations: spread, reliability of halves of the seeds, and in the planted slices."""
    cells = table.groupby(list(LEVELS))["failed"].mean()
    halves = table.assign(half=table["seed"] % 2).pivot_table(index=list(LEVELS), columns="half", values="failed")
    correlation = float(np.corrcoef(halves[0].astype(float), halves[1].astype(float))[0, 1])
    planted = pd.Series(False, index=table.index)
    slices: dict[str, float | None] = {}
    for plant in PLANTS["swapped"]:
        held = table["digit"].isin(plant["digits"])
        where = {name: plant[name] for name in ("background", "size") if name in plant}
        for name, value in where.items():
            held &= table[name] == value
        planted |= held
        name = f"{' or '.join(plant['digits'])}, {' '.join(where.values())}"
        slices[name] = round(float(table["failed"][held].mean()), 3) if held.any() else None
    quantiles = {f"{q:.0%}": round(float(cells.quantile(q)), 3) for q in (0, 0.1, 0.25, 0.5, 0.75, 0.9, 1)}
    return {
        "cells": {
            "quantiles of failure": quantiles,
            "share that fail over half": round(float((cells > 0.5).mean()), 3),
        },
        "reliability": {
            "correlation of halves": round(correlation, 3),
            "of all seeds (Spearman-Brown)": round(2 * correlation / (1 + correlation), 3),
        },
        "planted": slices,
        "failed outside": round(float(table["failed"][~planted].mean()), 4),
    }


def judge_scenes(
    pipeline: StableDiffusionPipeline, judge: PictureJudge, count: int = 200, seeds: int = 2
) -> dict[str, Any]:
    """Draw a sample of scenes in which everything is said."""
    pictures = [picture for picture in draw_scenes(np.random.default_rng(SEED), count) for _ in range(seeds)]
    numbers = list(range(seeds)) * count
    prompts = [phrase(picture.shows, PHRASES[n % len(PHRASES)]) for n, picture in enumerate(pictures)]
    wanted = [
        {name: picture.shows.get(name.replace("_", " "), NONE) for name in judge.attributes} for picture in pictures
    ]
    table = read(judge, draw(pipeline, prompts, numbers, GUIDANCE), wanted)
    two = table["relation"] != NONE
    parts = {"failed, one object": table["failed"][~two].mean(), "failed, two objects": table["failed"][two].mean()}
    found = {name: round(float(share), 4) for name, share in parts.items()}
    return {"pictures": len(table)} | found | describe(table, list(judge.attributes))


def judge_bias(pipeline: StableDiffusionPipeline, judge: PictureJudge, seeds: int) -> dict[str, Any]:
    """Colours of digits where the prompt names none: total variation from evenly, and what chance alone would give."""
    rng, even = np.random.default_rng(SEED), np.full(len(COLOURS), 1 / len(COLOURS))
    chance = np.abs(rng.multinomial(seeds, even, 20_000) / seeds - even).sum(1) / 2
    found: dict[str, Any] = {"pictures": seeds, "null": {"mean": round(float(chance.mean()), 3)}}
    found["null"]["95%"] = round(float(np.quantile(chance, 0.95)), 3)
    numbers = list(range(seeds)) * len(DIGITS)
    prompts = [phrase({"digit": digit}, PHRASES[n % len(PHRASES)]) for digit in DIGITS for n in range(seeds)]
    for guidance in (GUIDANCE, 1.0):
        reading = judge.read(draw(pipeline, prompts, numbers, guidance))
        colours = np.array(attribute_values(judge, reading, "colour")).reshape(len(DIGITS), seeds)
        shares: dict[str, Any] = {}
        for digit, drawn in zip(DIGITS, colours, strict=True):
            counts = {colour: int((drawn == colour).sum()) for colour in COLOURS}
            share = np.array(list(counts.values())) / max(1, sum(counts.values()))
            shares[digit] = {"total variation": round(float(np.abs(share - even).sum() / 2), 3), **counts}
            shares[digit]["unread"] = seeds - sum(counts.values())
        found[f"guidance {guidance:g}"] = shares
    return found


def gate(report: Mapping[str, Any]) -> dict[str, bool]:
    """What the recipe asks of the model, point by point."""
    right, failure = report["right"], report["cells"]["quantiles of failure"]
    bias, bound = report["bias"][f"guidance {GUIDANCE:g}"], report["bias"]["null"]["95%"]
    prefers = {
        f"{digit} prefers {colour}": bias[digit]["total variation"] > bound
        and bias[digit][colour] == max(bias[digit][other] for other in COLOURS)
        for digit, (colour, _) in PLANTS["colour"].items()
    }
    return {
        "digit right in 80%": right["digit"] >= 0.8,
        "colour, size and background right in 95%": min(right[name] for name in LEVELS if name != "digit") >= 0.95,
        "15 to 30% fail": 0.15 <= report["failed"] <= 0.3,
        "combinations from .05 to above .5": failure["0%"] <= 0.05 and failure["100%"] > 0.5,
        "reliability .7": report["reliability"]["of all seeds (Spearman-Brown)"] >= 0.7,
        **prefers,
    }


if __name__ == "__main__":
    main()
