"""Load Student: MODEL, CLIP and VAE of a one-pass student."""

from __future__ import annotations

import hashlib
from typing import Any

from comfy_api.latest import io

from ..tiue_core.students import resolve as students
from ..tiue_core.students.folder import check_folder
from . import folders
from .schema import model_input, schema


class LoadStudent(io.ComfyNode):
    """A student as ComfyUI's own MODEL, CLIP and VAE."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="TiUELoadStudent",
            display_name="Load Student",
            description="Loads a one-pass student as an ordinary MODEL, CLIP and VAE. 'stickers' "
            "is built in and needs no download; yours go to models/tiue or models/diffusers.",
            search_aliases=["tiue", "loopfree", "checkpoint", "diffusers loader", "stickers"],
            inputs=[
                io.Combo.Input(
                    "student",
                    options=folders.choices(),
                    tooltip="'stickers' is built in, and so is the teacher it was made from, an "
                    "ordinary model for the stock KSampler. The loopfree students are downloaded "
                    "once. Diffusers folders and .safetensors checkpoints of ComfyUI's model "
                    "folders follow.",
                ),
                io.Boolean.Input(
                    "accept_licence",
                    default=False,
                    tooltip="Needed once, for a download: the loopfree students are CC BY-NC 4.0, "
                    "for non-commercial use only.",
                ),
            ],
            outputs=[
                io.Model.Output(
                    tooltip="For One-Pass Sampler, by way of LoRA loaders if you like."
                ),
                io.Clip.Output(tooltip="For CLIP Text Encode."),
                io.Vae.Output(tooltip="For VAE Decode."),
            ],
        )

    @classmethod
    def validate_inputs(cls, student: str) -> bool | str:
        return folders.gone(student) or True

    @classmethod
    def fingerprint_inputs(cls, student: str, accept_licence: bool = False) -> object:
        """What changes when the student's files do.

        A hash, because ComfyUI writes it into the pictures' metadata, which people share; paths
        would tell where they live.
        """
        path = folders.on_disk(student) or folders.built_in(student)
        files = sorted(path.rglob("*")) if path and path.is_dir() else [path]
        stamps = [(str(f), f.stat().st_mtime_ns) for f in files if f and f.is_file()]
        return hashlib.sha256(repr(stamps).encode()).hexdigest()[:16]

    @classmethod
    def execute(cls, student: str, accept_licence: bool = False) -> io.NodeOutput:
        return io.NodeOutput(*_load(student, accept_licence))


def _load(student: str, accept_licence: bool = False) -> tuple[Any, Any, Any]:
    import folder_paths

    from .native import loading

    path = folders.on_disk(student)
    source = _known(student, accept_licence) if path is None else students.Source(student, path)
    embeddings = folder_paths.get_folder_paths("embeddings")
    if source.path.is_dir():
        folder = check_folder(source.path)
        return loading.load_folder(folder, embeddings, unet=source.unet, name=student)
    return loading.load_checkpoint(source.path, embeddings, _load)


def _known(student: str, accept_licence: bool) -> students.Source:
    """A student that is known by name, downloaded if need be."""

    def accept(terms: str) -> bool:
        if not accept_licence:
            raise ValueError(f"{terms}. Switch accept_licence on to accept this and download it")
        return True

    from .native import progress

    with progress.interruptible():
        return students.find(student, accept_license=accept, bar=progress.NodeBar)


class SaveStudent(io.ComfyNode):
    """A student, merged or with its LoRAs, as a checkpoint or a folder, with schedule and card."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="TiUESaveStudent",
            display_name="Save Student",
            description="Writes MODEL, CLIP and VAE, with LoRAs and merges applied, as one "
            "checkpoint or a diffusers folder that knows its schedule, with a card. Load Student "
            "reads both.",
            search_aliases=["tiue", "checkpoint save", "merge", "export"],
            inputs=[
                model_input(),
                io.Clip.Input("clip", tooltip="The student's CLIP, with its LoRAs."),
                io.Vae.Input("vae", tooltip="The student's VAE."),
                io.String.Input(
                    "name",
                    default="my-student",
                    tooltip="Of the file in output/checkpoints, or the folder in output/tiue. One "
                    "that is there is kept: a number is added.",
                ),
                io.Combo.Input(
                    "layout",
                    options=["one checkpoint", "diffusers folder"],
                    default="one checkpoint",
                    optional=True,
                    tooltip="One checkpoint: for ComfyUI and the WebUIs. Diffusers folder: also "
                    "for the command tiue, for Python and for training, whatever its shape.",
                ),
            ],
            outputs=[io.String.Output(display_name="file", tooltip="What Load Student calls it.")],
            is_output_node=True,
        )

    @classmethod
    def execute(
        cls, model: Any, clip: Any, vae: Any, name: str, layout: str = "one checkpoint"
    ) -> io.NodeOutput:
        from .native import saving

        file, choice = saving.save(model, clip, vae, name, layout)
        return io.NodeOutput(choice, ui={"text": [file.name]})


NODES = [LoadStudent, SaveStudent]
