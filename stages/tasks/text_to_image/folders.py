"""Check that a folder of diffusers is a pipeline that draws from text, and read it without noise on the terminal."""

import contextlib
import importlib.util
import inspect
import json
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from stages.core.errors import UsageError, first_problems, one_line

INDEX = "model_index.json"
# What most models are. Listing them avoids the import of diffusers, which would slow down `faded plan` by seconds.
_USUAL = ("StableDiffusionPipeline", "StableDiffusionXLPipeline")
PICKLES = (".bin", ".ckpt", ".pt", ".pth")
_WITHOUT_WEIGHTS = ("scheduler", "tokenizer", "feature_extractor", "image_processor", "processor", "image_noising")


def text_to_image_classes() -> list[str]:
    """Return the pipelines of diffusers that draw from a text alone, and that a Painter can call.

    Left out are those steered by a picture (ControlNet), those for films, and those of two pipelines with two
    guidances.
    """
    from diffusers.pipelines.auto_pipeline import AUTO_TEXT2IMAGE_PIPELINES_MAPPING as MAPPING

    asked = {"prompt", "num_inference_steps", "guidance_scale", "generator", "output_type"}
    names = []
    for kind, pipeline in MAPPING.items():
        takes = set(inspect.signature(pipeline.__call__).parameters)
        steered = "control" in kind or "num_frames" in takes
        if asked <= takes and hasattr(pipeline, "encode_prompt") and not steered:
            names.append(pipeline.__name__)
    return names


def folder_errors(folder: Path, variant: str | None) -> list[str]:
    """List what a folder lacks to be read as a pipeline that draws from text."""
    where = f"prepare.model.diffusers: {folder}"
    if not (folder / INDEX).is_file():
        found = ", ".join(sorted(p.name for p in folder.iterdir())) if folder.is_dir() else "a file"
        return [
            f"{where} has no {INDEX}; expected a folder that a diffusers pipeline wrote, found {found or 'nothing'}"
        ]
    index = _json(folder / INDEX)
    if index is None:
        return [f"{where}/{INDEX} is not valid JSON"]
    name = index.get("_class_name")
    if not isinstance(name, str):
        return [f"{where} contains its own code for its pipeline ({name}); only pipelines of diffusers are run"]
    if name not in _USUAL and name not in text_to_image_classes():
        return [f"{where} is a {name}; expected a pipeline that draws from a text alone, such as {' or '.join(_USUAL)}"]
    errors = [_component_error(folder / part, kind, variant) for part, kind in _components(index).items()]
    told = [f"{where}: {error}" for error in errors if error]
    if not told and variant and not any(folder.glob(f"*/*.{variant}*.safetensors")):
        told.append(f"prepare.model.variant: {folder} has no weights *.{variant}.safetensors")
    unet, vae = (_json(folder / part / "config.json") or {} for part in ("unet", "vae"))
    taken, drawn = unet.get("in_channels"), vae.get("latent_channels")
    if not told and taken and drawn and taken != drawn:
        told.append(
            f"{where}: its network takes {taken} channels where pictures have {drawn}: one to fill in or to change"
            " pictures, not to draw them from text"
        )
    return told


def _component_error(folder: Path, kind: list[Any], variant: str | None) -> str | None:
    part = folder.name
    if len(kind) != 2 or not all(isinstance(name, str) for name in kind):
        return f"{INDEX} says {part} is {json.dumps(kind)}; expected [library, class]"
    library = kind[0]
    if not folder.is_dir():
        return f"no folder {part}, which {INDEX} names"
    if (folder / f"{library}.py").exists():
        return f"{part} contains its own code, {library}.py; only classes of diffusers and transformers are run"
    if library not in ("diffusers", "transformers") and not _is_pipeline_module(library):
        return f"{part} is of the library {library}; only classes of diffusers and transformers are run"
    if part.startswith(_WITHOUT_WEIGHTS):
        # Despite its name it may be a network, by its class.
        names = sorted(path.name for path in folder.iterdir())
        return None if any(name.endswith(".safetensors") for name in names) else _pickle_error(part, names)
    return _weights_error(folder, variant)


