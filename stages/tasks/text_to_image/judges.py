"""Who looks at the pictures: what a judge reads of them, where judges come from, and what a prompt lets people expect.

A judge names the attributes of a picture (colour: red) and says where it cannot tell. To add a kind, add its key to
JUDGE_LOADERS. All kinds are kept as a folder that `load_judge` reads.
"""

from __future__ import annotations

import re
import shutil
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from pydantic import Field, field_validator

from stages.errors import UsageError
from stages.tasks.hub import NAME, Repository, local_folder
from stages.tasks.source import Source
from stages.tasks.sources import local_file

CLIP = "prepare.judge.clip"
CLIP_FORM = "judge.json"  # beside the files of a CLIP model: what it is asked
Values = Mapping[str, tuple[str, ...]]


@dataclass(frozen=True)
class Reading:
    """What a judge reads of n pictures.

    Args:
        probabilities: by attribute (n, values) float32, in the order of the judge's values; rows sum to 1.
        abstained: by attribute (n,) bool, True where the judge cannot tell.
        features: (n, d) float32, what the judge sees; pictures alike to it have features alike.
    """

    probabilities: Mapping[str, np.ndarray]
    abstained: Mapping[str, np.ndarray]
    features: np.ndarray


class Judge(Protocol):
    """Reads attributes of pictures, and says how well pictures show what was asked for."""

    @property
    def attributes(self) -> Values:
        """The values it tells apart, by attribute."""
        ...

    @property
    def note(self) -> Mapping[str, Any]:
        """What is known of its errors: plain data, see `judge_notes`."""
        ...

    @property
    def reads_prompts(self) -> bool:
        """Whether alignment is with the whole prompt, and not with the expected values alone."""
        ...

    def read(self, pixels: Sequence[np.ndarray]) -> Reading:
        """Look at n pictures, (h, w, 3) uint8 each; what it reads of one does not depend on the others."""
        ...

    def aligned(self, reading: Reading, prompts: Sequence[str], expected: Sequence[Mapping[str, str]]) -> np.ndarray:
        """How well each of n pictures read shows what its prompt and the values expected of it say: (n,) in [0, 1]."""
        ...


def told(judge: Judge, reading: Reading, attribute: str) -> list[str]:
    """The value of an attribute for each picture of a reading; "" where the judge abstains."""
    best = reading.probabilities[attribute].argmax(1)
    return [
        "" if unsure else judge.attributes[attribute][value]
        for value, unsure in zip(best, reading.abstained[attribute], strict=True)
    ]


def judge_notes(judge: Judge) -> list[str]:
    """What is known of a judge's errors, in sentences for people."""
    if "real" not in judge.note:
        return [f"The judge: attributes are {judge.note['attributes']}."] if "attributes" in judge.note else []
    parts = [
        f"{name} wrong in {told['error']:.1%}, not told in {told['abstained']:.1%} (of pictures through an autoencoder"
        f" {judge.note['reconstructed'][name]['error']:.1%}, {judge.note['reconstructed'][name]['abstained']:.1%})"
        for name, told in judge.note["real"].items()
    ]
    return [
        f"The judge on {judge.note['pictures']:,} held-out pictures: {'; '.join(parts)}."
        " What it cannot tell in a drawn picture counts as not shown."
    ]


