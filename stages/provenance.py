"""The origin of a result, which every stage writes beside it: without it two results cannot be compared.

It also lists the SHA-256 of the files the stage read and wrote, so that results can be traced from stage to stage.
"""

import hashlib
import os
import platform
import sys
from collections.abc import Iterable, Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from stages.core.environment import is_alike
from stages.core.files import content_hash, write_json
from stages.core.plugins import distributions
from stages.params import AuditConfig
from stages.params.audit import ComputeConfig
from stages.params.network import is_served
from stages.tasks.contract import ASSETS
from stages.tasks.load import resolve_backend, resolve_device, resolve_dtype

# Packages that can change a result, and the modules by which they are imported.
PACKAGES = {
    "torch": "torch", "numpy": "numpy", "pandas": "pandas", "scipy": "scipy", "gymnasium": "gymnasium", "timm": "timm",
    "torchvision": "torchvision", "transformers": "transformers", "datasets": "datasets", "onnxruntime": "onnxruntime",
    "openvino": "openvino", "faded": "stages", "scikit-learn": "sklearn", "stable-baselines3": "stable_baselines3",
    "pot": "ot", "pillow": "PIL",
}  # fmt: skip


def provenance(
    audit: str, config: AuditConfig, prepared: Path | None = None, *, computes: bool = True
) -> dict[str, Any]:
    """Collect seed, versions, hashes, device and batch size.

    Nothing in it says when or at which commit the stage ran: the same results, made by the same code with the same
    packages, are the same bytes. The code is in dvc.lock, as the hash of all that the stage can reach. Of the installed
    packages only those count that are imported by now.

    Args:
        prepared: data/<audit>/prepare, to hash the model under test and its items; None before they exist.
        computes: whether the stage runs the model; a stage that does not needs no device.
    """
    record: dict[str, Any] = {
        "audit": audit,
        "seed": config.seed,
        "task": config.task,
        "python": platform.python_version(),
        "platform": f"{platform.system()} {platform.machine()}",
        "versions": _imported(),
    }
    if computes:
        record |= {
            "device": device_name(config.compute),
            "backend": resolve_backend(config, prepared),
            "dtype": resolve_dtype(audit, config),
            "threads": config.compute.threads,
            "batch_size": config.compute.batch_size,
        }
    if plugins := distributions():
        record["plugins"] = plugins
    if config.ratings is not None:
        record["ratings"] = {key: value for key, value in config.ratings.model_dump().items() if key != "file"}
    if prepared is not None:
        record["model"] = content_hash([prepared / "model"])
        record["data"] = content_hash([prepared / "items.parquet"])
    return record


def write_provenance(out: Path, record: Mapping[str, Any], read: Iterable[Path] = ()) -> None:
    """Write provenance.json as the last of a stage's outputs.

    Args:
        out: the folder with all its other outputs.
        record: the result of `provenance`, and the stage's own additions.
        read: files and folders beside `out` that other stages wrote and this one read.
    """
    inputs = {path.relative_to(out.parent).as_posix(): sha256_of(path) for path in read}
    outputs = {path.name: sha256_of(path) for path in sorted(out.iterdir()) if path.name != "provenance.json"}
    used = {**_imported(), **record["versions"]}  # some packages are imported only to write the outputs
    ordered = {package: used[package] for package in PACKAGES if package in used}
    write_json(out / "provenance.json", {**record, "versions": ordered, "read": inputs, "wrote": outputs})


def prepared_files(prepared: Path) -> list[Path]:
    """Return the inputs of stages that run a model: data/<audit>/prepare without its metrics."""
    return [prepared / name for name in ("model", ASSETS, "items.parquet", "fingerprint.json")]


def sha256_of(path: Path) -> str:
    """Return the SHA-256 of a file, in hex; for a folder, that of its files' `sha256sum` output, sorted by path."""
    if path.is_file():
        with path.open("rb") as stream:
            return hashlib.file_digest(stream, "sha256").hexdigest()
    files = (Path(here) / name for here, _, names in os.walk(path) for name in names)
    return sha256_of_folder({file.relative_to(path).as_posix(): sha256_of(file) for file in files})


def sha256_of_folder(files: Mapping[str, str]) -> str:
    """Return the SHA-256 of a folder, given that of each of its files, by path."""
    lines = "".join(f"{files[name]}  {name}\n" for name in sorted(files))
    return hashlib.sha256(lines.encode()).hexdigest()


# Settings of `discrepancy:` and `prepare:` that do not change the discrepancy of an answer: the threshold, how it is
# calibrated, and the number of items.
NOT_OF_SCALE = frozenset({"threshold", "false_alarms", "calibrate", "items"})

# Settings of models behind HTTP that limit speed, retries and cost: lowering a rate must not start a run again.
NOT_OF_ANSWERS = frozenset({"batch_size", "concurrency", "rate", "timeout", "retries", "key_env", "price", "max_cost"})


def scale_of(config: AuditConfig) -> str:
    """Hash the definition of an audit's automatic discrepancies: ratings on one scale are meaningless on another."""
    parts = (config.automatic, of_answers(config.prepare))
    measured = ({k: v for k, v in part.items() if k not in NOT_OF_SCALE} for part in parts)
    return content_hash([], config.task, *measured)


def of_answers(prepare: Mapping[str, Any]) -> dict[str, Any]:
    """Return the `prepare:` block without settings that change no answer."""
    return {
        part: {name: value for name, value in source.items() if name not in NOT_OF_ANSWERS}
        if is_served(source)
        else source
        for part, source in prepare.items()
    }


def run_key(config: AuditConfig, inputs: Iterable[Path], *more: Any) -> str:
    """Hash everything that a run's answers or the order of its questions depend on, as the key of its scratch folder.

    A ledger or checkpoint of another run is not resumed, so a resumed run equals an uninterrupted one.

    Args:
        config: the audit's block of params.yaml.
        inputs: files and folders the run reads.
        more: further dependencies: its code (`stages.code.code_of`), settings outside the audit's block.
    """
    settings = config.model_dump(
        mode="json", exclude={"summarize": True, "gates": True, "usage": True, "compute": {"gpus"}}
    )
    settings["prepare"] = of_answers(settings["prepare"])
    return content_hash(inputs, settings, device_name(config.compute), versions(), *more)


def versions() -> dict[str, str]:
    """Return the versions of the installed packages that can change a result."""
    found = {}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def _imported() -> dict[str, str]:
    return {package: at for package, at in versions().items() if PACKAGES[package] in sys.modules}


def device_name(compute: ComputeConfig) -> str:
    """Resolve the device, "auto" included, and add between which ones results differ: the kind of GPU, or any CPU."""
    import torch

    device = resolve_device(compute.device)
    if device == "cpu":
        return "cpu (as any x86-64 with AVX2)" if is_alike() and compute.dtype in ("auto", "float32") else "cpu"
    return f"{device} ({torch.cuda.get_device_name(device)})"
