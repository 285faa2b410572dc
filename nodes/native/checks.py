"""What a node refuses, in one line each: what is wrong, and what to do."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

from comfy.ldm.modules.diffusionmodules.openaimodel import UNetModel
from torch import Tensor


def student(model: Any) -> None:
    """A MODEL must be a plain Stable Diffusion UNet."""
    network = model.get_model_object("diffusion_model")
    network = getattr(network, "_orig_mod", network)  # where torch.compile wrapped it
    kind = type(model.model).__name__
    if not isinstance(network, UNetModel):
        raise ValueError(
            f"This MODEL is a {kind}, not a U-Net with an encoder and a decoder: "
            "connect the MODEL of Load Student"
        )
    if network.in_channels != 4:
        raise ValueError(
            f"This MODEL takes {network.in_channels} channels (an inpainting or edit UNet), "
            "a one-pass student takes 4: connect the MODEL of Load Student"
        )
    if getattr(network, "use_temporal_resblocks", False):
        raise ValueError(
            "This MODEL is a video UNet: one-pass students paint pictures, "
            "connect the MODEL of Load Student"
        )


def latent(samples: Tensor, mask: Tensor | None, channels: int = 4) -> None:
    """A LATENT gives the size and the number of pictures, and nothing else."""
    if samples.ndim != 4 or samples.shape[1] != channels:
        shape = "x".join(map(str, samples.shape))
        raise ValueError(
            f"This LATENT is {shape}, the student wants {channels} channels: use Empty Latent Image"
        )
    empty_latent(samples, mask)


def empty_latent(samples: Tensor | None, mask: Tensor | None) -> None:
    """The encoder only knows pure noise: no img2img, no inpainting."""
    if samples is not None and samples.count_nonzero() > 0:
        raise ValueError(
            "This LATENT holds a picture, but a one-pass student paints from pure noise only: "
            "connect Empty Latent Image, and rework its picture with a KSampler after it"
        )
    if mask is not None:
        raise ValueError(
            "This LATENT has a noise mask, but a one-pass student paints the whole picture: "
            "remove the mask, and composite the pictures afterwards"
        )


class OtherNoiseLevel(ValueError):
    """The student was asked at a noise level that is not its first."""

    __module__ = "tiue"


def first_noise_level(sigmas: Tensor | None, expected: float) -> None:
    """The one noise level at which a student can be asked."""
    if sigmas is not None and not _same(sigmas, expected):
        raise OtherNoiseLevel(
            f"The student paints in one step from noise level {expected:.3f}, but it was asked "
            f"for {float(sigmas.max()):.3f}: use euler at one step, without extra model calls"
        )


def one_step(sigmas: Tensor, expected: float) -> None:
    """What the stock KSampler is about to do, of a MODEL that Patch Model made."""
    if len(sigmas) == 2 and _same(sigmas[:1], expected) and float(sigmas[1]) == 0:
        return
    raise ValueError(
        f"The student paints in one step from noise level {expected:.3f}, but the sampler is set "
        f"to {len(sigmas) - 1} from {float(sigmas[0]):.3f}: set steps to 1 and denoise to 1, with "
        "the scheduler 'normal' or 'simple'"
    )


def _same(sigmas: Tensor, expected: float) -> bool:
    return bool(((sigmas - expected).abs() < 1e-3 * expected).all())


def own_sigmas(sigmas: Tensor, expected: Tensor) -> None:
    """SIGMAS carry K, and must be those of the student."""
    same = sigmas.shape == expected.shape
    if not same or bool(((sigmas.cpu() - expected).abs() > 1e-3 * expected).any()):
        raise ValueError(
            "These SIGMAS are not the student's: connect One-Pass Sigmas, "
            "with the same MODEL and number of decoders"
        )


def numbers(text: str, count: int, what: str) -> list[float]:
    """`count` numbers out of a line such as '1, 1, 0.5, 0'; none out of an empty one."""
    values = _listed(text, float, what, "1, 1, 0.5, 0")
    if values and len(values) != count:
        raise ValueError(
            f"{what} are {len(values)} numbers for {count} decoders: give {count}, or none"
        )
    return values


def timesteps(text: str) -> list[int]:
    """Timesteps out of a line such as '751, 501', noisiest first; none out of an empty one."""
    return sorted(set(_listed(text, int, "timesteps", "751, 501, 251, 1")), reverse=True)


def _listed(text: str, kind: type, what: str, example: str) -> list:
    try:
        return [kind(part) for part in text.replace(",", " ").replace(";", " ").split()]
    except ValueError:
        raise ValueError(f"{what} are '{text}': give numbers, such as {example}") from None


def complete(folder: Path, missing: Any, unexpected: Any) -> None:
    """Every weight of a model must be there; what is left over is told to the log."""
    if missing:
        raise ValueError(
            f"{folder} lacks {len(missing)} weights, {min(missing)} for one: "
            "its config.json and its weights do not belong together"
        )
    if unexpected:
        logging.info("%s: %d weights are not used", folder, len(unexpected))
