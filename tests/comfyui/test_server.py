"""The shipped workflows and bad input, on the real server."""

from __future__ import annotations

import copy
import io
import json
import re
import shutil
import subprocess
import time
from typing import Any

import numpy as np
import pytest
from PIL import Image
from place import ROOT
from server import Prompt, Refused, Server, nodes_of, to_prompt

WORKFLOWS = sorted((ROOT / "workflows").glob("*.json"))
NODES = {
    "TiUELoadStudent",
    "TiUESaveStudent",
    "TiUEOnePassSampler",
    "TiUESampler",
    "TiUESigmas",
    "TiUENoise",
    "TiUEInvert",
    "TiUEPatchModel",
    "TiUEEncode",
    "TiUEDecode",
    "TiUECombine",
    "TiUEFeatureAtlas",
    "TiUEPromptList",
    "TiUESaveBatch",
    "TiUETrainLora",
}
WARM = 20  # s of CPU time


@pytest.fixture(scope="module")
def info(server: Server) -> dict[str, Any]:
    return server.get("/object_info")


def shipped(info: dict[str, Any], name: str) -> Prompt:
    """A workflow of the pack as a prompt."""
    prompt = to_prompt(json.loads((ROOT / "workflows" / f"{name}.json").read_text()), info)
    for training in nodes_of(prompt, "TiUETrainLora"):
        training |= {"steps": 2, "batch_size": 1}
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
        assert node.get("search_aliases", "0.3 has none")
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
    for path in WORKFLOWS:
        assert server.read(f"/api/workflow_templates/tiue/{path.stem}.jpg")[:3] == b"\xff\xd8\xff"


@pytest.mark.parametrize(  # prompt-list runs in test_lists.py: made once, it has nothing to do
    "name", [path.stem for path in WORKFLOWS if path.stem != "prompt-list"]
)
def test_every_workflow_runs(server: Server, info: dict[str, Any], name: str) -> None:
    prompt = shipped(info, name)
    first = server.run(prompt)
    assert first.status == "success", first.messages
    assert all(server.view(image)[:4] == b"\x89PNG" for image in first.images)

    # Warm, with only the seeds changed: what depends on them runs again, and nothing else.
    again = copy.deepcopy(prompt)
    seeded = {key for key, node in again.items() if "seed" in node["inputs"] and not learns(node)}
    for key in seeded:
        again[key]["inputs"]["seed"] += 1000
    began = time.monotonic()
    second = server.run(again)
    elapsed = time.monotonic() - began
    print(f"{name}: {first.seconds:.1f} s, warm {second.seconds:.1f} s of CPU, {elapsed:.1f} s")
    assert second.status == "success" and second.images
    assert second.executed == depending_on(seeded, again)
    assert second.seconds < WARM
    assert server.run(again).executed == set()


def learns(node: dict[str, Any]) -> bool:
    """Its seed stays: a LoRA is trained once and painted with many times."""
    return node["class_type"] == "TiUETrainLora"


def depending_on(some: set[str], prompt: Prompt) -> set[str]:
    """These nodes and all that their outputs reach."""
    reached = set(some)
    while True:
        more = {
            key
            for key, node in prompt.items()
            for value in node["inputs"].values()
            if isinstance(value, list) and value[0] in reached
        }
        if more <= reached:
            return reached
        reached |= more


def test_a_student_of_extra_model_paths(server: Server, prompt: Prompt) -> None:
    nodes_of(prompt, "TiUELoadStudent")[0]["student"] = "tiue/mine"
    assert server.run(prompt).status == "success"


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


def test_fifty_queued_prompts_leave_memory_flat(server: Server, prompt: Prompt) -> None:
    def run(seeds: range) -> None:
        queued = []
        for seed in seeds:
            again = copy.deepcopy(prompt)
            nodes_of(again, "TiUEOnePassSampler")[0]["seed"] = seed
            queued.append((server.queue(again), again))
        for prompt_id, again in queued:
            assert server.wait(prompt_id, again, 0).status == "success"

    run(range(10))
    before = server.memory
    run(range(10, 60))
    after = server.memory
    print(f"{before / 1e6:.1f} MB after 10 prompts, {after / 1e6:.1f} MB after 50 more")
    assert abs(after - before) <= 0.05 * before


