"""Text-to-image pipelines small enough to build in a test: random weights, a tokenizer of letters, no network."""

import functools
import json
import shutil
import tempfile
from pathlib import Path
from typing import Any

import torch

LENGTH = 24  # longest prompt in tokens, including start and end
SIDE = 16  # pixels of a picture
_WORDS = ["a", "an", "red", "green", "blue", "circle", "square", "on", "black", "white", "background", "of", "picture"]


def tiny_clip_tokenizer(folder: Path) -> Any:
    """A CLIP tokenizer: one token for each letter, and for a few words."""
    from transformers import CLIPTokenizer

    letters = sorted("abcdefghijklmnopqrstuvwxyz0123456789,.'-!?")
    vocabulary = [*letters, *(f"{letter}</w>" for letter in letters)]
    merges: list[str] = []
    for word in _WORDS:
        pieces = [*word[:-1], f"{word[-1]}</w>"]
        while len(pieces) > 1:
            first, second, *rest = pieces
            if f"{first} {second}" not in merges:
                merges.append(f"{first} {second}")
                vocabulary.append(first + second)
            pieces = [first + second, *rest]
    vocabulary = [*dict.fromkeys(vocabulary), "<|startoftext|>", "<|endoftext|>"]
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "vocab.json").write_text(json.dumps({word: n for n, word in enumerate(vocabulary)}))
    (folder / "merges.txt").write_text("#version: 0.2\n" + "\n".join(merges) + "\n")
    return CLIPTokenizer.from_pretrained(folder, model_max_length=LENGTH, pad_token="<|endoftext|>")


def _text_config(tokenizer: Any) -> Any:
    from transformers import CLIPTextConfig

    return CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=LENGTH,
        projection_dim=16,
        initializer_factor=3.0,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )


def _networks(**unet: Any) -> tuple[Any, Any]:
    from diffusers import AutoencoderKL, UNet2DConditionModel

    vae = AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        block_out_channels=(8, 8),
        layers_per_block=1,
        latent_channels=4,
        norm_num_groups=1,
        sample_size=SIDE,
    )
    network = UNet2DConditionModel(
        sample_size=SIDE // 2,
        layers_per_block=1,
        block_out_channels=(8, 16),
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        attention_head_dim=2,
        norm_num_groups=4,
        **unet,
    )
    with torch.no_grad():
        for name, weight in network.named_parameters():
            if "attn2.to_v" in name:
                weight.mul_(50)  # otherwise pictures hardly depend on the prompt
    return vae, network


def _scheduler() -> Any:
    from diffusers import DDIMScheduler

    return DDIMScheduler(
        beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012, clip_sample=False, steps_offset=1
    )


def _stable_diffusion(scratch: Path) -> Any:
    from diffusers import StableDiffusionPipeline
    from transformers import CLIPTextModel

    tokenizer = tiny_clip_tokenizer(scratch / "tokenizer")
    vae, unet = _networks(cross_attention_dim=16)
    return StableDiffusionPipeline(
        vae=vae,
        unet=unet,
        tokenizer=tokenizer,
        text_encoder=CLIPTextModel(_text_config(tokenizer)),
        scheduler=_scheduler(),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


def _stable_diffusion_xl(scratch: Path) -> Any:
    from diffusers import StableDiffusionXLPipeline
    from transformers import CLIPTextModel, CLIPTextModelWithProjection

    tokenizer = tiny_clip_tokenizer(scratch / "tokenizer")
    vae, unet = _networks(
        cross_attention_dim=32,
        addition_embed_type="text_time",
        addition_time_embed_dim=4,
        projection_class_embeddings_input_dim=16 + 6 * 4,
    )
    config = _text_config(tokenizer)
    return StableDiffusionXLPipeline(
        vae=vae,
        unet=unet,
        tokenizer=tokenizer,
        tokenizer_2=tokenizer,
        text_encoder=CLIPTextModel(config),
        text_encoder_2=CLIPTextModelWithProjection(config),
        scheduler=_scheduler(),
        add_watermarker=False,
    )


@functools.cache
def _made(kind: str, dtype: torch.dtype) -> tempfile.TemporaryDirectory[str]:
    """Made once per session, and removed with it; copy it, never change it."""
    home = tempfile.TemporaryDirectory(prefix="tiny-pipelines-")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        pipeline = {"sd": _stable_diffusion, "sdxl": _stable_diffusion_xl}[kind](Path(home.name) / "scratch")
    pipeline.to(dtype).save_pretrained(Path(home.name) / "pipeline")
    return home


def tiny_pipeline(folder: Path, *, kind: str = "sd", dtype: torch.dtype = torch.float32) -> Path:
    """A Stable Diffusion pipeline ("sd", or "sdxl") of 16 x 16 pixels, stored in `dtype`, without safety checker."""
    shutil.copytree(Path(_made(kind, dtype).name) / "pipeline", folder)
    return folder