def expected_values(attributes: Values, words: Mapping[str, str]) -> dict[str, str]:
    """What words let people expect of a picture, by attribute.

    A slot or column named like an attribute counts ("other_shape" is "other shape"), if its text holds one of the
    attribute's values as a word; the text of others, and one that holds two values, says nothing a judge could check.

    >>> expected_values({"background": ("black", "pink")}, {"background": "on a black background", "size": "small"})
    {'background': 'black'}
    """
    said = {slot.replace("_", " "): text.lower() for slot, text in words.items()}
    expected = {}
    for attribute, values in attributes.items():
        text = said.get(attribute.replace("_", " "), "")
        held = []
        for value in sorted(values, key=len, reverse=True):  # "light blue" is no "blue"
            text, found = re.subn(rf"(?<!\w){re.escape(value.lower())}(?!\w)", "\0", text)
            held += [value] if found else []
        if len(held) == 1:
            expected[attribute] = held[0]
    return expected


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
        """See JudgeSource."""
        return f"the folder {self.attributes}"

    def errors(self, inputs: Path) -> list[str]:
        """See JudgeSource."""
        try:
            folder = local_file(inputs, self.attributes, "prepare.judge.attributes")
            _need(folder, ("config.json", "model.safetensors"), "prepare.judge.attributes")
            from stages.tasks.text_to_image.attribute_judge import load_form

            load_form(folder)
        except UsageError as error:
            return [str(error)]
        return []

    def build(self, inputs: Path, out_dir: Path) -> None:
        """See JudgeSource."""
        if errors := self.errors(inputs):
            raise UsageError("\n".join(errors))
        from stages.tasks.text_to_image.attribute_judge import load_attribute_judge

        folder = inputs / self.attributes
        load_attribute_judge(folder, "cpu")
        out_dir.mkdir(parents=True, exist_ok=True)
        for name in ("config.json", "model.safetensors"):
            shutil.copyfile(folder / name, out_dir / name)


class ClipJudgeSource(JudgeSource):
    """{clip: ID_OR_FOLDER, prompts: {NAME: {VALUE: PROMPT}}}: any CLIP model, told by prompts what to tell apart.

    What lies under the audit's inputs is taken; else the name is one of the Hugging Face hub, looked up in
    its cache.
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

    def _folder(self, inputs: Path) -> Path | None:
        return local_folder(inputs, self.clip, self.revision, CLIP)

    @property
    def _repository(self) -> Repository:
        wanted = ("*.json", "*.txt", "model.safetensors", "model-*-of-*.safetensors")
        return Repository(self.clip, self.revision, wanted, ignored=("*/*",))

    def errors(self, inputs: Path) -> list[str]:
        """See JudgeSource."""
        try:
            if (folder := self._folder(inputs)) is not None:
                _need(folder, ("config.json", "model.safetensors"), CLIP)
        except UsageError as error:
            return [str(error)]
        return []

    def build(self, inputs: Path, out_dir: Path) -> None:
        """See JudgeSource."""
        if errors := self.errors(inputs):
            raise UsageError("\n".join(errors))
        from stages.tasks.text_to_image.clip_judge import save_clip_judge

        folder, origin = self._found(inputs)
        save_clip_judge(folder, origin, self.prompts, self.certainty, out_dir)

    def _found(self, inputs: Path) -> tuple[Path, str]:
        if (folder := self._folder(inputs)) is not None:
            return folder, f"the folder {self.clip}"
        found = self._repository.cached(inputs, CLIP)
        return found.folder, found.origin

    def origin(self, inputs: Path) -> str:
        """See JudgeSource."""
        return self._found(inputs)[1]

    def prefetch(self, inputs: Path) -> list[str]:
        """See JudgeSource."""
        return [] if self._folder(inputs) is not None else [self._repository.fetch(CLIP)]


JUDGE_LOADERS: Mapping[str, type[JudgeSource]] = {"clip": ClipJudgeSource, "attributes": AttributeJudgeSource}


def load_judge(folder: Path, device: str) -> Judge:
    """Read a judge's folder, of whatever kind it is.

    Raises:
        UsageError: when a file is missing or damaged.
    """
    if (folder / CLIP_FORM).exists():
        from stages.tasks.text_to_image.clip_judge import load_clip_judge

        return load_clip_judge(folder, device)
    from stages.tasks.text_to_image.attribute_judge import load_attribute_judge

    return load_attribute_judge(folder, device)


def _need(folder: Path, names: Sequence[str], where: str) -> None:
    """Say which files a folder lacks, and where its weights are pickles."""
    if not folder.is_dir():
        raise UsageError(f"{where}: {folder} is not a folder; expected one with {', '.join(names)}")
    found = sorted(path.name for path in folder.iterdir())
    if lacking := [name for name in names if name not in found]:
        pickled = [name for name in found if name.endswith((".bin", ".pt", ".pth", ".ckpt"))]
        why = f"; {', '.join(pickled)} is a pickle, which could run code when read" if pickled else ""
        raise UsageError(f"{where}: {folder} has no {', '.join(lacking)}; found {', '.join(found) or 'nothing'}{why}")
