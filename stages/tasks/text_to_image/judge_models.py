"""The two kinds of judges, a small trained network and a CLIP model, with their loaders.

To add a kind, add it to JUDGE_LOADERS; `load_judge` has to recognise its folder.
"""

import shutil
from abc import abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Self

import numpy as np
import torch
from pydantic import Field, field_validator, model_validator
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional

from stages.core.errors import UsageError
from stages.core.files import local_file, read_json, write_json
from stages.params import Strict, checked
from stages.tasks.hub import NAME, Repository
from stages.tasks.sources import Source, collect
from stages.tasks.text_to_image.folders import PICKLES, check_weights, readable
from stages.tasks.text_to_image.judges import PictureJudge, Reading, Values, attribute_values

CLIP = "prepare.judge.clip"
CLIP_FORM = "judge.json"  # stored beside a CLIP model: its prompts, its origin, and when it abstains
SCALE = 2.5  # of CLIPScore: cosines of pictures and their captions are seldom above .4

# Batches are always this large, filled up with black: the last bits of sums depend on shapes, and what is read of a
# picture must not depend on the number of others.
BATCH = 32
CLIP_BATCH = 8


class JudgeSource(Source):
    """Base of the judge loaders."""

    @abstractmethod
    def build(self, inputs: Path, out_dir: Path) -> None:
        """Write the folder that `load_judge` reads. Raises a UsageError when the judge cannot be read."""


def _batches(
    pixels: Sequence[np.ndarray], size: int, convert: Callable[[Sequence[np.ndarray]], Tensor]
) -> Iterator[tuple[Tensor, int]]:
    """Yield pictures in full batches (size, ...), each with the number of pictures in it."""
    for start in range(0, len(pixels), size):
        part = convert(pixels[start : start + size])
        yield torch.cat([part, part.new_zeros(size - len(part), *part.shape[1:])]), len(part)


# A small network that names attributes of pictures, and abstains from any that it is unsure of


class JudgeForm(Strict):
    """config.json: everything needed to rebuild the network, use it and trust it.

    Weights are stored beside it in half precision, and computed with in single precision.
    """

    attributes: dict[str, Annotated[tuple[str, ...], Field(strict=False)]] = Field(
        min_length=1, description="the values of each attribute"
    )
    size: int = Field(32, ge=8, multiple_of=8, description="pixels a side; pictures are resized to it")
    widths: tuple[int, int, int] = Field(
        (16, 32, 64), strict=False, description="channels of the three stages of convolutions"
    )
    features: int = Field(128, description="width of the last but one layer")
    temperatures: dict[str, float] = Field(description="logits are divided by this (Guo et al. 2017, section 4.2)")
    thresholds: dict[str, float] = Field(description="the judge abstains where its best value is less probable")
    note: dict[str, Any] = Field({}, description="held-out errors, for people")

    @model_validator(mode="after")
    def _complete(self) -> Self:
        for name, values in self.attributes.items():
            if len(set(values)) < 2 or len(set(values)) < len(values):
                raise ValueError(f"attributes.{name}: expected two different values or more, found {list(values)}")
        for field, numbers in (("temperatures", self.temperatures), ("thresholds", self.thresholds)):
            if set(numbers) != set(self.attributes):
                raise ValueError(f"{field}: expected the keys {list(self.attributes)}, found {list(numbers)}")
        if min(self.temperatures.values()) <= 0:
            raise ValueError(f"temperatures: expected numbers above 0, found {self.temperatures}")
        return self


