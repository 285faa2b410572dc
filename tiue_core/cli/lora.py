"""``tiue lora IMAGES --trigger WORD --out FILE.safetensors``."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated, Any

import typer

from .options import AcceptLicense, Json


def register(app: typer.Typer) -> None:
    app.command("lora")(lora)


def lora(
    images: Annotated[
        Path, typer.Argument(metavar="IMAGES", help="A folder of pictures, captions beside them.")
    ],
    out: Annotated[
        Path,
        typer.Option("--out", "-o", metavar="FILE.safetensors", help="The LoRA to write."),
    ],
    trigger: Annotated[
        str | None, typer.Option(help="The word for the new thing; put before captions without it.")
    ] = None,
    student: Annotated[
        str, typer.Option(help="Name, folder or hub id of the student.")
    ] = "stickers",
    teacher: Annotated[
        str | None,
        typer.Option(show_default="the student's, where known", help="What it was made from."),
    ] = None,
    method: Annotated[
        str | None,
        typer.Option(metavar="transfer|one-pass|paired", show_default="transfer", help="The way."),
    ] = None,
    style: Annotated[
        bool, typer.Option("--style", help="A style, not a thing: --prior 0 --steps 400.")
    ] = False,
    rank: Annotated[int | None, typer.Option(show_default="16")] = None,
    alpha: Annotated[float | None, typer.Option(show_default="the rank")] = None,
    target: Annotated[
        list[str] | None,
        typer.Option(show_default="attention and convolutions", help="Layers; many times."),
    ] = None,
    steps: Annotated[
        int | None, typer.Option(show_default="600", help="Updates of the teacher's LoRA.")
    ] = None,
    student_steps: Annotated[
        int | None, typer.Option(show_default="150", help="Then of the student's.")
    ] = None,
    batch_size: Annotated[int | None, typer.Option("--batch-size", show_default="8")] = None,
    learning_rate: Annotated[float | None, typer.Option(show_default="2e-3")] = None,
    precision: Annotated[
        str | None, typer.Option(metavar="no|bf16|fp16", show_default="no", help="bf16: less room.")
    ] = None,
    gradient_checkpointing: Annotated[
        bool, typer.Option("--gradient-checkpointing", help="Slower, in much less memory.")
    ] = False,
    mirror: Annotated[bool, typer.Option("--mirror", help="Learn mirror images too.")] = False,
    prior: Annotated[
        float | None,
        typer.Option(show_default="1", help="Weight of staying as it was on other prompts."),
    ] = None,
    prior_prompts: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Those prompts, one a line.")
    ] = None,
    init: Annotated[
        Path | None, typer.Option(metavar="FILE", help="A LoRA of the teacher to begin with.")
    ] = None,
    sample_every: Annotated[int | None, typer.Option(show_default="100")] = None,
    seed: Annotated[int, typer.Option(help="Of everything random.")] = 0,
    accept_license: AcceptLicense = False,
    json: Json = False,
) -> None:
    """Teach a one-pass student something new from a few pictures; run again, it goes on.

    Example: tiue lora my-cat --trigger zorb --student stickers --out zorb.safetensors
    """
    from ..io.files import file_hash
    from ..io.messages import quiet_libraries
    from ..train.recipe import LoraRecipe, checked
    from .console import emit, progress, say

    given = {
        "teacher": teacher,
        "method": method,
        "rank": rank,
        "alpha": alpha if alpha is not None else rank,
        "targets": target or None,
        "steps": steps,
        "student_steps": student_steps,
        "batch_size": batch_size,
        "learning_rate": learning_rate,
        "precision": precision,
        "prior": prior,
        "prior_prompts": prior_prompts,
        "init": init,
        "sample_every": sample_every,
    }
    recipe = checked(
        LoraRecipe,
        {
            "out": out,
            "images": images,
            "trigger": trigger,
            "student": student,
            "seed": seed,
            "style": style,
            "mirror": mirror,
            "gradient_checkpointing": gradient_checkpointing,
            **{name: value for name, value in given.items() if value is not None},
        },
    )
    from ..train.lora.memory import report
    from ..train.lora.run import run_folder, train_lora, updates

    quiet_libraries()
    started, values = time.monotonic(), {}
    with progress(out.stem, updates(recipe)) as advance:
        seen = 0

        def told(done: int, total: int, logs: dict[str, float]) -> None:
            nonlocal seen
            advance(done - seen)
            seen = done
            values.update(logs)
            if done % 25 == 0 or done == total:
                say(f"{done}/{total}  loss {logs['loss']:.4g}")

        path = train_lora(
            recipe, told, say=say, accept_license=accept_license, before=lambda p: report(p, say)
        )
    result: dict[str, Any] = {
        "lora": str(path),
        "sha256": file_hash(path),
        "trigger": trigger,
        "run": str(run_folder(out)),
        "loss": values.get("loss"),
        "seconds": round(time.monotonic() - started, 1),
    }
    if json:
        emit(result)
    else:
        print(f"Written: {path}")
        say(f'try it: tiue generate "{trigger or "..."}" --student {student} --lora {path}')
