"""Loaders of text-to-image pipelines, and the one format in which all stages store them.

The format is a folder as diffusers writes it (model_index.json, a folder with safetensors for each component), with the
weights in the precision they were stored in, and faded.json beside it. To add a loader, add it to MODEL_LOADERS.
"""

import difflib
import importlib.util
import inspect
import typing
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from pydantic import ConfigDict, Field, PydanticSchemaGenerationError, TypeAdapter, ValidationError

from stages.core.arithmetic import compute_alike
from stages.core.errors import UsageError
from stages.core.files import content_hash, local_file, read_json, write_json
from stages.params import Strict, checked
from stages.tasks.contract import Compute
from stages.tasks.hub import NAME, Repository, local_folder, remedy
from stages.tasks.sources import collect
from stages.tasks.text_to_image.config import SamplingConfig
from stages.tasks.text_to_image.folders import INDEX, check_weights, folder_errors, networks, quiet, readable
from stages.tasks.text_to_image.remote import EndpointModel
from stages.tasks.text_to_image.sample import ModelSource, Painter

DISTILLED = ("LCMScheduler", "TCDScheduler")  # for models distilled to few steps; diffusers lists them for none
FORM = "faded.json"
WHERE = "prepare.model.diffusers"
LORA = "pytorch_lora_weights.safetensors"


def scheduler_errors(sampling: SamplingConfig) -> list[str]:
    """List what is wrong with the scheduler's name and options; the model's own scheduler is checked on loading."""
    if sampling.scheduler is None:
        return []
    name = sampling.scheduler
    return collect(lambda: _check_options(_scheduler_class(name), sampling))


def make_scheduler(own: Any, sampling: SamplingConfig) -> Any:
    """Return the scheduler of `sampling`; what that leaves open is taken from the model's own.

    Raises a UsageError when diffusers has no such scheduler, it does not fit this model, or it refuses an option.
    """
    if sampling.scheduler is None and not sampling.scheduler_options:
        return own
    made = type(own) if sampling.scheduler is None else _scheduler_class(sampling.scheduler)
    _check_options(made, sampling)
    # Those that diffusers lists use the same noise; others (inverse, inpainting) fail or draw something else.
    listed = sorted(known.__name__ for known in getattr(own, "compatibles", None) or [])
    if listed and made.__name__ not in (type(own).__name__, *listed, *DISTILLED):
        raise UsageError(
            f"prepare.sampling.scheduler: {made.__name__} does not fit the model, whose own is {type(own).__name__};"
            f" diffusers lists {', '.join(listed)}"
        )
    try:
        with quiet():
            return made.from_config(own.config, **sampling.scheduler_options)
    except (ValueError, TypeError, RuntimeError, LookupError, ArithmeticError, AttributeError, ImportError) as error:
        told = " ".join(str(error).split())[:300]
        raise UsageError(f"prepare.sampling.scheduler_options: {made.__name__} refuses them: {told}") from None


def _scheduler_class(name: str) -> Any:
    import diffusers
    from diffusers import SchedulerMixin

    # Only this name is looked up: dir() lists all, and getattr imports a class.
    found = getattr(diffusers, name, None) if name.endswith("Scheduler") else None
    if not (inspect.isclass(found) and issubclass(found, SchedulerMixin)):
        if missing := getattr(found, "_backends", None):  # diffusers' placeholder for classes it cannot import
            lacking = [library for library in missing if importlib.util.find_spec(library) is None] or missing
            raise UsageError(
                f"prepare.sampling.scheduler: {name} needs {' and '.join(lacking)}, which cannot be imported here"
            )
        names = [known for known in dir(diffusers) if known.endswith("Scheduler") and not known.startswith("Flax")]
        close = difflib.get_close_matches(name, names, 3, 0.5)
        hint = f"; did you mean {' or '.join(close)}?" if close else ""
        raise UsageError(f"prepare.sampling.scheduler: diffusers has no scheduler {name}{hint}")
    return found


def _check_options(scheduler: Any, sampling: SamplingConfig) -> None:
    parameters = inspect.signature(scheduler.__init__).parameters
    known = [name for name in parameters if name != "self"]
    hints = typing.get_type_hints(inspect.unwrap(scheduler.__init__))
    for name, value in sampling.scheduler_options.items():
        if name not in known:
            raise UsageError(
                f"prepare.sampling.scheduler_options: {scheduler.__name__} knows no {name}; it has {', '.join(known)}"
            )
        # diffusers accepts values of any type, and fails when it first computes with them.
        if value != parameters[name].default and (told := _value_error(hints.get(name, Any), value)):
            raise UsageError(
                f"prepare.sampling.scheduler_options: {scheduler.__name__} refuses them: {name}: {value!r}: {told}"
            )


