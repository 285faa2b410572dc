"""Beside other packs: all of them in one real server, and their nodes work with ours.

They are looked for below $COMFYUI_PACKS, a folder of checkouts, and what they import must be in
ComfyUI's Python. Nothing of theirs is part of this repository.

    COMFYUI_PACKS=~/packs pytest -m slow tests/comfyui/test_packs.py -s
"""

from __future__ import annotations

import io
import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import pytest
from PIL import Image
from place import BUILT_IN, HERE, Comfy
from server import Prompt, Server

pytestmark = pytest.mark.slow
PACKS = {  # a checkout's folder, and a node that it brings
    "rgthree-comfy": "Seed (rgthree)",
    "ComfyUI-KJNodes": "INTConstant",
    "ComfyUI-Inspire-Pack": "GlobalSeed //Inspire",
    "efficiency-nodes-comfyui": "KSampler (Efficient)",
    "ComfyUI-Advanced-ControlNet": "ACN_AdvancedControlNetApply_v2",
}
SEED = 11
LORA, CONTROL = "your-lora.safetensors", "your-controlnet.safetensors"
Nodes = Prompt


class Beside(Server):
    """A server with other packs, copied: some write into their own folders."""

    def __init__(self, comfy: Comfy, base: Path, packs: list[Path]) -> None:
        super().__init__(comfy, base)
        self.packs = packs
        for pack in packs:
            shutil.copytree(pack, base / "custom_nodes" / pack.name)

    def command(self) -> list[str]:
        command = super().command()
        place = command.index("tiue") + 1
        return [*command[:place], *(pack.name for pack in self.packs), *command[place:]]


@pytest.fixture(scope="module")
def packs(skipped_loudly: Callable[[str], NoReturn]) -> list[Path]:
    place = os.environ.get("COMFYUI_PACKS")
    if not place:
        skipped_loudly("no other packs: $COMFYUI_PACKS names no folder of their checkouts")
    found = [Path(place).expanduser() / name for name in PACKS]
    found = [pack for pack in found if (pack / "__init__.py").is_file()]
    if not found:
        skipped_loudly(f"no other packs: {place} has none of {', '.join(PACKS)}")
    return found


@pytest.fixture(scope="module")
def beside(
    comfy: Comfy, packs: list[Path], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Server]:
    base = tmp_path_factory.mktemp("packs")
    server = Beside(comfy, base, packs)
    command = [comfy.python, str(HERE / "scratch.py"), str(base / "models"), str(BUILT_IN)]
    subprocess.run(command, env=comfy.environment, check=True, capture_output=True)
    with server:
        yield server


def node(kind: str, **inputs: Any) -> dict[str, Any]:
    return {"class_type": kind, "inputs": inputs}


def one_pass(count: int = 1, **more: Any) -> Nodes:
    """Our nodes and the stock ones: one pass, `count` pictures; `more` replaces nodes."""
    student = {
        "load": node("TiUELoadStudent", student="stickers", accept_licence=False),
        "text": node("CLIPTextEncode", clip=["load", 1], text="a cat on a red background"),
        "size": node("EmptyLatentImage", width=128, height=128, batch_size=count),
        "paint": node(
            "TiUEOnePassSampler",
            model=["load", 0],
            positive=["text", 0],
            latent=["size", 0],
            seed=SEED,
            decoders=0,
            guidance=1.0,
        ),
        "decode": node("VAEDecode", samples=["paint", 0], vae=["load", 2]),
        "show": node("SaveImage", images=["decode", 0], filename_prefix="packs"),
    }
    return {**student, **more}


def sampled(kind: str, seed: str = "seed", **more: Any) -> dict[str, Any]:
    """A KSampler of some pack on a patched student, at one step."""
    inputs = {
        **{"model": ["patch", 0], seed: SEED, "steps": 1, "cfg": 1.0, "sampler_name": "euler"},
        **{"scheduler": "normal", "positive": ["text", 0], "negative": ["text", 0]},
        **{"latent_image": ["size", 0], "denoise": 1.0},
    }
    return node(kind, **inputs, **more)


PATCH = {"patch": node("TiUEPatchModel", model=["load", 0], decoders=0)}
STOCK = one_pass(**PATCH, paint=sampled("KSampler"))


def custom(noise: dict[str, Any]) -> Nodes:
    """SamplerCustomAdvanced with our SAMPLER and SIGMAS, two pictures."""
    return one_pass(
        2,
        noise=noise,
        guide=node("BasicGuider", model=["load", 0], conditioning=["text", 0]),
        sampler=node("TiUESampler"),
        sigmas=node("TiUESigmas", model=["load", 0], decoders=0),
        paint=node(
            "SamplerCustomAdvanced",
            noise=["noise", 0],
            guider=["guide", 0],
            sampler=["sampler", 0],
            sigmas=["sigmas", 0],
            latent_image=["size", 0],
        ),
    )


