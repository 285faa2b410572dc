"""The closed form of a deterministic sampling loop (Eq. 7 to 11 of One-Way Ticket, CVPR 2025).

    paper        here                 meaning
    -----------  -------------------  ----------------------------------------------------------
    K            ``len(timesteps)``   decoder passes, all run at once
    alpha_t      ``alphas[i]``        cumulative product of 1 - beta at ``timesteps[i]``
    z_K          ``noise``            what enters the encoder, N(0, 1)
    eps_t        ``predictions[i]``   the decoder's output for ``timesteps[i]``
    S            ``signal``           weight of the noise in z_0
    E_t          ``weights[i]``       weight of each prediction in z_0

Derivation. One DDIM step with eta = 0 reads an image x_0 and a noise eps out of the latent z and
the prediction f, then mixes them again at the next, smaller noise level alpha' (Eq. 7 to 10):

    z' = sqrt(alpha') x_0 + sqrt(1 - alpha') eps

Whatever f is, x_0 and eps are linear in (z, f):

    f is         x_0                                     eps
    -----------  --------------------------------------  --------------------------------------
    epsilon      (z - sqrt(1 - alpha) f) / sqrt(alpha)   f
    v            sqrt(alpha) z - sqrt(1 - alpha) f       sqrt(1 - alpha) z + sqrt(alpha) f
    sample       f                                       (z - sqrt(alpha) f) / sqrt(1 - alpha)

so a step is z' = A_t z + B_t f_t. If f_t does not depend on the step before (the encoder ran once,
on the noise) the K steps unroll into

    z_0 = S z_K + sum_t E_t f_t,  S = product of all A,  E_t = B_t * product of the A after t  (11)

For epsilon prediction A_t = sqrt(alpha' / alpha), the products telescope, and

    S   = sqrt(alpha_0 / alpha_K)
    E_t = sqrt(alpha_0) (sqrt(1 / alpha_{t-1} - 1) - sqrt(1 / alpha_t - 1))           for every t

Erratum. The paper's appendix prints E_t = sqrt(alpha_0 / alpha_t) (...) for t = 2..K. That is the
value above divided by sqrt(alpha_t); with it z_0 misses the DDIM loop by a relative L2 error of
1.6 at K = 4. S and E_1 are printed correctly. ``tests/test_schedule.py`` holds both statements.

The scheduler's own alphas are float32, which costs 5e-6 in z_0. Everything here is float64.

Fewer decoders. |E_t| spans two orders of magnitude: at K = 4 the last of Stable Diffusion's four
carries 0.3 % of the weight. Where a step hears its neighbour's prediction instead of its own, the
two steps are one, (A, B) then (A', B') is (A' A, A' B + B'), and z_0 moves by no more than
|E_t| |f_t - f_neighbour|: see ``OneWaySchedule.fast``.
"""

from __future__ import annotations

import functools
import inspect
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from diffusers import DDIMScheduler
from torch import Tensor

from .arguments import DECODERS, one_of, whole

STEPS = 4  # K of the paper's students
SHARE = 0.01  # of the weight, that "fast" may move from a decoder to its neighbour


