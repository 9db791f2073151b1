"""A painter: prompts and seeds in, pictures out, in batches that do not change the pictures.

It calls the pipeline itself, with one random generator on the CPU per picture, so that the noise depends only on the
picture's seed, on any device. A picture depends only on its prompt, its seed and the guidance, to the last bit: the
sums of a row depend on the shape of its batch but not on the contents of other rows, so all calls have the same number
of pictures, and a batch that is not full is filled up. This was measured with torch 2.13 and oneDNN on AVX-512; sizes
from 16 on gave equal bits, smaller ones pixels that occasionally differ by 1/255. GPUs choose their own kernels, so
nothing is guaranteed there.
"""

import inspect
from abc import ABC, abstractmethod
from collections import OrderedDict
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from stages.core.errors import UsageError, one_line
from stages.core.progress import progress
from stages.tasks.contract import Compute
from stages.tasks.sources import Source
from stages.tasks.text_to_image.config import SamplingConfig

PICTURES = 16  # most pictures at once: 32 and 48 were not faster on a CPU, and a batch that is not full costs less
KEPT = 512  # prompts whose text states are kept
BLACK = 8  # of 255; a picture without a pixel this bright counts as black
BLANKED = "blanked by the safety checker"
_LIMITED = 1_000_000  # tokens; tokenizers without a limit report more


@dataclass(frozen=True)
class Drawing:
    """A picture, and what is wrong with it, whatever it should show.

    Args:
        pixels: (h, w, 3) uint8.
        fault: "", "black" (no pixel reaches 8 of 255), "not a number" (pixels are then zero) or "blanked by the safety
            checker".
    """

    pixels: np.ndarray
    fault: str = ""


class PictureModel(ABC):
    """A text-to-image model as the task sees it, with local weights or served.

    Args:
        size: most pictures at once.
    """

    def __init__(self, sampling: SamplingConfig, compute: Compute, size: int) -> None:
        self.sampling, self.compute, self.size = sampling, compute, size

    @property
    @abstractmethod
    def hash(self) -> str:
        """Content hash of the folders the model was read from."""

    @property
    @abstractmethod
    def parameters(self) -> int | None:
        """Number of parameters of all its networks; None if unknown."""

    def draw(
        self, prompts: Sequence[str], seeds: Sequence[int], guidance: float | None = None, *, label: str | None = None
    ) -> list[Drawing]:
        """Draw n pictures, each of which depends only on its prompt, its seed and the guidance; no two alike.

        Raises a UsageError when the model refuses the settings or answers with something that is not a picture, or when
        it draws noise of its own, which would make a picture depend on the others; an InfrastructureError when a served
        model cannot be reached.

        Args:
            prompts: n prompts; what is beyond the token limit is not read, see `too_long`.
            seeds: n seeds of the noise that a picture starts from, and of the noise that a scheduler adds.
            guidance: classifier-free guidance (Ho & Salimans 2022); None is that of `sampling`. With 1 there is none,
                and the negative prompt is not used.
            label: name of a progress bar; None shows none.
        """
        guidance = self.sampling.guidance if guidance is None else guidance
        wanted = list(zip(prompts, map(int, seeds), strict=True))
        unique = list(dict.fromkeys(wanted))
        drawn: dict[tuple[str, int], Drawing] = {}
        with bar(label, len(unique)) as tell:
            for start in range(0, len(unique), self.size):
                batch = unique[start : start + self.size]
                drawn.update(zip(batch, self._draw(batch, guidance), strict=True))
                tell(len(drawn), "")
        return [drawn[one] for one in wanted]

    @abstractmethod
    def _draw(self, batch: Sequence[tuple[str, int]], guidance: float) -> list[Drawing]:
        """Draw a picture for each (prompt, seed) of a batch, of which there are at most `size`."""

    @abstractmethod
    def embed(self, prompts: Sequence[str]) -> np.ndarray:
        """Features of n prompts, (n, d) float32: what an explorer sees of an item."""

    @abstractmethod
    def tokens(self, prompt: str) -> int:
        """Return the length of a prompt for the model."""

    @abstractmethod
    def too_long(self, prompts: Sequence[str]) -> list[str]:
        """Return one line for each prompt that the model does not read to its end: its length, and what is lost."""


