"""Classifier-free guidance (Ho and Salimans, 2022)."""

from __future__ import annotations

from torch import Tensor


def guide(both: Tensor, scale: float) -> Tensor:
    """Rows (2B, ...), those of the empty prompts first, to (B, ...): without + scale (with -
    without); 1 is no guidance.

    Takes predictions, or whole z_0: that is linear in the predictions, so guiding it is guiding
    each of them.
    """
    without, with_prompt = both.chunk(2)
    return without + scale * (with_prompt - without)
