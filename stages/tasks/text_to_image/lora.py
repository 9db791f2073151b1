"""Learning pictures with their captions; the loss is the squared error of the network's prediction."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from stages.tasks.text_to_image.adapter import AdapterTraining
from stages.tasks.text_to_image.captions import Lesson


class LoraTraining(AdapterTraining[Lesson]):
    """One training run on captioned pictures; see AdapterTraining."""

    def learn(self, lessons: Sequence[Lesson], noise: Tensor, times: Tensor, draw: torch.Generator) -> float:
        clean = self.latents([lesson.picture for lesson in lessons])
        dropped = (torch.rand(len(lessons), generator=draw) < self.settings.caption_dropout).tolist()
        captions = ["" if drop else lesson.caption for drop, lesson in zip(dropped, lessons, strict=True)]
        noisy, wanted = self.noise.add_noise(clean, noise, times), self.wanted(clean, noise, times)
        taught = torch.tensor([self.settings.prior if lesson.replayed else 0.0 for lesson in lessons]).to(clean.device)
        total = 0.0
        for start in range(0, len(lessons), self.compute.batch_size):
            part = slice(start, start + self.compute.batch_size)
            asked = self.conditions(captions[part])
            # A mixture of (w - p)^2 and (b - p)^2 has the gradient of one squared error to the mixture of w and b.
            goal = self._mixed(wanted[part], taught[part], noisy[part], times[part], asked)
            predicted = self.predict(self.unet, noisy[part], times[part], asked)
            loss = functional.mse_loss(predicted, goal, reduction="sum") / wanted.numel()
            loss.backward()
            total += float(loss.detach())
        return total

    @torch.no_grad()
    def _mixed(self, wanted: Tensor, share: Tensor, noisy: Tensor, times: Tensor, asked: dict[str, Any]) -> Tensor:
        """Mix the targets with the prediction of the model under test, which has the given share of each."""
        if not share.any():
            return wanted
        share = share.view(-1, 1, 1, 1)
        return (1 - share) * wanted + share * self.predict(self.pipeline.unet, noisy, times, asked)
