"""The tokenizer, one token a word of the captions, and the text encoder, taught to tell attributes apart and frozen."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import torch
from torch import nn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer
from world import (
    BACKGROUNDS,
    COLOURS,
    DIGITS,
    PHRASES,
    RELATIONS,
    SHAPES,
    SIZES,
    draw_digits,
    draw_scenes,
    phrase,
    words,
)

MAX_LENGTH = 20
WIDTH = 64
STEPS = 700


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
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-3, total_steps=STEPS)
    labels = np.arange(10)
    for step in range(STEPS):
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
