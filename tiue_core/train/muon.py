"""Muon (Jordan et al. 2024): momentum whose matrices are brought to equal singular values.

    M <- mu M + G
    W <- W - lr 0.2 sqrt(max(rows, columns)) NewtonSchulz(G + mu M)

A convolution is the matrix of its output channels. The factor (Moonlight, arXiv:2502.16982) gives
an update the size of one of Adam's, so one learning rate serves both: what is no matrix, is read
row by row (embeddings) or is the network's first or last layer is learned by AdamW.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

NARROW = 16  #: a side shorter than this is a picture's or a latent's channels


class Muon(torch.optim.Optimizer):
    """Muon for the groups with ``muon`` true, AdamW for the others."""

    def __init__(
        self,
        groups: Iterable[dict[str, Any]],
        lr: float,
        *,
        momentum: float = 0.95,
        betas: tuple[float, float] = (0.9, 0.99),
        weight_decay: float = 0.0,
        eps: float = 1e-8,
    ):
        super().__init__(
            groups,
            {
                "lr": lr,
                "momentum": momentum,
                "betas": betas,
                "weight_decay": weight_decay,
                "eps": eps,
                "muon": False,
            },
        )

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            learned = [p for p in group["params"] if p.grad is not None]
            if group["weight_decay"]:
                torch._foreach_mul_(learned, 1 - group["lr"] * group["weight_decay"])
            (self._muon if group["muon"] else self._adam)(group, learned)

    def _muon(self, group: dict[str, Any], learned: list[Tensor]) -> None:
        alike: dict[tuple[int, int], list[tuple[Tensor, Tensor]]] = defaultdict(list)
        for weight in learned:
            state = self.state[weight]
            if not state:
                state["momentum"] = torch.zeros_like(weight)
            gradient, momentum = _gradient(weight), state["momentum"]
            momentum.mul_(group["momentum"]).add_(gradient)
            ahead = gradient.add(momentum, alpha=group["momentum"]).flatten(1)
            alike[tuple(ahead.shape)].append((weight, ahead))  # type: ignore[index]
        for shape, pairs in alike.items():
            made = orthogonal(torch.stack([ahead for _, ahead in pairs]))
            size = group["lr"] * 0.2 * max(shape) ** 0.5
            for (weight, _), update in zip(pairs, made, strict=True):
                weight.sub_(update.view_as(weight), alpha=size)

    def _adam(self, group: dict[str, Any], learned: list[Tensor]) -> None:
        first, second = group["betas"]
        for weight in learned:
            state = self.state[weight]
            if not state:
                state["step"] = torch.zeros(())
                state["mean"], state["square"] = (torch.zeros_like(weight) for _ in range(2))
            state["step"] += 1
            gradient = _gradient(weight)
            state["mean"].lerp_(gradient, 1 - first)
            state["square"].lerp_(gradient.square(), 1 - second)
            count = float(state["step"])
            deviation = (state["square"] / (1 - second**count)).sqrt_().add_(group["eps"])
            weight.addcdiv_(state["mean"], deviation, value=-group["lr"] / (1 - first**count))


def _gradient(weight: Tensor) -> Tensor:
    assert weight.grad is not None
    return weight.grad


def orthogonal(matrices: Tensor, rounds: int = 5) -> Tensor:
    """(N, rows, columns) -> nearly the polar factors U V^T, by Newton-Schulz in bfloat16."""
    tall = matrices.shape[1] > matrices.shape[2]
    x = (matrices.mT if tall else matrices).float()
    x = (x / x.norm(dim=(1, 2), keepdim=True).clamp(min=1e-12)).bfloat16()
    for _ in range(rounds):  # a quintic that lifts small singular values to about one
        square = x @ x.mT
        x = 3.4445 * x + (-4.775 * square + 2.0315 * square @ square) @ x
    x = x.float()
    return x.mT if tall else x


def groups(modules: Iterable[nn.Module]) -> list[dict[str, Any]]:
    """The modules' parameters in two groups: inner matrices, and the rest."""
    matrices: list[nn.Parameter] = []
    rest: list[nn.Parameter] = []
    for module in modules:
        for part in module.modules():
            for parameter in part.parameters(recurse=False):
                if not parameter.requires_grad:
                    continue
                layer = isinstance(part, nn.Linear | nn.Conv2d) and parameter.ndim > 1
                inner = layer and min(parameter.shape[:2]) >= NARROW
                (matrices if inner else rest).append(parameter)
    return [{"params": matrices, "muon": True}, {"params": rest, "muon": False}]
