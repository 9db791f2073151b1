"""What explorers see of items: features on a few axes of comparable scale."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

DIMENSIONS = 64  # more dimensions cost an explorer time and add little


@dataclass(frozen=True)
class PrincipalAxes:
    """Standardised features on at most `DIMENSIONS` principal axes, with unit variance on average.

    Args:
        mean: (d,) mean of the features that the axes were computed from.
        std: (d,) their standard deviation.
        axes: (d, k).
    """

    mean: np.ndarray
    std: np.ndarray
    axes: np.ndarray

    @classmethod
    def of(cls, features: np.ndarray) -> PrincipalAxes:
        """Compute the axes of n feature vectors (n, d); if d <= `DIMENSIONS`, features are only standardised."""
        mean, std = features.mean(0), features.std(0)
        std = np.where(std > 1e-6, std, 1.0)  # a constant feature stays at 0
        scaled = (features - mean) / std
        if scaled.shape[1] <= DIMENSIONS:
            return cls(mean, std, np.eye(scaled.shape[1]))
        _, _, axes = np.linalg.svd(scaled, full_matrices=False)
        axes = axes[:DIMENSIONS]
        # The sign of an axis is arbitrary; fix it, or the same model could give mirrored vectors.
        axes = axes * np.sign(axes[np.arange(len(axes)), np.abs(axes).argmax(1)])[:, None]
        spread = (scaled @ axes.T).std() or 1.0
        return cls(mean, std, axes.T / spread)

    def __call__(self, features: np.ndarray) -> np.ndarray:
        """Project features (n, d) onto the axes: (n, k) float32."""
        return ((features - self.mean) / self.std @ self.axes).astype(np.float32)
