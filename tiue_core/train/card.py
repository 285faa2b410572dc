"""The model card of a student that was just made."""

from __future__ import annotations

import yaml

from ..core.schedule import OneWaySchedule
from .recipe import DistillRecipe, DrawnRecipe, Recipe

_CARD = """---
library_name: diffusers
pipeline_tag: text-to-image
base_model: {teacher}
---

# A one-pass student of {teacher}

{how} Made by `tiue distill` (One-Way Ticket, CVPR 2025); the licence is its teacher's.

    tiue generate "a prompt" --student THIS_FOLDER

## Recipe

```yaml
{recipe}```
"""
_SHARED = "Paints in one pass: the encoder once, the decoder for t = {t} at once."
_APART = (
    "Made to be compared with: it paints by {k} passes in sequence (DDIM, no guidance, t = {t}); "
    "in one pass its pictures are not what it learned."
)


def card(recipe: DistillRecipe, schedule: OneWaySchedule) -> str:
    """Of a student that a teacher was distilled into."""
    times = ", ".join(str(t) for t in schedule.timesteps.tolist())
    how = (_SHARED if recipe.shared_encoder else _APART).format(t=times, k=len(schedule))
    return _CARD.format(teacher=recipe.teacher, how=how, recipe=_written(recipe))


def drawn_card(recipe: DrawnRecipe, schedule: OneWaySchedule) -> str:
    """Of a student that was taught by drawn scenes."""
    times = ", ".join(str(t) for t in schedule.timesteps.tolist())
    how = _SHARED.format(t=times) + " It was taught by drawn scenes at last."
    return _CARD.format(teacher=recipe.student, how=how, recipe=_written(recipe))


def _written(recipe: Recipe) -> str:
    return yaml.safe_dump(recipe.model_dump(mode="json", exclude_unset=True, exclude={"out"}))