class Painter(PictureModel):
    """A pipeline with its sampling settings.

    Raises a UsageError when there is a negative prompt and the pipeline takes none, or its tokenizers state no length
    limit.

    Args:
        pipeline: a text-to-image pipeline of diffusers, on its device, see `models.load_pipeline`.
    """

    def __init__(self, pipeline: Any, sampling: SamplingConfig, compute: Compute) -> None:
        super().__init__(sampling, compute, min(PICTURES, compute.batch_size))
        self.pipeline = pipeline
        self._states: OrderedDict[str, dict[str, Tensor]] = OrderedDict()
        self._unguided: dict[str, Tensor] = {}
        takes = inspect.signature(type(pipeline).__call__).parameters
        if sampling.negative_prompt and "negative_prompt" not in takes:
            raise UsageError(f"prepare.sampling.negative_prompt: {type(pipeline).__name__} takes none")
        if not self._limits():
            raise UsageError(
                "prepare.model: no tokenizer of the pipeline says how much text it takes (model_max_length)"
            )

    @property
    def hash(self) -> str:
        return str(getattr(self.pipeline, "content", ""))  # empty if `load_pipeline` did not read it

    @property
    def parameters(self) -> int:
        modules = [part for part in self.pipeline.components.values() if isinstance(part, torch.nn.Module)]
        return sum(parameter.numel() for module in modules for parameter in module.parameters())

    # Pictures

    def _draw(self, batch: Sequence[tuple[str, int]], guidance: float) -> list[Drawing]:
        full = [*batch, *[batch[-1]] * (self.size - len(batch))]
        settings = {
            **self._text([prompt for prompt, _ in full], guidance),
            "generator": [torch.Generator().manual_seed(seed) for _, seed in full],
            "num_inference_steps": self.sampling.steps,
            "guidance_scale": guidance,
            "output_type": "pt",
        }
        settings |= {name: size for name in ("height", "width") if (size := getattr(self.sampling, name)) is not None}
        noise = _random_states(self.compute.device)
        try:
            with torch.inference_mode():
                out = self.pipeline(**settings)
        except (ValueError, TypeError, AttributeError, NotImplementedError, LookupError, ArithmeticError) as error:
            names = (
                f"{type(self.pipeline).__name__} refuses these settings with {type(self.pipeline.scheduler).__name__}"
            )
            raise UsageError(f"prepare.sampling: {names}: {one_line(error)}") from error
        if not all(map(torch.equal, noise, _random_states(self.compute.device))):
            name = type(self.pipeline.scheduler).__name__
            raise UsageError(
                f"prepare.sampling.scheduler: {name} draws noise of its own, so that a picture would depend on others"
                " of its batch; take one that uses the generators it is given"
            )
        blanked = getattr(out, "nsfw_content_detected", None) or [False] * self.size
        rows = zip(out.images, blanked, batch)  # noqa: B905 - what fills the batch up is left out
        return [_drawing(image, bool(hidden)) for image, hidden, _ in rows]

    def _text(self, prompts: Sequence[str], guidance: float) -> dict[str, Any]:
        """Return the pipeline's text arguments: text states, if it is known to need nothing else, or the prompts."""
        negative = self.sampling.negative_prompt
        if not self._has_states:
            given = {"negative_prompt": [negative] * len(prompts)} if negative and guidance > 1 else {}
            return {"prompt": list(prompts), **given}
        rows = [self._state(prompt) for prompt in prompts]
        text = {name: torch.cat([row[name] for row in rows]) for name in rows[0]}
        if guidance > 1:
            if not self._unguided:
                self._unguided = self._encode("", negative or None)
            text |= {name: state.expand(len(prompts), *state.shape[1:]) for name, state in self._unguided.items()}
        return text

    @property
    def _has_states(self) -> bool:
        from diffusers import StableDiffusionPipeline, StableDiffusionXLPipeline

        return isinstance(self.pipeline, StableDiffusionPipeline | StableDiffusionXLPipeline)

    def _state(self, prompt: str) -> dict[str, Tensor]:
        if prompt not in self._states:
            self._states[prompt] = self._encode(prompt, None, guided=False)
            if len(self._states) > max(KEPT, self.size):
                self._states.popitem(last=False)
        self._states.move_to_end(prompt)
        return self._states[prompt]

    def _encode(self, prompt: str, negative: str | None, *, guided: bool = True) -> dict[str, Tensor]:
        """Encode one prompt alone, so that its states depend on no other. Guided: those of the negative prompt."""
        with torch.inference_mode():
            states = self.pipeline.encode_prompt(
                prompt=prompt,
                device=self.pipeline._execution_device,
                num_images_per_prompt=1,
                do_classifier_free_guidance=guided,
                negative_prompt=negative,
            )
        kinds = ("prompt_embeds", "negative_prompt_embeds", "pooled_prompt_embeds", "negative_pooled_prompt_embeds")
        wanted = kinds[1::2] if guided else kinds[::2]
        return {kind: state for kind, state in zip(kinds, states) if kind in wanted}  # noqa: B905 - SD 1 and 2 have two

    # Texts

    def embed(self, prompts: Sequence[str]) -> np.ndarray:
        """See PictureModel: CLIP's state at the end of the text, or a mean of states."""
        features = {prompt: self._pooled(prompt) for prompt in dict.fromkeys(prompts)}
        return np.stack([features[prompt] for prompt in prompts])

    def _pooled(self, prompt: str) -> np.ndarray:
        if self._has_states:
            state = self._state(prompt)
            tokenizer = self.pipeline.tokenizer or self.pipeline.tokenizer_2
            end = min(self.tokens(prompt), tokenizer.model_max_length) - 1
            pooled = (
                state["pooled_prompt_embeds"] if "pooled_prompt_embeds" in state else state["prompt_embeds"][:, end]
            )
        else:
            encode = self.pipeline.encode_prompt
            parameters = inspect.signature(encode).parameters
            known = {"device": self.pipeline._execution_device, "num_images_per_prompt": 1}
            known["do_classifier_free_guidance"] = False
            given = {name: value for name, value in known.items() if name in parameters}
            # SD 3 and FLUX take the prompt once for each of their encoders.
            given |= {n: prompt for n, p in parameters.items() if n.startswith("prompt") and p.default is p.empty}
            with torch.inference_mode():
                pooled = encode(**given | {"prompt": prompt})[0]
            pooled = pooled[0] if isinstance(pooled, list) else pooled
            pooled = pooled.reshape(-1, pooled.shape[-1]).mean(dim=0)
        features: np.ndarray = pooled.flatten().float().cpu().numpy()
        return features

    def tokens(self, prompt: str) -> int:
        """Count a prompt's tokens, with start and end, for the tokenizer that takes the longest prompts."""
        tokenizer, _ = max(self._limits(), key=lambda limited: limited[1])
        return len(tokenizer(prompt, verbose=False).input_ids)

    def too_long(self, prompts: Sequence[str]) -> list[str]:
        _, limit = max(self._limits(), key=lambda limited: limited[1])
        lines = []
        for prompt in dict.fromkeys(prompts):
            if (length := self.tokens(prompt)) > limit:
                words = prompt.split()
                read = max(n for n in range(len(words) + 1) if n == 0 or self.tokens(" ".join(words[:n])) <= limit)
                lines.append(
                    f"{prompt!r} has {length} tokens, the model reads {limit}: it would not see"
                    f" {' '.join(words[read:])!r}"
                )
        return lines

    def _limits(self) -> list[tuple[Any, int]]:
        """Tokenizers of the pipeline with their limits in tokens."""
        found = [part for name, part in self.pipeline.components.items() if name.startswith("tokenizer") and part]
        # T5 takes more, and pipelines with a T5 cut its text to the length they were trained with.
        cut = inspect.signature(type(self.pipeline).__call__).parameters.get("max_sequence_length")
        most = cut.default if cut is not None and isinstance(cut.default, int) else _LIMITED
        limits = [(tokenizer, min(most, getattr(tokenizer, "model_max_length", _LIMITED))) for tokenizer in found]
        return [(tokenizer, limit) for tokenizer, limit in limits if limit < _LIMITED]


