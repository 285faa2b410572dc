"""Muon against torch's own, where that has one (matrices), and its place in the trainer."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from tiue_core.train.checkpoint import load_optimizer, optimizer_tensors
from tiue_core.train.muon import Muon, groups, orthogonal


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 24, 3), nn.GroupNorm(8, 24), nn.SiLU(), nn.Conv2d(24, 32, 3), nn.Flatten(),
        nn.Linear(32 * 16, 4),
    )  # fmt: skip


def loss_of(net: nn.Module, step: int) -> torch.Tensor:
    images = torch.randn(8, 3, 8, 8, generator=torch.Generator().manual_seed(step))
    wanted = images.mean((2, 3)).repeat(1, 2)[:, :4]
    return F.mse_loss(net(images), wanted)


@pytest.mark.skipif(not hasattr(torch.optim, "Muon"), reason="torch has Muon since 2.9")
@pytest.mark.parametrize("shape", [(24, 80), (80, 24), (32, 32)])
def test_matrices_move_as_by_torchs_own(shape: tuple[int, int]) -> None:
    torch.manual_seed(1)
    start = torch.randn(shape)
    gradients = [torch.randn(shape) for _ in range(5)]
    ours, theirs = nn.Parameter(start.clone()), nn.Parameter(start.clone())
    one = Muon([{"params": [ours], "muon": True}], 0.01, weight_decay=0.1)
    other = torch.optim.Muon(
        [theirs], 0.01, weight_decay=0.1, momentum=0.95, adjust_lr_fn="match_rms_adamw"
    )
    for gradient in gradients:
        ours.grad, theirs.grad = gradient.clone(), gradient.clone()
        one.step()
        other.step()
    moved = (theirs - start).norm()
    # both orthogonalise in bfloat16, with momenta of another scale: near, not bit for bit
    assert (ours - theirs).norm() < 0.05 * moved
    assert moved > 0.1


def test_the_rest_moves_as_by_adamw() -> None:
    torch.manual_seed(2)
    start = torch.randn(50)
    ours, theirs = nn.Parameter(start.clone()), nn.Parameter(start.clone())
    one = Muon([{"params": [ours], "muon": False}], 0.01, betas=(0.8, 0.95), weight_decay=0.1)
    other = torch.optim.AdamW([theirs], 0.01, betas=(0.8, 0.95), weight_decay=0.1)
    for _ in range(6):
        ours.grad = torch.randn(50)
        theirs.grad = ours.grad.clone()
        one.step()
        other.step()
    assert torch.allclose(ours, theirs, atol=1e-6)


def test_singular_values_come_near_one() -> None:
    torch.manual_seed(3)
    values = torch.linalg.svdvals(orthogonal(torch.randn(2, 40, 90)))
    assert values.min() > 0.6 and values.max() < 1.3


def test_first_and_last_layers_and_embeddings_are_adams() -> None:
    net = nn.ModuleList([network(), nn.Embedding(64, 32), nn.Linear(32, 48)])
    matrices, rest = groups([net])
    assert [tuple(p.shape) for p in matrices["params"]] == [(32, 24, 3, 3), (48, 32)]
    total = sum(len(group["params"]) for group in (matrices, rest))
    assert total == len(list(net.parameters()))
    net[2].weight.requires_grad_(False)
    assert [tuple(p.shape) for p in groups([net])[0]["params"]] == [(32, 24, 3, 3)]


def test_a_run_goes_on_to_the_bit() -> None:
    def advance(net: nn.Module, optimizer: Muon, first: int, last: int) -> None:
        for step in range(first, last):
            loss_of(net, step).backward()
            optimizer.step()
            optimizer.zero_grad()

    whole = network()
    advance(whole, Muon(groups([whole]), 0.01), 0, 8)

    half = network()
    optimizer = Muon(groups([half]), 0.01)
    advance(half, optimizer, 0, 4)
    kept = optimizer_tensors(optimizer)
    resumed = Muon(groups([half]), 0.01)
    load_optimizer(resumed, kept)
    advance(half, resumed, 4, 8)
    assert all(
        torch.equal(a, b) for a, b in zip(whole.parameters(), half.parameters(), strict=True)
    )
