"""The networks of the default text-to-image model, how each is trained, and the pipeline they make.

- The tokenizer has one token a word of the captions; the text encoder is taught to tell attributes apart, and frozen.
- The autoencoder has pictures of 32 x 32 pixels as 4 x 8 x 8 latents of mean 0 and deviation 1 per channel.
- The denoising network of 4.2 M parameters is told the caption by cross-attention at 8 x 8 and 4 x 4.
"""

from __future__ import annotations

import copy
import json
import time
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from torch import nn
from torch.nn import functional
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer
from world import (
    BACKGROUNDS,
    COLOURS,
    DIGITS,
    PHRASES,
    RELATIONS,
    SHAPES,
    SIZES,
    Picture,
    caption,
    draw_digits,
    draw_scenes,
    phrase,
    words,
)

MAX_LENGTH = 20
WIDTH = 64
TEXT_STEPS = 700
HEADS = {
    "digit": DIGITS,
    "shape": SHAPES,
    "colour": tuple(COLOURS),
    "size": tuple(SIZES),
    "background": tuple(BACKGROUNDS),
    "relation": RELATIONS,
    "other shape": SHAPES,
    "other colour": tuple(COLOURS),
}
AUTOENCODER_STEPS, DECODER_STEPS, AUTOENCODER_BATCH = 4000, 1500, 32
NOISE = 0.06  # of latents while the decoder is tuned: samples are never quite where encodings are
UNET_STEPS, UNET_BATCH, UNET_RATE = 5000, 64, 1e-3
UNCONDITIONAL = 0.1  # share of captions left out, which guidance needs
EMA = 0.999


def make_tokenizer(folder: Path) -> CLIPTokenizer:
    """A CLIP tokenizer whose merges spell each word of the captions; other words fall apart into letters."""
    plain = " ".join(PHRASES).replace("{thing}", "").replace("{setting}", "").split()
    known = [*plain, *DIGITS, *SHAPES, *COLOURS, *BACKGROUNDS, *SIZES, *" ".join(RELATIONS).split()]
    known += ["a", "an", "on", "background", "digit", "shape"]
    letters = sorted(set("abcdefghijklmnopqrstuvwxyz0123456789,.'-!?"))
    vocabulary = [*letters, *(f"{letter}</w>" for letter in letters)]
    merges: list[tuple[str, str]] = []
    for word in dict.fromkeys(known):
        # What the merges so far make of the word, then merges from its front. Later ones rank lower, so they change
        # nothing about the words before. A trainer of byte pairs breaks ties by chance, and ids would change.
        pieces = [*word[:-1], f"{word[-1]}</w>"]
        for merge in merges:
            pieces = _merged(pieces, merge)
        while len(pieces) > 1:
            merges.append((pieces[0], pieces[1]))
            pieces = _merged(pieces, merges[-1])
            vocabulary.append(pieces[0])
    vocabulary = [*dict.fromkeys(vocabulary), "<|startoftext|>", "<|endoftext|>"]
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "vocab.json").write_text(json.dumps({word: n for n, word in enumerate(vocabulary)}))
    (folder / "merges.txt").write_text("#version: 0.2\n" + "\n".join(map(" ".join, merges)) + "\n")
    tokenizer = CLIPTokenizer.from_pretrained(folder, model_max_length=MAX_LENGTH, pad_token="<|endoftext|>")
    split = [word for word in dict.fromkeys(known) if len(tokenizer(word).input_ids) != 3]
    assert not split, f"words of the captions that are no single token: {split}"
    return tokenizer


def _merged(pieces: list[str], pair: tuple[str, str]) -> list[str]:
    """Pieces of a word with every such pair of neighbours joined."""
    joined: list[str] = []
    for piece in pieces:
        if joined and (joined[-1], piece) == pair:
            joined[-1] += piece
        else:
            joined.append(piece)
    return joined


