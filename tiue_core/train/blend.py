"""Between two students: ``python -m tiue_core.train.blend ONE OTHER SHARE OUT``.

Two trainings that began at the same weights may be averaged weight by weight (model soups,
arXiv:2203.05482): what one does more often right and the other more sharply, their mean nearly does
both, in the time of one. Students that began elsewhere have no such path between them.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import torch

from ..errors import TiueError


def blend(one: Path, other: Path, share: float, out: Path) -> None:
    """Write ``one`` with the UNet's weights (1 - share) one + share other, in float32.

    Args:
        one, other: folders of students of one layout; all but the UNet is the first's.
        share: of the other, from 0 to 1.

    Raises:
        TiueError: the two are of different layouts, or there is no such share.
    """
    from diffusers import UNet2DConditionModel

    from ..pipelines.base import TiuePipeline
    from ..students.models import load_model

    if not 0 <= share <= 1:
        raise TiueError(f"the share is {share:g}: give a number from 0 to 1")
    pipe = TiuePipeline.from_pretrained(one)
    own = pipe.unet.state_dict()
    others = load_model(UNet2DConditionModel, other / "unet").state_dict()
    if {name: w.shape for name, w in own.items()} != {name: w.shape for name, w in others.items()}:
        raise TiueError(f"{one} and {other} are of different layouts: blend students of one")
    with torch.no_grad():
        for name, weight in own.items():
            weight.lerp_(others[name].to(weight.dtype), share)
    pipe.save_pretrained(out)


def inherit(student: Any, heir: Any, taught_by: Any) -> None:
    """Add to ``student`` what the UNet ``heir`` learned beyond the one it was made from (a
    difference of weights, arXiv:2212.04089); all three of one layout."""
    own, before = heir.state_dict(), taught_by.state_dict()
    student.load_state_dict(
        {name: w + own[name] - before[name] for name, w in student.state_dict().items()}
    )


if __name__ == "__main__":
    blend(Path(sys.argv[1]), Path(sys.argv[2]), float(sys.argv[3]), Path(sys.argv[4]))
