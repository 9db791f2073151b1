"""Where a summarizer comes from, and the one form in which all stages keep it.

The form is a folder as transformers writes it (config.json, model.safetensors, tokenizer) with faded.json beside it. A
loader turns one way to name a model into such a folder. To add one, add its key to MODEL_LOADERS.
"""

from __future__ import annotations

import contextlib
import importlib.util
import io
from abc import abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from pydantic import Field
from torch import Tensor

from stages.errors import UsageError
from stages.files import content_hash
from stages.params import Strict
from stages.tasks.contract import Compute
from stages.tasks.sources import local_file, package_file
from stages.tasks.summarization.form import FORM, Form, GenerationConfig, Kind, load_form, save_form
from stages.tasks.summarization.generate import Summarizer, render_prompt

ADAPTER = "adapter_config.json"
# Of a hub repository these are fetched: no pickles, no code, no weights for other libraries.
_WANTED = ("*.json", "*.jinja", "*.txt", "*.model", "model.safetensors", "model-*-of-*.safetensors")
# Some chat templates tell the model today's date (Llama 3.2), and tomorrow's audit would not ask as today's did. What a
# template defines comes before what transformers offers it; the + keeps white space that follows.
_FIXED_DATE = "{% macro strftime_now(format) %}01 Jan 2026{% endmacro +%}"


class ModelSource(Strict):
    """Base of the model loaders."""

    @abstractmethod
    def errors(self, inputs: Path) -> list[str]:
        """Say what is missing, without reading weights."""

    @abstractmethod
    def build(self, inputs: Path, out_dir: Path, generation: GenerationConfig) -> None:
        """Write the model folder.

        Raises:
            UsageError: when the model cannot be read, or cannot be asked as `generation` says.
        """


class PackageModel(ModelSource):
    """{package: NAME, file: X.gguf}: a decoder-only model in a GGUF file that ships in an installed package.

    Its quantised weights are turned into `generation.dtype` once: transformers computes with that anyway, and the
    folder loads in a second where the GGUF takes twenty.
    """

    package: str = Field(pattern=r"^\w+$")
    file: str = Field(pattern=r"\.gguf$", description="path within the package")

    def errors(self, inputs: Path) -> list[str]:
        """See ModelSource."""
        try:
            package_file(inputs, self.package, self.file, "prepare.model")
        except UsageError as error:
            return [str(error)]
        return []

    def build(self, inputs: Path, out_dir: Path, generation: GenerationConfig) -> None:
        """See ModelSource."""
        path = package_file(inputs, self.package, self.file, "prepare.model")
        with _readable(f"prepare.model.file: {path}"):
            from transformers import GgufConfig

            options = {"gguf_file": path.name}
            weights = {"quantization_config": GgufConfig(dequantize=True)}
            origin = f"{self.file} of the package {self.package} {_version(self.package)}".strip()
            _convert(path.parent, out_dir, generation, origin, content_hash([path]), options, weights)


class TransformersModel(ModelSource):
    """{transformers: ID_OR_FOLDER, revision: COMMIT}: a folder under data/<audit>/inputs, or a model of the hub.

    What lies under inputs is taken; else the name is one of the hub, looked up in its cache when there is no network.
    """

    transformers: str = Field(pattern=r"^[\w.-]+(/[\w.-]+)*$")
    revision: str | None = Field(None, description="hub: commit, tag or branch; name a commit to get the same tomorrow")

    def errors(self, inputs: Path) -> list[str]:
        """See ModelSource."""
        folder = inputs / self.transformers
        try:
            if folder.exists():
                if self.revision is not None:
                    raise UsageError(f"prepare.model.revision: {folder} is a folder, only models of the hub have one")
                _check_files(local_file(inputs, self.transformers, "prepare.model.transformers"))
            elif self.transformers.count("/") > 1 or self.transformers.startswith("."):
                local_file(inputs, self.transformers, "prepare.model.transformers")
        except UsageError as error:
            return [str(error)]
        return []

    def build(self, inputs: Path, out_dir: Path, generation: GenerationConfig) -> None:
        """See ModelSource."""
        if errors := self.errors(inputs):
            raise UsageError("\n".join(errors))
        folder = inputs / self.transformers
        if folder.exists():
            origin, revision = f"the folder {self.transformers}", content_hash(sorted(folder.iterdir()))
        else:
            folder = _snapshot(self.transformers, self.revision, inputs)
            origin, revision = f"{self.transformers} of the Hugging Face hub", folder.name
        with _readable(f"prepare.model.transformers: {folder}"):
            _convert(folder, out_dir, generation, origin, revision, {"trust_remote_code": False}, {})


