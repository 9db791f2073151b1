"""Learning which of two pictures is better (Diffusion-DPO).

Wallace et al. 2023, "Diffusion Model Alignment Using Direct Preference Optimization".
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional

from stages.tasks.text_to_image.adapter import AdapterTraining
from stages.tasks.text_to_image.pairs import Pair


class DpoTraining(AdapterTraining[Pair]):
    """One training run on pairs; see AdapterTraining.

    The loss is that of their equation 14, with beta T omega as one constant and errors as means over the latents. Both
    pictures of a pair get the same noise. The model under test is the reference.
    """

    def learn(self, lessons: Sequence[Pair], noise: Tensor, times: Tensor, draw: torch.Generator) -> float:
        total, size = 0.0, max(1, self.compute.batch_size // 2)
        for start in range(0, len(lessons), size):
            pairs = lessons[start : start + size]
            clean = self.latents([pair.right for pair in pairs] + [pair.wrong for pair in pairs])
            of_noise, of_time = noise[start : start + size].repeat(2, 1, 1, 1), times[start : start + size].repeat(2)
            noisy, wanted = self.noise.add_noise(clean, of_noise, of_time), self.wanted(clean, of_noise, of_time)
            asked = self.conditions([pair.caption for pair in pairs] * 2)
            with torch.no_grad():
                before = _errors(self.predict(self.pipeline.unet, noisy, of_time, asked), wanted)
            right, wrong = (_errors(self.predict(self.unet, noisy, of_time, asked), wanted) - before).chunk(2)
            loss = -functional.logsigmoid(self.settings.beta * (wrong - right)).sum() / len(lessons)
            loss.backward()
            total += float(loss.detach())
        return total


def _errors(predicted: Tensor, wanted: Tensor) -> Tensor:
    """Mean squared error of each of n predictions: (n,)."""
    return (predicted - wanted).square().flatten(1).mean(1)