def train_text_encoder(tokenizer: CLIPTokenizer, seed: int) -> CLIPTextModel:
    """Teach the text encoder to name every attribute of a caption, or that it is unsaid, from its last state."""
    torch.manual_seed(seed)
    rng = np.random.default_rng(seed)
    model = CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(tokenizer),
            hidden_size=WIDTH,
            intermediate_size=4 * WIDTH,
            num_hidden_layers=2,
            num_attention_heads=4,
            max_position_embeddings=MAX_LENGTH,
            initializer_factor=3.0,
            projection_dim=WIDTH,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )
    heads = nn.ModuleDict({name.replace(" ", "_"): nn.Linear(WIDTH, len(values) + 1) for name, values in HEADS.items()})
    optimizer = torch.optim.AdamW([*model.parameters(), *heads.parameters()], lr=2e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-3, total_steps=TEXT_STEPS)
    labels = np.arange(10)
    for step in range(TEXT_STEPS):
        pictures = [*draw_digits(labels, rng, 80, plants=False), *draw_scenes(rng, 80)]
        says = [words(picture, rng, plants=False) for picture in pictures]
        texts = [phrase(said, str(rng.choice(PHRASES))) for said in says]
        tokens = tokenizer(texts, padding="max_length", return_tensors="pt")
        state = model(tokens.input_ids).pooler_output
        loss, right = torch.zeros(()), []
        for name, values in HEADS.items():
            target = torch.tensor([values.index(said[name]) + 1 if name in said else 0 for said in says])
            logits = heads[name.replace(" ", "_")](state)
            loss = loss + nn.functional.cross_entropy(logits, target)
            right.append((logits.argmax(1) == target).float().mean().item())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        if step % 100 == 99:
            print(f"text encoder: step {step + 1}, attributes right {np.mean(right):.4f}", flush=True)
    return model.eval().requires_grad_(False)


def make_autoencoder() -> AutoencoderKL:
    """0.4 M parameters; one group a norm, and no attention in the middle: small and quick on a CPU."""
    widths = (16, 32, 48)
    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        block_out_channels=widths,
        layers_per_block=1,
        latent_channels=4,
        norm_num_groups=1,
        sample_size=32,
        mid_block_add_attention=False,
        scaling_factor=1.0,
    )


def _autoencoder_loss(out: torch.Tensor, images: torch.Tensor) -> torch.Tensor:
    """Squared and absolute error, and the squared error of colour differences, which people see first."""
    off = out - images
    chroma = off - off.mean(dim=1, keepdim=True)
    return (off**2).mean() + 0.3 * off.abs().mean() + 4 * (chroma**2).mean()


def train_autoencoder(images: torch.Tensor, seed: int) -> AutoencoderKL:
    """Train on uint8 images (n, 3, 32, 32): all of it, then the decoder alone against noise."""
    torch.manual_seed(seed)
    model = make_autoencoder().to(memory_format=torch.channels_last)
    draw = torch.Generator().manual_seed(seed)
    for name, steps, part in [("autoencoder", AUTOENCODER_STEPS, model), ("decoder", DECODER_STEPS, model.decoder)]:
        if part is model.decoder:
            model.encoder.requires_grad_(False)
            model.quant_conv.requires_grad_(False)
            _standardise(model, images[:4000])
        parameters = [p for p in model.parameters() if p.requires_grad]
        optimizer = torch.optim.AdamW(parameters, lr=2e-3, weight_decay=1e-4)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-3, total_steps=steps, pct_start=0.05)
        for step in range(steps):
            batch = unit(images[torch.randint(len(images), (AUTOENCODER_BATCH,), generator=draw)])
            coded = model.encode(batch).latent_dist
            if part is model:
                out = model.decode(coded.sample(generator=draw)).sample
                loss = _autoencoder_loss(out, batch) + 1e-4 * coded.kl().mean()
            else:
                latents = coded.mean
                out = model.decode(latents + NOISE * torch.randn(latents.shape, generator=draw)).sample
                loss = _autoencoder_loss(out, batch)
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(parameters, 1.0)
            optimizer.step()
            schedule.step()
            if step % 500 == 499:
                with torch.no_grad():
                    held = unit(images[-256:])
                    psnr = -10 * torch.log10(functional.mse_loss(reconstruct(model, held), held) / 4)
                print(f"{name}: step {step + 1}, PSNR {psnr:.2f} dB", flush=True)
    return model.eval().requires_grad_(False)


def _standardise(model: AutoencoderKL, images: torch.Tensor) -> None:
    """Fold mean and deviation of the latents into the layers around them, so that scaling_factor is 1."""
    with torch.no_grad():
        latents = encode(model, images)
        mean, deviation = latents.mean(dim=(0, 2, 3)), latents.std(dim=(0, 2, 3))
        before, after = model.quant_conv, model.post_quant_conv
        before.weight[:4] /= deviation.view(4, 1, 1, 1)
        before.bias[:4] = (before.bias[:4] - mean) / deviation
        after.bias += after.weight[:, :, 0, 0] @ mean
        after.weight *= deviation.view(1, 4, 1, 1)


def unit(images: torch.Tensor) -> torch.Tensor:
    """uint8 to [-1, 1]."""
    return images.float() / 127.5 - 1


@torch.no_grad()
def encode(model: AutoencoderKL, images: torch.Tensor) -> torch.Tensor:
    """Latents (n, 4, 8, 8) of uint8 images."""
    return torch.cat([model.encode(unit(part)).latent_dist.mean for part in images.split(250)])


