"""Model folders and their repairs that cannot be read or do not match: reported in one line, and early."""

import shutil

import pytest
import torch

from stages.errors import UsageError
from stages.files import read_json, write_json
from stages.tasks.contract import Compute
from stages.tasks.language.form import FORM, GenerationConfig
from stages.tasks.language.models import TransformersModel, load_summarizer, model_hash
from stages.tasks.sources import source_errors
from stages.tasks.summarization.served import MODEL_LOADERS
from tests.hubs import in_cache
from tests.tiny_models import TEXT, tiny_causal, tiny_seq2seq

peft = pytest.importorskip("peft")

SHORT = GenerationConfig(max_new_tokens=10)
ARTICLES = [" ".join(TEXT.split()[start : start + 20]) for start in range(6)]


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """inputs/ with a tiny model of each kind, models/ with the results of `build`."""
    home = tmp_path_factory.mktemp("summarizers")
    for kind, make in {"causal": tiny_causal, "bart": tiny_seq2seq}.items():
        make(home / "inputs" / kind)
        TransformersModel(transformers=kind).build(home / "inputs", home / "models" / kind, SHORT)
    return home


def load(home):
    return load_summarizer(home / "models" / "causal", Compute(batch_size=4))


# Models that cannot be read or used


def test_without_chat_template_the_model_is_not_asked(home, tmp_path):
    tiny_causal(tmp_path / "inputs" / "raw", chat=False)
    with pytest.raises(UsageError, match=r"no chat template.*prepare\.generation\.chat: false"):
        TransformersModel(transformers="raw").build(tmp_path / "inputs", tmp_path / "model", SHORT)
    asked = GenerationConfig(max_new_tokens=10, chat=False, prompt="{article}\nTL;DR:")
    TransformersModel(transformers="raw").build(tmp_path / "inputs", tmp_path / "model", asked)
    summarizer = load_summarizer(tmp_path / "model", Compute())
    assert summarizer.tokenizer.decode(summarizer.inputs("News.")) == "News.\nTL;DR:"


def test_a_template_that_refuses_the_system_message_is_named(home, tmp_path):
    folder = tiny_causal(tmp_path / "inputs" / "gemma")
    refusing = "{% if messages[0].role == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}Go:"
    (folder / "chat_template.jinja").write_text(refusing)
    with pytest.raises(UsageError, match=r"prepare\.model: .*System role not supported.*set system: \"\""):
        TransformersModel(transformers="gemma").build(tmp_path / "inputs", tmp_path / "model", SHORT)
    without = GenerationConfig(max_new_tokens=10, system="")
    TransformersModel(transformers="gemma").build(tmp_path / "inputs", tmp_path / "model", without)


def test_prompts_do_not_depend_on_the_day_nor_ask_to_think(tmp_path):
    folder = tiny_causal(tmp_path / "inputs" / "dated")
    template = (
        "{% if strftime_now is defined %}\n{% set today = strftime_now('%d %b %Y') %}\n{% endif %}\n"
        "Today is {{ today }}.{% if enable_thinking is not defined or enable_thinking %}<think>{% endif %}"
    )
    (folder / "chat_template.jinja").write_text("\n" + template)
    TransformersModel(transformers="dated").build(tmp_path / "inputs", tmp_path / "model", SHORT)
    summarizer = load_summarizer(tmp_path / "model", Compute())
    assert summarizer.tokenizer.decode(summarizer.inputs("News.")) == "\nToday is 01 Jan 2026."


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
        ({"transformers": "../causal"}, "transformers"),
        ({"transformers": "causal", "revision": "main"}, r"prepare\.model\.revision"),
        ({"transformers": "causal", "trust_remote_code": True}, "unknown key"),
        ({"package": "no_such_package", "file": "m.gguf"}, "not installed: pip install no_such_package"),
        ({"package": "json", "file": "m.gguf"}, "has no file m.gguf"),
        ({"package": "json", "file": "m.bin"}, r"prepare\.model\.file"),
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


def test_a_part_of_a_model_in_the_cache_is_told(home, tmp_path, monkeypatch):
    made = tmp_path / "made"
    made.mkdir()
    shutil.copy(home / "inputs" / "causal" / "config.json", made)
    in_cache(monkeypatch, tmp_path / "hub", "some/model", made)
    with pytest.raises(UsageError, match=r"has no weights.*a part of the model only.*faded prefetch"):
        TransformersModel(transformers="some/model").build(tmp_path, tmp_path / "model", SHORT)


def test_code_of_the_repository_does_not_run(tmp_path):
    folder = tiny_causal(tmp_path / "inputs" / "custom")
    config = read_json(folder / "config.json")
    write_json(
        folder / "config.json",
        {**config, "model_type": "own", "auto_map": {"AutoConfig": "own.Own", "AutoModelForCausalLM": "own.Own"}},
        schema=False,
    )
    (folder / "own.py").write_text("raise SystemExit('ran')")
    with pytest.raises(UsageError, match=r"prepare\.model\.transformers: .*cannot be read"):
        TransformersModel(transformers="custom").build(tmp_path / "inputs", tmp_path / "model", SHORT)