def _drawing(image: Tensor, blanked: bool) -> Drawing:
    """Convert a picture (3, h, w) in [0, 1] to pixels, and find what is wrong with it."""
    image = image.float()
    broken = not torch.isfinite(image).all()
    pixels = (image.nan_to_num(0, 0, 0) * (0 if broken else 255)).clamp(0, 255).round().to(torch.uint8)
    array = np.ascontiguousarray(pixels.permute(1, 2, 0).cpu().numpy())
    if blanked:
        return Drawing(array, BLANKED)
    if broken:
        return Drawing(array, "not a number")
    return Drawing(array, "black" if array.max() < BLACK else "")


def _random_states(device: str) -> list[Tensor]:
    return [torch.get_rng_state(), *([torch.cuda.get_rng_state(device)] if device.startswith("cuda") else [])]


def bar(label: str | None, total: int) -> AbstractContextManager[Callable[[int, str], None]]:
    """Show `progress` under a label; None shows nothing."""
    return nullcontext(lambda completed, note: None) if label is None else progress(label, total)


class ModelSource(Source):
    """Base of the model loaders."""

    @abstractmethod
    def build(self, inputs: Path, out_dir: Path, sampling: SamplingConfig | None = None) -> None:
        """Write the model folder.

        Raises a UsageError when the model cannot be read, or does not draw from text alone.

        Args:
            inputs: data/<audit>/inputs.
            sampling: how pictures will be drawn; by default `SamplingConfig()`.
        """

    @abstractmethod
    def load(
        self, folder: Path, compute: Compute, sampling: SamplingConfig, repaired: Path | None = None
    ) -> PictureModel:
        """Read a model folder that `build` wrote, or a repair of it.

        Raises a UsageError when a file is missing or damaged, or the repair was made for another model.

        Args:
            repaired: a whole pipeline to read instead, or LoRA weights for the one in `folder`.
        """
