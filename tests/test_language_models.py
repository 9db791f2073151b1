"""Language models of all makes: answers, prompts, room, training batches, folders, adapters; errors are one line."""

import shutil
from struct import pack

import pytest
import torch
from safetensors.torch import load_file, save_file

from stages.core.environment import torch_threads
from stages.core.errors import UsageError
from stages.core.files import read_json, write_json
from stages.tasks.contract import Compute
from stages.tasks.language.form import FORM, GenerationConfig
from stages.tasks.language.models import PackageModel, TransformersModel, load_summarizer, model_hash
from stages.tasks.sources import source_errors
from stages.tasks.summarization.served import MODEL_LOADERS
from tests.tiny_models import TEXT, tiny_causal, tiny_seq2seq

peft = pytest.importorskip("peft")

KINDS = {"causal": tiny_causal, "bart": tiny_seq2seq, "t5": lambda folder: tiny_seq2seq(folder, family="t5")}
SHORT, DTYPE = GenerationConfig(max_new_tokens=10), "bfloat16"
SENTENCES = TEXT.split(". ")
# 14 different articles of 4 to 300 tokens
ARTICLES = [". ".join(SENTENCES[i : i + 1 + i % 4]) * (1 + i % 3) + f" Item {i}." for i in range(5)] + [
    " ".join(TEXT.split()[start : start + n])
    for start, n in zip(range(9), (2, 55, 7, 31, 9, 13, 44, 21, 3), strict=True)
]


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """inputs/ with one tiny model of each kind, models/ with the results of `build`."""
    home = tmp_path_factory.mktemp("summarizers")
    for kind, make in KINDS.items():
        make(home / "inputs" / kind)
        TransformersModel(transformers=kind).build(home / "inputs", home / "models" / kind, SHORT, DTYPE)
    return home


@pytest.fixture(autouse=True)
def one_thread():
    with torch_threads(1):
        yield


def build(home, folder, generation=SHORT, name="causal", dtype=DTYPE):
    TransformersModel(transformers=name).build(home / "inputs", folder, generation, dtype)
    return load_summarizer(folder, Compute(batch_size=4, dtype=dtype))


def load(home, kind="causal", dtype=DTYPE):
    return load_summarizer(home / "models" / kind, Compute(batch_size=4, dtype=dtype))


@pytest.mark.parametrize("kind", KINDS)
def test_summaries_come_in_the_order_of_the_articles(home, kind):
    summarizer = load(home, kind, "float32")
    assert summarizer.model.dtype == torch.float32
    summaries = summarizer.summarize(ARTICLES)
    assert len(summaries) == len(ARTICLES) and all(s == s.strip() for s in summaries)
    assert summarizer.summarize(ARTICLES[::-1]) == summaries[::-1]
    assert len(set(summaries)) > 3 or kind == "t5"  # different summaries, not one for all articles
    assert summarizer.summarize([]) == []
    odd = ["", " ", "word", "日本語の記事。", "\x00\ufffd", "{article} {} %s"]
    assert len(summarizer.summarize(odd)) == len(odd)
    assert summarizer.form.kind == ("causal" if kind == "causal" else "seq2seq") and summarizer.form.parameters > 1000


@pytest.mark.parametrize("kind", ["causal", "bart"])
def test_scores_are_equal_to_the_last_bit_in_any_company(home, kind):
    """Scores of every step are compared, as equal texts could hide different sums."""
    summarizer, scores = load(home, kind), {}
    generate = summarizer.model.generate

    def spy(input_ids, **options):
        out = generate(input_ids=input_ids, output_scores=True, return_dict_in_generate=True, **options)
        for i, ids in enumerate(input_ids.tolist()):
            key = tuple(k for k in ids if k != summarizer.tokenizer.pad_token_id)
            scores.setdefault(key, []).append(torch.stack([step[i] for step in out.scores]))
        return out.sequences

    summarizer.model.generate = spy
    summarizer.summarize(ARTICLES)
    for article in ARTICLES:
        summarizer.summarize([article])
    assert len(scores) == len(ARTICLES)
    for seen in scores.values():
        assert len(seen) >= 3  # in a batch, and twice in a batch of one, which is doubled
        steps = min(map(len, seen))
        assert steps > 1 and all(torch.equal(seen[0][:steps], other[:steps]) for other in seen[1:])


def test_a_long_article_is_cut_to_whole_sentences(home, tmp_path):
    summarizer = build(home, tmp_path / "model", GenerationConfig(max_new_tokens=10, context=40))
    cut, was_cut = summarizer.fit(TEXT)
    assert was_cut and cut and TEXT.startswith(cut + " ") and cut.endswith(".")
    following = TEXT[: TEXT.index(".", len(cut)) + 1]
    tokens = [len(summarizer.tokenizer(t, add_special_tokens=False)["input_ids"]) for t in (cut, following)]
    assert tokens[0] <= 40 < tokens[1]  # one sentence more would not fit
    assert summarizer.fit(cut) == (cut, False) and summarizer.inputs(TEXT) == summarizer.inputs(cut)
    assert summarizer.summarize([TEXT]) == summarizer.summarize([cut])
    article = "and the river rose " * 50  # one sentence, which is cut within
    cut, was_cut = summarizer.fit(article)
    assert was_cut and article.startswith(cut)
    assert 36 <= len(summarizer.tokenizer(cut, add_special_tokens=False)["input_ids"]) <= 40


