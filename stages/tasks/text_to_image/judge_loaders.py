"""Loaders of judges, each stored as a folder that `load_judge` reads. To add a kind, add it to JUDGE_LOADERS."""

from __future__ import annotations

import shutil
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path

from pydantic import Field, field_validator

from stages.errors import UsageError
from stages.files import local_file
from stages.tasks.hub import NAME, Repository
from stages.tasks.source import Source
from stages.tasks.text_to_image.judges import CLIP, CLIP_FORM, Judge


class JudgeSource(Source):
    """Base of the judge loaders."""

    @abstractmethod
    def build(self, inputs: Path, out_dir: Path) -> None:
        """Write the folder that `load_judge` reads.

        Raises:
            UsageError: when the judge cannot be read.
        """


class AttributeJudgeSource(JudgeSource):
    """{attributes: FOLDER}: a small network trained to name attributes, as `attribute_judge.save_judge` writes it."""

    attributes: str = Field(description="a folder under the audit's inputs: config.json, model.safetensors")

    def origin(self, inputs: Path) -> str:
        return f"the folder {self.attributes}"

    def errors(self, inputs: Path) -> list[str]:
        try:
            folder = local_file(inputs, self.attributes, "prepare.judge.attributes")
            _need(folder, ("config.json", "model.safetensors"), "prepare.judge.attributes")
            from stages.tasks.text_to_image.attribute_judge import load_form

            load_form(folder)
        except UsageError as error:
            return [str(error)]
        return []

    def build(self, inputs: Path, out_dir: Path) -> None:
        self.require(inputs)
        from stages.tasks.text_to_image.attribute_judge import load_attribute_judge

        folder = inputs / self.attributes
        load_attribute_judge(folder, "cpu")
        out_dir.mkdir(parents=True, exist_ok=True)
        for name in ("config.json", "model.safetensors"):
            shutil.copyfile(folder / name, out_dir / name)


class ClipJudgeSource(JudgeSource):
    """{clip: ID_OR_FOLDER, prompts: {NAME: {VALUE: PROMPT}}}: any CLIP model, with prompts for values to distinguish.

    A folder under the audit's inputs takes precedence; otherwise the name is looked up in the cache of the Hugging Face
    hub.
    """

    clip: str = Field(pattern=NAME)
    revision: str | None = Field(None, description="hub: commit, tag or branch; name a commit to get the same tomorrow")
    prompts: dict[str, dict[str, str]] = Field(
        {}, description='attributes and values, e.g. {gender: {woman: "a photo of a woman", man: "a photo of a man"}}'
    )
    certainty: float = Field(0.6, ge=0, lt=1, description="the judge abstains where its best value is less probable")

    @field_validator("prompts")
    @classmethod
    def _values_to_choose_from(cls, prompts: dict[str, dict[str, str]]) -> dict[str, dict[str, str]]:
        for name, values in prompts.items():
            if len(values) < 2 or len(set(values.values())) < len(values):
                raise ValueError(f"{name}: expected two values or more, each with a prompt of its own, found {values}")
        return prompts

    @property
    def _repository(self) -> Repository:
        wanted = ("*.json", "*.txt", "model.safetensors", "model-*-of-*.safetensors")
        return Repository(self.clip, self.revision, wanted, ignored=("*/*",))

    def errors(self, inputs: Path) -> list[str]:
        try:
            if (folder := self._repository.local(inputs, CLIP)) is not None:
                _need(folder, ("config.json", "model.safetensors"), CLIP)
        except UsageError as error:
            return [str(error)]
        return []

    def build(self, inputs: Path, out_dir: Path) -> None:
        self.require(inputs)
        from stages.tasks.text_to_image.clip_judge import save_clip_judge

        folder, origin = self._repository.found(inputs, CLIP)
        save_clip_judge(folder, origin, self.prompts, self.certainty, out_dir)

    def origin(self, inputs: Path) -> str:
        return self._repository.found(inputs, CLIP)[1]

    def prefetch(self, inputs: Path) -> list[str]:
        return self._repository.prefetch(inputs, CLIP)


JUDGE_LOADERS: Mapping[str, type[JudgeSource]] = {"clip": ClipJudgeSource, "attributes": AttributeJudgeSource}


def load_judge(folder: Path, device: str) -> Judge:
    """Read a judge's folder, whatever its kind.

    Raises:
        UsageError: when a file is missing or damaged.
    """
    if (folder / CLIP_FORM).exists():
        from stages.tasks.text_to_image.clip_judge import load_clip_judge

        return load_clip_judge(folder, device)
    from stages.tasks.text_to_image.attribute_judge import load_attribute_judge

    return load_attribute_judge(folder, device)


def _need(folder: Path, names: Sequence[str], where: str) -> None:
    """Check that a folder has these files; the error mentions weights that are pickles."""
    if not folder.is_dir():
        raise UsageError(f"{where}: {folder} is not a folder; expected one with {', '.join(names)}")
    found = sorted(path.name for path in folder.iterdir())
    if lacking := [name for name in names if name not in found]:
        pickled = [name for name in found if name.endswith((".bin", ".pt", ".pth", ".ckpt"))]
        why = f"; {', '.join(pickled)} is a pickle, which could run code when read" if pickled else ""
        raise UsageError(f"{where}: {folder} has no {', '.join(lacking)}; found {', '.join(found) or 'nothing'}{why}")