MODEL_LOADERS: Mapping[str, type[ModelSource]] = {"package": PackageModel, "transformers": TransformersModel}


def load_summarizer(folder: Path, compute: Compute, base: Path | None = None) -> Summarizer:
    """Read a model folder, or a repair of one together with the model folder it belongs to.

    A repair is a folder whose faded.json names its base: with an adapter, with normalisations, or with both. Adapters
    are merged into the weights, so that a repaired model answers as quickly as its base.

    Raises:
        UsageError: when a file is missing or damaged, or the repair was made for another model.
    """
    form, has_adapter = load_form(folder), (folder / ADAPTER).exists()
    if has_adapter and form.base is None:
        raise UsageError(f"{folder} holds an adapter, and its {FORM} does not say for which model")
    if form.base is not None and base is None:
        raise UsageError(f"{folder} is a repair of the model {form.base}: it needs that model's folder, none was given")
    weights = folder if form.base is None or base is None else base
    content = model_hash(weights)
    if form.base not in (None, content):
        raise UsageError(f"{folder} is a repair of the model {form.base}; {weights} holds {content}")
    with _readable(str(weights)):
        from transformers import AutoTokenizer

        tokenizer = AutoTokenizer.from_pretrained(weights, local_files_only=True, trust_remote_code=False)
        model = _weights(weights, form.kind, form.generation, {"local_files_only": True, "trust_remote_code": False})
    if has_adapter:
        model = _merged(model, folder)
    if form.base is not None:
        content = content_hash(sorted(folder.iterdir()), content)
    preprocess = None
    if form.normalise:
        from stages.tasks.summarization.normalise import normaliser

        preprocess = normaliser(form.normalise)
    return Summarizer(model.to(compute.device).eval(), tokenizer, form, compute, content, preprocess)


def model_hash(folder: Path) -> str:
    """Content hash of a model folder, whatever the folder is called: what a repair names its base by."""
    return content_hash(sorted(folder.iterdir()))


def _convert(
    source: Path,
    out_dir: Path,
    generation: GenerationConfig,
    origin: str,
    revision: str,
    options: Mapping[str, Any],
    weights: Mapping[str, Any],
) -> None:
    """Read a model with transformers and write the model folder; what can be checked without weights comes first."""
    from transformers import AutoConfig, AutoTokenizer

    config = AutoConfig.from_pretrained(source, local_files_only=True, **options)
    kind: Kind = "seq2seq" if config.is_encoder_decoder else "causal"
    tokenizer = AutoTokenizer.from_pretrained(source, local_files_only=True, **options)
    if generation.chat and tokenizer.chat_template and "strftime_now" in (template := tokenizer.get_chat_template()):
        tokenizer.chat_template = _FIXED_DATE + template
    form = Form(kind=kind, generation=generation, origin=origin, revision=revision, parameters=1)
    render_prompt(tokenizer, form, "")
    model = _weights(source, kind, generation, {"local_files_only": True, **options, **weights})
    form = form.model_copy(update={"parameters": model.num_parameters()})
    Summarizer(model, tokenizer, form, Compute(), "")
    out_dir.mkdir(parents=True, exist_ok=True)
    model.save_pretrained(out_dir)
    tokenizer.save_pretrained(out_dir)
    save_form(form, out_dir)


def _weights(folder: Path, kind: Kind, generation: GenerationConfig, options: Mapping[str, Any]) -> Any:
    from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM

    loader = AutoModelForSeq2SeqLM if kind == "seq2seq" else AutoModelForCausalLM
    safe = {} if "gguf_file" in options else {"use_safetensors": True}
    dtype = getattr(torch, generation.dtype)
    loaded: Any = loader.from_pretrained(folder, dtype=dtype, output_loading_info=True, **safe, **options)
    model, told = loaded
    # transformers fills what is missing with random numbers and only warns.
    if told["missing_keys"] or told["mismatched_keys"]:
        raise UsageError(f"the weights do not fit: {_listed([*told['missing_keys'], *told['mismatched_keys']])}")
    return model


