"""Forge's API: the pictures are ``TiuePipeline``'s, and what hangs on Forge's model counts."""

from __future__ import annotations

import os
import shutil
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
from forge_server import NAME, Refused, Server, tiue
from parity import CASES, CLOSE, HANGING, PROMPT, WIDE, compare, distance

FROG = "a frog on a blue background"
FOLDER = os.environ.get("TIUE_SCREENSHOTS")
JOB = {"prompt": PROMPT, "cfg_scale": 1, "width": 128, "height": 128, "sampler_name": NAME}


@pytest.mark.parametrize("case", CASES)
def test_the_pipelines_latents_and_pictures(server: Server, pipe: Any, case: str) -> None:
    theirs, ours = CASES[case]
    compare(case, server.paint(PROMPT, **theirs), pipe, **ours)


# --- what hangs on Forge's model -----------------------------------------------------------


def test_lora(server: Server, pipe: Any, lora: str) -> None:
    """A tag in the prompt, kohya's names, UNet and text encoder; merged by hand in the pipeline."""
    painting = server.paint(f"{PROMPT} <lora:{lora}:0.8>")
    with tiny.merged(pipe, server.models / "Lora" / f"{lora}.safetensors", 0.8):
        compare("lora", painting, pipe)
    plain = server.paint(PROMPT)
    compare("without it", plain, pipe)
    assert distance(painting, plain.latents) > 1000 * CLOSE


@pytest.mark.parametrize("name", [name for name in HANGING if name not in WIDE])
def test_the_first_decoder_is_forges_own_forward(server: Server, name: str) -> None:
    how: dict[str, Any] = {"cfg_scale": 3.0, "batch_size": 2, "negative_prompt": "a dog"}
    painting = server.paint(PROMPT, **HANGING[name], **how)
    print(f"{name}: {max(painting.parity):.1e} in {len(painting.parity)} calls")
    assert painting.parity and max(painting.parity) <= CLOSE
    if name != "nothing":
        assert distance(painting, server.paint(PROMPT, **how).latents) > 1000 * CLOSE


@pytest.mark.parametrize("guidance", [1.0, 3.0])
def test_controlnet(server: Server, control: dict[str, Any], guidance: float) -> None:
    unit = {"ControlNet": {"args": [control]}}
    painting = server.paint(PROMPT, alwayson_scripts=unit, cfg_scale=guidance)
    print(f"ControlNet, guidance {guidance:g}: {max(painting.parity):.1e}")
    assert max(painting.parity) <= CLOSE
    plain = server.paint(PROMPT, cfg_scale=guidance)
    assert distance(painting, plain.latents) > 1000 * CLOSE


def test_what_the_prompt_can_say(server: Server) -> None:
    """Weights, AND, editing, and prompts longer than the text encoder change the picture."""
    plain = server.paint(PROMPT).latents
    long = PROMPT + ", a red star and a green apple on the left" * 4
    for prompt in (
        "a (cat:1.5) on a blue background",
        f"{PROMPT} AND a dog",
        long,
        "a [cat:dog:0]",
    ):
        other = server.paint(prompt)
        assert np.isfinite(other.latents).all() and distance(other, plain) > 0.01, prompt


def test_seeds(server: Server) -> None:
    """Every picture of a batch and of a count has its own seed; a variation seed moves it."""
    batch = server.paint(batch_size=2, n_iter=2)
    assert len(batch.latents) == 4
    one = server.paint(seed=5)
    assert np.linalg.norm(batch.latents[2:3] - one.latents) <= CLOSE * np.linalg.norm(one.latents)
    moved = server.paint(subseed=9, subseed_strength=0.3)
    assert distance(moved, batch.latents[:1]) > 0.05


def test_hires_fix_with_another_sampler(server: Server) -> None:
    painting = server.paint(
        enable_hr=True,
        hr_scale=1.5,
        hr_sampler_name="Euler",
        hr_second_pass_steps=0,
        steps=6,
        denoising_strength=0.4,
        hr_additional_modules=["Use same choices"],
    )
    assert painting.images[0].size == (192, 192)
    assert painting.infotexts[0].startswith(
        "a cat on a blue background\nSteps: 4, Sampler: " + NAME
    )
    assert "Hires steps: 6" in painting.infotexts[0]


def test_infotext(server: Server) -> None:
    text = server.paint(steps=20, alwayson_scripts=tiue(8, "fast")).infotexts[0]
    assert "TiUE decoders: 8, TiUE speed: fast" in text and f"Sampler: {NAME}" in text
    assert "TiUE decoders: 4, TiUE speed: plain" in server.paint().infotexts[0]
    other = server.paint(sampler_name="Euler", steps=2).infotexts[0]
    assert "TiUE" not in other and "Steps: 2" in other


