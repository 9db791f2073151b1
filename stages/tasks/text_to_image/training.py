"""Resumable training of a low-rank adapter (LoRA, Hu et al. 2022) of the UNet of a diffusion pipeline.

All methods share AdapterTraining; each has its own lessons and loss.
"""

import copy
from abc import abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Generic, TypeVar

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from stages.core.errors import UsageError
from stages.tasks.contract import Compute
from stages.tasks.text_to_image.config import LAYERS, TextToImageRepair
from stages.tasks.text_to_image.lessons import PictureLesson, PicturePair
from stages.tasks.text_to_image.models import LORA
from stages.tasks.text_to_image.pictures import from_png
from stages.tasks.training import StepwiseTraining, sort_header

ENCODED = 32 * 64 * 64  # pixels encoded at once; constant, as the last bits of sums depend on it
PREDICTIONS = ("epsilon", "v_prediction", "sample")

L = TypeVar("L", bound=PictureLesson | PicturePair)


def check_trainable(pipeline: Any) -> None:
    """Check that a pipeline can be repaired.

    Raises a UsageError when it has no UNet that denoises latents of its autoencoder, or is trained by another
    objective.
    """
    name = type(pipeline).__name__
    unet, vae = getattr(pipeline, "unet", None), getattr(pipeline, "vae", None)
    if unet is None or vae is None:
        found = ", ".join(part for part, module in pipeline.components.items() if isinstance(module, torch.nn.Module))
        raise UsageError(
            f"restructure: a repair is of pipelines with a UNet and an autoencoder (Stable Diffusion 1, 2, XL);"
            f" {name} has {found}"
        )
    if unet.config.in_channels != vae.config.latent_channels:
        raise UsageError(
            f"restructure: a repair is of a UNet that reads latents alone, {vae.config.latent_channels} channels;"
            f" that of {name} reads {unet.config.in_channels}"
        )
    prediction = pipeline.scheduler.config.get("prediction_type", "none")
    if prediction not in PREDICTIONS:
        raise UsageError(
            f"restructure: a repair needs a scheduler whose prediction_type is one of {', '.join(PREDICTIONS)};"
            f" that of {name} is {prediction}"
        )


