"""Networks of timm, torchvision and transformers: from a user's weights, a folder under inputs, or the hub.

Only tensors and JSON are read, and no code of a repository is run.
"""

import json
import math
from abc import abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, Literal, Self

import torch
from pydantic import Field, model_validator
from torch import nn

from stages.core.errors import UsageError, first_problems, one_line
from stages.core.files import content_hash
from stages.tasks.classification.families import (
    CONFIG,
    FAMILIES,
    INCEPTIONS,
    Form,
    Logits,
    check_timm,
    torchvision_models,
)
from stages.tasks.classification.models import (
    Classifier,
    Normalised,
    check_scores,
    fit_weights,
    read_weights,
    weights_file,
)
from stages.tasks.classification.pictures import Pool, Shape, View
from stages.tasks.classification.preprocessor import PREPROCESSOR, Preprocessor
from stages.tasks.hub import NAME, Repository, local_folder
from stages.tasks.sources import collect

HUB = "hf-hub:"
# Arguments by which create_model would read other files; a repository's config.json must not set them.
_NOT_ARGUMENTS = {"checkpoint_path", "pretrained", "pretrained_cfg", "pretrained_cfg_overlay", "cache_dir"}
_AUXILIARY = ("aux1.", "aux2.", "AuxLogits.")  # auxiliary heads of INCEPTIONS
_LEFT_OUT = {"_name_or_path", "transformers_version", "dtype", "torch_dtype", "architectures", "id2label", "label2id"}


class FolderModel(Normalised):
    """A network in a folder under inputs, or in a repository of the hub, as its library writes it."""

    key: ClassVar[str]
    writer: ClassVar[str]  # what writes such folders, for people

    revision: str | None = Field(None, description="hub: commit, tag or branch; name a commit to get the same tomorrow")

    @property
    def where(self) -> str:
        """The key of params.yaml, for messages."""
        return f"prepare.model.{self.key}"

    @abstractmethod
    def repository(self) -> Repository:
        """Return the repository that is meant if there is no such folder."""

    def errors(self, inputs: Path) -> list[str]:
        return collect(lambda: self._local(inputs))

    def prefetch(self, inputs: Path) -> list[str]:
        return [] if self._local(inputs) else [self.repository().fetch(self.where)]

    def _local(self, inputs: Path) -> Path | None:
        folder = local_folder(inputs, getattr(self, self.key), self.revision, self.where)
        if folder is not None:
            _check_folder(folder, self.where, self.writer)
        return folder

    def folder(self, inputs: Path) -> tuple[Path, str]:
        """Return the folder of the model and its origin, for people.

        Raises a UsageError if it is neither under inputs nor in the cache, or lacks its configuration or safe weights.
        """
        if (local := self._local(inputs)) is not None:
            return local, f"the folder {local.relative_to(inputs)}, content {content_hash(sorted(local.iterdir()))}"
        snapshot = self.repository().cached(inputs, self.where)
        _check_folder(snapshot.folder, self.where, "its authors")
        return snapshot.folder, snapshot.origin


