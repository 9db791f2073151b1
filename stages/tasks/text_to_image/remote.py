"""A text-to-image model behind HTTP: prompts and seeds are posted, pictures are returned.

    {"prompt": TEXT, "seed": 7, "steps": 25, "guidance": 7.5, ...}  ->  {"image": PNG in base64}

Its weights are not available, so it can be searched and judged but not repaired.
"""

import base64
import binascii
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import Field, field_validator

from stages.core.errors import UsageError
from stages.core.files import content_hash
from stages.tasks.contract import Compute
from stages.tasks.endpoint import Endpoint, EndpointConfig
from stages.tasks.known_answers import check_answers, keep_answers
from stages.tasks.text_to_image.config import SamplingConfig
from stages.tasks.text_to_image.pictures import from_png
from stages.tasks.text_to_image.sample import BLACK, BLANKED, Drawing, ModelSource, PictureModel

SEEDS = 2**31  # many services accept no larger ones, and some languages lose their last digits
FEATURES = 256  # number of features of a prompt's words
KNOWN = (("a red circle on a white background", 1), ("a photo of a dog on a beach", 2))  # these identify the model


class EndpointModel(ModelSource, EndpointConfig):
    """{endpoint: URL, key_env: VARIABLE, settings: {...}}: a text-to-image model behind HTTP."""

    batch_size: int = Field(4, ge=1, le=4096, description="pictures of a request")
    timeout: float = Field(300.0, gt=0, description="seconds for one request")
    settings: dict[str, Any] = Field({}, description="sent with every prompt as they are, {model: small} say")

    @field_validator("settings")
    @classmethod
    def _leave_the_rest_alone(cls, settings: dict[str, Any]) -> dict[str, Any]:
        own = {"prompt", "seed", "negative_prompt", "steps", "guidance", "width", "height"}
        if taken := sorted(own & settings.keys()):
            raise ValueError(f"{', '.join(taken)} is set by Faded (steps, guidance and size are prepare.sampling's)")
        return settings

    def errors(self, inputs: Path) -> list[str]:
        return []

    def repair_errors(self, audit: str, settings: Mapping[str, Any]) -> list[str]:
        return [f"restructure: models behind HTTP cannot be repaired (no weights); remove {audit} from repairs:"]

    def build(self, inputs: Path, out_dir: Path, sampling: SamplingConfig | None = None) -> None:
        """See ModelSource. Raises an InfrastructureError when the model cannot be reached."""
        painter = RemotePainter(Endpoint(self), self.settings, sampling or SamplingConfig(), Compute(), "")
        prompts, seeds = [prompt for prompt, _ in KNOWN], [seed for _, seed in KNOWN]
        painter.draw(prompts, seeds)  # first, so that answers that are no pictures raise an error before any is stored
        keep_answers(painter.endpoint, [painter.order(prompt, seed) for prompt, seed in KNOWN], out_dir)

    def origin(self, inputs: Path) -> str:
        return self.told

    def load(
        self, folder: Path, compute: Compute, sampling: SamplingConfig, repaired: Path | None = None
    ) -> "RemotePainter":
        """See ModelSource.

        Raises a UsageError, also when the model answers differently than when it was prepared; an InfrastructureError
        when it cannot be reached.
        """
        endpoint = Endpoint(self)
        if repaired is not None:
            raise UsageError(f"{repaired} is the repair of a pipeline; {endpoint.name} shows no weights to put it in")
        check_answers(endpoint, folder)
        return RemotePainter(endpoint, self.settings, sampling, compute, content_hash(sorted(folder.iterdir())))


class RemotePainter(PictureModel):
    """A model behind HTTP.

    Args:
        settings: sent with every prompt.
        sampling: steps, guidance, size; it has no scheduler.
        compute: the task's; the endpoint has its own batch size.
        content: content hash of the folder it was read from.
    """

    parameters = None  # unknown
    hash = ""

    def __init__(
        self,
        endpoint: Endpoint,
        settings: Mapping[str, Any],
        sampling: SamplingConfig,
        compute: Compute,
        content: str,
    ) -> None:
        super().__init__(sampling, compute, endpoint.config.batch_size * endpoint.config.concurrency)
        self.endpoint, self.settings, self.hash = endpoint, settings, content
        self._shape: tuple[int, ...] | None = None

    def order(self, prompt: str, seed: int, guidance: float | None = None) -> dict[str, Any]:
        """Return what is posted for one picture."""
        asked = self.sampling
        sized = {name: size for name in ("width", "height") if (size := getattr(asked, name)) is not None}
        negative = {"negative_prompt": asked.negative_prompt} if asked.negative_prompt else {}
        scale = asked.guidance if guidance is None else guidance
        return {
            **self.settings,
            **{"prompt": prompt, "seed": int(seed) % SEEDS, "steps": asked.steps, "guidance": scale},
            **negative,
            **sized,
        }

    def _draw(self, batch: Sequence[tuple[str, int]], guidance: float) -> list[Drawing]:
        answers = self.endpoint.ask([self.order(prompt, seed, guidance) for prompt, seed in batch])
        return [self._drawing(answer) for answer in answers]

    def _drawing(self, answer: Mapping[str, Any]) -> Drawing:
        image = answer.get("image")
        if not isinstance(image, str):
            keys = self.endpoint.quoted(", ".join(answer)) or "none"
            raise UsageError(f'{self.endpoint.name}: expected {{"image": PNG in base64}}, found the keys {keys}')
        try:
            pixels = from_png(base64.b64decode(image, validate=True))
        except (binascii.Error, UsageError) as error:
            raise UsageError(f"{self.endpoint.name}: its image is not a base64-encoded PNG: {error}") from None
        wanted = (self.sampling.height or pixels.shape[0], self.sampling.width or pixels.shape[1], 3)
        expected = self._shape = self._shape or wanted
        if pixels.shape != expected:
            found = " x ".join(map(str, pixels.shape[1::-1]))
            raise UsageError(
                f"{self.endpoint.name}: its pictures differ in size: {found} pixels, expected"
                f" {' x '.join(map(str, expected[1::-1]))}; set prepare.sampling.width and height"
            )
        if answer.get("blanked") is True:
            return Drawing(pixels, BLANKED)
        return Drawing(pixels, "black" if pixels.max() < BLACK else "")

    def embed(self, prompts: Sequence[str]) -> np.ndarray:
        """See PictureModel: features of the prompt's words, as the model's own are not available."""
        from sklearn.feature_extraction.text import HashingVectorizer

        hashed = HashingVectorizer(n_features=FEATURES, ngram_range=(1, 2)).transform(prompts)
        features: np.ndarray = hashed.toarray().astype(np.float32)
        return features

    def tokens(self, prompt: str) -> int:
        """See PictureModel: words, as the model's tokens are not available."""
        return len(prompt.split())

    def too_long(self, prompts: Sequence[str]) -> list[str]:
        """See PictureModel: none, as the model's limit is unknown."""
        return []