@pytest.fixture
def small(home, tmp_path):
    """inputs/ with the tiny BART, limited to 100 tokens for encoder and decoder each."""
    folder = shutil.copytree(home / "inputs" / "bart", tmp_path / "inputs" / "small")
    config = read_json(folder / "config.json") | {"max_position_embeddings": 100}
    write_json(folder / "config.json", config, schema=False)
    state = load_file(folder / "model.safetensors")  # BART reserves two rows
    state = {key: weight[:102].clone() if "positions" in key else weight for key, weight in state.items()}
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
    return tmp_path


def test_a_decoder_has_room_for_the_summary(small):
    asked = {"context": 60, "min_new_tokens": 90}
    with pytest.raises(UsageError, match=r"prepare\.generation\.max_new_tokens: 100; .*room for 100: at most 99"):
        build(small, small / "model", GenerationConfig(max_new_tokens=100, **asked), "small")
    assert build(small, small / "model", GenerationConfig(max_new_tokens=99, **asked), "small").summarize([TEXT])


def test_labels_of_a_causal_model_are_the_summary_alone(home):
    summarizer = load(home)
    tokenizer, articles, summaries = summarizer.tokenizer, ARTICLES[:3], ["Short.", "A somewhat longer summary.", "X"]
    batch = summarizer.training_batch(articles, summaries)
    assert batch["input_ids"].shape == batch["labels"].shape == batch["attention_mask"].shape
    for i, (article, summary) in enumerate(zip(articles, summaries, strict=True)):
        kept = batch["labels"][i] != -100
        assert torch.equal(batch["labels"][i][kept], batch["input_ids"][i][kept])
        assert tokenizer.decode(batch["labels"][i][kept]) == summary + tokenizer.eos_token
        length = int(batch["attention_mask"][i].sum())
        assert batch["attention_mask"][i, :length].all()
        prompt = summarizer.inputs(article)
        assert batch["input_ids"][i, : len(prompt)].tolist() == prompt and int(kept.sum()) + len(prompt) == length
    assert torch.isfinite(summarizer.model(**batch).loss)


def test_pickled_weights_are_refused_before_anything_runs(tmp_path):
    folder = tiny_causal(tmp_path / "inputs" / "old")
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    (error,) = source_errors({"transformers": "old"}, MODEL_LOADERS, "prepare.model", tmp_path / "inputs")
    assert "pytorch_model.bin is a pickle" in error and "save_pretrained" in error
    with pytest.raises(UsageError, match="is a pickle"):
        TransformersModel(transformers="old").build(tmp_path / "inputs", tmp_path / "model", SHORT)


@pytest.mark.parametrize(
    ("source", "told"),
    [
        ({"transformers": "here/not/there"}, "no .*there; found there: causal"),
        ({"transformers": "causal", "revision": "main"}, r"prepare\.model\.revision"),
        ({"package": "json", "file": "m.gguf"}, "has no file m.gguf"),
        ({"package": "json", "transformers": "x"}, "expected exactly one of the keys package, transformers"),
    ],
)
def test_a_wrong_source_is_told_before_anything_runs(tmp_path, source, told):
    (tmp_path / "causal").mkdir()
    with pytest.raises(UsageError, match=told):
        raise UsageError("\n".join(source_errors(source, MODEL_LOADERS, "prepare.model", tmp_path)))


def test_a_model_the_cache_does_not_hold_is_one_line(tmp_path):
    source = TransformersModel(transformers="nobody/no-such-model", revision="0" * 40)
    assert source.errors(tmp_path) == []  # the cache is not checked before the audit runs
    with pytest.raises(UsageError, match=r"nobody/no-such-model at 0+ .*Run `faded prefetch .*` where") as told:
        source.build(tmp_path, tmp_path / "model", SHORT)
    assert "\n" not in str(told.value)


LLAMA = pack("<Q20sIQ5s", 20, b"general.architecture", 8, 5, b"llama")


@pytest.mark.parametrize(
    ("counts", "rest", "told"),
    [
        ((2**60, 1), LLAMA, "buffer"),
        ((0, 2**60), LLAMA, "buffer"),
        ((0, 1), pack("<Q20s", 2**60, b"general.architecture"), "buffer"),
        ((0, 1), pack("<Q1sIIQ", 1, b"a", 9, 4, 2**60), "buffer"),
        (
            (1, 1),
            LLAMA + pack("<Q1sIQIQ", 1, b"w", 1, 2**60, 0, 0),
            r"w ends at byte 4,[\d,]+, but the file has 102",
        ),
        (
            (1, 1),
            LLAMA + pack("<Q1sIQIQ", 1, b"w", 1, 8, 0, 2**60),
            r"w ends at byte 1,[\d,]+, but the file has 102",
        ),
    ],
    ids=["tensors", "keys", "letters", "elements", "values", "offset"],
)
def test_a_header_that_lies_is_one_line(tmp_path, monkeypatch, counts, rest, told):
    """A number in it is 2**60, which nothing may count or allocate."""
    (tmp_path / "boastful").mkdir()
    (tmp_path / "boastful/__init__.py").touch()
    (tmp_path / "boastful/m.gguf").write_bytes(pack("<4sIQQ", b"GGUF", 3, *counts) + rest)
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(UsageError, match=f"m.gguf: its header .*{told}") as error:
        PackageModel(package="boastful", file="m.gguf").build(tmp_path, tmp_path / "model", SHORT)
    assert "\n" not in str(error.value)