def _is_pipeline_module(name: str) -> bool:
    """Whether diffusers has pipelines of this name (stable_diffusion has a safety checker); imports nothing."""
    spec = importlib.util.find_spec("diffusers")
    roots = (spec.submodule_search_locations if spec else None) or []
    return name.isidentifier() and any((Path(root) / "pipelines" / name / "__init__.py").is_file() for root in roots)


def _pickle_error(part: str, names: list[str]) -> str | None:
    pickled = [name for name in names if name.endswith(PICKLES)]
    if not pickled:
        return None
    return (
        f"{part}: {', '.join(pickled)} is a pickle, which could run code when read; expected *.safetensors:"
        " load the pipeline once where you trust it and save_pretrained() it again"
    )


def _weights_error(folder: Path, variant: str | None) -> str | None:
    part = folder.name
    names = sorted(path.name for path in folder.iterdir())
    weights = [name for name in names if name.endswith(".safetensors")]
    # Names are model.safetensors, model.fp16.safetensors, model.fp16-00001-of-00002.safetensors
    plain = [name for name in weights if name.count(".") == 1]
    if not plain and not (variant and any(f".{variant}" in name for name in weights)):
        if pickled := _pickle_error(part, names):
            return pickled
        if weights:
            asked = f"variant {variant}" if variant else "no variant"
            return f"{part}: prepare.model.variant asks for {asked}, found {', '.join(weights)}"
        return f"{part} has no weights (*.safetensors); found {', '.join(names) or 'nothing'}"
    if "config.json" not in names:
        return f"{part} has no config.json; found {', '.join(names)}"
    return None


def networks(folder: Path) -> dict[str, list[str]]:
    """Return the components of a folder that are networks: {name: [library, class]}."""
    index = _json(folder / INDEX) or {}
    return {part: kind for part, kind in _components(index).items() if not part.startswith(_WITHOUT_WEIGHTS)}


def _components(index: dict[str, Any]) -> dict[str, list[Any]]:
    # Optional components that are left out, such as the safety checker, are [null, null].
    return {k: v for k, v in index.items() if isinstance(v, list) and k[:1] != "_" and v[:1] != [None]}


def _json(path: Path) -> dict[str, Any] | None:
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return data if isinstance(data, dict) else None


def check_weights(info: Mapping[str, Any], part: str) -> None:
    """Check the `loading_info` of a network: libraries fill missing weights at random, and only warn.

    Raises a UsageError when weights are missing or of another shape.
    """
    if missing := sorted(map(str, [*info["missing_keys"], *info["mismatched_keys"]])):
        raise UsageError(f"the weights of {part} do not fit: {first_problems(missing)}")


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Silence progress bars of libraries, and warnings about what we cannot change."""
    from diffusers.utils import logging as of_diffusers
    from transformers.utils import logging as of_transformers

    verbosity = of_diffusers.get_verbosity()
    of_diffusers.set_verbosity_error()
    of_diffusers.disable_progress_bar()
    of_transformers.disable_progress_bar()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)
            yield
    finally:
        of_diffusers.set_verbosity(verbosity)


@contextlib.contextmanager
def readable(where: str) -> Iterator[None]:
    """Turn errors of libraries about unreadable files into one-line errors for users, and silence the libraries."""
    for module in ("diffusers", "transformers", "peft"):
        if importlib.util.find_spec(module) is None:
            raise UsageError(f"{where}: the library {module} is not installed: pip install 'faded[text-to-image]'")
    from safetensors import SafetensorError

    try:
        with quiet():
            yield
    except UsageError as error:
        raise UsageError(f"{where}: {error}") from None
    except (
        OSError,
        ValueError,
        TypeError,
        KeyError,
        AttributeError,
        RuntimeError,
        ImportError,
        SafetensorError,
    ) as error:
        raise UsageError(f"{where} cannot be read: {one_line(error)}") from None
