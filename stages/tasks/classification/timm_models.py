"""Networks of timm: its architectures with the user's own weights, hub repositories, and folders of the same form."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, model_validator
from torch import nn

from stages.errors import UsageError
from stages.files import content_hash
from stages.tasks.classification.families import check_timm
from stages.tasks.classification.form import Form
from stages.tasks.classification.library import CONFIG
from stages.tasks.classification.model_folders import built, check_folder, found_folder, read_object
from stages.tasks.classification.models import Classifier, fit_weights
from stages.tasks.classification.pictures import Shape, View
from stages.tasks.classification.pool import Pool
from stages.tasks.classification.sources import Normalised, check_answers, check_weights, read_weights
from stages.tasks.hub import Repository, local_folder
from stages.tasks.source import collect

HUB = "hf-hub:"
# Arguments by which create_model would read other files; a repository's config.json must not set them.
_NOT_ARGUMENTS = {"checkpoint_path", "pretrained", "pretrained_cfg", "pretrained_cfg_overlay", "cache_dir"}


class TimmModel(Normalised):
    """{timm: NAME, weights: FILE}: a timm network with the user's own weights; without `weights` one from the hub.

    Networks on the hub are named as in timm (resnet50.a1_in1k) or by their repository (ORG/NAME). A folder under inputs
    with the files of such a repository works too.
    """

    timm: str = Field(pattern=r"^(hf-hub:)?[\w.-]+(/[\w.-]+)*$")
    weights: str | None = Field(None, description="file under inputs")
    revision: str | None = Field(None, description="hub: commit, tag or branch; name a commit to get the same tomorrow")
    channels: Literal[1, 3] | None = Field(None, description="of the weights; default: as the architecture has them")
    args: dict[str, Any] = Field({}, description="further arguments of timm.create_model (img_size, global_pool)")

    @model_validator(mode="after")
    def _is_one_source(self) -> TimmModel:
        if self.weights is not None and (self.revision is not None or "/" in self.timm):
            raise ValueError(f"weights are those of {self.weights}, so timm is the name of an architecture alone")
        if unsafe := sorted(_NOT_ARGUMENTS & set(self.args)):
            raise ValueError(f"args: {', '.join(unsafe)} cannot be set")
        return self

    def errors(self, inputs: Path) -> list[str]:
        if self.weights is not None:
            weights = self.weights
            return collect(lambda: check_weights(inputs, weights, "prepare.model.weights"))
        return collect(lambda: self._local(inputs))

    def prefetch(self, inputs: Path) -> list[str]:
        return [] if self.weights or self._local(inputs) else [self._repository().fetch("prepare.model.timm")]

    def build(self, inputs: Path, pool: Pool, seed: int, device: str) -> Classifier:
        return (self._of_file if self.weights else self._of_folder)(inputs, pool).to(device)

    def _local(self, inputs: Path) -> Path | None:
        if self.timm.startswith(HUB):
            return None
        folder = local_folder(inputs, self.timm, self.revision, "prepare.model.timm")
        if folder is not None:
            check_folder(folder, "prepare.model.timm", "timm's save_for_hf")
        return folder

    def _repository(self) -> Repository:
        name = self.timm.removeprefix(HUB)
        if "/" not in name:
            name = _timm_config(name)["hf_hub_id"] or ""
            if not name:
                raise UsageError(f"prepare.model.timm: timm has no weights for {self.timm}; name a file: weights")
        return Repository(name, self.revision, (CONFIG, "model.safetensors"))

    def _of_file(self, inputs: Path, pool: Pool) -> Classifier:
        where = "prepare.model.weights"
        path = check_weights(inputs, self.weights or "", where)
        config = _timm_config(self.timm)
        state = read_weights(path, where)
        head = _first(config["classifier"])
        if f"{head}.weight" not in state:
            found = ", ".join(sorted(state)[:4])
            raise UsageError(f"{where}: {path.name} has no {head}.weight, the last layer of {self.timm}; found {found}")
        origin = f"{self.weights}, content {content_hash([path])}, for timm's {self.timm}"
        classes = self.names(len(state[f"{head}.weight"]), None, pool)
        model = self._network(self.timm, config, self.args, classes, pool, f"{origin}; {self._says('timm')}")
        fit_weights(model.net, state, where)
        return check_answers(model, where)

    def _of_folder(self, inputs: Path, pool: Pool) -> Classifier:
        where = "prepare.model.timm"
        folder, origin = found_folder(self._local(inputs), self._repository, inputs, where)
        told = read_object(folder / CONFIG, where)
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
        return check_answers(model, where)

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
        return built(form, "prepare.model.timm")


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
        raise UsageError(f"{where}: the weights do not fit: {' '.join(str(error).split())[:400]}") from None
    return net


def _first(names: Any) -> str:
    return str(names if isinstance(names, str) else next(iter(names or ("head",))))