class TimmModel(FolderModel):
    """{timm: NAME, weights: FILE}: a timm network with the user's own weights; without `weights` one from the hub.

    Networks on the hub are named as in timm (resnet50.a1_in1k) or by their repository (ORG/NAME). A folder under inputs
    with the files of such a repository works too.
    """

    key = "timm"
    writer = "timm's save_for_hf"

    timm: str = Field(pattern=r"^(hf-hub:)?[\w.-]+(/[\w.-]+)*$")
    weights: str | None = Field(None, description="file under inputs")
    channels: Literal[1, 3] | None = Field(None, description="of the weights; default: as the architecture has them")
    args: dict[str, Any] = Field({}, description="further arguments of timm.create_model (img_size, global_pool)")

    @model_validator(mode="after")
    def _is_one_source(self) -> Self:
        if self.weights is not None and (self.revision is not None or "/" in self.timm):
            raise ValueError(f"weights are those of {self.weights}, so timm is the name of an architecture alone")
        if unsafe := sorted(_NOT_ARGUMENTS & set(self.args)):
            raise ValueError(f"args: {', '.join(unsafe)} cannot be set")
        return self

    def errors(self, inputs: Path) -> list[str]:
        if (weights := self.weights) is None:
            return super().errors(inputs)
        return collect(lambda: weights_file(inputs, weights, "prepare.model.weights"))

    def prefetch(self, inputs: Path) -> list[str]:
        return [] if self.weights else super().prefetch(inputs)

    def build(self, inputs: Path, pool: Pool, seed: int, device: str) -> Classifier:
        return (self._of_file if self.weights else self._of_folder)(inputs, pool).to(device)

    def repository(self) -> Repository:
        name = self.timm.removeprefix(HUB)
        if "/" not in name:
            name = _timm_config(name)["hf_hub_id"] or ""
            if not name:
                raise UsageError(f"prepare.model.timm: timm has no weights for {self.timm}; name a file: weights")
        return Repository(name, self.revision, (CONFIG, "model.safetensors"))

    def _of_file(self, inputs: Path, pool: Pool) -> Classifier:
        where = "prepare.model.weights"
        path = weights_file(inputs, self.weights or "", where)
        config = _timm_config(self.timm)
        state = read_weights(path, where)
        names = config["classifier"]
        head = names if isinstance(names, str) else next(iter(names or ("head",)))
        if f"{head}.weight" not in state:
            found = ", ".join(sorted(state)[:4])
            raise UsageError(f"{where}: {path.name} has no {head}.weight, the last layer of {self.timm}; found {found}")
        origin = f"{self.weights}, content {content_hash([path])}, for timm's {self.timm}"
        classes = self.names(len(state[f"{head}.weight"]), None, pool)
        model = self._network(self.timm, config, self.args, classes, pool, f"{origin}; {self._says('timm')}")
        fit_weights(model.net, state, where)
        return check_scores(model, where)

    def _of_folder(self, inputs: Path, pool: Pool) -> Classifier:
        where = self.where
        folder, origin = self.folder(inputs)
        told = _read_object(folder / CONFIG, where)
        config = {
            **told.get("pretrained_cfg", told),
            **{k: told[k] for k in ("num_classes", "label_names") if k in told},
        }
        architecture, n = told.get("architecture"), config.get("num_classes")
        if not isinstance(architecture, str) or not isinstance(n, int):
            raise UsageError(f"{where}: {folder / CONFIG} names no architecture of timm or no num_classes")
        args = {**told.get("model_args", {}), **({"global_pool": told["global_pool"]} if "global_pool" in told else {})}
        args = {k: v for k, v in {**args, **self.args}.items() if k not in {*_NOT_ARGUMENTS, "in_chans", "num_classes"}}
        config = {**_timm_config(architecture), **config}
        classes = self.names(n, config.get("label_names") or config.get("labels"), pool)
        state = read_weights(folder / "model.safetensors", where)
        model = self._network(architecture, config, args, classes, pool, f"{origin}; {self._says('timm')}")
        if set(state) == set(model.net.state_dict()):
            fit_weights(model.net, state, where)
        else:
            model.net = _converted(model.form, state, args, where)
        return check_scores(model, where)

    def _network(
        self,
        architecture: str,
        config: Mapping[str, Any],
        args: dict[str, Any],
        classes: list[str],
        pool: Pool,
        origin: str,
    ) -> Classifier:
        from timm.data.config import resolve_data_config

        data = resolve_data_config({}, pretrained_cfg=dict(config))
        channels, height, width = data["input_size"]
        if isinstance(args.get("img_size"), int):
            height = width = args["img_size"]
        own: Shape = (self.channels or channels, height, width)
        view = View(
            resize=(math.floor(height / data["crop_pct"]), math.floor(width / data["crop_pct"]))
            if data["crop_mode"] == "squash"
            else math.floor(min(height, width) / data["crop_pct"]),
            interpolation=data["interpolation"],
        )
        shape = pool.pictures.shape(own)
        form = Form(
            family="timm",
            architecture=architecture,
            classes=classes,
            shape=shape,
            **self.normalisation(data["mean"], data["std"], shape),
            origin=origin,
            view=view.at(own, shape),
            settings={"args": args} if args else None,
        )
        return _built(form, self.where)


class TorchvisionModel(Normalised):
    """{torchvision: NAME, weights: FILE}: a torchvision classifier with the user's own weights."""

    torchvision: str = Field(pattern=r"^\w+$")
    weights: str = Field(description="file under inputs")
    transform_input: bool | None = Field(
        None, description="of inception_v3, googlenet; default: true, as torchvision has it for its own weights"
    )

    @model_validator(mode="after")
    def _transforms_what_can(self) -> Self:
        if self.transform_input is not None and self.torchvision not in INCEPTIONS:
            raise ValueError(f"transform_input is for {' and '.join(INCEPTIONS)}, not for {self.torchvision}")
        return self

    def errors(self, inputs: Path) -> list[str]:
        return collect(lambda: weights_file(inputs, self.weights, "prepare.model.weights"))

    def build(self, inputs: Path, pool: Pool, seed: int, device: str) -> Classifier:
        where = "prepare.model.weights"
        path = weights_file(inputs, self.weights, where)
        models = torchvision_models()
        settings = None
        if self.torchvision in INCEPTIONS:
            settings = {"args": {"transform_input": self.transform_input is not False, "aux_logits": False}}
        form = Form(
            family="torchvision",
            architecture=self.torchvision,
            classes=["0", "1"],
            shape=(3, 8, 8),
            origin="",
            settings=settings,
        )
        layers = _built(form, where).net.named_modules()
        head = [name for name, module in layers if isinstance(module, nn.Linear | nn.Conv2d)][-1]
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
        model = _built(form, where)
        fit_weights(model.net, state, where)
        return check_scores(model, where).to(device)


