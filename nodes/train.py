"""Train LoRA: a few pictures to a LoRA of a one-pass student, on ComfyUI's own sockets."""

from __future__ import annotations

import folder_paths
from comfy_api.latest import io

from . import folders
from .schema import schema

METHODS = ("transfer", "paired", "one-pass")
OWN = "the student's own"


class TrainLora(io.ComfyNode):
    """A folder of pictures to a LORA_MODEL for Load LoRA Model and Save LoRA Weights."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="TiUETrainLora",
            display_name="Train LoRA (One Pass)",
            description="Teaches a one-pass student something new from a few pictures, without "
            "making it an ordinary model again: its teacher learns them, the student follows. "
            "Interrupted, it goes on where it was when queued again.",
            search_aliases=["tiue", "lora training", "train lora", "finetune", "dreambooth"],
            inputs=[
                io.Combo.Input(
                    "images",
                    options=_folders(),
                    tooltip="A folder inside ComfyUI's input folder: a dozen pictures of any size, "
                    "each with its caption in a .txt of the same name, or none and a trigger word.",
                ),
                io.String.Input(
                    "trigger",
                    default="zorb",
                    tooltip="The word for the new thing. It is put before captions that lack it.",
                ),
                io.Combo.Input(
                    "student",
                    options=folders.choices(),
                    tooltip="The student, as in Load Student; one that is already here, as a "
                    "folder.",
                ),
                io.Combo.Input(
                    "teacher",
                    options=[OWN, *folders.choices()],
                    default=OWN,
                    tooltip="What the student was made from. Only that of 'stickers' is known by "
                    "itself.",
                ),
                io.Combo.Input(
                    "method",
                    options=list(METHODS),
                    default=METHODS[0],
                    tooltip="transfer: the teacher learns the pictures, and the student takes its "
                    "LoRA; the quickest, and the best on the built-in student. paired: then the "
                    "student copies what that teacher paints. one-pass: then score distillation.",
                ),
                io.Int.Input(
                    "steps", default=600, min=1, max=100_000, tooltip="Updates of the teacher."
                ),
                io.Int.Input(
                    "student_steps",
                    default=150,
                    min=1,
                    max=100_000,
                    tooltip="Updates of the student, after those. transfer makes none.",
                ),
                io.Int.Input(
                    "batch_size", default=8, min=1, max=256, tooltip="Pictures per update."
                ),
                io.Float.Input(
                    "learning_rate",
                    default=2e-3,
                    min=1e-7,
                    max=1.0,
                    step=1e-7,
                    tooltip="Of the teacher's LoRA.",
                ),
                io.Int.Input("rank", default=16, min=1, max=256, tooltip="Of the LoRA's matrices."),
                io.Boolean.Input(
                    "gradient_checkpointing",
                    default=False,
                    tooltip="Slower, in much less memory.",
                ),
                io.Int.Input(
                    "seed",
                    default=0,
                    min=0,
                    max=2**31 - 1,
                    control_after_generate=True,
                    tooltip="Of everything random in the training.",
                ),
                io.Boolean.Input(
                    "style",
                    default=False,
                    tooltip="A style, not a thing: it may change everything, with and without the "
                    "trigger word, so its strength is the control. 400 updates are enough.",
                ),
            ],
            outputs=[
                io.LoraModel.Output(
                    display_name="lora",
                    tooltip="For Load LoRA Model and Save LoRA Weights. The file itself, with its "
                    "metadata, lies in ComfyUI's output folder, under loras.",
                ),
                io.LossMap.Output(display_name="loss", tooltip="For Plot Loss Graph."),
                io.Int.Output(display_name="steps", tooltip="Updates made, for Save LoRA Weights."),
            ],
        )

    @classmethod
    def validate_inputs(cls, images: str, student: str, teacher: str) -> bool | str:
        if images not in folder_paths.get_input_subfolders():
            return f"There is no folder '{images}' in ComfyUI's input folder: make one, press R"
        return folders.gone(student, *([] if teacher == OWN else [teacher])) or True

    @classmethod
    def fingerprint_inputs(cls, images: str, **_: object) -> object:
        """What changes when a picture or a caption does."""
        from pathlib import Path

        folder = Path(folder_paths.get_input_directory()) / images
        files = sorted(folder.iterdir()) if folder.is_dir() else []
        return [(file.name, file.stat().st_mtime_ns) for file in files]

    @classmethod
    def execute(
        cls, images: str, trigger: str, student: str, teacher: str = OWN, **settings: object
    ) -> io.NodeOutput:
        from .native import training

        known = {"student": training.named(student)}
        if teacher != OWN:
            known["teacher"] = training.named(teacher)
        return io.NodeOutput(*training.train(images, trigger.strip(), known, settings))


def _folders() -> list[str]:
    return folder_paths.get_input_subfolders() or [""]


NODES = [TrainLora]
