"""The denoising network: 4.2 M parameters, told the caption by cross-attention at 8 x 8 and 4 x 4."""

from __future__ import annotations

import copy
import time
from pathlib import Path

import numpy as np
import torch
from diffusers import DDIMScheduler, UNet2DConditionModel
from torch.nn import functional
from transformers import CLIPTextModel, CLIPTokenizer
from world import Picture, caption

STEPS, BATCH, RATE = 5000, 64, 1e-3
UNCONDITIONAL = 0.1  # share of captions left out, which guidance needs
EMA = 0.999


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
    optimizer = torch.optim.AdamW(model.parameters(), lr=RATE, weight_decay=1e-3)
    scheduler = make_scheduler()
    kept, start = scratch / "unet.pt", 0
    if kept.exists():
        state = torch.load(kept, weights_only=True)
        model.load_state_dict(state["model"])
        average.load_state_dict(state["average"])
        optimizer.load_state_dict(state["optimizer"])
        start = state["step"]
    losses, started = [], time.monotonic()
    for step in range(start, STEPS):
        rng, draw = np.random.default_rng([seed, step]), torch.Generator().manual_seed(seed * 1_000_003 + step)
        for group in optimizer.param_groups:
            group["lr"] = RATE * min(1, (step + 1) / 100, 2 * (STEPS - step) / STEPS)
        rows = rng.integers(len(pictures), size=BATCH)
        captions = ["" if rng.random() < UNCONDITIONAL else caption(pictures[row], rng) for row in rows]
        tokens = tokenizer(captions, padding="max_length", return_tensors="pt").input_ids
        with torch.no_grad():
            states = encoder(tokens).last_hidden_state
        clean = latents[rows]
        noise = torch.randn(clean.shape, generator=draw)
        at = torch.randint(scheduler.config.num_train_timesteps, (BATCH,), generator=draw)
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
                f"unet: step {step + 1} of {STEPS}, loss {np.mean(losses[-100:]):.4f}, {pace:.2f} s a step", flush=True
            )
        if step % 250 == 249:
            state = {"model": model.state_dict(), "average": average.state_dict(), "optimizer": optimizer.state_dict()}
            torch.save(state | {"step": step + 1}, kept.with_suffix(".part"))
            kept.with_suffix(".part").replace(kept)
    return average.eval()
