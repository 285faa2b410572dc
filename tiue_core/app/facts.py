"""What is known of a student before it is loaded: its size, its K, whether it can draft."""

from __future__ import annotations

import json
import math

from ..core.arguments import both_sides
from ..pipelines import draft
from ..students.resolve import Source


def size_of(source: Source) -> tuple[int, int, int]:
    """A student's own width and height in px, and px per latent, from its configs: it need not be
    loaded. Of a single file nothing is known beforehand; 512 px then."""
    try:
        unet, vae = (
            json.loads((folder / "config.json").read_text(encoding="utf-8"))
            for folder in (source.unet or source.path / "unet", source.path / "vae")
        )
        height, width = both_sides(unet["sample_size"])
        factor = 2 ** (len(vae["block_out_channels"]) - 1)
        return int(width * factor), int(height * factor), factor
    except (OSError, ValueError, KeyError, TypeError):
        return 512, 512, 8


def decoders_of(source: Source) -> int:
    """K of a student, from its index; the paper's 4 where it says nothing."""
    try:
        index = json.loads((source.path / "model_index.json").read_text(encoding="utf-8"))
        times, steps = source.timesteps or index.get("timesteps"), index.get("steps")
        return len(times) if times else int(steps or 4)
    except (OSError, ValueError, TypeError):
        return 4


def has_draft(source: Source) -> bool:
    """Whether a draft decoder for this student is on this machine."""
    if (source.path / draft.FOLDER).is_dir():
        return True
    from huggingface_hub import try_to_load_from_cache

    try:
        config = json.loads((source.path / "vae" / "config.json").read_text(encoding="utf-8"))
        fits = math.isclose(config.get("scaling_factor", draft.SCALING), draft.SCALING)
        return fits and isinstance(try_to_load_from_cache(draft.HUB_ID, "config.json"), str)
    except (OSError, ValueError, TypeError):
        return False
