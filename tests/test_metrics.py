"""Metrics against libraries and against what is written out here, on random features."""

from __future__ import annotations

import subprocess
import sys
from contextlib import redirect_stdout
from io import StringIO

import numpy as np
import pytest
import torch
from helpers_second import second
from torch import Tensor

from tiue_core.errors import TiueError
from tiue_core.evaluate import paper
from tiue_core.evaluate.metrics import (
    distances,
    frechet_distance,
    manifold,
    standard_errors,
)


def features(seed: int, count: int, width: int = 64, scale: float = 1.0, shift: float = 0.0):
    generator = torch.Generator().manual_seed(seed)
    mixing = torch.randn(width, width, generator=torch.Generator().manual_seed(9))
    noise = torch.randn(count, width, generator=generator)
    return ((noise @ mixing) * scale + shift).double()


def _seeds(*seeds: int) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(seed) for seed in seeds]


@pytest.fixture(scope="module")
def pair() -> tuple[Tensor, Tensor]:
    """2,000 and 2,000 random features."""
    return features(0, 2000), features(1, 2000, scale=1.1, shift=0.4)


def test_prdc_agrees(pair: tuple[Tensor, Tensor]) -> None:
    from prdc import compute_prdc

    real, fake = pair
    with redirect_stdout(StringIO()):
        theirs = compute_prdc(real.numpy(), fake.numpy(), nearest_k=5)
    ours = manifold(real, fake, memory=2)  # some 125 rows at a time
    for name, value in theirs.items():
        assert ours[name] == pytest.approx(float(value), abs=1e-6)
    p, r = ours["precision"], ours["recall"]
    assert 0.1 < p < 1 and 0.1 < r < 1 and ours["f1"] == pytest.approx(2 * p * r / (p + r))


def test_torchmetrics_agrees(pair: tuple[Tensor, Tensor]) -> None:
    """Also with the distance written out with symmetric square roots."""
    from scipy.linalg import sqrtm
    from torchmetrics.image.fid import _compute_fid

    real, fake = pair
    means, covariances = (real.mean(0), fake.mean(0)), (real.T.cov(), fake.T.cov())
    theirs = float(_compute_fid(means[0], covariances[0], means[1], covariances[1]))
    root = sqrtm(covariances[0].numpy())
    cross = sqrtm(root @ covariances[1].numpy() @ root).real
    by_hand = float((means[0] - means[1]).square().sum() + covariances[0].trace())
    by_hand += float(covariances[1].trace()) - 2 * float(np.trace(cross))
    found = frechet_distance(real, fake)
    assert found == pytest.approx(theirs, rel=1e-6) == pytest.approx(by_hand, rel=1e-6)
    assert frechet_distance(real, real) == pytest.approx(0, abs=1e-6 * float(real.var()))


def test_piq_agrees(pair: tuple[Tensor, Tensor]) -> None:
    piq = second("piq")
    real, fake = pair
    # its iterated square root stops at 1e-5, which only well-conditioned covariances allow
    round_real, round_fake = (torch.randn(2000, 64, generator=g).double() for g in _seeds(3, 4))
    theirs = float(piq.FID()(round_real, 1.1 * round_fake + 0.1))
    assert frechet_distance(round_real, 1.1 * round_fake + 0.1) == pytest.approx(theirs, abs=1e-6)
    precision, recall = piq.PR(nearest_k=5)(real, fake)
    ours = manifold(real, fake)
    assert ours["precision"] == pytest.approx(float(precision), abs=1e-6)
    assert ours["recall"] == pytest.approx(float(recall), abs=1e-6)


def test_a_set_against_itself() -> None:
    """What Table S2 has in the row of the reference: FID 0, density 1, coverage 1."""
    found = distances(features(0, 500), features(0, 500))
    assert found["fid"] == pytest.approx(0, abs=1e-4)
    assert [found[name] for name in ("precision", "recall", "f1", "coverage")] == [1, 1, 1, 1]
    assert found["density"] == pytest.approx(1, abs=1e-12)


def test_chunks_change_nothing() -> None:
    real, fake = features(0, 1500, 32), features(1, 1200, 32, shift=0.5)
    assert manifold(real, fake, memory=0.5) == manifold(real, fake, memory=1000)


@pytest.mark.slow
def test_5000_in_chunks_is_5000_at_once() -> None:
    from prdc import compute_prdc

    real, fake = features(0, 5000, 256), features(1, 5000, 256, scale=1.05)
    with redirect_stdout(StringIO()):
        theirs = compute_prdc(real.numpy(), fake.numpy(), nearest_k=5)
    ours = manifold(real, fake, memory=16)
    assert {name: ours[name] for name in theirs} == pytest.approx(theirs, abs=1e-12)