# --- bad input -----------------------------------------------------------------------------


def test_a_student_that_is_not_there(server: Server, prompt: Prompt) -> None:
    nodes_of(prompt, "TiUELoadStudent")[0]["student"] = "tiue/gone"
    with pytest.raises(Refused, match=r"tiue/gone.* is gone from ComfyUI's model folders"):
        server.run(prompt)


def test_a_student_whose_files_vanish_after_the_list_was_made(
    server: Server, prompt: Prompt
) -> None:
    """The folder is in the list and stays; weights and then the whole folder go."""
    folder = server.base / "models" / "tiue" / "vanishing"
    shutil.copytree(server.base / "models" / "tiue" / "student", folder)
    students = server.get("/object_info/TiUELoadStudent")["TiUELoadStudent"]["input"]["required"]
    assert "tiue/vanishing" in str(students["student"])
    nodes_of(prompt, "TiUELoadStudent")[0]["student"] = "tiue/vanishing"
    assert server.run(prompt).status == "success"

    (folder / "unet" / "diffusion_pytorch_model.safetensors").unlink()
    run = server.run(prompt)
    assert run.status == "error" and run.error["node_type"] == "TiUELoadStudent"
    assert "has no .safetensors file" in run.error["exception_message"]
    shutil.rmtree(folder)
    with pytest.raises(Refused, match=r"tiue/vanishing.* press R to refresh the list"):
        server.run(prompt)


def to_a_picture(prompt: Prompt) -> None:
    prompt["99"] = copy.deepcopy(prompt["5"])
    prompt["5"]["inputs"]["latent"] = ["99", 0]


def to_another_model(prompt: Prompt) -> None:
    prompt["99"] = {
        "class_type": "TiUELoadStudent",
        "inputs": {**prompt["1"]["inputs"], "student": "tiue/other"},
    }
    prompt["6"]["inputs"]["model"] = ["99", 0]


def to_three_weights(prompt: Prompt) -> None:
    prompt["7"]["inputs"]["weights"] = "1, 1, 1"


def to_inpainting(prompt: Prompt) -> None:
    prompt["1"]["inputs"]["student"] = "tiue/inpainting"


def to_guidance_alone(prompt: Prompt) -> None:
    prompt["5"]["inputs"]["guidance"] = 3.0


BAD = {
    to_guidance_alone: ("two-stage", "TiUEOnePassSampler", "or set guidance to 1"),
    to_a_picture: ("two-stage", "TiUEOnePassSampler", "pure noise only: connect Empty Latent"),
    to_another_model: (
        "method-step-by-step",
        "TiUEDecode",
        "connect Encode and Decode to the same",
    ),
    to_three_weights: ("method-step-by-step", "TiUECombine", "3 numbers for 4 decoders: give 4"),
    to_inpainting: ("two-stage", "TiUEOnePassSampler", "connect the MODEL of Load Student"),
}


@pytest.mark.parametrize("spoil", BAD, ids=lambda spoil: spoil.__name__)
def test_bad_input_is_shown_on_its_node_and_the_server_lives_on(
    server: Server, prompt: Prompt, info: dict[str, Any], spoil: Any
) -> None:
    template, node, message = BAD[spoil]
    bad = shipped(info, template)
    spoil(bad)
    run = server.run(bad)
    assert run.status == "error" and run.error["node_type"] == node
    assert message in run.error["exception_message"]
    assert "\n" not in run.error["exception_message"].strip()
    nodes_of(prompt, "TiUEOnePassSampler")[0]["seed"] = 1000 + list(BAD).index(spoil)
    assert "4" in server.run(prompt).executed  # its sampler


def test_the_log_has_no_trouble_of_ours(server: Server) -> None:
    log = server.log
    assert "Error while calling comfy_entrypoint" not in log
    imported = re.search(r"([\d.]+) seconds( \(IMPORT FAILED\))?: .*/custom_nodes/tiue\n", log)
    assert imported and not imported[2] and float(imported[1]) < 2


# --- what runs beside a student ------------------------------------------------------------


