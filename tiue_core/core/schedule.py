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
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .arguments import DECODERS, one_of
from .ddim import checked_timesteps, cumulative_alphas, ddim_of, ddim_timesteps

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
        ddim = ddim_of(scheduler_config)
        alphas_cumprod = cumulative_alphas(ddim)
        final = 1.0 if ddim.config.set_alpha_to_one else alphas_cumprod[0].item()

        if timesteps is None:
            chosen, landings = ddim_timesteps(ddim, STEPS if steps is None else steps)
        else:
            chosen = checked_timesteps(timesteps, len(alphas_cumprod), steps)
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
