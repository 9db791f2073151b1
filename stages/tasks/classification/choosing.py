"""What `faded propose` and `faded usage` have to know about pictures."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import torch
from PIL import Image

from stages.core.errors import UsageError
from stages.tasks.choosing import Vocabulary
from stages.tasks.classification.pictures import SUFFIXES, UnreadablePicture
from stages.tasks.classification.pool import Encoded
from stages.usage import measures
from stages.usage.readers import BATCH, Reader, sample

if TYPE_CHECKING:
    from stages.tasks.classification.probes import ClassifierProbes


class PictureVocabulary(Vocabulary):
    """The catalogue; a model that proposes may see pictures."""

    def pictures(self, task: ClassifierProbes, item_ids: Sequence[str]) -> list[bytes]:
        encoded = []
        for pixels in (task.clean(task.rows(item_ids)).permute(0, 2, 3, 1) * 255).round().byte().cpu().numpy():
            file = io.BytesIO()
            Image.fromarray(pixels[:, :, 0] if pixels.shape[2] == 1 else pixels).save(file, "PNG")
            encoded.append(file.getvalue())
        return encoded


class PictureReader(Reader):
    """A folder of pictures, for classifiers."""

    shown = measures.PICTURES
    task: ClassifierProbes

    def own(self, ids: Sequence[str], cells: np.ndarray) -> pd.DataFrame:
        return measures.of_pictures(self.task.inputs(ids, cells))

    def measured_by(self) -> Mapping[str, Sequence[str]]:
        """Grey pictures have no colour."""
        found = super().measured_by()
        return {name: by for name, by in found.items() if by != ("colour",) or self.task.model.form.shape[0] == 3}

    def production(self, path: Path, rng: np.random.Generator) -> pd.DataFrame:
        if not path.is_dir():
            raise UsageError(f"{path} is not a folder, expected a folder of pictures")
        files = sample(sorted(file for file in path.rglob("*") if file.suffix.lower() in SUFFIXES), rng)
        form, data = self.task.model.form, self.task.source(self.task.context, "data")
        pictures, parts = Encoded(files, getattr(data, "resize", None)), []
        for start in range(0, len(files), BATCH):
            pixels = []
            for row in range(start, min(start + BATCH, len(files))):
                try:
                    pixels.append(pictures.read(row, form.shape, form.view))
                except UnreadablePicture as error:
                    self.left_out.append(str(error))
            if pixels:
                parts.append(measures.of_pictures(torch.from_numpy(np.stack(pixels)).float() / 255))
        return pd.concat(parts, ignore_index=True) if parts else pd.DataFrame()
