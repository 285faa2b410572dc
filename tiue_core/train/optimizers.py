"""The recipe's optimizer, and one step of it: a loss that is no number moves nothing."""

from __future__ import annotations

from collections.abc import Iterable
from importlib.util import find_spec

import torch
from accelerate import Accelerator
from torch import nn
from torch._subclasses.fake_tensor import FakeTensor

from ..errors import TiueError
from .muon import Muon, groups
from .recipe import Recipe

BUCKET = 25_000_000  #: gradients a message between processes


class LossError(TiueError):
    """A loss that is no number. Raised before it moves a weight."""


def lr_lambda(recipe: Recipe, step: int) -> float:
    """Learning-rate factor in [0, 1]: linear warm-up, constant, linear decay to zero at the end."""
    factor = min(1.0, (step + 1) / recipe.warmup) if recipe.warmup else 1.0
    if recipe.decay:
        factor = min(factor, (recipe.steps - step) / (recipe.decay * recipe.steps))
    return factor


def adam(
    recipe: Recipe,
    parameters: Iterable[nn.Parameter],
    learning_rate: float | None = None,
    *,
    fused: bool | None = None,
) -> torch.optim.Optimizer:
    """The recipe's AdamW over what learns; without weight decay it is the authors' Adam."""
    if recipe.optimizer == "adamw8bit":
        if find_spec("bitsandbytes") is None:
            raise TiueError("8-bit Adam needs bitsandbytes: pip install 'tiue[eightbit]'")
        from bitsandbytes.optim import AdamW8bit

        return AdamW8bit(
            list(parameters),
            learning_rate or recipe.learning_rate,
            betas=recipe.betas,
            weight_decay=recipe.weight_decay,
        )
    return torch.optim.AdamW(
        parameters,
        learning_rate or recipe.learning_rate,
        betas=recipe.betas,
        weight_decay=recipe.weight_decay,
        fused=fused,
    )


def optimizer(
    recipe: Recipe, modules: Iterable[nn.Module], *, fused: bool | None = None
) -> torch.optim.Optimizer:
    """The recipe's optimizer over all of the modules that learns."""
    if recipe.optimizer == "muon":
        return Muon(
            groups(modules),
            recipe.learning_rate,
            betas=recipe.betas,
            weight_decay=recipe.weight_decay,
        )
    return adam(recipe, trainable(modules), fused=fused)


def trainable(modules: Iterable[nn.Module]) -> list[nn.Parameter]:
    """Those parameters of the modules that learn."""
    return [p for module in modules for p in module.parameters() if p.requires_grad]


def descend(
    accelerator: Accelerator,
    optimizer: torch.optim.Optimizer,
    loss: torch.Tensor,
    clip: float,
) -> torch.Tensor:
    """Backward, mean over processes, clip to norm ``clip``, step; returns the norm before."""
    backward(accelerator, loss)
    return optimizer_step(accelerator, optimizer, clip)


def finite(loss: torch.Tensor) -> bool:
    """Whether a loss is a number. In a rehearsal (``rehearsal``) there is none to look at."""
    return isinstance(loss, FakeTensor) or bool(torch.isfinite(loss))


def backward(accelerator: Accelerator, loss: torch.Tensor) -> None:
    """Backward; a loss that is no number moves nothing."""
    if not finite(loss):
        raise LossError(
            f"the loss is {loss.item()}: resume from the checkpoint with a lower learning rate, or "
            "another precision"
        )
    accelerator.backward(loss)


def optimizer_step(
    accelerator: Accelerator, optimizer: torch.optim.Optimizer, clip: float
) -> torch.Tensor:
    """Mean over processes, clip to norm ``clip``, step; returns the norm before."""
    learned = [p for group in optimizer.param_groups for p in group["params"]]
    if accelerator.num_processes > 1:
        _mean_over_processes(accelerator, [p for p in learned if p.grad is not None])
    norm = accelerator.clip_grad_norm_(learned, clip)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return norm


def _mean_over_processes(accelerator: Accelerator, parameters: list[nn.Parameter]) -> None:
    """Gradients averaged, many in one message."""
    bucket: list[nn.Parameter] = []
    for index, parameter in enumerate(parameters):
        bucket.append(parameter)
        full = sum(p.numel() for p in bucket) >= BUCKET
        if full or index + 1 == len(parameters):
            grads = [p.grad for p in bucket if p.grad is not None]
            flat = torch.cat([grad.float().flatten() for grad in grads])
            flat = accelerator.reduce(flat, reduction="mean")
            for grad, mean in zip(grads, flat.split([g.numel() for g in grads]), strict=True):
                grad.copy_(mean.view_as(grad))
            bucket = []