@torch.no_grad()
def reconstruct(model: AutoencoderKL, batch: torch.Tensor) -> torch.Tensor:
    """Encode and decode a batch in [-1, 1]."""
    return model.decode(model.encode(batch).latent_dist.mean).sample.clamp(-1, 1)


def as_uint8(images: np.ndarray) -> torch.Tensor:
    """[0, 1] floats to uint8."""
    return torch.from_numpy(np.clip(np.rint(images * 255), 0, 255).astype(np.uint8))


def make_unet() -> UNet2DConditionModel:
    """Stable Diffusion's network, small."""
    return UNet2DConditionModel(
        sample_size=8,
        in_channels=4,
        out_channels=4,
        layers_per_block=1,
        block_out_channels=(64, 128),
        down_block_types=("CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
        cross_attention_dim=64,
        attention_head_dim=4,
        norm_num_groups=16,
    )


def make_scheduler() -> DDIMScheduler:
    """Predicts v at zero terminal signal-to-noise, spaced from the end (Lin et al. 2024): few steps suffice."""
    return DDIMScheduler(
        beta_schedule="scaled_linear",
        beta_start=0.00085,
        beta_end=0.012,
        clip_sample=False,
        set_alpha_to_one=True,
        prediction_type="v_prediction",
        rescale_betas_zero_snr=True,
        timestep_spacing="trailing",
        steps_offset=1,
    )


def train_unet(
    latents: torch.Tensor,
    pictures: list[Picture],
    tokenizer: CLIPTokenizer,
    encoder: CLIPTextModel,
    seed: int,
    scratch: Path,
) -> UNet2DConditionModel:
    """Train on latents (n, 4, 8, 8) and what their pictures show; resumes from `scratch` after a kill."""
    torch.manual_seed(seed)
    model = make_unet().to(memory_format=torch.channels_last)
    average = copy.deepcopy(model).requires_grad_(False)
    optimizer = torch.optim.AdamW(model.parameters(), lr=UNET_RATE, weight_decay=1e-3)
    scheduler = make_scheduler()
    kept, start = scratch / "unet.pt", 0
    if kept.exists():
        state = torch.load(kept, weights_only=True)
        model.load_state_dict(state["model"])
        average.load_state_dict(state["average"])
        optimizer.load_state_dict(state["optimizer"])
        start = state["step"]
    losses, started = [], time.monotonic()
    for step in range(start, UNET_STEPS):
        rng, draw = np.random.default_rng([seed, step]), torch.Generator().manual_seed(seed * 1_000_003 + step)
        for group in optimizer.param_groups:
            group["lr"] = UNET_RATE * min(1, (step + 1) / 100, 2 * (UNET_STEPS - step) / UNET_STEPS)
        rows = rng.integers(len(pictures), size=UNET_BATCH)
        captions = ["" if rng.random() < UNCONDITIONAL else caption(pictures[row], rng) for row in rows]
        tokens = tokenizer(captions, padding="max_length", return_tensors="pt").input_ids
        with torch.no_grad():
            states = encoder(tokens).last_hidden_state
        clean = latents[rows]
        noise = torch.randn(clean.shape, generator=draw)
        at = torch.randint(scheduler.config.num_train_timesteps, (UNET_BATCH,), generator=draw)
        out = model(scheduler.add_noise(clean, noise, at), at, states).sample
        loss = functional.mse_loss(out, scheduler.get_velocity(clean, noise, at))
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        decay = min(EMA, (step + 1) / (step + 10))
        with torch.no_grad():
            torch._foreach_lerp_(list(average.parameters()), list(model.parameters()), 1 - decay)
        losses.append(loss.item())
        if step % 100 == 99:
            pace = (time.monotonic() - started) / (step + 1 - start)
            print(
                f"unet: step {step + 1} of {UNET_STEPS}, loss {np.mean(losses[-100:]):.4f}, {pace:.2f} s a step",
                flush=True,
            )
        if step % 250 == 249:
            state = {"model": model.state_dict(), "average": average.state_dict(), "optimizer": optimizer.state_dict()}
            torch.save(state | {"step": step + 1}, kept.with_suffix(".part"))
            kept.with_suffix(".part").replace(kept)
    return average.eval()


def assemble(
    vae: AutoencoderKL, encoder: CLIPTextModel, tokenizer: CLIPTokenizer, unet: UNet2DConditionModel
) -> StableDiffusionPipeline:
    """Put the pipeline together."""
    return StableDiffusionPipeline(
        vae=vae,
        text_encoder=encoder,
        tokenizer=tokenizer,
        unet=unet,
        scheduler=make_scheduler(),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
