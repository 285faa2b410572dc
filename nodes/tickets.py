"""What Prompt List and Save Batch do: jobs of a list, and the folder they end in.

A job's id is over its row and over the graph that paints it, so another model, LoRA or sampler
makes new pictures, and another text only those of the rows that changed.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import folder_paths

from ..tiue_core.batch.engine import line_of, save
from ..tiue_core.batch.jobs import BadName, Job, Settings, check_path, file_name
from ..tiue_core.batch.limits import TooLongError, tick
from ..tiue_core.batch.lists import KINDS
from ..tiue_core.batch.manifest import Manifest, State
from ..tiue_core.batch.options import RunOptions
from ..tiue_core.batch.schema import BadRow
from ..tiue_core.errors import TiueError
from ..tiue_core.io.images import SUFFIXES, encode

TYPED = "(the text below)"
TYPED_LIMIT = 1_000_000  # characters that are checked while they are typed
TYPED_SECONDS = 3.0  # and for how long
SUFFIXES_OF_LISTS = (".txt", ".csv", ".tsv", ".jsonl", ".ndjson", ".yaml", ".yml")
WILDCARDS = "wildcards"  # below ComfyUI's input folder
TOLD = 50  # bad rows on the node
OURS = ("TiUEPromptList", "TiUESaveBatch")


@dataclass(frozen=True)
class Ticket:
    """A job on its way through the graph, with the folder it belongs to."""

    job: Job
    manifest: Manifest


@dataclass
class Issued:
    """The jobs of one run, and what the node shows."""

    tickets: list[Ticket]
    status: dict[str, Any]


def files() -> list[str]:
    """Lists in the input folder, after the text."""
    root = Path(folder_paths.get_input_directory())
    found = [path for path in root.rglob("*") if path.suffix.lower() in SUFFIXES_OF_LISTS]
    names = (path.relative_to(root).as_posix() for path in found)
    return [TYPED, *sorted(name for name in names if not name.startswith(WILDCARDS + "/"))]


def wrong(file: str, kind: str, folder: str, names: str) -> str | None:
    """What is wrong with the inputs, before anything runs."""
    if file != TYPED and file not in files():
        return f"'{file}' is not in ComfyUI's input folder: press R and choose another"
    if kind not in KINDS:
        return f"kind is '{kind}': choose one of {', '.join(KINDS)}"
    for name, value in (("folder", folder), ("names", names)):
        try:
            check_path(value)
        except BadName as error:
            return f"{name} is '{value}': {error}"
    return None


def stamp(file: str, folder: str) -> str:
    """Of sizes and times of the list, the wildcard files and the manifest."""
    root = Path(folder_paths.get_input_directory())
    paths = [*sorted((root / WILDCARDS).rglob("*")), _home(folder) / "manifest.jsonl"]
    paths += [root / file] if file != TYPED else []
    stats = [(str(path), path.stat()) for path in paths if path.is_file()]
    facts = [(path, stat.st_mtime_ns, stat.st_size) for path, stat in stats]
    # ComfyUI keeps this in the pictures' metadata, where paths of this machine have no place.
    return hashlib.sha256(repr(facts).encode("utf-8", "replace")).hexdigest()


def check(text: str, kind: str, combinations: bool) -> dict[str, Any]:
    """Bad rows and pictures of a text, for the editor; `more`, where it was not read to its end."""
    plan = RunOptions(text, kind, combinations=combinations, wildcards=_wildcards())
    bad, pictures, more = [], 0, False
    try:
        for job in plan.jobs(_settings("", 512, 512)):
            tick()
            if isinstance(job, BadRow):
                bad.append(_told(job))
            else:
                pictures += 1
            if len(bad) >= TOLD or pictures >= 100_000:
                more = True
                break
    except TooLongError:  # a long list may well be painted: only its count ends here
        more = True
    except TiueError as error:
        bad.append({"line": 1, "column": "", "message": str(error)})
    return {"bad": bad, "pictures": pictures, "more": more}


@dataclass(frozen=True)
class ListInputs:
    """What a person sets on Prompt List."""

    file: str
    text: str
    kind: str
    folder: str
    names: str
    width: int
    height: int
    seed: int
    combinations: bool
    at_once: int
    skip_bad_rows: bool


def issue(graph: dict[str, Any] | None, node: str, inputs: ListInputs) -> Issued:
    """The next jobs whose pictures are not there.

    Raises:
        ValueError: bad rows that are not to be skipped, or a list that cannot be read.
    """
    root = Path(folder_paths.get_input_directory())
    plan = RunOptions(
        inputs.text if inputs.file == TYPED else root / inputs.file,
        inputs.kind if inputs.file == TYPED else None,
        names=inputs.names,
        seed=None if inputs.seed < 0 else inputs.seed,
        combinations=inputs.combinations,
        wildcards=_wildcards(),
    )
    manifest = Manifest(_home(inputs.folder), "comfyui")
    settings = _settings(_hash(graph or {}, node), inputs.width, inputs.height)
    tickets: list[Ticket] = []
    bad: list[dict[str, Any]] = []
    there = waiting = 0
    for job in plan.jobs(settings):
        if isinstance(job, BadRow):
            if not inputs.skip_bad_rows:
                raise ValueError(f"{_with_place(job)} (or switch skip_bad_rows on)")
            if len(bad) < TOLD:
                bad.append(_told(job))
            continue
        state = manifest.state(job.id)
        manifest.mark(job.id, State.SEEN)
        if state & State.MADE:
            there += not state & State.SEEN
        elif state & State.SEEN:
            continue
        elif len(tickets) < inputs.at_once:
            tickets.append(Ticket(job, manifest))
        else:
            waiting += 1
    if not tickets and not there:
        first = f": {bad[0]['line']}: {bad[0]['message']}" if bad else ""
        raise ValueError(f"the list has no row to paint{first or ': write a prompt'}")
    now = {"there": there, "now": len(tickets), "waiting": waiting, "bad": bad}
    return Issued(tickets, {**now, "folder": inputs.folder})


def keep(images: Any, ticket: Ticket, kind: str, comfyui: dict[str, Any] | None) -> dict[str, str]:
    """Save a picture; the place of it as ComfyUI's page wants it.

    Raises:
        ValueError: several pictures for one job.
        TiueError: the disk is full.
    """
    from comfy.cli_args import args
    from PIL import Image

    if len(images) != 1:
        raise ValueError(
            f"{len(images)} pictures for one row: set batch_size of Empty Latent Image to 1, and "
            "ask for more with --count in the list"
        )
    job, manifest = ticket.job, ticket.manifest
    array = images[0].detach().cpu().float().clamp(0, 1).mul(255).round().byte().numpy()
    metadata = None
    if comfyui is not None and not args.disable_metadata:
        metadata = {**job.record(), "made_in": "ComfyUI"}
    data = encode(Image.fromarray(array), metadata, kind, comfyui=comfyui)
    manifest.folder.mkdir(parents=True, exist_ok=True)
    path = save(manifest.folder, job.file, SUFFIXES[kind], data, job.id)
    file = path.relative_to(manifest.folder).as_posix()
    if not manifest.state(job.id) & State.MADE:
        manifest.append({"status": "made", "file": file, **line_of(job)})
    output = Path(folder_paths.get_output_directory())
    subfolder = path.parent.relative_to(output).as_posix()
    return {"filename": path.name, "subfolder": subfolder, "type": "output"}


def _home(folder: str) -> Path:
    """A folder below ComfyUI's output folder, by a name that stays there."""
    return Path(folder_paths.get_output_directory()) / file_name(folder.replace("{", "-"), {})


