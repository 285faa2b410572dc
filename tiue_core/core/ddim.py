"""What diffusers' DDIM makes of a scheduler config: its noise levels and its timesteps."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from diffusers import DDIMScheduler
from torch import Tensor

from .arguments import whole


def ddim_of(scheduler_config: Any) -> Any:
    """A new DDIM scheduler from any config, checked for what the closed form needs."""
    config = getattr(scheduler_config, "config", scheduler_config)
    if not isinstance(config, Mapping):
        raise ValueError(
            f"a scheduler config is a mapping, not {type(config).__name__}: "
            "give scheduler.config or the contents of scheduler_config.json"
        )
    known = inspect.signature(DDIMScheduler.__init__).parameters
    config = {name: value for name, value in config.items() if name in known}
    allowed = {
        "prediction_type": ("epsilon", "v_prediction", "sample"),
        "beta_schedule": ("linear", "scaled_linear", "squaredcos_cap_v2"),
        "timestep_spacing": ("leading", "linspace", "trailing"),
        "thresholding": (False,),
    }
    for name, values in allowed.items():
        if config.get(name, values[0]) not in values:
            raise ValueError(
                f"the closed form cannot follow {name}={config[name]!r}: "
                f"the scheduler config must have one of {', '.join(map(str, values))}"
            )
    betas = config.get("trained_betas")
    if betas is not None:  # the betas know better than a default how many there are
        config["num_train_timesteps"] = len(betas)
    return DDIMScheduler.from_config(config)


def cumulative_alphas(scheduler_config: Any) -> Tensor:
    """alpha of every training timestep, (T,) float64, for each beta schedule that DDIM knows."""
    config = ddim_of(scheduler_config).config
    T, first, last = config.num_train_timesteps, config.beta_start, config.beta_end
    if config.trained_betas is not None:
        betas = np.asarray(config.trained_betas, dtype=np.float64)
    elif config.beta_schedule == "linear":
        betas = np.linspace(first, last, T)
    elif config.beta_schedule == "scaled_linear":  # linear in sqrt(beta)
        betas = np.linspace(first**0.5, last**0.5, T) ** 2
    else:  # squaredcos_cap_v2: alpha is a squared cosine, each beta capped at 0.999
        bars = np.cos((np.arange(T + 1) / T + 0.008) / 1.008 * np.pi / 2) ** 2
        betas = np.minimum(1 - bars[1:] / bars[:-1], 0.999)
    alphas = torch.from_numpy(np.cumprod(1 - betas))

    if config.rescale_betas_zero_snr:  # Lin et al. 2023, Algorithm 1: shift and stretch sqrt(alpha)
        roots = alphas.sqrt()
        alphas = ((roots - roots[-1]) * roots[0] / (roots[0] - roots[-1])) ** 2
    return alphas


def ddim_timesteps(ddim: Any, steps: int) -> tuple[list[int], list[int]]:
    """DDIM's K timesteps, and the timestep that each step lands on (negative: the final alpha).

    DDIM lands T // K below where it stands, whatever the spacing. For "leading" that is the next
    timestep; for "linspace" and uneven "trailing" it is not quite, and the stock loop is the law.
    """
    T = ddim.config.num_train_timesteps
    steps = whole("steps", steps, 1, T + 1)
    ddim.set_timesteps(steps)
    # Rounding makes "trailing" emit one timestep too many, -1, for some K (61, 103, ...).
    chosen = ddim.timesteps[:steps].tolist()
    if chosen[0] >= T:
        raise ValueError(
            f"steps is {steps}: with steps_offset={ddim.config.steps_offset} the first timestep "
            f"would be {chosen[0]}, past the last one trained, {T - 1}; take fewer steps"
        )
    return chosen, [t - T // steps for t in chosen]


def checked_timesteps(timesteps: Sequence[int] | Tensor, T: int, steps: int | None) -> list[int]:
    """Explicit timesteps, checked: whole numbers in [0, T), strictly descending."""
    given = timesteps.tolist() if isinstance(timesteps, Tensor) else timesteps
    chosen = list(given) if isinstance(given, Sequence) else []
    if not chosen or any(type(t) is not int or not 0 <= t < T for t in chosen):
        raise ValueError(f"timesteps are {given!r}: give a list of whole numbers from 0 to {T - 1}")
    if any(t <= after for t, after in pairwise(chosen)):
        raise ValueError(f"timesteps are {chosen}: give them strictly descending, noisiest first")
    if steps is not None and steps != len(chosen):
        raise ValueError(f"steps is {steps} but {len(chosen)} timesteps are listed: leave one out")
    return chosen