_WHOLE = """
import resource, numpy, torch
from tiue_core.evaluate.metrics import manifold
torch.manual_seed(0)
real, fake = torch.randn(30_000, WIDTH), torch.randn(30_000, WIDTH) * 1.02
print(manifold(real, fake), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20)
"""


@pytest.mark.slow
def test_30000_pictures_fit_in_4_gb() -> None:
    """The distances alone would take 7.2 GB."""
    code = _WHOLE.replace("WIDTH", "64")  # with 2048 it is 2.3 GB, and takes far longer
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=1200
    )
    assert float(done.stdout.split()[-1]) < 4, done.stdout


def test_standard_errors_are_those_of_new_draws() -> None:
    """Halves of one draw say how much new draws would scatter."""
    count = 400
    pairs = [(features(100 + i, count, 8), features(200 + i, count, 8, 1.2)) for i in range(40)]
    draws = [distances(real, fake) for real, fake in pairs]
    names = ("fid", "density", "coverage")
    truth = {name: np.std([one[name] for one in draws], ddof=1) for name in names}
    real, fake = features(0, count, 8), features(1, count, 8, 1.2)
    found = standard_errors(lambda a, b: distances(real[a], fake[b]), count, count)
    for name in names:
        assert 0.5 * truth[name] < found[name] < 2 * truth[name], name
    again = standard_errors(lambda a, b: distances(real[a], fake[b]), count, count)
    assert again == found
    # a mean has a known one
    values = torch.randn(1000, generator=torch.Generator().manual_seed(1)).double()
    mean = standard_errors(lambda a, b: {"m": float(values[b].mean())}, 1000, 1000, draws=400)
    assert mean["m"] == pytest.approx(float(values.std()) / 1000**0.5, rel=0.15)


def test_features_that_cannot_be_measured() -> None:
    good = features(0, 50, 8)
    broken = good.clone()
    broken[3, 2] = float("nan")
    for real, fake, words in (
        (good[:5], good, "the reference has 5 pictures, 6 at least"),
        (good, good[:5], "the system has 5 pictures"),
        (good, broken, "1 features of the system are not numbers"),
        (good, good[:, :4], "features of 8 and of 4 numbers"),
    ):
        with pytest.raises(TiueError, match=words):
            manifold(real, fake)
    for real, fake in ((good[:1], good), (good, broken), (good, good[:, :4])):
        with pytest.raises(TiueError):
            frechet_distance(real, fake)


# --- the paper's tables -----------------------------------------------------------------------


def test_the_paper_adds_up_except_where_it_is_marked() -> None:
    """F1 = 2PR/(P+R) to the rounding of three digits, or the cell is marked as suspect."""
    off = set()
    for row in paper.rows("s1"):
        for year in ("2014", "2017"):
            p, r, f1 = (
                paper.number(row[f"{name}_{year}"]) for name in ("precision", "recall", "f1")
            )
            if p is None or r is None or f1 is None:
                continue
            low, high = (
                (2 * a * b / (a + b)) for a, b in ((p - 5e-4, r - 5e-4), (p + 5e-4, r + 5e-4))
            )
            if not low - 5.1e-4 <= f1 <= high + 5.1e-4:
                off.add(("s1", row["row"], f"f1_{year}"))
    assert off == {key for key in paper.SUSPECT if key[2].startswith("f1")}


def test_every_row_of_the_paper_is_a_system() -> None:
    from tiue_core.baselines.registry import REGISTRY

    named = [system.paper for system in REGISTRY.values() if system.paper]
    rows = {row["row"] for table in paper.TABLES for row in paper.rows(table)}
    assert len(named) == len(set(named)) and set(named) == rows
    assert len(paper.rows("s1")) == 30 and len(paper.rows("s2")) == 23
    for table, row, column in paper.SUSPECT:
        assert paper.cell(table, row, column) is not None
    for table in paper.TABLES:
        for row in paper.rows(table):
            assert None not in row and None not in row.values()  # as many cells as columns


def test_the_paper_in_print() -> None:
    text = paper.as_markdown()
    assert "| 0.468 [" in text and "give 0.486" in text and "| 13.09 |" in text
    assert paper.cell("s1", "Ours", "fid_2014") == 13.09
    assert paper.cell("s2", "SD2.1 cfg=7.5", "density_parti") == 1
    assert paper.cell("s1", "InstaFlow", "recall_2017") is None
