"""The same systems in miniature, with files that are part of this package."""

from __future__ import annotations

from .paper_rows import LEADING_50
from .system import Part, System

TEACHER_GUIDANCE = 2.0  #: the miniature teacher's best of 2, 3 and 4.5 (docs/figures.json)


def rows() -> list[System]:
    """The same systems in miniature."""
    own = (Part("pipeline", license="Apache-2.0"),)
    grid = {50: LEADING_50, 15: tuple(range(925, 0, -66)), 4: (751, 501, 251, 1)}
    rows = [
        System(
            "stickers-teacher" if steps == 50 else f"stickers-teacher-{steps}",
            f"the miniature's teacher, {steps} steps of DDIM",
            "ddim",
            steps,
            grid[steps],
            guidance=TEACHER_GUIDANCE,
            pixels=128,
            parts=own,
            student="stickers-teacher",
        )
        for steps in grid
    ]
    rows.append(
        System(
            "stickers-faster",
            "FasterDiffusion on the miniature's teacher",
            "faster",
            50,
            LEADING_50,
            guidance=TEACHER_GUIDANCE,
            pixels=128,
            parts=own,
            student="stickers-teacher",
        )
    )
    rows.append(
        System(
            "stickers-swiftbrush",
            "the same teacher distilled with K = 1 at t = 999",
            "one-way",
            1,
            (999,),
            pixels=128,
            parts=own,
            student="stickers-one-step",
            note="the teacher's UNet and a low-rank difference: the whole student would be 10 MB "
            "more. stickers-swiftbrush:FOLDER runs one that recipe 6-one-step.yaml made",
        )
    )
    for name, decoders, timesteps in (
        ("stickers", "exact", (751, 501, 251, 1)),
        ("stickers-fast", "fast", (751, 501, 251)),
    ):
        rows.append(
            System(
                name,
                f"TiUE, the built-in miniature, {decoders}",
                "one-way",
                1,
                timesteps,
                pixels=128,
                prediction=f"epsilon x {len(timesteps)}",
                parts=own,
                student="stickers",
                decoders=decoders,
            )
        )
    return rows