class AdapterTraining(StepwiseTraining, Generic[L]):
    """One training run.

    Args:
        pipeline: the pipeline under test; it is not changed.
        images: pictures as PNG bytes.
        batches: the lessons of each step.
        checkpoint: file for unfinished work; None keeps none.
    """

    save_every = 50
    shown = 20

    def __init__(
        self,
        pipeline: Any,
        images: Sequence[bytes],
        batches: Sequence[Sequence[L]],
        settings: TextToImageRepair,
        compute: Compute,
        seed: int,
        checkpoint: Path | None = None,
    ) -> None:
        from diffusers import DDPMScheduler
        from peft import LoraConfig

        check_trainable(pipeline)
        self.pipeline, self.batches, self.settings = pipeline, batches, settings
        self.compute, self.seed = compute, seed
        self.unet: Any = copy.deepcopy(pipeline.unet).requires_grad_(False).eval()  # dropout could not be resumed
        # Whichever sampler the pipeline draws with, it was trained with the noise of DDPM (Ho et al. 2020).
        self.noise = DDPMScheduler.from_config(pipeline.scheduler.config)
        config = LoraConfig(
            r=settings.rank,
            lora_alpha=settings.alpha or settings.rank,
            target_modules=list(LAYERS[settings.layers]),
            init_lora_weights="gaussian",
        )
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            self.unet.add_adapter(config)
        trained = {n: p for n, p in self.unet.named_parameters() if p.requires_grad}
        for parameter in trained.values():
            parameter.data = parameter.data.float()  # steps are too small for half precision
        super().__init__(trained, len(batches), settings.peak, checkpoint, compute.device)
        used = sorted({picture for batch in batches for lesson in batch for picture in lesson.pictures})
        self._place = {picture: place for place, picture in enumerate(used)}
        self._latents = self._encode([images[picture] for picture in used])

    @torch.no_grad()
    def _encode(self, images: Sequence[bytes]) -> Tensor:
        """Latents (n, channels, h, w) as the network sees them: the means of the autoencoder's distributions."""
        vae = self.pipeline.vae
        exact = vae if vae.dtype == torch.float32 else copy.deepcopy(vae).float()  # SDXL's overflows in half precision
        side = self.unet.config.sample_size * self.pipeline.vae_scale_factor
        parts, size = [], max(1, min(32, ENCODED // side**2))
        for start in range(0, len(images), size):
            pixels = np.stack([from_png(image, side) for image in images[start : start + size]])
            batch = torch.from_numpy(pixels).permute(0, 3, 1, 2).to(self.compute.device).float() / 127.5 - 1
            parts.append(exact.encode(batch).latent_dist.mode())
        latents, config = torch.cat(parts), vae.config
        mean, deviation = getattr(config, "latents_mean", None), getattr(config, "latents_std", None)
        if mean is not None and deviation is not None:
            mean, deviation = (torch.tensor(v, device=latents.device).view(1, -1, 1, 1) for v in (mean, deviation))
            return (latents - mean) * config.scaling_factor / deviation
        return (latents - (getattr(config, "shift_factor", None) or 0.0)) * config.scaling_factor

    def latents(self, pictures: Sequence[int]) -> Tensor:
        """Latents (n, channels, h, w) of n pictures."""
        return self._latents[[self._place[picture] for picture in pictures]]

    def backward(self, step: int) -> float:
        """See StepwiseTraining. Raises a UsageError when the loss is not finite."""
        lessons, device = self.batches[step], self.compute.device
        # Random numbers come from the CPU, as those of GPUs differ between models.
        draw = torch.Generator().manual_seed(self.seed * 1_000_003 + step)
        noise = torch.randn((len(lessons), *self._latents.shape[1:]), generator=draw).to(device)
        last = self.noise.config.num_train_timesteps
        uniform = torch.rand(len(lessons), generator=draw, dtype=torch.float64)
        times = (last * uniform ** (1 / (1 + self.settings.high_noise))).long().clamp(max=last - 1).to(device)
        total = self.learn(lessons, noise, times, draw)
        if not np.isfinite(total):
            raise UsageError(
                f"restructure.settings.learning_rate: the loss is {total} at step {step + 1} of {self.steps};"
                f" lower the rate, found {self.peak:g}"
            )
        return total

    @abstractmethod
    def learn(self, lessons: Sequence[L], noise: Tensor, times: Tensor, draw: torch.Generator) -> float:
        """Add up the gradients of a batch, and return its loss.

        Args:
            lessons: n lessons.
            noise: (n, channels, h, w), added to the latents.
            times: (n,) int64, time steps, which set the amount of noise.
            draw: generator of everything else that is random.
        """

    def predict(self, unet: Any, noisy: Tensor, times: Tensor, asked: dict[str, Any]) -> Tensor:
        """Return a network's prediction for noisy latents (n, channels, h, w): the same shape, float32."""
        kind = self.compute.device.partition(":")[0]
        with torch.autocast(kind, torch.bfloat16, enabled=unet.dtype != torch.float32):
            predicted: Tensor = unet(noisy.to(unet.dtype), times, **asked).sample
        return predicted.float()

    def wanted(self, clean: Tensor, noise: Tensor, times: Tensor) -> Tensor:
        """Return what the network should predict."""
        kind = self.noise.config.prediction_type
        if kind == "v_prediction":
            return self.noise.get_velocity(clean, noise, times)
        return noise if kind == "epsilon" else clean

    @torch.no_grad()
    def conditions(self, captions: Sequence[str]) -> dict[str, Any]:
        """Return the UNet's other inputs: text states, and for SDXL a pooled text and sizes."""
        pipeline, device = self.pipeline, self.compute.device
        states, _, *pooled = pipeline.encode_prompt(
            prompt=list(captions), device=device, num_images_per_prompt=1, do_classifier_free_guidance=False
        )
        if not pooled:
            return {"encoder_hidden_states": states}
        if pipeline.config.get("force_zeros_for_empty_prompt"):
            empty = torch.tensor([not caption for caption in captions], device=device)
            states, pooled[0] = states.masked_fill(empty[:, None, None], 0), pooled[0].masked_fill(empty[:, None], 0)
        side = self.unet.config.sample_size * pipeline.vae_scale_factor
        sizes = torch.tensor([[side, side, 0, 0, side, side]] * len(captions), device=device, dtype=states.dtype)
        return {
            "encoder_hidden_states": states,
            "added_cond_kwargs": {"text_embeds": pooled[0], "time_ids": sizes},
        }

    def repaired(self) -> Any:
        """Return the pipeline with the trained UNet, its adapter merged; all else is shared with the one under test."""
        unet = copy.deepcopy(self.unet)
        for parameter in unet.parameters():
            parameter.data = parameter.data.to(self.pipeline.unet.dtype)
        unet.fuse_lora()
        unet.unload_lora()
        pipeline = copy.copy(self.pipeline)
        pipeline.register_modules(unet=unet)
        return pipeline

    def save(self, folder: Path) -> None:
        """Write pytorch_lora_weights.safetensors, which diffusers reads with `load_lora_weights`."""
        from peft.utils import get_peft_model_state_dict

        form = self.unet.peft_config["default"].to_dict()
        form["target_modules"] = sorted(form["target_modules"])  # the order of a set, and so the file, would vary
        # In the names of peft: the older ones lack convolutions, and if both are mixed, some are not read.
        layers = get_peft_model_state_dict(self.unet)
        self.pipeline.save_lora_weights(folder, unet_lora_layers=layers, unet_lora_adapter_metadata=form)
        sort_header(folder / LORA)


class LoraTraining(AdapterTraining[PictureLesson]):
    """Learns pictures with their captions; the loss is the squared error of the network's prediction."""

    def learn(self, lessons: Sequence[PictureLesson], noise: Tensor, times: Tensor, draw: torch.Generator) -> float:
        clean = self.latents([lesson.picture for lesson in lessons])
        dropped = (torch.rand(len(lessons), generator=draw) < self.settings.caption_dropout).tolist()
        captions = ["" if drop else lesson.caption for drop, lesson in zip(dropped, lessons, strict=True)]
        noisy, wanted = self.noise.add_noise(clean, noise, times), self.wanted(clean, noise, times)
        taught = torch.tensor([self.settings.prior if lesson.replayed else 0.0 for lesson in lessons]).to(clean.device)
        total = 0.0
        for start in range(0, len(lessons), self.compute.batch_size):
            part = slice(start, start + self.compute.batch_size)
            asked = self.conditions(captions[part])
            # A mixture of (w - p)^2 and (b - p)^2 has the gradient of one squared error to the mixture of w and b.
            goal = self._mixed(wanted[part], taught[part], noisy[part], times[part], asked)
            predicted = self.predict(self.unet, noisy[part], times[part], asked)
            loss = functional.mse_loss(predicted, goal, reduction="sum") / wanted.numel()
            loss.backward()
            total += float(loss.detach())
        return total

    @torch.no_grad()
    def _mixed(self, wanted: Tensor, share: Tensor, noisy: Tensor, times: Tensor, asked: dict[str, Any]) -> Tensor:
        """Mix the targets with the prediction of the model under test, which has the given share of each."""
        if not share.any():
            return wanted
        share = share.view(-1, 1, 1, 1)
        return (1 - share) * wanted + share * self.predict(self.pipeline.unet, noisy, times, asked)


class DpoTraining(AdapterTraining[PicturePair]):
    """Learns which of two pictures is better: Diffusion-DPO (Wallace et al. 2023).

    The loss is that of their equation 14, with beta T omega as one constant and errors as means over the latents. Both
    pictures of a pair get the same noise. The model under test is the reference.
    """

    def learn(self, lessons: Sequence[PicturePair], noise: Tensor, times: Tensor, draw: torch.Generator) -> float:
        total, size = 0.0, max(1, self.compute.batch_size // 2)
        for start in range(0, len(lessons), size):
            pairs = lessons[start : start + size]
            clean = self.latents([pair.right for pair in pairs] + [pair.wrong for pair in pairs])
            of_noise, of_time = noise[start : start + size].repeat(2, 1, 1, 1), times[start : start + size].repeat(2)
            noisy, wanted = self.noise.add_noise(clean, of_noise, of_time), self.wanted(clean, of_noise, of_time)
            asked = self.conditions([pair.caption for pair in pairs] * 2)
            with torch.no_grad():
                before = _errors(self.predict(self.pipeline.unet, noisy, of_time, asked), wanted)
            right, wrong = (_errors(self.predict(self.unet, noisy, of_time, asked), wanted) - before).chunk(2)
            loss = -functional.logsigmoid(self.settings.beta * (wrong - right)).sum() / len(lessons)
            loss.backward()
            total += float(loss.detach())
        return total


def _errors(predicted: Tensor, wanted: Tensor) -> Tensor:
    """Mean squared error of each of n predictions: (n,)."""
    return (predicted - wanted).square().flatten(1).mean(1)