def _wildcards() -> Path | None:
    folder = Path(folder_paths.get_input_directory()) / WILDCARDS
    return folder if folder.is_dir() else None


def _settings(graph: str, width: int, height: int) -> Settings:
    return Settings("ComfyUI", graph, (), width, height)


def _hash(graph: dict[str, Any], node: str) -> str:
    """Of the nodes between this list and its Save Batch, and of all that feeds them."""
    saves = [key for key, one in graph.items() if one.get("class_type") == "TiUESaveBatch"]
    mine = [key for key in saves if _links(graph[key]).get("job") == node]
    wanted, seen = list(mine or saves), set[str]()
    while wanted:
        key = wanted.pop()
        if key not in seen and key in graph:
            seen.add(key)
            wanted += _links(graph[key]).values()
    nodes = {
        key: {"class": graph[key]["class_type"], "inputs": graph[key]["inputs"]}
        for key in sorted(seen)
        if graph[key]["class_type"] not in OURS
    }
    return hashlib.sha256(json.dumps(nodes, sort_keys=True, default=str).encode()).hexdigest()


def _links(node: dict[str, Any]) -> dict[str, str]:
    """Inputs that come from another node, and from which."""
    inputs = node.get("inputs", {}).items()
    return {name: str(value[0]) for name, value in inputs if isinstance(value, list) and value}


def _told(row: BadRow) -> dict[str, Any]:
    row = _in_comfyui(row)
    return {"line": row.line, "column": row.column, "message": row.message}


def _with_place(row: BadRow) -> str:
    return str(_in_comfyui(row))


def _in_comfyui(row: BadRow) -> BadRow:
    if "--loras" in row.message:
        return replace(row, message="LoRAs are the graph's here: use a LoRA loader")
    if "--wildcards" in row.message:
        return replace(row, message="put the wildcard files into ComfyUI's input/wildcards")
    return row
