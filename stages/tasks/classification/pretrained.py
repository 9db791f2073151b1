"""Networks of torchvision and transformers; only tensors and JSON of a repository are read."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from pydantic import Field, model_validator
from torch import nn

from stages.errors import UsageError
from stages.files import content_hash
from stages.tasks.classification.families import INCEPTIONS, Logits, torchvision_models
from stages.tasks.classification.form import Form
from stages.tasks.classification.library import CONFIG
from stages.tasks.classification.model_folders import built, check_folder, found_folder, read_object
from stages.tasks.classification.models import Classifier, fit_weights
from stages.tasks.classification.pictures import Shape, View
from stages.tasks.classification.pool import Pool
from stages.tasks.classification.preprocessor import PREPROCESSOR, Preprocessor
from stages.tasks.classification.sources import Normalised, check_answers, check_weights, read_weights
from stages.tasks.hub import NAME, Repository, local_folder
from stages.tasks.source import collect

_AUXILIARY = ("aux1.", "aux2.", "AuxLogits.")  # auxiliary heads of INCEPTIONS
_LEFT_OUT = (
    "_name_or_path",
    "transformers_version",
    "dtype",
    "torch_dtype",
    "architectures",
    "id2label",
    "label2id",
)


class TorchvisionModel(Normalised):
    """{torchvision: NAME, weights: FILE}: a torchvision classifier with the user's own weights."""

    torchvision: str = Field(pattern=r"^\w+$")
    weights: str = Field(description="file under inputs")
    transform_input: bool | None = Field(
        None, description="of inception_v3, googlenet; default: true, as torchvision has it for its own weights"
    )

    @model_validator(mode="after")
    def _transforms_what_can(self) -> TorchvisionModel:
        if self.transform_input is not None and self.torchvision not in INCEPTIONS:
            raise ValueError(f"transform_input is for {' and '.join(INCEPTIONS)}, not for {self.torchvision}")
        return self

    def errors(self, inputs: Path) -> list[str]:
        return collect(lambda: check_weights(inputs, self.weights, "prepare.model.weights"))

    def build(self, inputs: Path, pool: Pool, seed: int, device: str) -> Classifier:
        where = "prepare.model.weights"
        path = check_weights(inputs, self.weights, where)
        models = torchvision_models()
        settings = self._settings()
        form = Form(
            family="torchvision",
            architecture=self.torchvision,
            classes=["0", "1"],
            shape=(3, 8, 8),
            origin="",
            settings=settings,
        )
        head = _last_layer(built(form, where).net)
        state = read_weights(path, where)
        if settings:
            state = {name: tensor for name, tensor in state.items() if not name.startswith(_AUXILIARY)}
        if f"{head}.weight" not in state:
            raise UsageError(f"{where}: {path.name} has no {head}.weight, the last layer of {self.torchvision}")
        best = models.get_model_weights(self.torchvision).DEFAULT
        usual = best.transforms()
        own: Shape = (3, usual.crop_size[0], usual.crop_size[0])
        shape = pool.pictures.shape(own)
        origin = f"{self.weights}, content {content_hash([path])}, for torchvision's {self.torchvision}"
        form = Form(
            family="torchvision",
            architecture=self.torchvision,
            classes=self.names(len(state[f"{head}.weight"]), None, pool, best.meta["categories"]),
            shape=shape,
            **self.normalisation(usual.mean, usual.std, shape),
            origin=f"{origin}; {self._says('torchvision')}",
            view=View(resize=usual.resize_size[0], interpolation=usual.interpolation.value).at(own, shape),
            settings=settings,
        )
        model = built(form, where)
        fit_weights(model.net, state, where)
        return check_answers(model, where).to(device)

    def _settings(self) -> dict[str, Any] | None:
        """Arguments for building the network, besides its classes."""
        if self.torchvision not in INCEPTIONS:
            return None
        return {"args": {"transform_input": self.transform_input is not False, "aux_logits": False}}


class TransformersModel(Normalised):
    """{transformers: ID_OR_FOLDER, revision: COMMIT}: an image classifier under inputs or on the hub."""

    transformers: str = Field(pattern=NAME)
    revision: str | None = Field(None, description="hub: commit, tag or branch; name a commit to get the same tomorrow")

    def errors(self, inputs: Path) -> list[str]:
        return collect(lambda: self._local(inputs))

    def prefetch(self, inputs: Path) -> list[str]:
        return [] if self._local(inputs) else [self._repository().fetch("prepare.model.transformers")]

    def _local(self, inputs: Path) -> Path | None:
        folder = local_folder(inputs, self.transformers, self.revision, "prepare.model.transformers")
        if folder is not None:
            check_folder(folder, "prepare.model.transformers", "save_pretrained()")
        return folder

    def _repository(self) -> Repository:
        wanted = (CONFIG, PREPROCESSOR, "*.safetensors", "*.safetensors.index.json")
        return Repository(self.transformers, self.revision, wanted, ("*/*",))

    def build(self, inputs: Path, pool: Pool, seed: int, device: str) -> Classifier:
        where = "prepare.model.transformers"
        folder, origin = found_folder(self._local(inputs), self._repository, inputs, where)
        model = _transformers(folder, where)
        config = model.config.to_dict()
        processor = folder / PREPROCESSOR
        told = read_object(processor, where) if processor.exists() else None
        seen = Preprocessor.of(folder, told, config, where)
        own = seen.shape
        shape = pool.pictures.shape(own)
        labels = model.config.id2label
        form = Form(
            family="transformers",
            architecture=model.config.model_type,
            classes=self.names(len(labels), [str(labels[i]) for i in range(len(labels))], pool),
            shape=shape,
            **self.normalisation(seen.mean, seen.std, shape),
            origin=f"{origin}; {self._says(PREPROCESSOR)}",
            view=seen.view.at(own, shape),
            settings={
                "config": {k: v for k, v in config.items() if k not in _LEFT_OUT and v is not None},
                **({"bgr": True} if seen.bgr else {}),
            },
        )
        network = built(form, where)
        fit_weights(network.net, {k: v.float() for k, v in Logits(model).state_dict().items()}, where)
        return check_answers(network, where).to(device)


def _transformers(folder: Path, where: str) -> Any:
    """Load the model of a folder with its weights, in float32."""
    try:
        from transformers import AutoModelForImageClassification
        from transformers.utils import logging
    except ImportError:
        raise UsageError(f"{where}: transformers is not installed: pip install 'faded[image]'") from None
    from safetensors import SafetensorError

    logging.disable_progress_bar()
    try:
        read: Any = AutoModelForImageClassification.from_pretrained(
            folder,
            use_safetensors=True,
            local_files_only=True,
            trust_remote_code=False,
            dtype=torch.float32,
            output_loading_info=True,
        )
    except (OSError, ValueError, TypeError, KeyError, RuntimeError, ImportError, SafetensorError) as error:
        raise UsageError(f"{where}: {folder} cannot be read: {' '.join(str(error).split())[:400]}") from None
    model, told = read
    # transformers initialises missing weights at random and only warns.
    if missing := sorted(map(str, [*told["missing_keys"], *told["mismatched_keys"]])):
        more = f"; and {len(missing) - 4} more" if len(missing) > 4 else ""
        raise UsageError(f"{where}: the weights do not fit: {'; '.join(missing[:4])}{more}")
    return model


def _last_layer(net: nn.Module) -> str:
    return [name for name, module in net.named_modules() if isinstance(module, nn.Linear | nn.Conv2d)][-1]
