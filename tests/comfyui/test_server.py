"""The shipped workflows and bad input, on the real server."""

from __future__ import annotations

import copy
import io
import json
import re
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from place import BUILT_IN, ROOT
from server import Prompt, Refused, Server, nodes_of, to_prompt

WORKFLOWS = sorted((ROOT / "workflows").glob("*.json"))
NODES = {
    "TiUELoadStudent",
    "TiUEOnePassSampler",
    "TiUESampler",
    "TiUESigmas",
    "TiUENoise",
    "TiUEPatchModel",
    "TiUEEncode",
    "TiUEDecode",
    "TiUECombine",
    "TiUEFeatureAtlas",
    "TiUEPromptList",
    "TiUESaveBatch",
}
WARM = 20  # s of CPU time


@pytest.fixture(scope="module")
def info(server: Server) -> dict[str, Any]:
    return server.get("/object_info")


def shipped(info: dict[str, Any], name: str) -> Prompt:
    """A workflow of the pack as a prompt, with a student that is here."""
    prompt = to_prompt(json.loads((ROOT / "workflows" / f"{name}.json").read_text()), info)
    built_in = "stickers" if BUILT_IN.is_dir() else "tiue/student"
    for loader in nodes_of(prompt, "TiUELoadStudent"):
        loader["student"] = "tiue/wide" if name == "controlnet" else built_in
    return prompt


@pytest.fixture
def prompt(info: dict[str, Any]) -> Prompt:
    """Text to image, one picture."""
    prompt = shipped(info, "text-to-image")
    nodes_of(prompt, "EmptyLatentImage")[0]["batch_size"] = 1
    return prompt


def test_all_nodes_are_there_with_tooltips_and_help(server: Server, info: dict[str, Any]) -> None:
    assert {name for name in info if name.startswith("TiUE")} == NODES
    for name in sorted(NODES):
        node = info[name]
        assert node["description"] and node["display_name"] and node["category"] == "TiUE"
        for kind in ("required", "optional"):
            for key, spec in node["input"].get(kind, {}).items():
                assert len(spec) > 1 and spec[1].get("tooltip"), f"{name}.{key} has no tooltip"
        assert server.read(f"/extensions/tiue/docs/{name}.md").startswith(b"# ")


def test_locales_name_every_node_and_input(server: Server, info: dict[str, Any]) -> None:
    named = server.get("/i18n")["en"]["nodeDefs"]
    for name in sorted(NODES):
        inputs = {
            **info[name]["input"].get("required", {}),
            **info[name]["input"].get("optional", {}),
        }
        assert named[name]["display_name"] == info[name]["display_name"]
        assert named[name]["inputs"].keys() == inputs.keys()


def test_templates_are_offered(server: Server) -> None:
    offered = server.get("/workflow_templates")["tiue"]
    assert sorted(offered) == sorted(path.stem for path in WORKFLOWS)
    for path in WORKFLOWS if BUILT_IN.is_dir() else ():
        assert server.read(f"/api/workflow_templates/tiue/{path.stem}.jpg")[:3] == b"\xff\xd8\xff"


@pytest.mark.parametrize(  # prompt-list runs in test_lists.py: made once, it has nothing to do
    "name", [path.stem for path in WORKFLOWS if path.stem != "prompt-list"]
)
def test_every_workflow_runs(server: Server, info: dict[str, Any], name: str) -> None:
    prompt = shipped(info, name)
    first = server.run(prompt)
    assert first.status == "success", first.messages
    assert all(server.view(image)[:4] == b"\x89PNG" for image in first.images)
    assert {"TiUELoadStudent", "VAEDecode"} <= first.executed

    # Warm, with only the seeds changed: just what depends on them runs again.
    again = copy.deepcopy(prompt)
    for inputs in (node["inputs"] for node in again.values()):
        if "seed" in inputs:
            inputs["seed"] += 1000
    second = server.run(again)
    print(f"{name}: {first.seconds:.1f} s, warm {second.seconds:.1f} s of CPU time")
    assert second.status == "success" and second.images
    assert second.executed.isdisjoint(
        {"TiUELoadStudent", "CLIPTextEncode", "LoraLoader", "ControlNetLoader", "EmptyLatentImage"}
    )
    assert second.seconds < WARM
    assert server.run(again).executed == set()


