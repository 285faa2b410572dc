"""What the metadata of a picture says of its making: enough to make it again."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from .. import __version__


def record(
    pipe: Any,
    source: Any,
    student_hash: str,
    *,
    steps: int | None = None,
    decoders: str = "exact",
    draft: bool = False,
    loras: Sequence[dict[str, Any]] = (),
) -> dict[str, Any]:
    """The part that all pictures of one order share; prompt, seed and size come on top.

    Args:
        source: a `students.Source`; `student_hash` is its `content_hash()`.
        steps: K as asked for; None, the student's own.
        loras: each one's `adapters.Lora.record()`.
    """
    engine = getattr(pipe, "facts", {})  # of another than PyTorch
    return {
        "student": source.name,
        "student_revision": source.revision,
        "student_hash": student_hash,
        **({"base": source.base_name} if getattr(source, "base_name", None) else {}),
        "steps": steps,
        "decoders": decoders,
        **({"draft": True} if draft else {}),
        "timesteps": pipe.schedule(steps, decoders).timesteps.tolist(),
        "loras": list(loras),
        "dtype": str(pipe.unet.dtype).removeprefix("torch."),
        "device": pipe.device.type,
        "version": __version__,
        **(engine or versions()),
    }


def versions() -> dict[str, str]:
    """Of what paints in PyTorch."""
    import diffusers
    import torch

    # torch's is a class of its own
    return {"torch": str(torch.__version__), "diffusers": diffusers.__version__}


def guidance_record(guidance: float, negative: str = "") -> dict[str, Any]:
    """What metadata says of classifier-free guidance: nothing where there is none (1)."""
    if guidance == 1:
        return {}
    return {"guidance": guidance, **({"negative": negative} if negative else {})}
