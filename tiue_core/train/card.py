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
    how = _SHARED if recipe.shared_encoder else _APART
    return _card(recipe, recipe.teacher, how, schedule)


def drawn_card(recipe: DrawnRecipe, schedule: OneWaySchedule) -> str:
    """Of a student that was taught by drawn scenes."""
    how = f"{_SHARED} It was taught by drawn scenes at last."
    return _card(recipe, recipe.student, how, schedule)


def _card(recipe: Recipe, origin: str, how: str, schedule: OneWaySchedule) -> str:
    times = ", ".join(str(t) for t in schedule.timesteps.tolist())
    made = recipe.model_dump(mode="json", exclude_unset=True, exclude={"out"})
    how = how.format(t=times, k=len(schedule))
    return _CARD.format(teacher=origin, how=how, recipe=yaml.safe_dump(made))