class TransformersModel(FolderModel):
    """{transformers: ID_OR_FOLDER, revision: COMMIT}: an image classifier under inputs or on the hub."""

    key = "transformers"
    writer = "save_pretrained()"

    transformers: str = Field(pattern=NAME)

    def repository(self) -> Repository:
        wanted = (CONFIG, PREPROCESSOR, "*.safetensors", "*.safetensors.index.json")
        return Repository(self.transformers, self.revision, wanted, ("*/*",))

    def build(self, inputs: Path, pool: Pool, seed: int, device: str) -> Classifier:
        where = self.where
        folder, origin = self.folder(inputs)
        model = _transformers(folder, where)
        config = model.config.to_dict()
        processor = folder / PREPROCESSOR
        seen = Preprocessor.of(folder, _read_object(processor, where) if processor.exists() else None, config, where)
        shape = pool.pictures.shape(seen.shape)
        labels = model.config.id2label
        form = Form(
            family="transformers",
            architecture=model.config.model_type,
            classes=self.names(len(labels), [str(labels[i]) for i in range(len(labels))], pool),
            shape=shape,
            **self.normalisation(seen.mean, seen.std, shape),
            origin=f"{origin}; {self._says(PREPROCESSOR)}",
            view=seen.view.at(seen.shape, shape),
            settings={
                "config": {k: v for k, v in config.items() if k not in _LEFT_OUT and v is not None},
                **({"bgr": True} if seen.bgr else {}),
            },
        )
        network = _built(form, where)
        fit_weights(network.net, {k: v.float() for k, v in Logits(model).state_dict().items()}, where)
        return check_scores(network, where).to(device)


def _timm_config(architecture: str) -> dict[str, Any]:
    """Return timm's configuration of an architecture: input, normalisation, source of its weights."""
    from timm.models import get_pretrained_cfg

    try:
        check_timm(architecture)
        config = get_pretrained_cfg(architecture)
    except (UsageError, RuntimeError) as error:
        raise UsageError(f"prepare.model.timm: {error}") from None
    if config is None:
        raise UsageError(
            f"prepare.model.timm: timm knows no input of {architecture}; name it as timm.list_models() does"
        )
    told: dict[str, Any] = config.to_dict(remove_source=False, remove_null=False)
    return told


def _converted(form: Form, state: Mapping[str, Any], args: Mapping[str, Any], where: str) -> nn.Module:
    """Build a network whose weights timm itself has to convert: many of its repositories use original names."""
    import timm

    given = {"state_dict": dict(state), "source": "", "num_classes": len(form.classes), "input_size": form.shape}
    try:
        net: nn.Module = timm.create_model(
            form.architecture,
            pretrained=True,
            pretrained_cfg_overlay=given,
            num_classes=len(form.classes),
            in_chans=form.shape[0],
            **args,
        )
    except (RuntimeError, KeyError, ValueError, TypeError, AttributeError) as error:
        raise UsageError(f"{where}: the weights do not fit: {one_line(error)}") from None
    return net


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
        raise UsageError(f"{where}: {folder} cannot be read: {one_line(error)}") from None
    model, told = read
    # transformers initialises missing weights at random and only warns.
    if missing := sorted(map(str, [*told["missing_keys"], *told["mismatched_keys"]])):
        raise UsageError(f"{where}: the weights do not fit: {first_problems(missing)}")
    return model


def _check_folder(folder: Path, where: str, writer: str) -> None:
    """Check that a folder has config.json and safetensors."""
    found = sorted(path.name for path in folder.iterdir())
    if CONFIG not in found:
        raise UsageError(f"{where}: {folder} has no {CONFIG}; expected what {writer} writes, found {', '.join(found)}")
    if not any(name.endswith(".safetensors") for name in found):
        pickled = [name for name in found if name.endswith((".bin", ".pt", ".pth", ".ckpt"))]
        why = f"{', '.join(pickled)} is a pickle, which could run code when read" if pickled else "it has no weights"
        raise UsageError(f"{where}: {folder}: expected *.safetensors, but {why}")


def _read_object(path: Path, where: str) -> dict[str, Any]:
    """Read a JSON file that contains an object. Raises a UsageError if it does not."""
    try:
        told = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UsageError(f"{where}: {path} is not readable JSON: {error}") from None
    if not isinstance(told, dict):
        raise UsageError(f"{where}: {path} holds {type(told).__name__}, expected an object")
    return told


def _built(form: Form, where: str) -> Classifier:
    """Build the network with random weights, which the caller replaces."""
    try:
        with torch.random.fork_rng():
            return Classifier(form, FAMILIES[form.family](form)).eval()
    except UsageError as error:
        told = str(error)
        raise UsageError(told if told.startswith("prepare.") else f"{where}: {told}") from None
    except (RuntimeError, TypeError, ValueError, AssertionError, AttributeError, KeyError) as error:
        raise UsageError(f"{where}: {form.architecture} cannot be built: {one_line(error)}") from None