class AttributeNet(nn.Module):
    """Five convolutions, one hidden layer, one linear head per attribute.

    Args:
        attributes: the number of values by attribute.
        size: pixels per side.
        widths: channels of the three stages.
        features: width of the hidden layer.
    """

    def __init__(self, attributes: Mapping[str, int], size: int, widths: Sequence[int], features: int) -> None:
        super().__init__()
        one, two, three = widths
        self.body = nn.Sequential(
            *_convolution(3, one), nn.MaxPool2d(2),
            *_convolution(one, two), *_convolution(two, two), nn.MaxPool2d(2),
            *_convolution(two, three), *_convolution(three, three), nn.MaxPool2d(2),
            nn.Flatten(), nn.Linear(three * (size // 8) ** 2, features), nn.ReLU(),
        )  # fmt: skip
        # Names of attributes can contain dots, which names of modules cannot.
        self.heads = nn.ModuleList([nn.Linear(features, values) for values in attributes.values()])
        self.names = tuple(attributes)

    def forward(self, pixels: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """Pixels (n, 3, size, size) in [-1, 1] -> features (n, d), logits (n, values) by attribute."""
        features = self.body(pixels)
        return features, {name: head(features) for name, head in zip(self.names, self.heads, strict=True)}


def _convolution(before: int, after: int) -> tuple[nn.Module, ...]:
    return nn.Conv2d(before, after, 3, padding=1, bias=False), nn.BatchNorm2d(after), nn.ReLU()


def make_net(form: JudgeForm) -> AttributeNet:
    """Make the network of a form, with random weights."""
    return AttributeNet({n: len(v) for n, v in form.attributes.items()}, form.size, form.widths, form.features)


class AttributeJudge:
    """See `judges.Judge`: a network with its form."""

    reads_prompts = False

    def __init__(self, form: JudgeForm, net: AttributeNet, device: str = "cpu") -> None:
        self.form = form
        self.attributes: Values = form.attributes
        self.note: Mapping[str, Any] = form.note
        self._net = net.to(device).eval()
        self._device = device

    @torch.inference_mode()
    def read(self, pixels: Sequence[np.ndarray]) -> Reading:
        """See Judge; features are those of the penultimate layer."""
        features = [torch.zeros(0, self.form.features)]
        logits = {name: [torch.zeros(0, len(values))] for name, values in self.attributes.items()}
        for batch, n in _batches(pixels, BATCH, self._pixels):
            seen, heads = self._net(batch.to(self._device))
            features.append(seen[:n].cpu())
            for name, head in heads.items():
                logits[name].append(head[:n].cpu())
        probabilities = {
            name: (torch.cat(parts) / self.form.temperatures[name]).softmax(1).numpy() for name, parts in logits.items()
        }
        abstained = {n: p.max(1) < self.form.thresholds[n] for n, p in probabilities.items()}
        return Reading(probabilities, abstained, torch.cat(features).numpy())

    def _pixels(self, pictures: Sequence[np.ndarray]) -> Tensor:
        return torch.stack([resized(picture, self.form.size) for picture in pictures])

    def aligned(self, reading: Reading, prompts: Sequence[str], expected: Sequence[Mapping[str, str]]) -> np.ndarray:
        """See Judge: 1 if everything expected is read, else 0; what the judge cannot tell is not shown.

        It is yes or no, so that the mean over pictures is a share people can count, and a threshold is between counts.
        What is not expected does not count. Prompts are not used.
        """
        read = {attribute: attribute_values(self, reading, attribute) for attribute in self.attributes}
        shown = [all(read[name][n] == value for name, value in wanted.items()) for n, wanted in enumerate(expected)]
        return np.array(shown, dtype=np.float32)


def resized(picture: np.ndarray, size: int) -> Tensor:
    """Convert a picture (h, w, 3) uint8 to the network's input: (3, size, size) in [-1, 1], averaged if it shrinks."""
    pixels = torch.from_numpy(np.array(picture, dtype=np.float32)).permute(2, 0, 1)
    if pixels.shape[1:] != (size, size):
        pixels = functional.interpolate(pixels[None], (size, size), mode="bilinear", antialias=True)[0]
    return pixels / 127.5 - 1


def save_judge(form: JudgeForm, net: AttributeNet, folder: Path) -> None:
    """Write config.json and model.safetensors; the same judge gives the same bytes."""
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / "config.json", form.model_dump(mode="json"))
    state = {k: v.half() if v.is_floating_point() else v for k, v in net.state_dict().items()}
    save_file({k: v.contiguous() for k, v in state.items()}, folder / "model.safetensors")


def load_judge_form(folder: Path) -> JudgeForm:
    """Read config.json. Raises a UsageError, one line per error, when it is missing or wrong."""
    config = read_json(folder / "config.json")
    config.pop("schema", None)
    return checked(JudgeForm, config, str(folder / "config.json"))


def load_attribute_judge(folder: Path, device: str) -> AttributeJudge:
    """Read what `save_judge` wrote.

    Raises a UsageError when a file is missing or damaged, or the weights do not fit config.json.
    """
    form = load_judge_form(folder)
    path = folder / "model.safetensors"
    try:
        state = load_file(path)
    except (SafetensorError, OSError) as error:
        raise UsageError(f"{path} is not a readable safetensors file: {error}") from None
    net = make_net(form)
    try:
        net.load_state_dict({k: v.float() if v.is_floating_point() else v for k, v in state.items()})
    except RuntimeError as error:
        raise UsageError(f"{path} does not fit {folder / 'config.json'}: {' '.join(str(error).split())}") from None
    return AttributeJudge(form, net, device)


class AttributeJudgeSource(JudgeSource):
    """{attributes: FOLDER}: a small network trained to name attributes, as `save_judge` writes it."""

    attributes: str = Field(description="a folder under the audit's inputs: config.json, model.safetensors")

    def origin(self, inputs: Path) -> str:
        return f"the folder {self.attributes}"

    def errors(self, inputs: Path) -> list[str]:
        return collect(lambda: load_judge_form(self._folder(inputs)))

    def _folder(self, inputs: Path) -> Path:
        folder = local_file(inputs, self.attributes, "prepare.judge.attributes")
        _need(folder, ("config.json", "model.safetensors"), "prepare.judge.attributes")
        return folder

    def build(self, inputs: Path, out_dir: Path) -> None:
        folder = self._folder(inputs)
        load_attribute_judge(folder, "cpu")
        out_dir.mkdir(parents=True, exist_ok=True)
        for name in ("config.json", "model.safetensors"):
            shutil.copyfile(folder / name, out_dir / name)


# A CLIP model, which reads attributes by prompts, without training


class ClipJudge:
    """A CLIP model as the judge.

    Attributes are read by the prompt nearest to the picture (Radford et al. 2021, section 3.1.2). Alignment is
    CLIPScore (Hessel et al. 2021, equation 1), 2.5 times the cosine of picture and prompt, but within [0, 1].

    Args:
        model: a CLIPModel.
        processor: its CLIPProcessor.
        attributes: {attribute: {value: prompt}}.
        certainty: it abstains if the best value is less probable.
    """

    reads_prompts = True

    def __init__(
        self, model: Any, processor: Any, attributes: Mapping[str, Mapping[str, str]], certainty: float, device: str
    ) -> None:
        self.attributes: Values = {name: tuple(prompts) for name, prompts in attributes.items()}
        self.note: Mapping[str, Any] = {
            "attributes": "told zero-shot, by prompts; how often wrongly was not measured",
            "prompts": {name: dict(prompts) for name, prompts in attributes.items()},
            "certainty": certainty,
        }
        self._model = model.to(device).eval()
        self._processor = processor
        self._device = device
        self._certainty = certainty
        self._texts: dict[str, np.ndarray] = {}
        self._anchors = {name: self.embed_texts(list(prompts.values())) for name, prompts in attributes.items()}

    @torch.inference_mode()
    def read(self, pixels: Sequence[np.ndarray]) -> Reading:
        """See Judge; features are the pictures' embeddings, of length 1."""
        scale = float(self._model.logit_scale.exp())
        parts = [
            _unit(self._model.get_image_features(pixel_values=batch.to(self._device)).pooler_output)[:n]
            for batch, n in _batches(pixels, CLIP_BATCH, self._pixels)
        ]
        features = np.concatenate([np.zeros((0, self._model.config.projection_dim), np.float32), *parts])
        probabilities = {
            name: functional.softmax(torch.from_numpy(scale * features @ anchors.T), dim=1).numpy()
            for name, anchors in self._anchors.items()
        }
        abstained = {name: p.max(1) < self._certainty for name, p in probabilities.items()}
        return Reading(probabilities, abstained, features)

    def aligned(self, reading: Reading, prompts: Sequence[str], expected: Sequence[Mapping[str, str]]) -> np.ndarray:
        """See Judge: CLIPScore of picture and prompt, capped at 1. Expected values are not used."""
        cosines = (reading.features * self.embed_texts(prompts)).sum(1)
        return np.clip(SCALE * cosines, 0, 1).astype(np.float32)

    @torch.inference_mode()
    def embed_texts(self, texts: Sequence[str]) -> np.ndarray:
        """Embed n texts: (n, d) float32 of length 1; what is too long for the model is cut off."""
        for text in dict.fromkeys(texts):
            if text not in self._texts:
                limit = self._model.config.text_config.max_position_embeddings
                tokens = self._processor.tokenizer(text, truncation=True, max_length=limit, return_tensors="pt")
                ids, mask = tokens["input_ids"].to(self._device), tokens["attention_mask"].to(self._device)
                pooled = self._model.get_text_features(input_ids=ids, attention_mask=mask).pooler_output
                self._texts[text] = _unit(pooled)[0]
        empty = np.zeros((0, self._model.config.projection_dim), np.float32)
        return np.concatenate([empty, *(self._texts[text][None] for text in texts)])

    def _pixels(self, pictures: Sequence[np.ndarray]) -> Tensor:
        seen: Tensor = self._processor.image_processor(images=list(pictures), return_tensors="pt")["pixel_values"]
        return seen


def _unit(vectors: Tensor) -> np.ndarray:
    found: np.ndarray = functional.normalize(vectors.float(), dim=1).cpu().numpy()
    return found


def _load_clip(source: Path) -> tuple[Any, Any]:
    with readable(f"{CLIP}: {source}"):
        from transformers import CLIPModel, CLIPProcessor

        loaded: Any = CLIPModel.from_pretrained(
            source, use_safetensors=True, dtype=torch.float32, output_loading_info=True, local_files_only=True
        )
        model, info = loaded
        check_weights(info, "the CLIP model")
        return model, CLIPProcessor.from_pretrained(source, local_files_only=True)


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
        return collect(lambda: self._check_folder(inputs))

    def _check_folder(self, inputs: Path) -> None:
        if (folder := self._repository.local(inputs, CLIP)) is not None:
            _need(folder, ("config.json", "model.safetensors"), CLIP)

    def build(self, inputs: Path, out_dir: Path) -> None:
        self.require(inputs)
        folder, origin = self._repository.found(inputs, CLIP)
        model, processor = _load_clip(folder)
        out_dir.mkdir(parents=True, exist_ok=True)
        model.save_pretrained(out_dir)
        processor.save_pretrained(out_dir)
        form = {"attributes": self.prompts, "certainty": self.certainty, "origin": origin}
        write_json(out_dir / CLIP_FORM, form)

    def origin(self, inputs: Path) -> str:
        return self._repository.found(inputs, CLIP)[1]

    def prefetch(self, inputs: Path) -> list[str]:
        return self._repository.prefetch(inputs, CLIP)


JUDGE_LOADERS: Mapping[str, type[JudgeSource]] = {"clip": ClipJudgeSource, "attributes": AttributeJudgeSource}


def load_judge(folder: Path, device: str) -> PictureJudge:
    """Read a judge's folder, whatever its kind. Raises a UsageError when a file is missing or damaged."""
    if not (folder / CLIP_FORM).exists():
        return load_attribute_judge(folder, device)
    form = read_json(folder / CLIP_FORM)
    if not {"attributes", "certainty"} <= set(form):
        raise UsageError(f"{folder / CLIP_FORM}: expected the keys attributes, certainty; found {', '.join(form)}")
    return ClipJudge(*_load_clip(folder), form["attributes"], form["certainty"], device)


def _need(folder: Path, names: Sequence[str], where: str) -> None:
    """Check that a folder has these files; the error mentions weights that are pickles."""
    if not folder.is_dir():
        raise UsageError(f"{where}: {folder} is not a folder; expected one with {', '.join(names)}")
    found = sorted(path.name for path in folder.iterdir())
    if lacking := [name for name in names if name not in found]:
        pickled = [name for name in found if name.endswith(PICKLES)]
        why = f"; {', '.join(pickled)} is a pickle, which could run code when read" if pickled else ""
        raise UsageError(f"{where}: {folder} has no {', '.join(lacking)}; found {', '.join(found) or 'nothing'}{why}")
