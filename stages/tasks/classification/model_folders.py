"""Model folders of timm and transformers, under inputs or in the hub cache, and the networks in them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from stages.errors import UsageError
from stages.files import content_hash
from stages.tasks.classification.families import FAMILIES
from stages.tasks.classification.form import Form
from stages.tasks.classification.library import CONFIG
from stages.tasks.classification.models import Classifier
from stages.tasks.hub import Repository


def found_folder(
    local: Path | None, repository: Callable[[], Repository], inputs: Path, where: str
) -> tuple[Path, str]:
    """Return the folder of a model and its origin, for people."""
    if local is not None:
        return local, f"the folder {local.relative_to(inputs)}, content {content_hash(sorted(local.iterdir()))}"
    snapshot = repository().cached(inputs, where)
    check_folder(snapshot.folder, where, "its authors")
    return snapshot.folder, snapshot.origin


def check_folder(folder: Path, where: str, writer: str) -> None:
    """Check that a folder has config.json and safetensors."""
    found = sorted(path.name for path in folder.iterdir())
    if CONFIG not in found:
        raise UsageError(f"{where}: {folder} has no {CONFIG}; expected what {writer} writes, found {', '.join(found)}")
    if not any(name.endswith(".safetensors") for name in found):
        pickled = [name for name in found if name.endswith((".bin", ".pt", ".pth", ".ckpt"))]
        why = f"{', '.join(pickled)} is a pickle, which could run code when read" if pickled else "it has no weights"
        raise UsageError(f"{where}: {folder}: expected *.safetensors, but {why}")


def read_object(path: Path, where: str) -> dict[str, Any]:
    """Read a JSON file that contains an object.

    Raises:
        UsageError: if it does not.
    """
    try:
        told = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UsageError(f"{where}: {path} is not readable JSON: {error}") from None
    if not isinstance(told, dict):
        raise UsageError(f"{where}: {path} holds {type(told).__name__}, expected an object")
    return told


def built(form: Form, where: str) -> Classifier:
    """Build the network with random weights, which the caller replaces."""
    try:
        with torch.random.fork_rng():
            return Classifier(form, FAMILIES[form.family](form)).eval()
    except UsageError as error:
        told = str(error)
        raise UsageError(told if told.startswith("prepare.") else f"{where}: {told}") from None
    except (RuntimeError, TypeError, ValueError, AssertionError, AttributeError, KeyError) as error:
        raise UsageError(
            f"{where}: {form.architecture} cannot be built: {' '.join(str(error).split())[:300]}"
        ) from None