def _value_error(hint: Any, value: Any) -> str:
    try:
        adapter = TypeAdapter(hint, config=ConfigDict(arbitrary_types_allowed=True, strict=True))
    except PydanticSchemaGenerationError:
        return ""
    try:
        adapter.validate_python(value)
    except ValidationError as error:
        return "; ".join(dict.fromkeys(part["msg"] for part in error.errors()))
    return ""


class DiffusersModel(ModelSource):
    """{diffusers: ID_OR_FOLDER, revision: COMMIT, variant: fp16}: a folder under data/<audit>/inputs, or of the hub.

    A folder under inputs takes precedence; otherwise the name is looked up in the cache of the Hugging Face hub.
    """

    diffusers: str = Field(pattern=NAME)
    revision: str | None = Field(None, description="hub: commit, tag or branch; name a commit to get the same tomorrow")
    variant: str | None = Field(None, pattern=r"^\w+$", description="of the weights, as in model.fp16.safetensors")

    def _folder(self, inputs: Path) -> Path | None:
        if "/" not in self.diffusers:  # pipelines of the hub have an organisation
            local_file(inputs, self.diffusers, WHERE)
        return local_folder(inputs, self.diffusers, self.revision, WHERE)

    def _repository(self, weights: str, revision: str | None = None) -> Repository:
        """Return the repository with the files to fetch beside `weights`; files outside folders are not needed."""
        wanted = (*("model_index.json", "*/*.json", "*/*.txt", "*/*.model"), weights)
        ignored = () if f".{self.variant}" in weights else ("*/*.*.safetensors",)  # of other variants
        return Repository(self.diffusers, revision or self.revision, wanted, ignored)

    @property
    def _weights(self) -> str:
        return f"*/*.{self.variant}*.safetensors" if self.variant else "*/*.safetensors"

    def errors(self, inputs: Path) -> list[str]:
        try:
            folder = self._folder(inputs)
        except UsageError as error:
            return [str(error)]
        return folder_errors(folder, self.variant) if folder is not None else []

    def build(self, inputs: Path, out_dir: Path, sampling: SamplingConfig | None = None) -> None:
        self.require(inputs)
        folder = self._folder(inputs)
        if folder is not None:
            revision = model_hash(folder)
        else:
            found = self._repository(self._weights).cached(inputs, WHERE)
            folder, revision = found.folder, found.commit
            if errors := folder_errors(folder, self.variant):
                part = f"The cache may hold a part of the model only. {remedy(inputs)}"
                raise UsageError("\n".join([*errors, part]))
        with readable(f"{WHERE}: {folder}"):
            pipeline = _stored(folder, self.variant)
        modules = [part for part in pipeline.components.values() if isinstance(part, torch.nn.Module)]
        form = PipelineForm(
            pipeline=type(pipeline).__name__,
            origin=self.origin(inputs),
            revision=revision,
            parameters=sum(p.numel() for module in modules for p in module.parameters()),
        )
        out_dir.mkdir(parents=True, exist_ok=True)
        with quiet():
            pipeline.save_pretrained(out_dir, safe_serialization=True)
        write_json(out_dir / FORM, form.model_dump(mode="json"))

    def origin(self, inputs: Path) -> str:
        if self._folder(inputs) is not None:
            return f"the folder {self.diffusers}"
        return self._repository(self._weights).cached(inputs, WHERE).origin

    def load(self, folder: Path, compute: Compute, sampling: SamplingConfig, repaired: Path | None = None) -> Painter:
        if repaired is not None and (repaired / INDEX).exists():
            folder, repaired = repaired, None
        return Painter(load_pipeline(folder, compute, sampling, lora=repaired), sampling, compute)

    def prefetch(self, inputs: Path) -> list[str]:
        if self._folder(inputs) is not None:
            return []
        told = [self._repository(self._weights).fetch(WHERE)]
        if self.variant:
            found = self._repository(self._weights).cached(inputs, WHERE)
            plain = [part for part in networks(found.folder) if not any((found.folder / part).glob("*.safetensors"))]
            told += [self._repository(f"{part}/*.safetensors", found.commit).fetch(WHERE) for part in plain]
        return told[-1:]  # the last line counts everything fetched


MODEL_LOADERS: Mapping[str, type[ModelSource]] = {"diffusers": DiffusersModel, "endpoint": EndpointModel}


class PipelineForm(Strict):
    """faded.json: the class of the pipeline, and where it comes from."""

    pipeline: str = Field(description="class of diffusers")
    origin: str = Field(description="where the weights come from, for people")
    revision: str = Field(description="commit of the hub, or hash of the files the weights were read from")
    parameters: int = Field(ge=1)


def load_pipeline_form(folder: Path) -> PipelineForm:
    """Read the faded.json of a model folder.

    Raises a UsageError when it is missing, unreadable or has unexpected content.
    """
    raw = read_json(folder / FORM)
    raw.pop("schema", None)
    return checked(PipelineForm, raw, str(folder / FORM))


