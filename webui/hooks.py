"""What the WebUI calls: at its start, before a job, and when a model was loaded."""

from __future__ import annotations

import logging
from typing import Any

from modules import script_callbacks, scripts, sd_models

from tiue_core.errors import TiueError

from . import page, sampler, students
from .plan import Plan, untrained

__all__ = ["before", "page", "plan", "start"]
AXIS = "[TiUE] Decoders"
log = logging.getLogger("tiue")


def start() -> None:
    """Make sampler, family and the miniature known; again and again, as Reload UI does."""
    sampler.register()
    students.register()
    try:
        students.put_in_place()
    except TiueError as error:
        print(f"[TiUE] the miniature 'stickers' is not in the list of checkpoints: {error}")
    script_callbacks.on_model_loaded(_shorten_chunks)
    script_callbacks.on_before_ui(_add_axis)


def before(p: Any) -> None:
    """Ahead of the model's loading: what cannot be a student is refused in words."""
    if p.sampler_name != sampler.NAME:
        return
    wanted = p.override_settings.get("sd_model_checkpoint")
    info = sd_models.get_closet_checkpoint_match(wanted) if wanted else None
    info = info or sd_models.select_checkpoint()
    reason = None if info is None else students.trouble(info)
    if reason is not None:
        p.override_settings = _Refused(reason)


def plan(p: Any, decoders: Any = 0, speed: str = "plain") -> None:
    """With the model loaded, ahead of sampling: the job's schedule, its steps and its infotext."""
    if p.sampler_name != sampler.NAME:
        return
    try:
        made = Plan.make(p, getattr(p, "tiue_decoders", decoders), speed)
    except TiueError as error:  # what is raised here the WebUI logs and goes on; the sampler raises
        p.tiue_plan = error
        return
    p.tiue_plan = made
    steps = len(made.schedule)
    if getattr(p, "enable_hr", False) and not p.hr_second_pass_steps:
        p.hr_second_pass_steps = p.steps  # "as the first pass" means those of the page, not K
    p.steps = steps  # one tick of the progress bar each; FreeU and PAG count on them, too
    p.extra_generation_params["TiUE decoders"] = made.decoders
    p.extra_generation_params["TiUE speed"] = speed
    for line in untrained(p, {"stickers": students.STICKERS}):
        p.comment(line)  # below the pictures
        log.warning("%s", line)


class _Refused(dict):
    """A job's settings that refuse to be read.

    Of what a script raises ahead of a job the WebUI takes no notice; of what the job itself raises
    it does, and these settings are the first thing that a job reads.
    """

    def __init__(self, reason: str) -> None:
        super().__init__()
        self.reason = reason

    def keys(self) -> Any:
        raise TiueError(self.reason)


def _shorten_chunks(sd_model: Any) -> None:
    """Forge cuts prompts at 75 tokens; the miniature's text encoder has room for 30 and two."""
    engine = getattr(sd_model, "text_processing_engine", None)
    if engine is not None:
        room = engine.text_encoder.transformer.config.max_position_embeddings
        engine.chunk_length = min(engine.chunk_length, room - 2)


def _add_axis() -> None:
    """X/Y/Z plot: one more axis, once."""
    for data in scripts.scripts_data:
        axes = getattr(data.module, "axis_options", None)
        if axes is None or any(option.label == AXIS for option in axes):
            continue
        field = data.module.apply_field("tiue_decoders")
        axes.append(data.module.AxisOptionTxt2Img(AXIS, int, field))
