"""From a folder of pictures to a LoRA file that is known to load."""

from __future__ import annotations

import gc
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from ...core.arguments import both_sides
from ...errors import TiueError
from ...io.files import check_writable, explain, write_atomically
from ...optimize.cpu import give_back_pages
from ...pipelines.load import load
from ...students import resolve as students
from ...students.folder import check_folder, read_json
from ...students.lora import Lora, load_loras
from ...students.models import load_unet
from ..loop import Stopped, train
from ..optimizers import LossError
from ..recipe import LoraRecipe
from .adapters import lora_parameters
from .kohya import check_targets, metadata_of, write
from .memory import Estimate, estimate
from .parts import make_parts
from .pictures import Pictures, read_pictures
from .stages import RESULT, StudentStage, TransferStage

Progress = Callable[[int, int, dict[str, float]], None]
_DTYPES = {"no": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
_AGAIN = "copy the folder again"
TEACHERS = {"stickers": students.TEACHER}  #: of students that are known by name
FAR = ("stickers",)  #: students that went on without their teachers (``train/tasks/drawn.py``)


def run_folder(out: Path) -> Path:
    """Where a run is kept until its file is written."""
    return out.with_suffix(".run")


def train_lora(
    recipe: LoraRecipe,
    progress: Progress | None = None,
    *,
    stop: Callable[[], bool] = lambda: False,
    say: Callable[[str], None] = lambda line: None,
    before: Callable[[Estimate], None] = lambda found: None,
    accept_license: Any = False,
) -> Path:
    """Train what ``recipe`` describes and write ``recipe.out``; returns that path.

    Called again after it was stopped or killed, it goes on from its last checkpoint and ends with
    the weights it would have had. The folder beside the file keeps samples and the loss curve.

    Args:
        progress: called with (updates done, updates in all, the losses).
        stop: asked before every update.
        say: told what is going on, a line at a time.
        before: told what memory it will take, before it starts.
        accept_license: of what must be downloaded; see `students.find`.

    Raises:
        TiueError: the pictures, the models or the disk are not as they must be; a loss is no
            number (``LossError``); it was asked to stop (``Stopped``).
    """
    out = recipe.out
    if out.suffix != ".safetensors":
        raise TiueError(f"{out} must end in .safetensors: LoRAs are written in no other format")
    give_back_pages()
    pipeline, source = load_student(recipe, accept_license)
    check_targets(pipeline, recipe)
    pictures = pictures_of(recipe, pipeline)
    before(estimate(recipe, pipeline, [picture.bucket for picture in pictures.items]))
    teacher = load_teacher(recipe, pipeline, accept_license)
    folder = run_folder(out)
    check_writable(folder)
    _same_settings(folder, recipe, pictures)
    try:
        result = _stages(recipe, pipeline, teacher, pictures, folder, progress, stop, say)
    except LossError as error:
        kept = _last_good(folder)
        where = f"the last good weights are in {kept}" if kept else "there is nothing to keep yet"
        raise LossError(f"{error}: {where}; try a smaller learning rate") from None
    except Stopped as error:
        raise Stopped(f"{error}: the same command goes on from there") from None
    except OSError as error:
        raise explain(error, folder) from error
    except Exception as error:
        if "No space left" in str(error) or "os error 28" in str(error):
            raise TiueError(f"no space left to write {folder}: free some and run again") from error
        raise
    metadata = metadata_of(
        recipe,
        _settings(recipe),
        student=source.name,
        student_hash=source.content_hash(),
        dataset_hash=pictures.content_hash(),
        captions=pictures.captions,
        title=out.stem,
    )
    del pipeline, teacher
    gc.collect()
    write(out, load_file(result), metadata)
    check_loads(recipe, out)
    _keep_what_is_told(folder)
    return out


def load_student(recipe: LoraRecipe, accept_license: Any) -> tuple[Any, students.Source]:
    source = students.find(recipe.student, accept_license=accept_license)
    return load(source, dtype=_DTYPES[recipe.precision]), source


def load_teacher(recipe: LoraRecipe, pipeline: Any, accept_license: Any) -> Any:
    """The teacher's UNet.

    Raises:
        TiueError: it is not known and not given, or does not match the student.
    """
    name = recipe.teacher or TEACHERS.get(recipe.student)
    if name is None:
        raise TiueError(
            f"the teacher of {recipe.student} is not known: give the model that the student was "
            "made from, as a folder or a hub id"
        )
    source = students.find(name, accept_license=accept_license)
    if source.path.is_file():
        raise TiueError(f"the teacher {name} is a single file: give a diffusers folder")
    path = source.unet or check_folder(source.path) / "unet"
    ours, theirs = pipeline.unet.config, read_json(path / "config.json", _AGAIN)
    for key in ("in_channels", "block_out_channels", "cross_attention_dim", "layers_per_block"):
        mine, other = ours[key], theirs.get(key, ours[key])
        if list(mine) != list(other) if isinstance(mine, list | tuple) else mine != other:
            raise TiueError(
                f"the teacher {name} does not match the student {recipe.student} ({key} is {other} "
                f"there, {mine} here): give the model that the student was made from"
            )
    file = source.path / "scheduler" / "scheduler_config.json"
    kind = read_json(file, _AGAIN).get("prediction_type", "epsilon") if file.is_file() else None
    said = pipeline.scheduler.config.get("prediction_type", "epsilon")
    if kind not in (None, said):
        raise TiueError(
            f"the teacher {name} predicts {kind}, the student {recipe.student} {said}: give the "
            "model that the student was made from"
        )
    encoder, width = source.path / "text_encoder", pipeline.text_encoder.config.hidden_size
    if encoder.is_dir() and read_json(encoder / "config.json", _AGAIN).get("hidden_size") != width:
        raise TiueError(f"the teacher {name} has another text encoder than {recipe.student}")
    return load_unet(path, _DTYPES[recipe.precision]).to(pipeline.device)


def pictures_of(recipe: LoraRecipe, pipeline: Any) -> Pictures:
    """The folder, read for the sizes this student works at."""
    side, factor = min(both_sides(pipeline.unet.config.sample_size)), pipeline.vae_scale_factor
    levels = len(pipeline.unet.config.block_out_channels) - 1
    return read_pictures(
        recipe.images, recipe.trigger, side=side * factor, multiple=factor * 2**levels
    )


def updates(recipe: LoraRecipe) -> int:
    """Of both stages together."""
    return recipe.steps + (recipe.student_steps if recipe.method != "transfer" else 0)


def loss_curve(out: Path) -> list[float]:
    """The loss of every update that was logged, of both stages, one after the other."""
    losses: list[float] = []
    for stage in ("teacher", "student"):
        log = run_folder(out) / stage / "log.jsonl"
        lines = log.read_text(encoding="utf-8").splitlines() if log.is_file() else []
        rows = [json.loads(line) for line in lines]
        # what was made after the last checkpoint was made again: the later line counts
        losses += list({row["step"]: row["loss"] for row in rows}.values())
    return losses


def check_loads(recipe: LoraRecipe, file: Path) -> None:
    """Load the file as anybody would; a file that does not is no result."""
    pipeline = load(recipe.student, device="cpu", dtype=_DTYPES[recipe.precision])
    load_loras(pipeline, [Lora(file)])
    loaded = len(lora_parameters(pipeline.unet)) // 2
    written = sum(name.endswith(".alpha") for name in load_file(file))
    if loaded != written:
        raise TiueError(f"{file} loads only {loaded} of {written} layers: report this")


def _stages(
    recipe: LoraRecipe,
    pipeline: Any,
    teacher: Any,
    pictures: Pictures,
    folder: Path,
    progress: Progress | None,
    stop: Callable[[], bool],
    say: Callable[[str], None],
) -> Path:
    total = updates(recipe)

    def report(before: int) -> Progress:
        def told(done: int, _: int, values: dict[str, float]) -> None:
            if progress:
                progress(before + done, total, values)

        return told

    parts = make_parts(recipe, pipeline, teacher, pictures, folder)
    if recipe.method == "transfer" and recipe.student in FAR and recipe.teacher is None:
        say(
            f"{recipe.student} has learned on since its teacher, so the LoRA of that is weak "
            "on it: --method one-pass brings it nearer, for twice the time"
        )
    say(f"{len(pictures.items)} pictures; the teacher learns them: {recipe.steps} updates")
    first = recipe.model_copy(update={"out": folder / "teacher"})
    result = train(first, lambda r: TransferStage(r, parts), progress=report(0), stop=stop)
    if recipe.method == "transfer":
        return result / RESULT
    learned = {name: p.detach().clone() for name, p in lora_parameters(teacher).items()}
    teacher.fuse_lora()
    teacher.unload_lora()
    say(f"the student learns from the teacher: {recipe.student_steps} updates")
    second = recipe.model_copy(
        update={
            "out": folder / "student",
            "steps": recipe.student_steps,
            "learning_rate": recipe.student_learning_rate,
        }
    )
    result = train(
        second,
        lambda r: StudentStage(r, parts, folder, stop).start_from(learned),
        progress=report(recipe.steps),
        stop=stop,
    )
    return result / RESULT


def _settings(recipe: LoraRecipe) -> dict[str, Any]:
    """What decides the weights; not where things lie or how often they are told."""
    telling = {"out", "images", "log_every", "checkpoint_every", "sample_every", "task"}
    return recipe.model_dump(mode="json", exclude=telling)


def _same_settings(folder: Path, recipe: LoraRecipe, pictures: Pictures) -> None:
    """A run goes on only with the settings and pictures it was begun with."""
    mine = {**_settings(recipe), "dataset_hash": pictures.content_hash()}
    file = folder / "settings.json"
    if not file.is_file():
        write_atomically(file, json.dumps(mine, indent=2).encode())
        return
    theirs = read_json(file, "delete that folder, or give another output file")
    other = sorted(key for key in mine if mine[key] != theirs.get(key))
    if other:
        raise TiueError(
            f"{folder} holds a run that differs in {', '.join(other)}: delete it, or give "
            "another output file"
        )


def _last_good(folder: Path) -> Path | None:
    for stage in ("student", "teacher"):
        file = folder / stage / "result" / RESULT
        if file.is_file():
            return file
    return None


def _keep_what_is_told(folder: Path) -> None:
    """Samples, logs and settings stay; what was for going on goes."""
    for path in (
        "pairs",
        *(
            f"{stage}/{kind}"
            for stage in ("teacher", "student")
            for kind in ("checkpoints", "result")
        ),
    ):
        shutil.rmtree(folder / path, ignore_errors=True)
    for name in ("settings.json", "prior.safetensors"):
        (folder / name).unlink(missing_ok=True)
