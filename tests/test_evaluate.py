"""Metrics against second implementations written out here."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import linalg
from scipy.spatial.distance import cdist

from tiue_core.evaluate.metrics import frechet_distance, manifold


def features(seed: int, shift: float = 0.0, count: int = 300) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    mixing = torch.randn(12, 12, generator=torch.Generator().manual_seed(9))
    return torch.randn(count, 12, generator=generator) @ mixing + shift


def test_frechet_distance() -> None:
    real, fake = features(0).double().numpy(), features(1, 0.4).double().numpy()
    covariances = np.cov(real, rowvar=False), np.cov(fake, rowvar=False)
    root = linalg.sqrtm(covariances[0] @ covariances[1]).real
    wanted = ((real.mean(0) - fake.mean(0)) ** 2).sum()
    wanted += np.trace(covariances[0] + covariances[1] - 2 * root)
    found = frechet_distance(torch.tensor(real), torch.tensor(fake))
    assert found == pytest.approx(wanted, rel=1e-4)
    assert frechet_distance(torch.tensor(real), torch.tensor(real)) == pytest.approx(0, abs=1e-6)


def test_precision_recall_density_coverage() -> None:
    real, fake = features(0).double().numpy(), features(1, 0.8, 250).double().numpy()

    def radii(points: np.ndarray) -> np.ndarray:
        return np.sort(cdist(points, points), axis=1)[:, 5]

    across = cdist(real, fake)
    inside_real = across < radii(real)[:, None]
    inside_fake = across < radii(fake)[None, :]
    found = manifold(torch.tensor(real), torch.tensor(fake))
    precision, recall = inside_real.any(0).mean(), inside_fake.any(1).mean()
    assert found["precision"] == pytest.approx(precision)
    assert found["recall"] == pytest.approx(recall)
    assert found["density"] == pytest.approx(inside_real.sum(0).mean() / 5)
    assert found["coverage"] == pytest.approx((across.min(1) < radii(real)).mean())
    assert found["f1"] == pytest.approx(2 * precision * recall / (precision + recall))
