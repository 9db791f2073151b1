"""Language models small enough to build in a test: random weights, a few hundred tokens, no network."""

from pathlib import Path
from typing import Any, Literal

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

TEXT = (
    "The council said on Monday that the new bridge will open in March. Police arrested two men after a fire in the "
    "old market. Heavy rain closed three roads near the river, and hundreds of people left their homes. The minister "
    "told reporters that the talks with the union had failed. Shares rose again. Doctors warned of a long winter."
)
CHAT = (
    "{% for m in messages %}<|start|>{{ m['role'] }}\n{{ m['content'] }}<|end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|start|>assistant\n{% endif %}"
)


def tiny_tokenizer(*, chat: bool = True) -> Any:
    """Byte-level BPE: encodes any text, and decodes it to the same."""
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    special = ["<pad>", "<|start|>", "<|end|>"]
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=special,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator([TEXT], trainer)
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", bos_token="<|start|>", eos_token="<|end|>"
    )
    fast.chat_template = CHAT if chat else None
    return fast


def _save(model_class: Any, config: Any, tokenizer: Any, folder: Path, seed: int = 0) -> Path:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = model_class(config).eval()
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def _ids(tokenizer: Any) -> dict[str, int]:
    return {
        "vocab_size": len(tokenizer),
        "pad_token_id": tokenizer.pad_token_id,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
    }


def tiny_causal(folder: Path, *, seed: int = 0) -> Path:
    """A chat model of the Llama family with room for 1024 tokens."""
    from transformers import LlamaConfig, LlamaForCausalLM

    tokenizer = tiny_tokenizer()
    config = LlamaConfig(
        **_ids(tokenizer),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=1024,
        initializer_range=0.5,  # with the usual 0.02, answers hardly depend on the article
        tie_word_embeddings=True,
    )
    return _save(LlamaForCausalLM, config, tokenizer, folder, seed)


def tiny_seq2seq(folder: Path, *, family: Literal["bart", "t5"] = "bart") -> Path:
    """An encoder-decoder model: BART with room for 1024 tokens, or T5, whose positions are relative."""
    from transformers import BartConfig, BartForConditionalGeneration, T5Config, T5ForConditionalGeneration

    tokenizer = tiny_tokenizer(chat=False)
    if family == "t5":
        config = T5Config(
            **_ids(tokenizer),
            d_model=32,
            d_kv=8,
            d_ff=64,
            num_layers=2,
            num_heads=4,
            decoder_start_token_id=tokenizer.pad_token_id,
        )
        return _save(T5ForConditionalGeneration, config, tokenizer, folder)
    layers = {f"{part}_{name}": value for part in ("encoder", "decoder") for name, value in _BART_LAYERS.items()}
    config = BartConfig(
        **_ids(tokenizer),
        **layers,
        d_model=32,
        max_position_embeddings=1024,
        init_std=0.5,
        decoder_start_token_id=tokenizer.eos_token_id,
        forced_eos_token_id=tokenizer.eos_token_id,
    )
    return _save(BartForConditionalGeneration, config, tokenizer, folder)


_BART_LAYERS = {"layers": 1, "attention_heads": 4, "ffn_dim": 64}


def tiny_embedder(folder: Path) -> Path:
    """A BERT whose token vectors are averaged for a sentence embedding of 32 dimensions."""
    from transformers import BertConfig, BertModel

    tokenizer = tiny_tokenizer(chat=False)
    tokenizer.model_max_length = 512
    config = BertConfig(
        **_ids(tokenizer),
        hidden_size=32,
        num_hidden_layers=1,
        num_attention_heads=4,
        intermediate_size=64,
        max_position_embeddings=512,
        initializer_range=0.5,
    )
    return _save(BertModel, config, tokenizer, folder)
