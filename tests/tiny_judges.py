"""Small pictures, and judges of them, without network or training."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tokenizers import processors

from stages.tasks.text_to_image.judge_models import JudgeForm, make_net, save_judge
from tests.tiny_models import tiny_tokenizer

ATTRIBUTES: dict[str, tuple[str, ...]] = {"colour": ("red", "green", "blue"), "other_shape": ("none", "circle")}
RED, GREEN, BLUE = (210, 40, 40), (40, 210, 40), (40, 40, 210)


def plain(rgb: tuple[int, int, int], side: int = 16) -> np.ndarray:
    """A picture of one colour."""
    return np.full((side, side, 3), rgb, dtype=np.uint8)


def noisy(count: int, side: int = 16) -> list[np.ndarray]:
    """Pictures of random pixels."""
    return list(np.random.default_rng(0).integers(0, 256, (count, side, side, 3), dtype=np.uint8))


def tiny_judge(folder: Path, attributes: Mapping[str, tuple[str, ...]] = ATTRIBUTES, **changes: Any) -> Path:
    """A judge of attributes with random weights; keyword arguments replace parts of its form."""
    parts: dict[str, Any] = {
        "attributes": attributes,
        "size": 16,
        "widths": (4, 4, 4),
        "features": 8,
        "temperatures": dict.fromkeys(attributes, 1.0),
        "thresholds": dict.fromkeys(attributes, 0.0),
        "note": {"pictures": 12},
    }
    form = JudgeForm(**(parts | changes))
    with torch.random.fork_rng():
        torch.manual_seed(0)
        save_judge(form, make_net(form), folder)
    return folder


def tiny_clip(folder: Path) -> Path:
    """A CLIP model for 32 x 32 pixels with random weights, as written by transformers."""
    from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel, CLIPProcessor

    tokenizer = tiny_tokenizer(chat=False)
    # A text's embedding is that of its end token; transformers treats id 2, this tokenizer's end, specially.
    tokenizer.add_special_tokens({"eos_token": "<|stop|>"})
    stop = ("<|stop|>", tokenizer.eos_token_id)
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="$A <|stop|>", special_tokens=[stop]
    )
    layers = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    ids = {f"{name}_token_id": getattr(tokenizer, f"{name}_token_id") for name in ("pad", "bos", "eos")}
    # Larger weights than usual, or all texts and all pictures would be embedded alike.
    parts = {**layers, "initializer_factor": 20.0}
    config = CLIPConfig(
        text_config={**parts, **ids, "vocab_size": len(tokenizer), "max_position_embeddings": 24},
        vision_config={**parts, "image_size": 32, "patch_size": 8},
        projection_dim=16,
        initializer_factor=20.0,
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = CLIPModel(config).eval()
    model.save_pretrained(folder)
    images = CLIPImageProcessor(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32})
    CLIPProcessor(image_processor=images, tokenizer=tokenizer).save_pretrained(folder)
    return folder
