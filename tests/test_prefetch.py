"""`faded prefetch`: what audits use from a hub is downloaded once, and then they run without a network."""

import shutil
import sys

import pytest

pytest.importorskip("transformers")
pytest.importorskip("datasets")

from tests.hubs import commit_of, hub
from tests.news import news_context, write_news
from tests.tiny_models import tiny_causal, tiny_embedder
from tests.workspace import audit_params, make_workspace

NOWHERE = "http://127.0.0.1:9"  # nobody listens on the port of `discard`


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Three repositories: a summarizer with files that should not be downloaded, an encoder, articles."""
    home = tmp_path_factory.mktemp("made")
    tiny_causal(home / "summarizer")
    (home / "summarizer" / "pytorch_model.bin").write_bytes(b"a pickle")
    (home / "summarizer" / "modeling_tiny.py").write_text("raise SystemExit\n")
    (home / "summarizer" / "onnx").mkdir()
    (home / "summarizer" / "onnx" / "config.json").write_text("{}")
    tiny_embedder(home / "encoder")
    write_news(home / "inputs")
    (home / "articles").mkdir()
    shutil.move(home / "inputs" / "news.jsonl", home / "articles" / "train.jsonl")
    return home


def text_audit(made, **parts):
    """An audit with its model, encoder and articles on a hub."""
    context = news_context(made / "inputs")
    config = {
        **context.config,
        "model": {"transformers": "org/summarizer"},
        "embedder": {"transformers": "org/encoder"},
        "data": {"datasets": "org/articles", "split": "train", "text": "body"},
        **parts,
    }
    blocks = {"concepts": dict(context.concepts), "discrepancy": dict(context.discrepancy)}
    return audit_params(task="stages.tasks.summarization:Summarization", prepare=config, **blocks)


@pytest.fixture(scope="module")
def workspace(made, tmp_path_factory):
    home = tmp_path_factory.mktemp("fetching")
    local = {"model": {"transformers": "own"}, "embedder": {"transformers": "own"}}
    audits = {"texts": text_audit(made), "planted": audit_params()}
    audits["local"] = text_audit(made, **local, data={"jsonl": "own.jsonl", "text": "body"})
    audits["local"]["compute"]["backend"] = "openvino"  # a download computes nothing, so the backend does not matter
    workspace = make_workspace(home, audits, {})
    inputs = home / "data" / "local" / "inputs"
    shutil.copytree(made / "encoder", inputs / "own")
    shutil.copy(made / "articles" / "train.jsonl", inputs / "own.jsonl")
    return workspace


def repositories(made):
    models = {f"org/{name}": made / name for name in ("summarizer", "encoder")}
    return hub(models, {"org/articles": made / "articles"})


@pytest.mark.slow
def test_what_was_fetched_is_all_an_audit_needs_without_a_network(workspace, made):
    cache = {"HF_HOME": str(workspace.path / "cache"), "HF_HUB_DISABLE_XET": "1"}
    with repositories(made) as (url, fetched):
        done = workspace.faded("prefetch", "--all", HF_ENDPOINT=url, **cache)
        assert done.returncode == 0, done.stdout
        for kind, name in (("model", "org/summarizer"), ("dataset", "org/articles"), ("model", "org/encoder")):
            commit = commit_of(name)
            assert f"texts: {kind} {name} at {commit}: 0." in done.stdout and f"revision: {commit}" in done.stdout
        assert "planted: nothing to download: everything it needs is on this machine" in done.stdout
        assert "local: nothing to download" in done.stdout
        assert "org/summarizer/model.safetensors" in fetched and "org/articles/train.jsonl" in fetched
        assert not [name for name in fetched if name.endswith((".bin", ".py", "onnx/config.json"))]
    stages = "import stages.code, stages.prepare; stages.code.main('texts'); stages.prepare.main('texts')"
    done = workspace.run([sys.executable, "-c", stages], HF_ENDPOINT=NOWHERE, **cache)
    assert done.returncode == 0, done.stdout
    metrics = (workspace.path / "data" / "texts" / "prepare" / "metrics.json").read_text()
    assert all(commit_of(name) in metrics for name in ("org/summarizer", "org/articles", "org/encoder"))


@pytest.mark.slow
def test_what_the_hub_does_not_have_is_bad_input_and_without_a_network_a_retry_may_help(workspace):
    with hub({}) as (url, _):
        done = workspace.faded("prefetch", "texts", HF_ENDPOINT=url, HF_HOME=str(workspace.path / "none"))
    assert done.returncode == 2 and "the Hugging Face hub has no org/summarizer for us" in done.stdout
    done = workspace.faded("prefetch", "texts", HF_ENDPOINT=NOWHERE, HF_HOME=str(workspace.path / "empty"))
    assert done.returncode == 3 and "org/summarizer could not be fetched" in done.stdout
    assert "Traceback" not in done.stdout