def test_xyz(server: Server) -> None:
    """An axis of our own, and the seed's; $TIUE_SCREENSHOTS gets the grid."""
    alone = [server.paint(FROG, alwayson_scripts=tiue(K)).latents for K in (1, 2, 4, 8)]
    scripts = server.get("/sdapi/v1/script-info")
    grid = next(s for s in scripts if s["name"] == "x/y/z plot" and not s["is_img2img"])
    decoders, seed = (
        grid["args"][0]["choices"].index(axis) for axis in ("[TiUE] Decoders", "Seed")
    )
    rest = [0, "", [], True, False, False, False, False, False, False, 0, False]
    arguments = [decoders, "1, 2, 4, 8", [], seed, "3, 4", [], *rest]
    painting = server.paint(FROG, script_name="x/y/z plot", script_args=arguments)
    if FOLDER:
        painting.images[0].convert("RGB").save(Path(FOLDER) / "grid.jpg", quality=88)
    assert len(painting.latents) == 8  # the second four are of seed 4
    assert np.array_equal(painting.latents[:4], np.concatenate(alone))


def test_prompts_from_file(server: Server) -> None:
    """A line of its own settings, and one that is a prompt alone."""
    lines = f'--prompt "{PROMPT}" --seed 3 --sampler_name "{NAME}"\na red star'
    script_name = "prompts from file or textbox"
    arguments = [False, False, "start", lines, False]
    painting = server.paint("", script_name=script_name, script_args=arguments)
    assert np.array_equal(painting.latents[:1], server.paint(PROMPT).latents)
    assert np.array_equal(painting.latents[1:], server.paint("a red star").latents)
    assert all(f"Sampler: {NAME}" in text for text in painting.infotexts)


# --- bad input -----------------------------------------------------------------------------


REFUSED = {
    "img2img": ({"init_images": ["picture"]}, "choose another sampling method for img2img"),
    "inpainting": (
        {"init_images": ["picture"], "mask": "picture"},
        "choose another sampling method for img2img",
    ),
    "hires": (
        {"enable_hr": True, "hr_additional_modules": ["Use same choices"]},
        "choose another Hires sampling method",
    ),
    "too many": ({"alwayson_scripts": tiue(2000)}, "give a whole number from 1 to 1000"),
    "negative": ({"alwayson_scripts": tiue(-1)}, "0 for the student's own"),
    "words": ({"alwayson_scripts": tiue("many")}, "0 for the student's own"),  # type: ignore[arg-type]
    "speed": ({"alwayson_scripts": tiue(0, "ludicrous")}, "choose one of plain, fast"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refused_in_one_line(server: Server, picture: str, name: str) -> None:
    settings, expected = REFUSED[name]
    settings = {k: [picture] if v == ["picture"] else v for k, v in settings.items()}
    settings = {k: picture if v == "picture" else v for k, v in settings.items()}
    with pytest.raises(Refused) as refused:
        server.paint(**settings)
    assert expected in str(refused.value) and "TiueError" in str(refused.value)
    server.paint()


@pytest.mark.parametrize("kind", ["SDXL", "SD3", "Flux", "for inpainting"])
def test_another_kind_of_model_is_refused(
    server: Server, strangers: dict[str, str], kind: str
) -> None:
    """By its header, ahead of the loading."""
    with pytest.raises(Refused, match=f"this model is {kind}: choose a checkpoint of a student"):
        server.paint(override_settings={"sd_model_checkpoint": strangers[kind]})
    server.paint()


def test_a_student_whose_file_vanished(server: Server) -> None:
    folder = server.models / "Stable-diffusion" / "tiue"
    gone = folder / "gone.safetensors"
    shutil.copyfile(folder / "stickers.safetensors", gone)
    server.post("/sdapi/v1/refresh-checkpoints", {})
    gone.unlink()
    with pytest.raises(Refused, match="is gone: put it back"):
        server.paint(override_settings={"sd_model_checkpoint": "tiue/gone.safetensors"})
    (folder / "stickers.safetensors").unlink()  # this one is put back
    server.paint()
    assert (folder / "stickers.safetensors").is_file()


# --- the server lives on -------------------------------------------------------------------


def test_memory_stays_flat(server: Server) -> None:
    server.paint(n_iter=10)
    before = server.memory
    server.paint(n_iter=50)
    print(f"{before / 1e6:.0f} MB, after 50 more pictures {server.memory / 1e6:.0f} MB")
    assert server.memory <= 1.05 * before


def test_an_interrupt_leaves_the_server_usable(server: Server) -> None:
    with ThreadPoolExecutor() as pool:
        job = pool.submit(server.post, "/sdapi/v1/txt2img", dict(JOB, n_iter=200))
        while server.get("/sdapi/v1/progress")["state"]["job_count"] < 1:
            time.sleep(0.05)
        server.post("/sdapi/v1/interrupt", {})
        assert len(job.result()["images"]) < 200
    assert server.paint().latents.shape == (1, 4, 16, 16)


def test_a_client_that_nobody_here_wrote(server: Server, pipe: Any) -> None:
    webuiapi = pytest.importorskip("webuiapi")
    api = webuiapi.WebUIApi(host="127.0.0.1", port=server.port)
    assert NAME in [sampler["name"] for sampler in api.get_samplers()]
    result = api.txt2img(prompt=PROMPT, seed=3, cfg_scale=1, width=128, height=128,
                         sampler_name=NAME)  # fmt: skip
    difference = np.int16(result.image) - np.int16(pipe(PROMPT, seed=3).images[0])
    assert np.abs(difference).max() <= 1
