"""The bench: what is counted, what is paired, what is printed. Time itself is not tested."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from small import SD_SCHEDULER, small_text_encoder, small_unet, small_vae

from tiue_core.bench import models as bench_models
from tiue_core.bench import shapes
from tiue_core.bench.run import bench, paint, ratios
from tiue_core.bench.table import draw, table


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> bench_models.Bench:
    from diffusers import AutoencoderTiny, DDIMScheduler

    def small(shape: str) -> shapes.Models:
        torch.manual_seed(0)
        return shapes.Models(
            unet=small_unet(layers_per_block=2),
            vae=small_vae(),
            tiny=AutoencoderTiny().eval(),
            text_encoder=small_text_encoder(50),
            tokens=torch.arange(16)[None],
            scheduler=DDIMScheduler(**SD_SCHEDULER),
            pixels=64,
        )

    monkeypatch.setattr(bench_models, "models", small)
    return bench_models.Bench("small", size=128)


def test_systems_that_should_agree_do(made: bench_models.Bench) -> None:
    """What is timed must be what it is called: ours, the authors' stepped loop, and its tunings."""
    latents: dict[str, Any] = {}
    noise, prompts = made.inputs(2)

    def keep(system: Any) -> Any:
        def run(*arguments: Any) -> Any:
            latents[system.name] = system.paint(*arguments)
            return latents[system.name]

        return SimpleNamespace(**{**vars(system), "paint": run})

    for system in made.systems():
        stages = paint(made, keep(system), noise, prompts)
        assert stages["encoder"] > 0 and stages["decoders"] > 0
    scale = latents["exact"].norm()
    for name in ("authors", "authors-tuned", "authors-as-run"):
        assert (latents[name] - latents["exact"]).norm() / scale <= 1e-4
    assert torch.equal(latents["fast"], latents["draft"])
    assert 1e-6 < (latents["fast"] - latents["exact"]).norm() / scale < 0.1
    assert (latents["one-step"] - latents["exact"]).norm() / scale > 0.1


def test_one_run_one_object(made: bench_models.Bench, tmp_path: Path) -> None:
    result = bench(made, rounds=2, batches=[1, 2])
    assert json.loads(json.dumps(result))["shape"] == "small"
    for key in ("ratios", "ratios_tuned", "ratios_as_run"):
        assert set(result[key]) == {"exact", "fast", "draft"}
    rows = result["systems"]
    assert len(rows) == 10
    for row in rows.values():
        assert row["total"] == pytest.approx(row["text"] + row["unet"] + row["vae"])
        assert row["unet_range"][0] <= row["unet"] <= row["unet_range"][1]
    assert rows["ddim-50"]["extrapolated"] and not rows["exact"]["extrapolated"]
    assert set(result["images_per_second"]["fast"]) == {1, 2}
    text = table(result)
    assert "faster-diffusion" in text and "images/s at 2" in text
    draw(result, tmp_path / "bench.png")
    assert (tmp_path / "bench.png").stat().st_size > 5000


def test_ratios_are_paired_by_round() -> None:
    """One round was ten times as slow for all: a ratio of medians would not notice the pairs."""

    def rounds(*seconds: float) -> list[dict[str, float]]:
        return [{"encoder": s / 4, "decoders": 3 * s / 4, "cpu": s} for s in seconds]

    seconds = {"exact": rounds(8, 80, 9), "fast": rounds(6, 60, 30), "authors": rounds(10, 100, 10)}
    assert ratios(seconds, "authors") == pytest.approx({"exact": 0.8, "fast": 0.6})


def test_operations_of_stable_diffusion_are_those_of_the_reference() -> None:
    """GFLOP of SD2.1 at 512 px: encoder and middle 261.9, one decoder 542.4; KL 2515; TAESD 141."""
    from diffusers import UNet2DConditionModel

    from tiue_core import SplitUNet

    with torch.device("meta"):
        config = {"sample_size": 64, **shapes._UNETS["sd21"]}
        unet = SplitUNet(UNet2DConditionModel(**config).eval())
        noise, prompts = torch.empty(1, 4, 64, 64), torch.empty(1, 77, 1024)
    features: list[Any] = []
    encoder = shapes.flops(lambda: features.append(unet.encode(noise, 1, prompts)))
    decoder = shapes.flops(lambda: unet.decode(features[0], [1], prompts))
    assert encoder / 1e9 == pytest.approx(261.9, rel=0.01)
    assert decoder / 1e9 == pytest.approx(542.4, rel=0.01)


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ("--shape sd99", "no shape 'sd99': give one of sd21, sd15, stickers"),
        ("--batches one", "give numbers, such as 1,4,16"),
        ("--device abacus", "device 'abacus'"),
        ("--dtype float8", "no dtype 'float8'"),
    ],
)
def test_bad_input_is_one_line(capfd: Any, arguments: str, expected: str) -> None:
    from tiue_core import cli

    with pytest.raises(SystemExit) as ended:
        cli.main(["bench", *arguments.split()])
    assert ended.value.code == 1
    (line,) = capfd.readouterr().err.splitlines()
    assert line.startswith("error: ") and expected in line
