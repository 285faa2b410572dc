"""Set-to-set metrics on features: FID, precision, recall, density, coverage.

Protocol of the paper's tables (StudioGAN): k = 5 for all four, whole sets, strict `<`, float64. The
libraries compute; of the four, only the bookkeeping is done here, because prdc keeps all pairs in
memory (7.2 GB for 30,000 pictures) and scikit-learn, which it stands on, can hand them out in rows.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor, nn

from ..errors import TiueError

NEAREST = 5  #: neighbours; other papers use 3
MEMORY = 256  #: MiB of distances at a time
HALVES = 40  #: random halves that a standard error is taken from


class _Features(nn.Module):
    """Lets torchmetrics take features where it expects images."""

    def __init__(self, width: int):
        super().__init__()
        self.num_features = width

    def forward(self, features: Tensor) -> Tensor:
        return features


def check_features(features: Tensor, name: str, least: int = 2) -> None:
    """Raise TiueError unless ``features`` (N, D) are finite and at least ``least``."""
    if features.ndim != 2:
        raise TiueError(f"the features of {name} have shape {tuple(features.shape)}: give (N, D)")
    if len(features) < least:
        raise TiueError(
            f"{name} has {len(features)} pictures, {least} at least are needed: make more of them"
        )
    if not torch.isfinite(features).all():
        bad = int((~torch.isfinite(features).all(1)).sum())
        raise TiueError(
            f"{bad} features of {name} are not numbers: look for broken pictures, or for an "
            "extractor that overflows in half precision"
        )


def frechet_distance(real: Tensor, fake: Tensor) -> float:
    """Frechet distance between Gaussians fitted to two sets of features (N, D)."""
    from torchmetrics.image.fid import FrechetInceptionDistance

    _check_both(real, fake, 2)
    metric = FrechetInceptionDistance(feature=_Features(real.shape[1])).set_dtype(torch.float64)
    metric.update(real.double(), real=True)
    metric.update(fake.double(), real=False)
    return float(metric.compute())


def manifold(
    real: Tensor, fake: Tensor, nearest: int = NEAREST, memory: float = MEMORY
) -> dict[str, float]:
    """Precision, recall (Kynkaanniemi 2019), density, coverage (Naeem 2020) and F1 = 2PR/(P+R).

    Args:
        real, fake: (N, D) and (M, D).
        memory: MiB of distances at a time; no more than a few times that is taken.
    """
    from sklearn.metrics import pairwise_distances_chunked

    _check_both(real, fake, nearest + 1)
    a, b = (np.asarray(one, dtype=np.float64) for one in (real, fake))

    def radii(points: np.ndarray) -> np.ndarray:
        """Distance of every point to its k-th neighbour; the 0-th is itself."""

        def kth(distances: np.ndarray, start: int) -> np.ndarray:
            return np.partition(distances, nearest, axis=1)[:, nearest].copy()

        # A copy, or BLAS would take another path for a matrix times itself, and a set would not
        # lie as far from itself as from its twin.
        twin = points.copy()
        rows = pairwise_distances_chunked(points, twin, reduce_func=kth, working_memory=memory)
        return np.concatenate(list(rows))

    around_real, around_fake = radii(a), radii(b)
    near_real = np.zeros(len(b), dtype=bool)  # fakes that lie in a real ball
    pairs, near_fake, covered, start = 0, 0, 0, 0
    for distances in pairwise_distances_chunked(a, b, working_memory=memory):
        own = around_real[start : start + len(distances), None]
        inside = distances < own
        near_real |= inside.any(axis=0)
        pairs += int(inside.sum())
        covered += int(inside.any(axis=1).sum())
        near_fake += int((distances < around_fake).any(axis=1).sum())
        start += len(distances)
    precision, recall = float(near_real.mean()), near_fake / len(a)
    both = precision + recall
    return {
        "precision": precision,
        "recall": recall,
        "density": pairs / nearest / len(b),
        "coverage": covered / len(a),
        "f1": 2 * precision * recall / both if both else 0.0,
    }


def distances(real: Tensor, fake: Tensor, nearest: int = NEAREST) -> dict[str, float]:
    """FID and the five others."""
    return {"fid": frechet_distance(real, fake), **manifold(real, fake, nearest)}


def _check_both(real: Tensor, fake: Tensor, least: int) -> None:
    check_features(real, "the reference", least)
    check_features(fake, "the system", least)
    if real.shape[1] != fake.shape[1]:
        raise TiueError(
            f"features of {real.shape[1]} and of {fake.shape[1]} numbers cannot be compared: "
            "take both from one extractor"
        )


# --- how sure -------------------------------------------------------------------------------


def standard_errors(
    function: Callable[[Tensor, Tensor], dict[str, float]],
    real: int,
    fake: int,
    draws: int = HALVES,
    seed: int = 0,
) -> dict[str, float]:
    """Standard errors of what ``function(real rows, fake rows)`` gives, from random halves.

    The variance over halves of size b of n, drawn without putting back, is (1 - b/n) / b times
    that of one picture, and the whole's is 1/n: so sd * sqrt(b / (n - b)), which for b = n/2 is the
    sd itself. Drawing with replacement (the bootstrap) would not do: of a picture that is there
    twice the nearest neighbour is itself.

    Args:
        real, fake: how many there are of each. Which halves are drawn depends on these, ``draws``
            and ``seed`` alone, so all systems are cut alike.
    """
    if draws < 2 or min(real, fake) < 4:
        return {}
    generator = torch.Generator().manual_seed(seed)
    found: list[dict[str, float]] = []
    for _ in range(draws):
        rows = [torch.randperm(n, generator=generator)[: n // 2] for n in (real, fake)]
        found.append(function(*rows))
    b, n = fake // 2, fake
    scale = (b / (n - b)) ** 0.5
    return {name: float(np.std([one[name] for one in found], ddof=1)) * scale for name in found[0]}