def changed(prompt: Nodes, name: str, **inputs: Any) -> Nodes:
    """The same with other inputs of one node."""
    entry = prompt[name]
    return {**prompt, name: {**entry, "inputs": {**entry["inputs"], **inputs}}}


def with_lora(**loader: Any) -> Nodes:
    """MODEL and CLIP by way of the node "lora"."""
    prompt = one_pass(lora=loader["lora"])
    prompt = changed(prompt, "text", clip=["lora", 1])
    return changed(prompt, "paint", model=["lora", 0])


_STACK = {
    f"{what}_{i:02}": value
    for i in (2, 3, 4)
    for what, value in (("lora", "None"), ("strength", 1.0))
}
_LOADER = {"model": ["load", 0], "clip": ["load", 1]}
STOCK_LORA = with_lora(
    lora=node("LoraLoader", **_LOADER, lora_name=LORA, strength_model=0.8, strength_clip=0.8)
)
_CONTROLLED = {"image": ["picture", 0], "strength": 0.7, "start_percent": 0.0, "end_percent": 1.0}


def controlled(loader: dict[str, Any], apply: dict[str, Any]) -> Nodes:
    prompt = one_pass(
        picture=node("EmptyImage", width=128, height=128, batch_size=1, color=0x80C040),
        net=loader,
        control=apply,
    )
    return changed(prompt, "paint", positive=["control", 0])


STOCK_CONTROL = controlled(
    node("ControlNetLoader", control_net_name=CONTROL),
    node(
        "ControlNetApplyAdvanced",
        positive=["text", 0],
        negative=["text", 0],
        control_net=["net", 0],
        **_CONTROLLED,
    ),
)

# What is run of a pack, and the prompt of stock and own nodes that it must equal, to 2/255.
CASES: dict[str, tuple[str, Nodes, Nodes]] = {
    "rgthree: Seed": (
        "rgthree-comfy",
        changed(one_pass(seed=node("Seed (rgthree)", seed=SEED)), "paint", seed=["seed", 0]),
        one_pass(),
    ),
    "rgthree: Context, Any Switch": (
        "rgthree-comfy",
        {
            **one_pass(
                context=node(
                    "Context (rgthree)", model=["load", 0], clip=["load", 1], vae=["load", 2]
                ),
                any=node("Any Switch (rgthree)", any_01=["context", 1]),
                text=node("CLIPTextEncode", clip=["context", 2], text="a cat on a red background"),
                decode=node("VAEDecode", samples=["paint", 0], vae=["context", 3]),
                paint=node(
                    "TiUEOnePassSampler",
                    model=["any", 0],
                    positive=["text", 0],
                    latent=["size", 0],
                    seed=SEED,
                    decoders=0,
                    guidance=1.0,
                ),
            )
        },
        one_pass(),
    ),
    "rgthree: Power Lora Loader": (
        "rgthree-comfy",
        with_lora(
            lora=node(
                "Power Lora Loader (rgthree)",
                **_LOADER,
                lora_1={"on": True, "lora": LORA, "strength": 0.8},
            )
        ),
        STOCK_LORA,
    ),
    "rgthree: Lora Loader Stack": (
        "rgthree-comfy",
        with_lora(
            lora=node(
                "Lora Loader Stack (rgthree)", **_LOADER, lora_01=LORA, strength_01=0.8, **_STACK
            )
        ),
        STOCK_LORA,
    ),
    "rgthree: KSampler Config": (
        "rgthree-comfy",
        changed(
            {
                **STOCK,
                "config": node(
                    "KSampler Config (rgthree)",
                    steps_total=1,
                    refiner_step=1,
                    cfg=1.0,
                    sampler_name="euler",
                    scheduler="normal",
                ),
            },
            "paint",
            steps=["config", 0],
            cfg=["config", 2],
            sampler_name=["config", 3],
            scheduler=["config", 4],
        ),
        STOCK,
    ),
    "KJNodes: INTConstant as a seed": (
        "ComfyUI-KJNodes",
        changed(one_pass(seed=node("INTConstant", value=SEED)), "paint", seed=["seed", 0]),
        one_pass(),
    ),
    "KJNodes: a LoRA without blocks chosen": (
        "ComfyUI-KJNodes",
        changed(
            one_pass(
                lora=node(
                    "DiTBlockLoraLoader", model=["load", 0], strength_model=0.8, lora_name=LORA
                )
            ),
            "paint",
            model=["lora", 0],
        ),
        changed(
            one_pass(
                lora=node(
                    "LoraLoaderModelOnly", model=["load", 0], strength_model=0.8, lora_name=LORA
                )
            ),
            "paint",
            model=["lora", 0],
        ),
    ),
    "Inspire: Random Noise, a seed per picture": (
        "ComfyUI-Inspire-Pack",
        custom(
            node(
                "RandomNoise //Inspire",
                noise_seed=SEED,
                noise_mode="CPU",
                batch_seed_mode="incremental",
                variation_seed=0,
                variation_strength=0.0,
            )
        ),
        custom(node("TiUENoise", seed=SEED)),
    ),
    "Inspire: Lora Loader (Block Weight)": (
        "ComfyUI-Inspire-Pack",
        with_lora(
            lora=node(
                "LoraLoaderBlockWeight //Inspire",
                **_LOADER,
                category_filter="All",
                lora_name=LORA,
                strength_model=0.8,
                strength_clip=0.8,
                inverse=False,
                seed=0,
                A=1.0,
                B=1.0,
                preset="Preset",
                block_vector=",".join(["1"] * 17),
                bypass=False,
            )
        ),
        STOCK_LORA,
    ),
    "efficiency: KSampler, XY plot of seeds": (
        "efficiency-nodes-comfyui",
        {
            **one_pass(
                **PATCH,
                paint=sampled(
                    "KSampler (Efficient)",
                    preview_method="none",
                    vae_decode="true",
                    optional_vae=["load", 2],
                    script=["plot", 0],
                ),
                plot=node(
                    "XY Plot",
                    grid_spacing=0,
                    XY_flip="False",
                    Y_label_orientation="Horizontal",
                    cache_models="True",
                    ksampler_output_image="Images",
                    X=["seeds", 0],
                ),
                seeds=node("XY Input: Seeds++ Batch", batch_count=3),
                show=node("SaveImage", images=["paint", 5], filename_prefix="packs"),
            )
        },
        STOCK,
    ),
    "Advanced-ControlNet: loader, apply": (
        "ComfyUI-Advanced-ControlNet",
        controlled(
            node("ACN_ControlNetLoaderAdvanced", cnet=CONTROL),
            node(
                "ACN_AdvancedControlNetApply_v2",
                positive=["text", 0],
                negative=["text", 0],
                control_net=["net", 0],
                **_CONTROLLED,
            ),
        ),
        STOCK_CONTROL,
    ),
}


