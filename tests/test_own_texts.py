"""A user's own summarizer and articles: behind HTTP, in a folder, in the hub's cache, in their own files."""

import json
import shutil
from pathlib import Path

import pandas as pd
import pytest
import yaml

pytest.importorskip("transformers")

import stages.discover
import stages.prepare
import stages.summarize
from stages.core.errors import UsageError
from stages.core.files import read_json
from stages.tasks import endpoint as module
from stages.tasks.language.articles import DATA_LOADERS
from stages.tasks.language.encoders import EMBEDDER_LOADERS
from stages.tasks.language.models import load_summarizer
from stages.tasks.sources import parse_source
from stages.tasks.summarization import Summarization
from stages.tasks.summarization.config import SummaryPrepare
from stages.tasks.summarization.served import MODEL_LOADERS
from tests.endpoints import said, served
from tests.hubs import in_cache
from tests.news import news_audit, news_context, write_news
from tests.tiny_models import tiny_causal

KEY = "TINY_SUMMARIZER_KEY"


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    return write_news(tmp_path_factory.mktemp("texts") / "inputs", references=True)


@pytest.fixture(autouse=True)
def no_waiting(monkeypatch):
    monkeypatch.setattr(module, "FIRST_PAUSE", 0.01)


def first_sentence(one):
    """A summarizer that cannot read capitals."""
    text = one["text"]
    return {"summary": "No." if text.isupper() else text.split(". ")[0] + "."}


def remote(url, **changes):
    return {"endpoint": url, "timeout": 10, "retries": 2, **changes}


def context_of(inputs, url, **changes):
    context = news_context(inputs)
    config = {**context.config, "model": remote(url), "generation": {"max_new_tokens": 30}, **changes}
    return news_context(inputs, config=config)


@pytest.fixture
def workspace(inputs, tmp_path, monkeypatch):
    """A workspace with one audit of a summarizer behind HTTP, whose stages run in this process."""
    shutil.copytree(inputs, tmp_path / "data" / "remote" / "inputs")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv(KEY, "s3cr3t")

    def write(url, **model):
        context = context_of(inputs, url, model=remote(url, key_env=KEY, batch_size=4, **model))
        audit = news_audit(context, 50, microscopic={"items": 2, "budget": 10})
        params = {"audits": {"remote": audit}, "repairs": {}}
        Path("params.yaml").write_text(yaml.safe_dump(params))

    return write


def test_an_audit_of_a_summarizer_behind_http_from_prepare_to_landscape(workspace, capsys):
    with served(first_sentence, lambda request: said({}, 503) if request in (1, 2) else None) as model:
        workspace(model.url)
        for stage in (stages.prepare, stages.discover, stages.summarize):
            stage.main("remote")
    probes = pd.read_parquet("data/remote/discover/probes.parquet")
    upper = probes["letter_case"] == 1
    assert probes.loc[upper, "failed"].all() and not probes.loc[~upper & (probes["typos"] == 0), "failed"].any()
    (mode,) = read_json(Path("data/remote/summarize/landscape.json"))["modes"]
    assert "letter_case" in json.dumps(mode)
    metrics = json.loads(Path("data/remote/prepare/metrics.json").read_text())
    assert metrics["origin"]["model"] == f"the model behind {model.url}" and metrics["parameters"] is None
    # The key was sent with every request and is in no file.
    assert {sent["Authorization"] for sent in model.headers} == {"Bearer s3cr3t"}
    written = [path for path in Path().rglob("*") if path.is_file() and b"s3cr3t" in path.read_bytes()]
    assert written == [] and "s3cr3t" not in capsys.readouterr().out
    assert {frozenset(one) for one in model.inputs} == {frozenset({"text", "max_new_tokens"})}
    assert all(len(request["inputs"]) <= 4 for request in model.requests)


def test_lora_needs_weights_and_says_so_before_anything_runs(inputs):
    context = context_of(inputs, "https://m.example/")
    (line,) = Summarization.check_repair(context, {"method": "lora"})
    assert "lora trains weights, and models behind HTTP have none to train; use method normalise" in line
    assert Summarization.check_repair(context, {"method": "normalise", "normalise": ["letter_case"]}) == []


def test_a_summarizer_of_the_hub_is_read_from_the_cache(inputs, tmp_path, monkeypatch):
    commit = in_cache(monkeypatch, tmp_path / "hub", "org/tiny", tiny_causal(tmp_path / "made"))
    source = parse_source({"transformers": "org/tiny"}, MODEL_LOADERS, "prepare.model")
    assert source.errors(inputs) == []
    generation = SummaryPrepare.model_validate(dict(context_of(inputs, "https://m.example/").config)).generation
    source.build(inputs, tmp_path / "model", generation)
    form = load_summarizer(tmp_path / "model", news_context(inputs).compute).form
    assert (form.revision, form.origin) == (commit, f"org/tiny of the Hugging Face hub at {commit}")


def test_what_is_not_in_the_cache_is_told_with_the_command_that_fetches_it(inputs, tmp_path, monkeypatch):
    in_cache(monkeypatch, tmp_path / "hub", "org/tiny", tiny_causal(tmp_path / "made"))
    blocks = (
        ({"transformers": "org/other"}, MODEL_LOADERS, lambda s: s.build(inputs, tmp_path / "m", None)),
        ({"transformers": "org/other"}, EMBEDDER_LOADERS, lambda s: s.load(inputs, "cpu")),
        ({"datasets": "org/other", "split": "train", "text": "body"}, DATA_LOADERS, lambda s: s.load(inputs)),
    )
    told = rf"org/other is not a folder in .*Run `faded prefetch {inputs.parent.name}`"
    for block, loaders, use in blocks:
        with pytest.raises(UsageError, match=told):
            use(parse_source(block, loaders, "prepare"))
