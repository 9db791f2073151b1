"""A sample of the inputs that a model receives in production, for `faded usage --from`."""

import json
import os
import random
import uuid
from collections.abc import Mapping
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING, Any

import numpy as np

from stages.core.errors import UsageError
from stages.core.files import new_file

if TYPE_CHECKING:
    from PIL.Image import Image

_LINES = (".jsonl", ".ndjson")


class InputLog:
    """Keeps a random share of inputs as they come, in a folder of pictures or a file of JSON lines.

    Several threads and processes may write to the same place. Nothing else than the input is kept: no time, no answer.

    Args:
        path: a folder for pictures; a `.jsonl` file for texts and rows.
        share: the share of inputs that is kept, each with the same chance.
        most: after that many, this log keeps no more.

    Raises:
        UsageError: if `share` is not above 0 and at most 1.
    """

    def __init__(self, path: str | Path, share: float = 0.01, most: int = 10_000) -> None:
        if not 0 < share <= 1:
            raise UsageError(f"share: expected a number above 0 and at most 1, found {share!r}")
        self.path, self.share, self._left = Path(path), share, most
        self._random, self._lock = random.Random(), Lock()

    def __call__(self, received: "str | Mapping[str, Any] | np.ndarray | Image") -> None:
        """Keep an input, or leave it out.

        Args:
            received: a text; a row, by column; or a picture, of PIL or as an array of (height, width) or (height,
                width, channels), of bytes or of numbers from 0 to 1.

        Raises:
            UsageError: if it is not an input that this log can hold.
        """
        with self._lock:
            if self._left <= 0 or self._random.random() >= self.share:
                return
            self._left -= 1
        if self.path.suffix in _LINES:
            self._append(received)
        else:
            self._draw(received)

    def _append(self, received: Any) -> None:
        if not isinstance(received, str | Mapping):
            raise UsageError(f"{self.path}: expected a text or a row, found {type(received).__name__}")
        row = {"text": received} if isinstance(received, str) else dict(received)
        line = json.dumps(row, ensure_ascii=False, default=str) + "\n"
        self.path.parent.mkdir(parents=True, exist_ok=True)
        # One write to a file opened for appending: lines of several processes do not mix.
        file = os.open(self.path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
        try:
            os.write(file, line.encode())
        finally:
            os.close(file)

    def _draw(self, received: Any) -> None:
        from io import BytesIO

        from PIL import Image

        picture = received
        if isinstance(received, np.ndarray):
            if received.ndim not in (2, 3) or (received.ndim == 3 and received.shape[2] not in (1, 3, 4)):
                raise UsageError(f"{self.path}: expected pictures as (height, width, channels), found {received.shape}")
            scaled = received if received.dtype == np.uint8 else (np.clip(received, 0, 1) * 255).round()
            pixels = scaled.astype(np.uint8)
            picture = Image.fromarray(pixels[:, :, 0] if pixels.ndim == 3 and pixels.shape[2] == 1 else pixels)
        if not isinstance(picture, Image.Image):
            raise UsageError(f"{self.path}: expected a picture, found {type(received).__name__}; texts go to .jsonl")
        data = BytesIO()
        picture.save(data, "PNG")
        self.path.mkdir(parents=True, exist_ok=True)
        new_file(self.path / f"{uuid.uuid4().hex}.png", data.getvalue(), 0o600)
