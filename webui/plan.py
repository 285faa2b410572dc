"""What a job is going to do: which schedule, or why it cannot be painted in one pass."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from modules.processing import StableDiffusionProcessingImg2Img

from tiue_core.core.schedule import OneWaySchedule
from tiue_core.errors import TiueError
from tiue_core.students.checkpoint import Made
from tiue_core.students.vocabulary import notes

SPEEDS = ("plain", "fast")
_SYNTAX = re.compile(r"<[^>]*>|\b(?:AND|BREAK)\b")  # of the WebUI's prompts, no words of a picture


@dataclass(frozen=True)
class Plan:
    """The schedule of a job; ``Plan.of`` raises what stands in its way."""

    schedule: OneWaySchedule
    decoders: int  # K, of which "fast" leaves some out

    @classmethod
    def make(cls, p: Any, decoders: Any = 0, speed: str = "plain") -> Plan:
        """For a job whose model is loaded.

        Args:
            decoders: K; 0 is the student's own.
            speed: "fast" leaves out decoders that carry less than 1 % of the weight.

        Raises:
            TiueError: it cannot be painted in one pass; the message says what to do.
        """
        _check_job(p)
        made = made_of(p.sd_model)
        if speed not in SPEEDS:
            raise TiueError(f"TiUE speed is {speed!r}: choose one of {', '.join(SPEEDS)}")
        try:
            steps = int(decoders)
            if steps != float(decoders) or steps < 0:
                raise ValueError
        except (TypeError, ValueError):
            raise TiueError(
                f"TiUE decoders is {decoders!r}: give a whole number, 0 for the student's own"
            ) from None
        try:
            schedule = made.schedule(steps, "fast" if speed == "fast" else "exact")
        except ValueError as error:
            raise TiueError(f"TiUE decoders: {error}") from error
        return cls(schedule, steps or made.steps)

    @classmethod
    def of(cls, p: Any) -> Plan:
        """The plan that the script made for this job, or one of the student's own settings."""
        found = getattr(p, "tiue_plan", None)
        if isinstance(found, TiueError):
            raise found
        return found or cls.make(p)


def made_of(sd_model: Any) -> Made:
    """How the loaded student was made: by its file, or in Stable Diffusion's way.

    Raises:
        TiueError: the model has another layout than Stable Diffusion 1 and 2.
    """
    if not (sd_model.is_sd1 or getattr(sd_model, "is_sd2", False)):  # Neo knows of no 2
        kind = "SDXL" if sd_model.is_sdxl else type(sd_model).__name__
        raise TiueError(other_model(kind))
    if sd_model.is_inpaint:
        raise TiueError(other_model("for inpainting"))
    info = sd_model.sd_checkpoint_info
    made = Made.read(info.metadata)
    if made is not None:
        return made
    prediction = sd_model.forge_objects.unet.model.predictor.prediction_type
    return Made.stable_diffusion(info.name_for_extra, prediction)


def other_model(kind: str) -> str:
    """What to tell of a model that is no student's."""
    return (
        f"this model is {kind}: choose a checkpoint of a student of Stable Diffusion 1.5 or 2.1, "
        "or another sampling method"
    )


def untrained(p: Any, folders: dict[str, Path]) -> list[str]:
    """What the student of a job was not trained on: words of its prompts, its size; a line each.

    Args:
        folders: of students that have a list of the prompts they were trained on, by name.
    """
    made, engine = made_of(p.sd_model), p.sd_model.text_processing_engine
    prompts = [_SYNTAX.sub(" ", text) for text in (*p.all_prompts, *p.all_negative_prompts)]
    folder = folders.get(made.name, Path())
    size = (p.width, p.height)
    return notes(engine.tokenizer.get_vocab(), folder, prompts, size, (made.side, made.side))


def _check_job(p: Any) -> None:
    if isinstance(p, StableDiffusionProcessingImg2Img):
        raise TiueError(
            "TiUE One Pass paints from noise, not from a picture: choose another sampling method "
            "for img2img and inpainting"
        )
    if getattr(p, "enable_hr", False):
        second = p.hr_sampler_name
        if second in (None, "Use same sampler", p.sampler_name):
            raise TiueError(
                "TiUE One Pass cannot rework a picture: choose another Hires sampling method "
                "(Euler, say) for hires fix"
            )
