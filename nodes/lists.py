"""Prompt List and Save Batch: a list drives the graph, and its pictures end in one folder."""

from __future__ import annotations

import json
from typing import Any

from comfy_api.latest import io

from ..tiue_core.batch.jobs import NAME
from ..tiue_core.batch.limits import ListLimits, Looker
from ..tiue_core.batch.lists import KINDS
from ..tiue_core.errors import TiueError
from ..tiue_core.io.images import SUFFIXES
from . import tickets
from .schema import Ticket, schema

BODY_LIMIT = 4 << 20  # bytes that a list may come in while it is typed
TEXT = "a cat on a blue background\na {gift|boat} on a pink background --count 3\n"


class PromptList(io.ComfyNode):
    """Rows of a list to prompts, seeds and sizes, each a list of its own."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="TiUEPromptList",
            display_name="Prompt List",
            description="A list of prompts (txt, CSV, JSONL or YAML) as lists of prompts, seeds "
            "and sizes: what they are connected to runs once for every picture. With Save Batch, "
            "pictures that are in the folder already are left out, so it goes on where it stopped.",
            search_aliases=["tiue", "prompts from file", "csv", "batch", "wildcards", "queue"],
            inputs=[
                io.Combo.Input(
                    "file",
                    options=tickets.files(),
                    tooltip="A list in ComfyUI's input folder, or the text below. Press R to "
                    "refresh.",
                ),
                io.String.Input(
                    "text",
                    default=TEXT,
                    multiline=True,
                    tooltip="The list itself: one prompt per line, options after it such as "
                    "--seed 3 --count 2. Bad rows are marked.",
                ),
                io.Combo.Input(
                    "kind",
                    options=list(KINDS),
                    tooltip="What the text is. A file says so by its name.",
                ),
                io.String.Input(
                    "folder",
                    default="batch",
                    tooltip="Where Save Batch puts the pictures, in ComfyUI's output folder.",
                ),
                io.String.Input(
                    "names",
                    default=NAME,
                    tooltip="Names of the files: index, slug, seed, picture, line, width, height, "
                    "name, id or a column, in braces. / makes folders.",
                ),
                *(
                    io.Int.Input(
                        side,
                        default=512,
                        min=8,
                        max=4096,
                        step=8,
                        tooltip="Of rows that do not say.",
                    )
                    for side in ("width", "height")
                ),
                io.Int.Input(
                    "seed",
                    default=-1,
                    min=-1,
                    max=2**53,
                    control_after_generate=False,
                    tooltip="Of rows that have none. -1: each row's own, drawn from its text, so "
                    "it stays the same.",
                ),
                io.Boolean.Input(
                    "combinations",
                    default=False,
                    tooltip="Every combination of {a|b} and __file__, rather than one by chance.",
                ),
                io.Int.Input(
                    "at_once",
                    default=16,
                    min=1,
                    max=10_000,
                    tooltip="Pictures per run. ComfyUI saves them when all of a run are painted: "
                    "with fewer, less is lost when it stops. Queue again for the next ones.",
                ),
                io.Boolean.Input(
                    "skip_bad_rows",
                    default=True,
                    tooltip="Go on past bad rows. Off: nothing runs until all rows are good.",
                ),
            ],
            outputs=[
                io.String.Output(
                    display_name="prompt", is_output_list=True, tooltip="For CLIP Text Encode."
                ),
                io.String.Output(
                    display_name="negative",
                    is_output_list=True,
                    tooltip="The negative prompts. Students have no use for them.",
                ),
                io.Int.Output(
                    display_name="seed", is_output_list=True, tooltip="For the sampler's seed."
                ),
                io.Int.Output(
                    display_name="width", is_output_list=True, tooltip="For Empty Latent Image."
                ),
                io.Int.Output(
                    display_name="height", is_output_list=True, tooltip="For Empty Latent Image."
                ),
                Ticket.Output(display_name="job", is_output_list=True, tooltip="For Save Batch."),
            ],
            hidden=[io.Hidden.prompt, io.Hidden.unique_id],
        )

    @classmethod
    def validate_inputs(cls, file: str, kind: str, folder: str, names: str) -> bool | str:
        return tickets.wrong(file, kind, folder, names) or True

    @classmethod
    def fingerprint_inputs(cls, file: str, folder: str, **_: Any) -> object:
        """What changes when the list does, and when pictures were saved."""
        return tickets.stamp(file, folder)

    @classmethod
    def execute(cls, **inputs: Any) -> io.NodeOutput:
        asked = tickets.ListInputs(**inputs)
        made = tickets.issue(cls.hidden.prompt, str(cls.hidden.unique_id), asked)
        status = {"tiue_list": [json.dumps(made.status)]}
        if not made.tickets:
            from comfy_execution.graph_utils import ExecutionBlocker

            nothing = [ExecutionBlocker(None)]  # all there already: what follows has no work
            return io.NodeOutput(*[nothing] * 6, ui=status)
        jobs = [ticket.job for ticket in made.tickets]
        return io.NodeOutput(
            [job.prompt for job in jobs],
            [job.negative for job in jobs],
            [job.seed for job in jobs],
            [job.width for job in jobs],
            [job.height for job in jobs],
            made.tickets,
            ui=status,
        )


class SaveBatch(io.ComfyNode):
    """Pictures of a Prompt List to its folder: the names, manifest and resume of `tiue batch`."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="TiUESaveBatch",
            display_name="Save Batch",
            description="Saves the pictures of a Prompt List under the list's names, each whole or "
            "not at all, with a line in manifest.jsonl. Run again, what is there is not made "
            "again.",
            search_aliases=["tiue", "save image", "manifest", "resume", "batch"],
            inputs=[
                io.Image.Input("images", tooltip="From VAE Decode: one picture per job."),
                Ticket.Input("job", tooltip="The job of Prompt List."),
                io.Combo.Input("format", options=list(SUFFIXES), tooltip="Of the files."),
                io.Boolean.Input(
                    "metadata",
                    default=True,
                    tooltip="Workflow, prompt and seed in the files, for ComfyUI, A1111 and "
                    "galleries.",
                ),
            ],
            outputs=[],
            hidden=[io.Hidden.prompt, io.Hidden.extra_pnginfo],
            is_output_node=True,
        )

    @classmethod
    def validate_inputs(cls, format: str) -> bool | str:
        if format not in SUFFIXES:
            return f"format is '{format}': choose one of {', '.join(SUFFIXES)}"
        return True

    @classmethod
    def execute(cls, images: Any, job: Any, format: str, metadata: bool) -> io.NodeOutput:
        # Without ComfyUI's notes of what changed, which may name files of this machine.
        graph = {
            key: {name: value for name, value in node.items() if name != "is_changed"}
            for key, node in (cls.hidden.prompt or {}).items()
        }
        comfyui = {"prompt": graph, **(cls.hidden.extra_pnginfo or {})}
        place = tickets.keep(images, job, format, comfyui if metadata else None)
        return io.NodeOutput(ui={"images": [place]})


def add_routes() -> None:
    """Let the page ask what is wrong with a list while it is typed."""
    from aiohttp import web
    from server import PromptServer

    looker = Looker(ListLimits(seconds=tickets.TYPED_SECONDS))

    @PromptServer.instance.routes.post("/tiue/check_list")
    async def check(request: Any) -> Any:
        try:
            # ComfyUI takes bodies of 100 MB, which its event loop would decode.
            body = await request.content.read(BODY_LIMIT + 1)
            while len(body) <= BODY_LIMIT and (piece := await request.content.read(BODY_LIMIT)):
                body += piece
            if len(body) > BODY_LIMIT:
                return web.json_response({"error": "the list is too long"}, status=413)
            asked = json.loads(body)
            text, kind = str(asked["text"])[: tickets.TYPED_LIMIT], str(asked["kind"])
            every = bool(asked.get("combinations"))
        except (ValueError, KeyError, TypeError, RecursionError):
            return web.json_response({"error": "give text and kind"}, status=400)
        try:
            answer = await looker.look(tickets.check, text, kind, every)
        except TiueError as error:
            return web.json_response({"error": str(error)}, status=503)
        return web.json_response(answer)


NODES = [PromptList, SaveBatch]