def stock_ksampler(**settings: Any) -> Prompt:
    """Load Student, Patch Model and the stock KSampler, from an Empty SD3 Latent."""
    sampling = {"seed": 7, "steps": 1, "cfg": 1.0, "denoise": 1.0, "sampler_name": "euler"}
    given: dict[str, tuple[str, dict[str, Any]]] = {
        "1": ("TiUELoadStudent", {"student": "stickers", "accept_licence": False}),
        "2": ("CLIPTextEncode", {"clip": ["1", 1], "text": "a cat on a red background"}),
        "3": ("EmptySD3LatentImage", {"width": 128, "height": 128, "batch_size": 1}),
        "4": ("TiUEPatchModel", {"model": ["1", 0], "decoders": 0}),
        "5": (
            "KSampler",
            {
                **{"model": ["4", 0], "latent_image": ["3", 0], "scheduler": "normal"},
                **{"positive": ["2", 0], "negative": ["2", 0], **sampling, **settings},
            },
        ),
        "6": ("VAEDecode", {"samples": ["5", 0], "vae": ["1", 2]}),
        "7": ("SaveImage", {"images": ["6", 0], "filename_prefix": "beside"}),
    }
    return {key: {"class_type": kind, "inputs": inputs} for key, (kind, inputs) in given.items()}


def test_another_branchs_sampling_patch_changes_nothing(server: Server) -> None:
    reference = pixels(server.view(server.run(stock_ksampler()).images[0]))
    foreign = stock_ksampler(seed=1, model=["8", 0], steps=2)
    patch = {"model": ["1", 0], "sampling": "v_prediction", "zsnr": False}
    foreign["8"] = {"class_type": "ModelSamplingDiscrete", "inputs": patch}
    assert server.run(foreign).status == "success"
    again = stock_ksampler()
    again["4"]["inputs"]["chunk"] = 4  # the same picture, patched anew
    run = server.run(again)
    assert "4" in run.executed
    assert pixels(server.view(run.images[0])) == pytest.approx(reference, abs=1)


def test_what_does_not_act_says_so_in_the_log(server: Server) -> None:
    assert server.run(stock_ksampler(seed=8, cfg=7.0, denoise=0.8)).status == "success"
    log = server.log
    assert "TiUE: cfg is 7" in log and "TiUE: denoise 0.8 does not act" in log


LISTEN = """
import asyncio, sys, aiohttp

async def main():
    async with aiohttp.ClientSession() as session, session.ws_connect(sys.argv[1]) as socket:
        print("ready", flush=True)
        async for message in socket:
            if message.type == aiohttp.WSMsgType.BINARY and message.data[3] == 3:  # text on a node
                size = message.data[7]
                print(*(part.decode() for part in (message.data[8:8 + size],
                                                   message.data[8 + size:])), flush=True)

asyncio.run(main())
"""


def test_what_does_not_act_is_shown_on_the_node(server: Server, prompt: Prompt) -> None:
    nodes_of(prompt, "EmptyLatentImage")[0]["width"] = 384
    (sampler,) = (k for k, node in prompt.items() if node["class_type"] == "TiUEOnePassSampler")
    assert "384 x 128 is far from" in str(server.run(prompt).outputs[sampler]["notes"])

    # The stock KSampler's own node, as the page hears of it.
    command = [server.host.python, "-c", LISTEN, f"ws://127.0.0.1:{server.port}/ws"]
    page = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert page.stdout is not None and page.stdout.readline() == "ready\n"
    assert server.run(stock_ksampler(seed=10, cfg=5.0)).status == "success"
    time.sleep(1)
    page.terminate()
    assert "5 cfg is 5: students are trained to do without guidance" in page.communicate()[0]


@pytest.mark.parametrize("sampler", ["uni_pc", "uni_pc_bh2", "dpm_fast", "dpm_adaptive"])
def test_samplers_that_do_not_fit_are_refused(server: Server, sampler: str) -> None:
    run = server.run(stock_ksampler(seed=9, sampler_name=sampler))
    assert run.status == "error" and f"The sampler {sampler} does not" in str(run.error)
    assert run.error["exception_type"] == "ValueError"
