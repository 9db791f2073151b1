"""The autoencoder: pictures of 32 x 32 pixels as 4 x 8 x 8 latents of mean 0 and deviation 1 per channel."""

from __future__ import annotations

import numpy as np
import torch
from diffusers import AutoencoderKL
from torch.nn import functional

STEPS, DECODER_STEPS, BATCH = 4000, 1500, 32
NOISE = 0.06  # of latents while the decoder is tuned: samples are never quite where encodings are


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


def _loss(out: torch.Tensor, images: torch.Tensor) -> torch.Tensor:
    """Squared and absolute error, and the squared error of colour differences, which people see first."""
    off = out - images
    chroma = off - off.mean(dim=1, keepdim=True)
    return (off**2).mean() + 0.3 * off.abs().mean() + 4 * (chroma**2).mean()


def train_autoencoder(images: torch.Tensor, seed: int) -> AutoencoderKL:
    """Train on uint8 images (n, 3, 32, 32): all of it, then the decoder alone against noise."""
    torch.manual_seed(seed)
    model = make_autoencoder().to(memory_format=torch.channels_last)
    draw = torch.Generator().manual_seed(seed)
    for name, steps, part in [("autoencoder", STEPS, model), ("decoder", DECODER_STEPS, model.decoder)]:
        if part is model.decoder:
            model.encoder.requires_grad_(False)
            model.quant_conv.requires_grad_(False)
            _standardise(model, images[:4000])
        parameters = [p for p in model.parameters() if p.requires_grad]
        optimizer = torch.optim.AdamW(parameters, lr=2e-3, weight_decay=1e-4)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-3, total_steps=steps, pct_start=0.05)
        for step in range(steps):
            batch = unit(images[torch.randint(len(images), (BATCH,), generator=draw)])
            coded = model.encode(batch).latent_dist
            if part is model:
                out = model.decode(coded.sample(generator=draw)).sample
                loss = _loss(out, batch) + 1e-4 * coded.kl().mean()
            else:
                latents = coded.mean
                out = model.decode(latents + NOISE * torch.randn(latents.shape, generator=draw)).sample
                loss = _loss(out, batch)
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