def test_more_layers_than_any_model_has_are_not_made(tmp_path):
    folder = tiny_causal(tmp_path / "inputs" / "deep")
    config = read_json(folder / "config.json") | {"num_hidden_layers": 2**31}
    write_json(folder / "config.json", config, schema=False)
    with pytest.raises(UsageError, match="num_hidden_layers: found 2,147,483,648, expected 1,000 at most"):
        TransformersModel(transformers="deep").build(tmp_path / "inputs", tmp_path / "model", SHORT)


def test_code_of_the_repository_does_not_run(tmp_path):
    folder = tiny_causal(tmp_path / "inputs" / "custom")
    own = {"model_type": "own", "auto_map": {"AutoConfig": "own.Own", "AutoModelForCausalLM": "own.Own"}}
    write_json(folder / "config.json", read_json(folder / "config.json") | own, schema=False)
    (folder / "own.py").write_text("raise SystemExit('ran')")
    with pytest.raises(UsageError, match=r"prepare\.model\.transformers: .*cannot be read"):
        TransformersModel(transformers="custom").build(tmp_path / "inputs", tmp_path / "model", SHORT)


def damage(folder, what):
    weights = folder / "model.safetensors"
    if what == "no safetensors":
        weights.write_bytes(b"version https://git-lfs.github.com/spec/v1\n" * 3)
    elif what == "missing weights":
        state = load_file(weights)
        save_file({k: v for k, v in state.items() if "layers.1.mlp" not in k}, weights, metadata={"format": "pt"})
    elif what == "no tokenizer":
        (folder / "tokenizer.json").unlink()
        (folder / "tokenizer_config.json").unlink()


@pytest.mark.parametrize("what", ["no safetensors", "missing weights", "no tokenizer"])
def test_a_damaged_model_is_told(tmp_path, what):
    damage(tiny_causal(tmp_path / "inputs" / "broken"), what)
    with pytest.raises(UsageError, match=r"prepare\.model\.transformers: .*broken"):
        TransformersModel(transformers="broken").build(tmp_path / "inputs", tmp_path / "model", SHORT)
    assert not (tmp_path / "model").exists()


@pytest.fixture
def adapter(home, tmp_path):
    """An adapter of the tiny causal model with noticeable weights, in the format of a repair."""
    summarizer = load(home, dtype="float32")
    config = peft.LoraConfig(r=4, target_modules=["q_proj", "v_proj", "down_proj"])
    adapted = peft.get_peft_model(summarizer.model, config).eval()
    torch.manual_seed(0)
    with torch.no_grad():
        for name, weight in adapted.named_parameters():
            if "lora_B" in name:
                weight.normal_(std=0.5)
    adapted.save_pretrained(tmp_path / "adapter")
    form = summarizer.form.model_copy(update={"base": model_hash(home / "models" / "causal")})
    write_json(tmp_path / "adapter" / FORM, form.model_dump(mode="json"))
    return adapted, tmp_path / "adapter"


def test_an_adapter_is_merged_and_answers_as_in_memory(home, adapter):
    adapted, folder = adapter
    base = load(home, dtype="float32")
    loaded = load_summarizer(folder, Compute(batch_size=4), home / "models" / "causal")
    assert not any("lora" in name for name, _ in loaded.model.named_parameters())
    batch = base.training_batch(ARTICLES[:2], ["Short.", "Longer summary."])
    with torch.inference_mode():
        merged, unmerged, before = (m(**batch).logits.float() for m in (loaded.model, adapted, base.model))
    assert (merged - unmerged).abs().mean() < 0.1 * (before - unmerged).abs().mean()
    assert loaded.summarize(ARTICLES) != base.summarize(ARTICLES) and loaded.hash != base.hash


@pytest.mark.parametrize("what", ["missing", "has shape", "cannot be read"])
def test_an_adapter_that_does_not_fit_is_told(home, adapter, what):
    _, folder = adapter
    weights = folder / "adapter_model.safetensors"
    state = load_file(weights)
    first = next(iter(state))
    if what == "missing":
        del state[first]
    elif what == "has shape":
        state[first] = state[first][:, :-1].contiguous()
    save_file(state, weights)
    if what == "cannot be read":
        weights.write_bytes(weights.read_bytes()[:-10])
    with pytest.raises(UsageError, match=f"{folder}.*{what}"):
        load_summarizer(folder, Compute(), home / "models" / "causal")
