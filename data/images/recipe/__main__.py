"""Make the default text-to-image model: `python data/images/recipe`, about 50 minutes of one core."""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch
from networks import (
    as_uint8,
    assemble,
    encode,
    make_autoencoder,
    make_tokenizer,
    train_autoencoder,
    train_text_encoder,
    train_unet,
)
from transformers import CLIPTextModel
from world import draw_digits, draw_scenes, glyphs, render

SEED = 5
HERE = Path(__file__).parent
MNIST = HERE.parents[1] / "mnist" / "inputs" / "mnist.parquet"
GENERATOR = slice(0, 9000)  # rows of MNIST's train split that the generator learns; the judge learns the others
PICTURES = {"digits": 36_000, "scenes": 18_000}


def main() -> None:
    """Train what is not yet in the scratch folder, then put the pipeline together."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--scratch", type=Path, default=Path(".faded/images-recipe"), help="unfinished work")
    parser.add_argument("--out", type=Path, default=HERE.parent / "inputs" / "model", help="the pipeline")
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    scratch: Path = arguments.scratch
    scratch.mkdir(parents=True, exist_ok=True)

    tokenizer = make_tokenizer(scratch / "tokenizer")
    if not (scratch / "text_encoder").exists():
        train_text_encoder(tokenizer, SEED).save_pretrained(scratch / "text_encoder")
    encoder = CLIPTextModel.from_pretrained(scratch / "text_encoder").eval()

    handwriting, labels = glyphs(MNIST, "train", GENERATOR)
    rng = np.random.default_rng(SEED)
    pictures = [*draw_digits(labels, rng, PICTURES["digits"], plants=True), *draw_scenes(rng, PICTURES["scenes"])]
    images = as_uint8(render(pictures, handwriting, rng))
    if not (scratch / "vae").exists():
        mixed = images[torch.randperm(len(images), generator=torch.Generator().manual_seed(SEED))]
        train_autoencoder(mixed, SEED).save_pretrained(scratch / "vae")
    vae = make_autoencoder().from_pretrained(scratch / "vae").eval()

    latents = encode(vae, images)
    print(f"latents: mean {latents.mean():.3f}, deviation {latents.std():.3f}", flush=True)
    unet = train_unet(latents, pictures, tokenizer, encoder, SEED, scratch)
    pipeline = assemble(vae, encoder, tokenizer, unet)
    pipeline.to(torch.float16).save_pretrained(arguments.out)


if __name__ == "__main__":
    main()