def _merged(model: Any, folder: Path) -> Any:
    """Add an adapter to the weights of its base.

    peft ignores keys it does not know and leaves out those it does not find (zero, as before training), so a repair
    could be lost without a word: every key is compared.
    """
    from peft import PeftConfig, get_peft_model, get_peft_model_state_dict, set_peft_model_state_dict
    from safetensors.torch import load_file

    with _readable(str(folder)):
        config = PeftConfig.from_pretrained(str(folder))
        state = load_file(folder / "adapter_model.safetensors")
        adapted = get_peft_model(model, config)
    shapes: dict[str, Tensor] = get_peft_model_state_dict(adapted)
    problems = [f"missing {k}" for k in shapes if k not in state]
    problems += [f"unexpected {k}" for k in state if k not in shapes]
    problems += [
        f"{k} has shape {tuple(v.shape)}, expected {tuple(shapes[k].shape)}"
        for k, v in state.items()
        if k in shapes and v.shape != shapes[k].shape
    ]
    if problems:
        raise UsageError(f"{folder}/adapter_model.safetensors does not fit {folder}/{ADAPTER}: {_listed(problems)}")
    set_peft_model_state_dict(adapted, state)
    return adapted.merge_and_unload()


def _listed(problems: Sequence[object]) -> str:
    more = f"; and {len(problems) - 4} more" if len(problems) > 4 else ""
    return "; ".join(map(str, problems[:4])) + more


def _version(package: str) -> str:
    names = metadata.packages_distributions().get(package, [])
    return metadata.version(names[0]) if names else ""


def _check_files(folder: Path) -> None:
    """Say what a folder lacks to be read as a model of transformers."""
    where = f"prepare.model.transformers: {folder}"
    if not folder.is_dir():
        raise UsageError(f"{where} is no folder; expected one with config.json, *.safetensors and a tokenizer")
    found = sorted(path.name for path in folder.iterdir())
    if not any(name.endswith(".safetensors") for name in found):
        pickled = [name for name in found if name.endswith((".bin", ".pt", ".pth", ".ckpt"))]
        why = f"{', '.join(pickled)} is a pickle, which could run code when read" if pickled else "it has no weights"
        raise UsageError(
            f"{where}: expected *.safetensors, but {why}; load the model once where you trust it and"
            " save_pretrained() it again"
        )
    if "config.json" not in found:
        raise UsageError(f"{where} has no config.json; found {', '.join(found)}")


def _snapshot(name: str, revision: str | None, inputs: Path) -> Path:
    """The files of a hub repository in the local cache; the name of the folder is the commit.

    Raises:
        UsageError: when the hub has no such model, cannot be reached, or is not to be asked and the cache holds a part
            of the model at most, with what to do.
    """
    from huggingface_hub import constants, snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    fetch: Callable[..., str] = snapshot_download
    offline = " with HF_HUB_OFFLINE=0, which lets prepare fetch it," if constants.HF_HUB_OFFLINE else ""
    remedy = f"Run faded again{offline} where there is a network, or put the model's folder into {inputs}"
    try:
        folder = Path(
            fetch(name, revision=revision, allow_patterns=list(_WANTED), ignore_patterns=["*/*"], etag_timeout=5)
        )
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        there = sorted(p.name for p in inputs.iterdir() if p.is_dir()) if inputs.is_dir() else []
        raise UsageError(
            f"prepare.model.transformers: {name}{f' at {revision}' if revision else ''} is no folder in {inputs}"
            f" (found there: {', '.join(there) or 'nothing'}), and the Hugging Face hub did not give it:"
            f" {str(error).splitlines()[0]} {remedy}"
        ) from None
    try:
        _check_files(folder)
    except UsageError as error:
        if not constants.HF_HUB_OFFLINE:
            raise
        raise UsageError(f"{error}. The cache may hold a part of the model only. {remedy}") from None
    return folder


@contextlib.contextmanager
def _readable(where: str) -> Iterator[None]:
    """Turn what libraries raise about files they cannot read into one line for people, and keep them quiet."""
    for module, extra in (("transformers", "text"), ("gguf", "text"), ("peft", "text")):
        if importlib.util.find_spec(module) is None:
            raise UsageError(f"{where}: the library {module} is not installed: pip install 'faded[{extra}]'")
    from safetensors import SafetensorError
    from transformers.utils import logging

    logging.disable_progress_bar()
    try:
        # The bar of the GGUF conversion cannot be switched off; whatever is worth telling comes as an exception.
        with contextlib.redirect_stderr(io.StringIO()):
            yield
    except UsageError as error:
        told = str(error)
        raise UsageError(told if told.startswith("prepare.") else f"{where}: {told}") from None
    except (OSError, ValueError, TypeError, KeyError, RuntimeError, ImportError, SafetensorError) as error:
        raise UsageError(f"{where} cannot be read: {' '.join(str(error).split())[:400]}") from None
