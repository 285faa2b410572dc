"""Prompt List and Save Batch on the real server: names, manifest, resume, metadata, bad rows."""

from __future__ import annotations

import copy
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from place import ROOT
from server import Prompt, Refused, Run, Server, nodes_of, to_prompt

LIST = "a cat on a blue background --count 2\na star --seed 7 --name stars/{seed} --width 96\n"


@pytest.fixture
def prompt(server: Server, request: pytest.FixtureRequest) -> Prompt:
    """The template, with a folder of its own."""
    info = server.get("/object_info")
    prompt = to_prompt(json.loads((ROOT / "workflows" / "prompt-list.json").read_text()), info)
    nodes_of(prompt, "TiUEPromptList")[0].update(text=LIST, folder=request.node.name)
    return prompt


@pytest.fixture
def folder(server: Server, request: pytest.FixtureRequest) -> Path:
    return server.base / "output" / request.node.name


def painted(run: Run) -> int:
    """Pictures that a run saved."""
    assert run.status == "success", run.messages
    return len(run.images)


def status(run: Run) -> dict[str, Any]:
    (told,) = (output["tiue_list"][0] for output in run.outputs.values() if "tiue_list" in output)
    return json.loads(told)


def ids(folder: Path) -> list[str]:
    lines = (folder / "manifest.jsonl").read_text().splitlines()
    return [json.loads(line)["id"] for line in lines]


def test_names_manifest_and_resume(server: Server, prompt: Prompt, folder: Path) -> None:
    row = nodes_of(prompt, "TiUEPromptList")[0]
    row["at_once"] = 2
    first = server.run(prompt)
    assert painted(first) == 2 and status(first)["waiting"] == 1
    assert painted(server.run(prompt)) == 1
    assert painted(server.run(prompt)) == 0  # all there: nothing runs
    files = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*.png"))
    assert [name.rpartition("_")[0] for name in files[:2]] == [
        f"00000{i}_a-cat-on-a-blue-background" for i in (0, 1)
    ]
    assert files[2] == "stars/7.png" and len(files) == 3
    assert len(set(ids(folder))) == len(ids(folder)) == 3
    with Image.open(folder / "stars" / "7.png") as image:
        assert image.size == (96, 128)

    row["text"] = "a new one --seed 3\n" + LIST
    assert painted(server.run(prompt)) == 1
    (folder / "stars" / "7.png").unlink()  # lost: it is made again
    row["text"] = LIST
    assert painted(server.run(prompt)) == 1 and (folder / "stars" / "7.png").exists()

    nodes_of(prompt, "TiUEOnePassSampler")[0]["decoders"] = 2  # another picture of every row
    assert status(server.run(prompt))["there"] == 0


def test_pictures_are_those_of_the_command_line(
    server: Server, prompt: Prompt, folder: Path
) -> None:
    from tiue_core import TiuePipeline

    nodes_of(prompt, "TiUEPromptList")[0]["text"] = "a cat on a blue background --seed 5\n"
    assert painted(server.run(prompt)) == 1
    (path,) = folder.glob("*.png")
    pipe = TiuePipeline.from_pretrained("stickers")
    expected = np.asarray(pipe("a cat on a blue background", seed=5).images[0]).astype(int)
    with Image.open(path) as image:
        assert np.abs(np.asarray(image).astype(int) - expected).max() <= 2


@pytest.mark.parametrize("kind", ["png", "jpeg", "webp"])
def test_metadata(server: Server, prompt: Prompt, folder: Path, kind: str) -> None:
    from sd_parsers import ParserManager

    nodes_of(prompt, "TiUEPromptList")[0]["text"] = "a cat --seed 5\n"
    nodes_of(prompt, "TiUESaveBatch")[0]["format"] = kind
    workflow = {"nodes": [], "name": "mine"}
    extra = {"extra_pnginfo": {"workflow": workflow}}
    content = {"prompt": prompt, "client_id": "tests", "extra_data": extra}
    run = server.wait(server.post("/prompt", content)["prompt_id"], prompt, server.clock())
    assert painted(run) == 1
    (path,) = (path for path in folder.iterdir() if path.suffix != ".jsonl")
    with Image.open(path) as image:
        if kind == "png":
            kept = {key: json.loads(image.text[key]) for key in ("prompt", "workflow")}
            assert image.text["parameters"].startswith("a cat\nSampler: TiUE")
        else:  # where ComfyUI's page looks in these formats
            exif = image.getexif()
            kept = {
                "prompt": json.loads(exif[0x0110].removeprefix("prompt:")),
                "workflow": json.loads(exif[0x010F].removeprefix("workflow:")),
            }
    assert kept == {"prompt": prompt, "workflow": workflow}
    assert str(server.base).encode() not in path.read_bytes()
    assert ParserManager().parse(path) is not None