def load_pipeline(folder: Path, compute: Compute, sampling: SamplingConfig, *, lora: Path | None = None) -> Any:
    """Load a model folder that `build` wrote onto the device.

    Raises a UsageError when a file is missing or damaged, the repair was made for another model, or there is no such
    scheduler.

    Args:
        sampling: names the scheduler.
        lora: folder with pytorch_lora_weights.safetensors, which is merged into the weights, so that a repaired model
            draws as quickly as its base. If its faded.json names a `base`, that must be the hash of `folder`.

    Returns:
        A DiffusionPipeline; its attribute `content` is the hash of the folders it was read from.
    """
    load_pipeline_form(folder)
    compute_alike()
    with readable(str(folder)):
        from diffusers import AutoencoderKL, DiffusionPipeline, UNet2DConditionModel

        pipeline = DiffusionPipeline.from_pretrained(
            folder, torch_dtype=getattr(torch, compute.dtype), use_safetensors=True, local_files_only=True
        )
    pipeline.scheduler = make_scheduler(pipeline.scheduler, sampling)
    pipeline.set_progress_bar_config(disable=True)
    pipeline.content = model_hash(folder)
    if lora is not None:
        _add_lora(pipeline, lora)
    pipeline.to(compute.device)
    convolutional: Any = (UNet2DConditionModel, AutoencoderKL)
    for part in pipeline.components.values():
        if isinstance(part, convolutional):
            part.to(memory_format=torch.channels_last)  # a little quicker
    return pipeline


def model_hash(folder: Path) -> str:
    """Content hash of a model folder, whatever the folder is called; a repair names its base by it."""
    return content_hash(sorted(folder.iterdir()))


def _stored(folder: Path, variant: str | None) -> Any:
    """Load the pipeline in its stored precision; networks are loaded one by one to check that all weights exist."""
    from diffusers import DiffusionPipeline
    from diffusers.pipelines.pipeline_loading_utils import simple_get_class_obj

    parts = {}
    for part, named in networks(folder).items():
        files = sorted((folder / part).glob("*.safetensors"))
        varied = [path for path in files if variant and f".{variant}" in path.name]
        loaded: Any = simple_get_class_obj(*named).from_pretrained(
            folder / part,
            torch_dtype=_dtype(varied or [path for path in files if path.name.count(".") == 1]),
            variant=variant if varied else None,
            use_safetensors=True,
            local_files_only=True,
            output_loading_info=True,
        )
        parts[part], info = loaded
        check_weights(info, part)
    return DiffusionPipeline.from_pretrained(folder, **parts, use_safetensors=True, local_files_only=True)


def _dtype(files: list[Path]) -> torch.dtype:
    """Precision of most of the numbers in safetensors files."""
    from safetensors import safe_open

    sizes: dict[torch.dtype, int] = {}
    for path in files:
        with safe_open(path, framework="pt") as stored:
            names = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
            for name in stored.keys():  # noqa: SIM118 - it is not a mapping
                part = stored.get_slice(name)
                if dtype := names.get(part.get_dtype()):
                    sizes[dtype] = sizes.get(dtype, 0) + torch.Size(part.get_shape()).numel()
    return max(sizes, key=sizes.__getitem__, default=torch.float32)


def _add_lora(pipeline: Any, lora: Path) -> None:
    """Merge LoRA weights into the pipeline.

    diffusers ignores keys that fit nothing, so a repair could be lost silently: the tensors that were added are
    counted.
    """
    if not (lora / LORA).is_file():
        raise UsageError(f"{lora} is not a repaired pipeline: it has no {LORA}")
    base = read_json(lora / FORM).get("base") if (lora / FORM).exists() else None
    if base not in (None, pipeline.content):
        raise UsageError(f"{lora} is a repair of the model {base}; the model at hand is {pipeline.content}")
    with readable(str(lora / LORA)):
        state = pipeline.lora_state_dict(lora, weight_name=LORA, use_safetensors=True, local_files_only=True)
        state = state[0] if isinstance(state, tuple) else state
        if not state:
            raise UsageError("it holds no tensors, so it would change nothing")
        if broken := [name for name, tensor in sorted(state.items()) if not torch.isfinite(tensor).all()]:
            raise UsageError(f"{len(broken)} of its tensors hold values that are not finite, such as {broken[0]}")
        pipeline.load_lora_weights(lora, weight_name=LORA, use_safetensors=True, local_files_only=True)
        modules = [part for part in pipeline.components.values() if isinstance(part, torch.nn.Module)]
        added = sum("lora_" in name for module in modules for name, _ in module.named_parameters())
        if added != len(state):
            raise UsageError(
                f"it does not fit the pipeline: {len(state)} tensors, of which {added} have a place in its"
                f" {type(pipeline).__name__}"
            )
        pipeline.fuse_lora(components=[name for name in pipeline._lora_loadable_modules if hasattr(pipeline, name)])
        pipeline.unload_lora_weights()
    pipeline.content = content_hash(sorted(lora.iterdir()), pipeline.content)