def damage(folder, what):
    weights = folder / "model.safetensors"
    if what == "cut short":
        weights.write_bytes(weights.read_bytes()[:-100])
    elif what == "no safetensors":
        weights.write_bytes(b"version https://git-lfs.github.com/spec/v1\n" * 3)
    elif what == "missing weights":
        from safetensors.torch import load_file, save_file

        state = load_file(weights)
        save_file({k: v for k, v in state.items() if "layers.1.mlp" not in k}, weights, metadata={"format": "pt"})
    elif what == "no tokenizer":
        (folder / "tokenizer.json").unlink()
        (folder / "tokenizer_config.json").unlink()
    elif what == "no config":
        (folder / "config.json").unlink()


@pytest.mark.parametrize("what", ["cut short", "no safetensors", "missing weights", "no tokenizer", "no config"])
def test_a_damaged_model_is_told(tmp_path, what):
    damage(tiny_causal(tmp_path / "inputs" / "broken"), what)
    with pytest.raises(UsageError, match=r"prepare\.model\.transformers: .*broken"):
        TransformersModel(transformers="broken").build(tmp_path / "inputs", tmp_path / "model", SHORT)
    assert not (tmp_path / "model").exists()


@pytest.mark.parametrize("what", ["cut short", "missing weights"])
def test_a_damaged_model_folder_is_told(home, tmp_path, what):
    shutil.copytree(home / "models" / "causal", tmp_path / "model")
    damage(tmp_path / "model", what)
    with pytest.raises(UsageError, match=str(tmp_path / "model")):
        load_summarizer(tmp_path / "model", Compute())


def test_a_form_of_another_make_is_told(home, tmp_path):
    with pytest.raises(UsageError, match=f"{FORM} is missing"):
        load_summarizer(home / "inputs" / "causal", Compute())
    shutil.copytree(home / "models" / "causal", tmp_path / "model")
    write_json(tmp_path / "model" / FORM, {**read_json(tmp_path / "model" / FORM), "kind": "oracle", "more": 1})
    with pytest.raises(UsageError, match=r"faded\.json\.kind") as told:
        load_summarizer(tmp_path / "model", Compute())
    assert len(str(told.value).splitlines()) == 2


@pytest.mark.parametrize(
    "wrong",
    [
        {"prompt": "Summarize."},
        {"prompt": "{article} {article}"},
        {"max_new_tokens": 4, "min_new_tokens": 5},
        {"dtype": "float32"},
    ],
)
def test_wrong_generation_settings_are_told(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        GenerationConfig(**wrong)


# Adapters


@pytest.fixture
def adapter(home, tmp_path):
    """An adapter of the tiny causal model with noticeable weights, in the format of a repair."""
    summarizer = load(home)
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
    base, loaded = load(home), load_summarizer(folder, Compute(batch_size=4), home / "models" / "causal")
    assert not any("lora" in name for name, _ in loaded.model.named_parameters())
    batch = base.training_batch(ARTICLES[:2], ["Short.", "Longer summary."])
    with torch.inference_mode():
        merged, unmerged, before = (m(**batch).logits.float() for m in (loaded.model, adapted, base.model))
    assert (merged - unmerged).abs().mean() < 0.1 * (before - unmerged).abs().mean()
    assert loaded.summarize(ARTICLES) != base.summarize(ARTICLES)
    assert loaded.hash != base.hash


def test_an_adapter_without_its_base_is_told(home, adapter):
    _, folder = adapter
    with pytest.raises(UsageError, match="needs that model's folder"):
        load_summarizer(folder, Compute())
    with pytest.raises(UsageError, match="is a repair of the model"):
        load_summarizer(folder, Compute(), home / "models" / "bart")


@pytest.mark.parametrize("what", ["missing", "unexpected", "has shape", "cannot be read"])
def test_an_adapter_that_does_not_fit_is_told(home, adapter, what):
    from safetensors.torch import load_file, save_file

    _, folder = adapter
    weights = folder / "adapter_model.safetensors"
    state = load_file(weights)
    first = next(iter(state))
    if what == "missing":
        del state[first]
    elif what == "unexpected":
        state[first.replace("layers.0", "layers.7")] = state[first].clone()
    elif what == "has shape":
        state[first] = state[first][:, :-1].contiguous()
    save_file(state, weights)
    if what == "cannot be read":
        weights.write_bytes(weights.read_bytes()[:-10])
    with pytest.raises(UsageError, match=f"{folder}.*{what}"):
        load_summarizer(folder, Compute(), home / "models" / "causal")


def test_a_repair_may_be_a_normalisation_alone(home, tmp_path):
    base = load(home)
    form = base.form.model_copy(update={"base": base.hash, "normalise": ("letter_case",)})
    write_json(tmp_path / "repair" / FORM, form.model_dump(mode="json"))
    repaired = load_summarizer(tmp_path / "repair", Compute(batch_size=4), home / "models" / "causal")
    assert repaired.preprocess is not None
    assert repaired.inputs(TEXT.upper()) == base.inputs(repaired.preprocess(TEXT.upper())) != base.inputs(TEXT.upper())
    assert repaired.inputs(TEXT) == base.inputs(TEXT)
    assert repaired.hash != base.hash


def test_an_adapter_has_to_say_for_which_model_it_is(home, adapter):
    _, folder = adapter
    write_json(folder / FORM, {**read_json(folder / FORM), "base": None})
    with pytest.raises(UsageError, match="does not say for which model"):
        load_summarizer(folder, Compute(), home / "models" / "causal")