def test_bad_rows(server: Server, prompt: Prompt) -> None:
    row = nodes_of(prompt, "TiUEPromptList")[0]
    row["text"] = "a cat --seed 1\na dog --seed x\na fox --lora ink:1\n__animal__\n"
    run = server.run(prompt)
    assert painted(run) == 1
    assert [(bad["line"], bad["column"]) for bad in status(run)["bad"]] == [
        *((2, "seed"), (3, "lora"), (4, "prompt"))
    ]
    assert "use a LoRA loader" in status(run)["bad"][1]["message"]
    row["skip_bad_rows"] = False
    run = server.run(prompt)
    assert run.status == "error" and run.error["node_type"] == "TiUEPromptList"
    assert "list:2: seed: 'x' is no seed" in run.error["exception_message"]
    row.update(skip_bad_rows=True, text="# nothing\n")
    run = server.run(prompt)
    assert run.status == "error" and "no row to paint" in run.error["exception_message"]


def test_the_editor_is_told_what_is_wrong(server: Server) -> None:
    text = "a {cat|dog}\na --seed x\n{a|b\n"
    told = server.post("/tiue/check_list", {"text": text, "kind": "txt", "combinations": True})
    assert told["pictures"] == 2
    assert [(bad["line"], bad["column"]) for bad in told["bad"]] == [(2, "seed"), (3, "prompt")]
    told = server.post("/tiue/check_list", {"text": "- a\n- [", "kind": "yaml"})
    assert told["pictures"] == 1 and len(told["bad"]) == 1
    told = server.post("/tiue/check_list", {"text": "x", "kind": "docx"})
    assert "is no prompt list" in told["bad"][0]["message"]


def test_a_list_without_end_ends_being_looked_through(server: Server) -> None:
    told = server.post("/tiue/check_list", {"text": "a --count 100000\n" * 9_000, "kind": "txt"})
    assert told["more"] and told["pictures"] and not told["bad"]
    many = "prompt," + ",".join(f"c{i}" for i in range(64_000))
    told = server.post("/tiue/check_list", {"text": many, "kind": "csv"})
    assert "more than 1000 columns" in told["bad"][0]["message"] and not told["more"]
    told = server.post("/tiue/check_list", {"text": "[" * 900_000, "kind": "jsonl"})
    assert "no JSON" in told["bad"][0]["message"]
    deep: Any = "a"
    for _ in range(400):
        deep = [deep]
    told = server.post("/tiue/check_list", {"text": deep, "kind": "txt", "combinations": deep})
    assert told["pictures"] == 1
    with pytest.raises(Refused, match="give text and kind"):
        server.post("/tiue/check_list", [deep])
    with pytest.raises(Refused, match="too long"):
        server.post("/tiue/check_list", {"text": "a" * (5 << 20), "kind": "txt"})


def test_a_file_of_the_input_folder(server: Server, prompt: Prompt, folder: Path) -> None:
    path = server.base / "input" / "pets.csv"
    path.write_text("prompt,seed\na cat,1\n")
    row = nodes_of(prompt, "TiUEPromptList")[0]
    row["file"] = "pets.csv"
    file = server.get("/object_info")["TiUEPromptList"]["input"]["required"]["file"]
    assert "pets.csv" in file[1]["options"]
    assert painted(server.run(prompt)) == 1
    path.write_text("prompt,seed\na cat,1\na dog,2\n")
    assert painted(server.run(prompt)) == 1
    assert len(ids(folder)) == 2


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"file": "../secret.csv"}, "is not in ComfyUI's input folder"),
        ({"folder": "../elsewhere"}, "leads out of the folder"),
        ({"folder": "/tmp/elsewhere"}, "a path of its own"),
        ({"names": "../{index}"}, "leads out of the folder"),
        ({"kind": "docx"}, "choose one of txt, csv, jsonl, yaml"),
    ],
)
def test_inputs_that_are_refused(
    server: Server, prompt: Prompt, change: dict[str, str], message: str
) -> None:
    nodes_of(prompt, "TiUEPromptList")[0].update(change)
    with pytest.raises(Refused, match=message):
        server.run(prompt)


def test_several_pictures_for_one_row(server: Server, prompt: Prompt) -> None:
    nodes_of(prompt, "EmptyLatentImage")[0]["batch_size"] = 2
    run = server.run(prompt)
    assert run.status == "error" and run.error["node_type"] == "TiUESaveBatch"
    assert "set batch_size of Empty Latent Image to 1" in run.error["exception_message"]


def test_two_lists_in_one_graph(server: Server, prompt: Prompt, folder: Path) -> None:
    """Each has its own Save Batch, and is not disturbed by the other's settings."""
    text = "a cat --seed 1\n"
    nodes_of(prompt, "TiUEPromptList")[0]["text"] = text
    assert painted(server.run(prompt)) == 1
    double = copy.deepcopy(prompt)
    for key, node in prompt.items():
        if node["class_type"] != "TiUELoadStudent":
            other = copy.deepcopy(node)
            for name, value in other["inputs"].items():
                is_link = isinstance(value, list)
                if is_link and prompt[value[0]]["class_type"] != "TiUELoadStudent":
                    other["inputs"][name] = [f"{value[0]}0", value[1]]
            double[f"{key}0"] = other
    nodes_of(double, "TiUEPromptList")[1].update(folder=folder.name + "-2", text="a dog --seed 1\n")
    assert painted(server.run(double)) == 1
    assert len(ids(folder)) == 1


def test_pictures_open_in_pillow(server: Server, prompt: Prompt) -> None:
    run = server.run(prompt)
    for image in run.images:
        with Image.open(io.BytesIO(server.view(image))) as opened:
            opened.load()
    assert painted(run) == 3