def pictures(server: Server, prompt: Nodes) -> np.ndarray:
    """(B, H, W, 3), of the node "show"."""
    run = server.run(prompt)
    assert run.status == "success", run.messages
    files = run.outputs["show"]["images"]
    return np.stack(
        [
            np.asarray(Image.open(io.BytesIO(server.view(file))).convert("RGB"), int)
            for file in files
        ]
    )


def test_all_packs_are_imported(beside: Server, packs: list[Path]) -> None:
    info = beside.get("/object_info")
    for pack in packs:
        assert PACKS[pack.name] in info, f"{pack.name} was not imported"
    assert "TiUEOnePassSampler" in info
    assert "IMPORT FAILED" not in beside.log


@pytest.mark.parametrize("case", CASES)
def test_a_node_of_a_pack_works_with_ours(
    beside: Server, packs: list[Path], skipped_loudly: Callable[[str], NoReturn], case: str
) -> None:
    pack, asked, reference = CASES[case]
    if pack not in {found.name for found in packs}:
        skipped_loudly(f"other packs: {pack} is not at $COMFYUI_PACKS")
    wanted, found = pictures(beside, reference), pictures(beside, asked)
    apart = np.abs(found[: len(wanted)] - wanted).max()
    print(f"{case}: {len(found)} pictures, {apart}/255")
    assert apart <= 2 and wanted.std() > 10
    if "plot" in asked:  # the seeds that follow, each as it is by itself
        for more in (1, 2):
            alone = pictures(beside, changed(reference, "paint", seed=SEED + more))
            assert np.abs(found[more] - alone[0]).max() <= 2


def test_inspires_global_seed_reaches_our_sampler(
    beside: Server, packs: list[Path], skipped_loudly: Callable[[str], NoReturn]
) -> None:
    """It writes into the queued prompt what the page says is a seed."""
    if "ComfyUI-Inspire-Pack" not in {found.name for found in packs}:
        skipped_loudly("other packs: ComfyUI-Inspire-Pack is not at $COMFYUI_PACKS")
    wanted = pictures(beside, one_pass())
    everywhere = node("GlobalSeed //Inspire", value=SEED, mode=True, action="fixed", last_seed="")
    prompt = changed(one_pass(everywhere=everywhere), "paint", seed=3)
    page = {"widget_idx_map": {"paint": {"seed": 0}}, "nodes": []}
    asked = {"prompt": prompt, "extra_data": {"extra_pnginfo": {"workflow": page}}}
    began = beside.clock()
    run = beside.wait(beside.post("/prompt", asked)["prompt_id"], prompt, began)
    assert run.status == "success", run.messages
    found = np.asarray(Image.open(io.BytesIO(beside.view(run.images[0]))).convert("RGB"), int)
    assert np.abs(found - wanted[0]).max() <= 2
