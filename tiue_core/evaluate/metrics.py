"""Set-to-set metrics on features: FID, precision, recall, density, coverage.

Protocol of the paper's tables (StudioGAN): k = 5 for all four, whole sets. The libraries compute;
this module only names what they return.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

NEAREST = 5  #: neighbours; other papers use 3


class _Features(nn.Module):
    """Lets torchmetrics take features where it expects images."""

    def __init__(self, width: int):
        super().__init__()
        self.num_features = width

    def forward(self, features: Tensor) -> Tensor:
        return features


def frechet_distance(real: Tensor, fake: Tensor) -> float:
    """Frechet distance between Gaussians fitted to two sets of features (N, D)."""
    from torchmetrics.image.fid import FrechetInceptionDistance

    metric = FrechetInceptionDistance(feature=_Features(real.shape[1])).set_dtype(torch.float64)
    metric.update(real.double(), real=True)
    metric.update(fake.double(), real=False)
    return float(metric.compute())


def manifold(real: Tensor, fake: Tensor, nearest: int = NEAREST) -> dict[str, float]:
    """Precision, recall (Kynkaanniemi 2019), density, coverage (Naeem 2020) and F1 = 2PR/(P+R)."""
    from contextlib import redirect_stdout
    from io import StringIO

    from prdc import compute_prdc

    with redirect_stdout(StringIO()):  # it prints the sizes of the sets
        found = compute_prdc(
            real_features=np.asarray(real, dtype=np.float64),
            fake_features=np.asarray(fake, dtype=np.float64),
            nearest_k=nearest,
        )
    figures = {name: float(value) for name, value in found.items()}
    both = figures["precision"] + figures["recall"]
    figures["f1"] = 2 * figures["precision"] * figures["recall"] / both if both else 0.0
    return figures