@dataclass(frozen=True, eq=False)
class OneWaySchedule:
    """What turns K predictions made from one noise into a latent. Tensors live on the CPU."""

    timesteps: Tensor  # (K,) int64, descending; the encoder sees the first
    signal: float  # S
    weights: Tensor  # (K,) float64, E_t
    coefficients: Tensor  # (K, 2) float64, the A_t and B_t of z' = A_t z + B_t f_t
    alphas: Tensor  # (K + 1,) float64, alpha of every timestep, then the final alpha
    prediction_type: str  # "epsilon", "v_prediction" or "sample"

    @classmethod
    def from_config(
        cls,
        scheduler_config: Any,
        steps: int | None = None,
        timesteps: Sequence[int] | Tensor | None = None,
        decoders: str = "exact",
    ) -> OneWaySchedule:
        """Unroll the DDIM loop that a diffusers scheduler config describes (Eq. 11).

        Args:
            scheduler_config: a scheduler, or its config; what DDIM has and the config lacks takes
                DDIM's default. ``clip_sample`` is ignored, as Stable Diffusion does: clipping
                belongs to pixels, and a clipped step is not linear.
            steps: K; 4 unless ``timesteps`` says otherwise. The timesteps and where each step
                lands are DDIM's own for the config's ``timestep_spacing``.
            timesteps: run exactly these instead, e.g. [999] for a one-step student. Each step
                then lands on the next listed one, the last on the final alpha.
            decoders: "exact" is the loop itself; "fast" leaves out the decoders that hardly count,
                see ``fast``.

        Raises:
            ValueError: the config is not one that DDIM can run, or the steps do not fit it.
        """
        one_of("decoders", decoders, DECODERS)
        ddim = _ddim(scheduler_config)
        alphas_cumprod = cumulative_alphas(ddim)
        final = 1.0 if ddim.config.set_alpha_to_one else alphas_cumprod[0].item()

        if timesteps is None:
            chosen, landings = _spaced(ddim, STEPS if steps is None else steps)
        else:
            chosen = _listed(timesteps, len(alphas_cumprod), steps)
            landings = [*chosen[1:], -1]

        alphas = alphas_cumprod[chosen].tolist()
        next_alphas = [alphas_cumprod[t].item() if t >= 0 else final for t in landings]
        coefficients = [
            _step(ddim.config.prediction_type, *pair)
            for pair in zip(alphas, next_alphas, strict=True)
        ]

        alphas = [*alphas, next_alphas[-1]]
        schedule = cls._unrolled(chosen, coefficients, alphas, ddim.config.prediction_type)
        return schedule.fast() if decoders == "fast" else schedule

    @classmethod
    def _unrolled(
        cls,
        timesteps: list[int],
        coefficients: list[tuple[float, float]],
        alphas: list[float],
        prediction_type: str,
    ) -> OneWaySchedule:
        signal: float = 1.0
        weights: list[float] = []
        for a, b in coefficients:  # Eq. 11, from the noise downwards
            signal, weights = a * signal, [a * e for e in weights] + [b]
        return cls(
            timesteps=torch.tensor(timesteps, dtype=torch.int64),
            signal=signal,
            weights=torch.tensor(weights, dtype=torch.float64),
            coefficients=torch.tensor(coefficients, dtype=torch.float64),
            alphas=torch.tensor(alphas, dtype=torch.float64),
            prediction_type=prediction_type,
        )

    def fast(self, share: float = SHARE) -> OneWaySchedule:
        """The same loop with fewer decoders: the lightest leave, as long as all that leave carry
        less than ``share`` of sum |E_t| together.

        A step whose decoder left takes the prediction of the nearest one that stayed, so its weight
        is folded into that neighbour. The first decoder always stays: its timestep is the
        encoder's. Stable Diffusion's four become three, and z_0 moves by 0.012 ||eps_1 - eps_251||.
        """
        weights = self.weights.abs()
        kept, room = set(range(len(self))), share * weights.sum().item()
        for i in weights.argsort().tolist():
            room -= weights[i].item()
            if room <= 0:
                break
            kept -= {i} - {0}

        stand_in = [  # of every step, the decoder that it hears
            min(kept, key=lambda k: abs(self.timesteps[i] - self.timesteps[k]).item())
            for i in range(len(self))
        ]
        folded: dict[int, tuple[float, float]] = {}
        for k, (a, b) in zip(stand_in, self.coefficients.tolist(), strict=True):
            A, B = folded.get(k, (1.0, 0.0))
            folded[k] = (a * A, a * B + b)
        chosen = sorted(kept)
        return self._unrolled(
            self.timesteps[chosen].tolist(),
            [folded[k] for k in chosen],
            self.alphas[[*chosen, len(self)]].tolist(),
            self.prediction_type,
        )

    def __len__(self) -> int:
        """K."""
        return len(self.timesteps)

    def combine(self, noise: Tensor, predictions: Tensor) -> Tensor:
        """z_0 = S noise + sum_t E_t predictions[t] (Eq. 11).

        Args:
            noise: (B, C, H, W), what the encoder was given.
            predictions: (K, B, C, H, W), in the order of ``timesteps``; or their sum, weighted by
                ``weights`` already, (B, C, H, W).

        Returns:
            (B, C, H, W) in the wider of the two dtypes, and never narrower than float32: E_t spans
            two orders of magnitude, half precision would drop the last steps.
        """
        summed = predictions.shape == noise.shape
        if not summed and predictions.shape != (len(self), *noise.shape):
            raise ValueError(
                f"predictions of shape {tuple(predictions.shape)} do not fit {len(self)} timesteps "
                f"and noise of shape {tuple(noise.shape)}: give (K, B, C, H, W)"
            )
        total = predictions if summed else weighted_sum(predictions, self.weights, noise.dtype)
        dtype = _accurate(noise.dtype, predictions.dtype)
        return self.signal * noise.to(dtype) + total.to(dtype)


def weighted_sum(
    predictions: Tensor, weights: Tensor, dtype: torch.dtype = torch.float32
) -> Tensor:
    """sum_k weights[k] predictions[k], (K, ...) -> (...), in the wider of the dtypes.

    Never narrower than float32: E_t spans two orders of magnitude, half precision would drop the
    last steps.
    """
    dtype = _accurate(dtype, predictions.dtype)
    # A product and a sum, not a matmul: autocast and TF32 would round a matmul.
    weights = weights.to(dtype).to(predictions.device).view(-1, *[1] * (predictions.ndim - 1))
    return (weights * predictions.to(dtype)).sum(0)


def _accurate(*dtypes: torch.dtype) -> torch.dtype:
    return functools.reduce(torch.promote_types, dtypes, torch.float32)


def cumulative_alphas(scheduler_config: Any) -> Tensor:
    """alpha of every training timestep, (T,) float64, for each beta schedule that DDIM knows."""
    config = _ddim(scheduler_config).config
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


def _step(prediction_type: str, alpha: float, next_alpha: float) -> tuple[float, float]:
    """A and B of one DDIM step z' = A z + B f (the table above); rows are read as x_0, eps."""
    signal, noise = math.sqrt(alpha), math.sqrt(1 - alpha)
    if prediction_type == "epsilon":
        if alpha == 0:
            raise ValueError(
                "an epsilon prediction says nothing about the image where alpha is zero: use "
                "v_prediction or sample, or timesteps that leave out the zero-SNR end"
            )
        (x_z, x_f), (e_z, e_f) = (1 / signal, -noise / signal), (0.0, 1.0)
    elif prediction_type == "v_prediction":
        (x_z, x_f), (e_z, e_f) = (signal, -noise), (noise, signal)
    else:
        if alpha == 1:
            raise ValueError("a sample prediction cannot start where alpha is one: beta is zero")
        (x_z, x_f), (e_z, e_f) = (0.0, 1.0), (1 / noise, -signal / noise)
    next_signal, next_noise = math.sqrt(next_alpha), math.sqrt(1 - next_alpha)
    return next_signal * x_z + next_noise * e_z, next_signal * x_f + next_noise * e_f


def _ddim(scheduler_config: Any) -> Any:
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


def _spaced(ddim: Any, steps: int) -> tuple[list[int], list[int]]:
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


def _listed(timesteps: Sequence[int] | Tensor, T: int, steps: int | None) -> list[int]:
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
