"""A CLIP model as the judge: attributes by prompts, without training, and alignment by CLIPScore.

It is stored as transformers writes it, with judge.json beside it: its prompts, and when it abstains.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from stages.errors import UsageError
from stages.files import read_json, write_json
from stages.tasks.text_to_image.judges import CLIP, CLIP_FORM, Reading, Values

BATCH = 8  # pictures at once, always, filled up with black: an answer must not depend on the number of others
SCALE = 2.5  # of CLIPScore: cosines of pictures and their captions are seldom above .4


class ClipJudge:
    """See `judges.Judge`.

    Attributes are read by the prompt nearest to the picture (Radford et al. 2021, section 3.1.2). Alignment is
    CLIPScore (Hessel et al. 2021, equation 1), 2.5 times the cosine of picture and prompt, but within [0, 1].

    Args:
        model: a CLIPModel.
        processor: its CLIPProcessor.
        attributes: {attribute: {value: prompt}}.
        certainty: it abstains if the best value is less probable.
    """

    reads_prompts = True

    def __init__(
        self, model: Any, processor: Any, attributes: Mapping[str, Mapping[str, str]], certainty: float, device: str
    ) -> None:
        self.attributes: Values = {name: tuple(prompts) for name, prompts in attributes.items()}
        self.note: Mapping[str, Any] = {
            "attributes": "told zero-shot, by prompts; how often wrongly was not measured",
            "prompts": {name: dict(prompts) for name, prompts in attributes.items()},
            "certainty": certainty,
        }
        self._model = model.to(device).eval()
        self._processor = processor
        self._device = device
        self._certainty = certainty
        self._texts: dict[str, np.ndarray] = {}
        self._anchors = {name: self.embed_texts(list(prompts.values())) for name, prompts in attributes.items()}

    @torch.inference_mode()
    def read(self, pixels: Sequence[np.ndarray]) -> Reading:
        """See Judge; features are the pictures' embeddings, of length 1."""
        scale = float(self._model.logit_scale.exp())
        parts = [self._embed_pictures(pixels[start : start + BATCH]) for start in range(0, len(pixels), BATCH)]
        features = np.concatenate([np.zeros((0, self._model.config.projection_dim), np.float32), *parts])
        probabilities = {
            name: functional.softmax(torch.from_numpy(scale * features @ anchors.T), dim=1).numpy()
            for name, anchors in self._anchors.items()
        }
        abstained = {name: p.max(1) < self._certainty for name, p in probabilities.items()}
        return Reading(probabilities, abstained, features)

    def aligned(self, reading: Reading, prompts: Sequence[str], expected: Sequence[Mapping[str, str]]) -> np.ndarray:
        """See Judge: CLIPScore of picture and prompt, capped at 1. Expected values are not used."""
        cosines = (reading.features * self.embed_texts(prompts)).sum(1)
        return np.clip(SCALE * cosines, 0, 1).astype(np.float32)

    @torch.inference_mode()
    def embed_texts(self, texts: Sequence[str]) -> np.ndarray:
        """Embed n texts: (n, d) float32 of length 1; what is too long for the model is cut off."""
        for text in dict.fromkeys(texts):
            if text not in self._texts:
                limit = self._model.config.text_config.max_position_embeddings
                tokens = self._processor.tokenizer(text, truncation=True, max_length=limit, return_tensors="pt")
                ids, mask = tokens["input_ids"].to(self._device), tokens["attention_mask"].to(self._device)
                pooled = self._model.get_text_features(input_ids=ids, attention_mask=mask).pooler_output
                self._texts[text] = _unit(pooled)[0]
        empty = np.zeros((0, self._model.config.projection_dim), np.float32)
        return np.concatenate([empty, *(self._texts[text][None] for text in texts)])

    def _embed_pictures(self, pixels: Sequence[np.ndarray]) -> np.ndarray:
        seen = self._processor.image_processor(images=list(pixels), return_tensors="pt")["pixel_values"]
        batch = torch.zeros(BATCH, *seen.shape[1:])
        batch[: len(seen)] = seen
        return _unit(self._model.get_image_features(pixel_values=batch.to(self._device)).pooler_output)[: len(seen)]


def _unit(vectors: Tensor) -> np.ndarray:
    found: np.ndarray = functional.normalize(vectors.float(), dim=1).cpu().numpy()
    return found


def save_clip_judge(
    source: Path, origin: str, attributes: Mapping[str, Mapping[str, str]], certainty: float, out_dir: Path
) -> None:
    """Write a CLIP model with its prompts and its origin, as `load_clip_judge` reads it.

    Raises:
        UsageError: when it cannot be read.
    """
    model, processor = _load(source)
    out_dir.mkdir(parents=True, exist_ok=True)
    model.save_pretrained(out_dir)
    processor.save_pretrained(out_dir)
    asked = {name: dict(prompts) for name, prompts in attributes.items()}
    write_json(out_dir / CLIP_FORM, {"attributes": asked, "certainty": certainty, "origin": origin})


def load_clip_judge(folder: Path, device: str) -> ClipJudge:
    """Read what `save_clip_judge` wrote.

    Raises:
        UsageError: when a file is missing or damaged.
    """
    asked = read_json(folder / CLIP_FORM)
    if not {"attributes", "certainty"} <= set(asked):
        raise UsageError(f"{folder / CLIP_FORM}: expected the keys attributes, certainty; found {', '.join(asked)}")
    model, processor = _load(folder)
    return ClipJudge(model, processor, asked["attributes"], asked["certainty"], device)


def _load(source: Path) -> tuple[Any, Any]:
    with _readable(source):
        from transformers import CLIPModel, CLIPProcessor

        loaded: Any = CLIPModel.from_pretrained(
            source, use_safetensors=True, dtype=torch.float32, output_loading_info=True, local_files_only=True
        )
        model, told = loaded
        # transformers fills missing weights at random and only warns.
        if lost := sorted(map(str, [*told["missing_keys"], *told["mismatched_keys"]])):
            raise ValueError(f"the weights do not fit config.json: {len(lost)} are missing, {lost[0]} among them")
        return model, CLIPProcessor.from_pretrained(source, local_files_only=True)


@contextlib.contextmanager
def _readable(source: Path) -> Iterator[None]:
    """Turn errors of transformers about unreadable models into one-line errors for users, and silence it."""
    try:
        from safetensors import SafetensorError
        from transformers.utils import logging
    except ImportError:
        raise UsageError(f"{CLIP}: needs the library transformers: pip install 'faded[text-to-image]'") from None
    logging.disable_progress_bar()
    try:
        yield
    except (OSError, ValueError, TypeError, KeyError, RuntimeError, ImportError, SafetensorError) as error:
        why = " ".join(str(error).split())[:400]
        raise UsageError(f"{CLIP}: {source} is no CLIP model that can be read: {why}") from None