def test_a_batch_is_its_pictures(server: Server, prompt: Prompt) -> None:
    """The third picture of a batch is the picture of its own seed."""
    several = copy.deepcopy(prompt)
    nodes_of(several, "EmptyLatentImage")[0]["batch_size"] = 3
    nodes_of(several, "TiUEOnePassSampler")[0]["seed"] = 70
    nodes_of(prompt, "TiUEOnePassSampler")[0]["seed"] = 72
    third, alone = server.run(several).images[2], server.run(prompt).images[0]
    assert pixels(server.view(third)) == pytest.approx(pixels(server.view(alone)), abs=1)


def pixels(png: bytes) -> Any:
    return np.asarray(Image.open(io.BytesIO(png)).convert("RGB")).astype(int)


def test_interrupt(server: Server, prompt: Prompt) -> None:
    nodes_of(prompt, "EmptyLatentImage")[0].update(batch_size=64, width=256, height=256)
    nodes_of(prompt, "TiUEOnePassSampler")[0].update(chunk=1, seed=9)
    began, prompt_id = server.clock(), server.queue(prompt)
    while not server.get("/queue")["queue_running"]:
        time.sleep(0.05)
    time.sleep(1)
    server.post("/interrupt", {})
    run = server.wait(prompt_id, prompt, began)
    assert "execution_interrupted" in run.messages
    nodes_of(prompt, "EmptyLatentImage")[0].update(batch_size=1, width=128, height=128)
    assert server.run(prompt).status == "success"


@pytest.mark.slow
def test_fifty_prompts_leave_memory_flat(server: Server, prompt: Prompt) -> None:
    sizes = []
    for seed in range(60):
        nodes_of(prompt, "TiUEOnePassSampler")[0]["seed"] = seed
        assert server.run(prompt).status == "success"
        sizes.append(server.memory())
    print(f"{sizes[9] / 1e6:.0f} MB after 10 prompts, {sizes[-1] / 1e6:.0f} MB after 60")
    assert sizes[-1] <= 1.05 * sizes[9]


# --- bad input -----------------------------------------------------------------------------


def test_an_error_is_shown_on_its_node(server: Server, prompt: Prompt) -> None:
    nodes_of(prompt, "TiUEOnePassSampler")[0]["guidance"] = 3.0
    run = server.run(prompt)
    assert run.status == "error"
    assert run.error["node_type"] == "TiUEOnePassSampler"
    assert "set guidance to 1" in run.error["exception_message"]
    nodes_of(prompt, "TiUEOnePassSampler")[0]["guidance"] = 1.0
    assert server.run(prompt).status == "success"


def test_a_student_that_is_not_there(server: Server, prompt: Prompt) -> None:
    nodes_of(prompt, "TiUELoadStudent")[0]["student"] = "tiue/gone"
    with pytest.raises(Refused, match="tiue/gone"):
        server.run(prompt)


def test_a_latent_of_another_model(server: Server, prompt: Prompt) -> None:
    key = next(k for k, node in prompt.items() if node["class_type"] == "EmptyLatentImage")
    prompt[key]["class_type"] = "EmptySD3LatentImage"
    run = server.run(prompt)
    assert run.status == "error" and "use Empty Latent Image" in run.error["exception_message"]


def test_a_picture_as_latent(server: Server, prompt: Prompt, info: dict[str, Any]) -> None:
    two = shipped(info, "two-stage")
    sampler = next(k for k, node in two.items() if node["class_type"] == "TiUEOnePassSampler")
    two["99"] = copy.deepcopy(two[sampler])
    two["99"]["inputs"]["latent"] = [sampler, 0]
    nodes_of(two, "KSampler")[0]["latent_image"] = ["99", 0]
    run = server.run(two)
    assert run.status == "error" and "pure noise only" in run.error["exception_message"]
    assert server.run(prompt).status == "success"


def test_the_log_has_no_trouble_of_ours(server: Server) -> None:
    log = Path(server.base / "server.log").read_text()
    assert "Error while calling comfy_entrypoint" not in log
    imported = re.search(r"([\d.]+) seconds( \(IMPORT FAILED\))?: .*/custom_nodes/tiue\n", log)
    assert imported and not imported[2] and float(imported[1]) < 2
