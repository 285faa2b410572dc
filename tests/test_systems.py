"""Every system of the paper's tables, on a small random checkpoint of its layout."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import helpers_systems as hs
import pytest
import torch
from torch import Tensor

from tiue_core.baselines.find import find, parse
from tiue_core.baselines.load import load
from tiue_core.baselines.registry import REGISTRY
from tiue_core.errors import TiueError

LEADING = list(range(981, 0, -20))
CONSISTENCY = [999, 759, 499, 259]
TRAILING = [999, 749, 499, 249]
PROMPTS, SEEDS = ["a red fox", "two cats"], [7, 8]


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Checkpoint layouts by name, as they are given after a system's colon."""
    root = tmp_path_factory.mktemp("systems")
    sd = hs.sd(root / "sd")
    xl = hs.sdxl(root / "xl")
    lora = hs.lora_file(root / "lora.safetensors")
    return {
        "sd": str(sd),
        "lcm": str(hs.sd(root / "lcm", time_cond_proj_dim=256)),
        "sd+lora": f"{sd}+{lora}",
        "sd+unet": f"{sd}+{hs.unet_folder(sd, root / 'unet_ema')}",
        "xl": str(xl),
        "xl+lcm": f"{xl}+{hs.unet_folder(xl, root / 'lcm-xl', time_cond_proj_dim=256)}",
        "xl+file": f"{xl}+{hs.unet_file(xl, root / 'lightning.safetensors')}",
    }


@dataclass
class Row:
    """What the reference says of a system, and its sampler written out in `helpers_systems`."""

    files: str
    grid: list[Any]
    sampler: Callable[..., Tensor]
    pixels: int
    guidance: float = 1.0
    embedded: bool = False


def guided(scale: float) -> Row:
    return Row("sd", LEADING, hs.ddim, 512, scale)


lcm_xl = partial(Row, "xl+lcm", sampler=hs.lcm, pixels=1024, guidance=8.0, embedded=True)
lcm = partial(Row, "lcm", sampler=hs.lcm, pixels=768, guidance=8.0, embedded=True)
tcd = partial(Row, "sd+lora", sampler=partial(hs.tcd, eta=0.3), pixels=512)
turbo_xl = partial(Row, "xl", sampler=partial(hs.euler, ancestral=True), pixels=512)
ROWS = {
    "sd1.5": guided(7.5),
    "sd1.5-cfg4.5": guided(4.5),
    "sd2.1": guided(7.5),
    "sd2.1-cfg4.5": guided(4.5),
    "lcm": lcm(CONSISTENCY[:1]),
    "lcm-4": lcm(CONSISTENCY),
    "lcm-lora": Row("sd+lora", CONSISTENCY[:1], hs.lcm, 512),
    "lcm-lora-4": Row("sd+lora", CONSISTENCY, hs.lcm, 512),
    "hyper-sd": Row("sd+lora", [999], partial(hs.tcd, eta=1.0), 512),
    "hyper-sd-4": Row("sd+lora", TRAILING, hs.ddim, 512),
    "sd-turbo": Row("sd", TRAILING[:1], hs.euler, 512),
    "sd-turbo-4": Row("sd", TRAILING, hs.euler, 512),
    "tcd": tcd(CONSISTENCY[:1]),
    "tcd-4": tcd(CONSISTENCY),
    "lcm-sdxl": lcm_xl(CONSISTENCY[:1]),
    "lcm-sdxl-4": lcm_xl(CONSISTENCY),
    "sdxl-turbo": turbo_xl(TRAILING[:1]),
    "sdxl-turbo-4": turbo_xl(TRAILING),
    "sdxl-lightning": Row("xl+file", [999], partial(hs.euler, sample=True), 1024),
    "sdxl-lightning-4": Row("xl+file", TRAILING, hs.euler, 1024),
    "pcm-4": Row("sd+lora", TRAILING, hs.ddim, 512),
}


class Watched:
    """Stands around a UNet and notes what it is called with."""

    def __init__(self, unet: Any, monkeypatch: pytest.MonkeyPatch) -> None:
        self.calls: list[tuple[float, int, Any]] = []
        forward = unet.forward

        def watching(sample: Tensor, timestep: Any, *args: Any, **options: Any) -> Any:
            cond = options.get("timestep_cond")
            self.calls.append((float(torch.as_tensor(timestep).flatten()[0]), len(sample), cond))
            return forward(sample, timestep, *args, **options)

        monkeypatch.setattr(unet, "forward", watching)


def by_hand(pipe: Any, row: Row, side: int) -> Tensor:
    """The latents of PROMPTS and SEEDS, from the UNet and the formulas alone."""
    unet, inner = pipe.unet, pipe.pipe
    generators = [torch.Generator().manual_seed(seed) for seed in SEEDS]

    def draw() -> Tensor:
        shape = (1, 4, side, side)
        return torch.cat([torch.randn(shape, generator=g) for g in generators]).double()

    twice = row.guidance != 1 and not row.embedded
    more: dict[str, Any] = {}
    if row.embedded:
        more["timestep_cond"] = hs.guidance_embedding(row.guidance - 1).expand(2, -1)
    if hasattr(inner, "text_encoder_2"):
        prompts, _, pooled, _ = inner.encode_prompt(PROMPTS, do_classifier_free_guidance=False)
        pixels = side * pipe.vae_scale_factor
        ids = torch.tensor([[pixels, pixels, 0, 0, pixels, pixels]] * 2, dtype=torch.float32)
        more["added_cond_kwargs"] = {"text_embeds": pooled, "time_ids": ids}
    else:
        ids = inner.tokenizer(
            PROMPTS, padding="max_length", max_length=16, truncation=True, return_tensors="pt"
        ).input_ids
        empty = inner.tokenizer(["", ""], padding="max_length", return_tensors="pt").input_ids
        prompts, nothing = inner.text_encoder(ids)[0], inner.text_encoder(empty)[0]

    def model(z: Tensor, t: float) -> Tensor:
        def predict(context: Tensor) -> Tensor:
            return unet(z.float(), t, encoder_hidden_states=context, **more).sample.double()

        if not twice:
            return predict(prompts)
        without = predict(nothing)
        return without + row.guidance * (predict(prompts) - without)

    with torch.no_grad():
        return row.sampler(model, draw(), draw, row.grid)


@pytest.mark.parametrize("name", ROWS)
def test_system_is_what_the_reference_says(
    name: str, files: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    row, system = ROWS[name], REGISTRY[name]
    assert (system.pixels, system.guidance, system.embedded) == (
        row.pixels,
        row.guidance,
        row.embedded,
    )
    assert system.license and system.parts[0].hub_id
    pipe = load(find(f"{name}:{files[row.files]}"), device="cpu")
    side = pipe.unet.config.sample_size
    watched = Watched(pipe.unet, monkeypatch)
    found = pipe(PROMPTS, seed=SEEDS, output_type="latent").images
    assert [t for t, _, _ in watched.calls] == row.grid == list(system.timesteps)
    rows = 4 if row.guidance != 1 and not row.embedded else 2
    assert {rows} == {n for _, n, _ in watched.calls}
    for _, _, embedded in watched.calls:
        assert (embedded is not None) == row.embedded
    expected = by_hand(pipe, row, side)
    scale = expected.abs().max()
    assert (found - expected).abs().max() < 2e-5 * scale
    # and a picture depends on its own seed, not on its neighbour
    alone = pipe(PROMPTS[1:], seed=SEEDS[1:], output_type="latent").images
    assert (alone - found[1:]).abs().max() < 2e-5 * scale


def test_a_lora_is_in_the_weights(files: dict[str, str]) -> None:
    """W + B A, at full strength."""
    from helpers_students import lora_tensors

    plain = load(find(f"sd1.5:{files['sd']}"), device="cpu").unet.state_dict()
    adapted = load(find(f"tcd:{files['sd+lora']}"), device="cpu").unet.state_dict()
    tensors = lora_tensors(scale=1.0)
    changed = {key for key in plain if not torch.equal(plain[key], adapted[key])}
    assert len(changed) == 2
    for key in changed:
        layer = "unet." + key.removesuffix(".weight")
        delta = tensors[f"{layer}.lora_B.weight"] @ tensors[f"{layer}.lora_A.weight"]
        assert (adapted[key] - plain[key] - delta).abs().max() < 1e-5


@pytest.mark.parametrize("name", ["swiftbrush", "swiftbrush-v2", "instaflow"])
def test_one_prediction(name: str, files: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    given = files["sd+unet" if name == "swiftbrush-v2" else "sd"]
    pipe = load(find(f"{name}:{given}"), device="cpu")
    watched = Watched(pipe.unet, monkeypatch)
    found = pipe(PROMPTS, seed=SEEDS, output_type="latent").images
    assert watched.calls == [(1000.0 if name == "instaflow" else 999.0, 2, None)]
    assert list(REGISTRY[name].timesteps) == [watched.calls[0][0]]

    def flow(model: Any, z: Tensor, draw: Any, grid: list[float]) -> Tensor:
        return z + model(z, 1000.0)

    def brush(model: Any, z: Tensor, draw: Any, grid: list[float]) -> Tensor:
        a = hs.ALPHAS[999]
        return (z - math.sqrt(1 - a) * model(z, 999)) / math.sqrt(a)

    row = Row("sd", [], flow if name == "instaflow" else brush, 512)
    expected = by_hand(pipe, row, pipe.unet.config.sample_size)
    assert (found - expected).abs().max() < 2e-5 * expected.abs().max()


@pytest.mark.parametrize("scale", [7.5, 4.5])
def test_faster_diffusion_uses_old_features(
    scale: float, files: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The whole UNet at every step, its encoder's outputs replaced by those of the last key."""
    name = "faster-sd1.5" + ("" if scale == 7.5 else "-cfg4.5")
    keys = {0, 1, 2, 3, 5, 10, 15, 25, 35}
    system = REGISTRY[name]
    assert (system.guidance, list(system.timesteps)) == (scale, LEADING)
    pipe = load(find(f"{name}:{files['sd']}"), device="cpu")
    found = pipe(PROMPTS, seed=SEEDS, output_type="latent").images
    unet = pipe.unet
    kept: dict[Any, Any] = {}
    replay = False

    def keep(module: Any, args: Any, output: Any) -> Any:
        if replay:
            return kept[module]
        kept[module] = output
        return None

    hooks = [
        module.register_forward_hook(keep)
        for module in (unet.conv_in, *unet.down_blocks, unet.mid_block)
    ]
    inner = pipe.pipe
    context = []
    for texts in (["", ""], PROMPTS):
        ids = inner.tokenizer(
            texts, padding="max_length", max_length=16, truncation=True, return_tensors="pt"
        ).input_ids
        context.append(inner.text_encoder(ids)[0])
    noise = torch.cat(
        [torch.randn((1, 4, 8, 8), generator=torch.Generator().manual_seed(s)) for s in SEEDS]
    )
    z = noise.double()
    with torch.no_grad():
        for i, t in enumerate(LEADING):
            replay = i not in keys
            both = unet(
                torch.cat([z, z]).float(), t, encoder_hidden_states=torch.cat(context)
            ).sample
            without, with_prompt = both.double().chunk(2)
            eps = without + scale * (with_prompt - without)
            if t < 500:
                z = z + 0.003 * noise
            a = hs.ALPHAS[t]
            b = hs.ALPHAS[t - 20] if t > 20 else hs.ALPHAS[0]
            x0 = (z - math.sqrt(1 - a) * eps) / math.sqrt(a)
            z = math.sqrt(b) * x0 + math.sqrt(1 - b) * eps
    for hook in hooks:
        hook.remove()
    assert (found - z).abs().max() < 1e-4 * z.abs().max()
    # the encoder ran nine times, for twice two pictures
    count = []
    hook = unet.mid_block.register_forward_hook(lambda *_: count.append(1))
    pipe(PROMPTS, seed=SEEDS, output_type="latent")
    hook.remove()
    assert len(count) == 9


@pytest.mark.parametrize("name", ["tiue-sd1.5", "tiue-sd2.1"])
def test_tiue_is_four_predictions_of_one_encoding(name: str, files: dict[str, str]) -> None:
    pipe = load(find(f"{name}:{files['sd']}"), device="cpu")
    found = pipe(PROMPTS, seed=SEEDS, output_type="latent").images
    grid = [751, 501, 251, 1]
    assert list(REGISTRY[name].timesteps) == grid
    before = [*hs.ALPHAS[[501, 251, 1]], hs.ALPHAS[0]]
    generators = [torch.Generator().manual_seed(seed) for seed in SEEDS]
    noise = torch.cat([torch.randn((1, 4, 8, 8), generator=g) for g in generators]).double()
    z = noise * math.sqrt(hs.ALPHAS[0] / hs.ALPHAS[751])
    prompts = pipe.encode_prompt(PROMPTS)
    with torch.no_grad():
        features = pipe.split_unet.encode(noise.float(), 751, prompts)
        for t, after in zip(grid, before, strict=True):
            eps = pipe.split_unet.decode(features, [t], prompts)[0].double()
            weight = math.sqrt(1 / after - 1) - math.sqrt(1 / hs.ALPHAS[t] - 1)
            z = z + math.sqrt(hs.ALPHAS[0]) * weight * eps
    assert (found - z).abs().max() < 2e-5 * z.abs().max()


@pytest.mark.parametrize(
    ("name", "steps"), [("stickers-teacher-4", 4), ("stickers-teacher-15", 15)]
)
def test_the_miniatures_teacher_is_the_trainers_sampler(name: str, steps: int) -> None:
    from tiue_core.core.forward_process import guided_ddim
    from tiue_core.core.noise import draw_noise
    from tiue_core.pipelines.base import TiuePipeline

    system = load(find(f"stickers-teacher-{steps}"), device="cpu")
    found = system(PROMPTS, seed=SEEDS, output_type="latent").images
    teacher = TiuePipeline.from_pretrained("stickers-teacher")
    context = teacher.encode_prompt(["", "", *PROMPTS])
    noise = draw_noise(SEEDS, (4, 16, 16))
    expected = guided_ddim(
        teacher.unet, teacher.scheduler, noise, context, steps=steps, guidance=2.0
    )
    assert (found - expected).abs().max() < 1e-4 * expected.abs().max()


def test_the_miniatures_rows(tmp_path: Path) -> None:
    from helpers_students import make_student

    from tiue_core.baselines.registry import MINIATURE
    from tiue_core.pipelines.base import TiuePipeline
    from tiue_core.pipelines.load import load as load_student

    grids = {
        "stickers-teacher": LEADING,
        "stickers-teacher-15": list(range(925, 0, -66)),
        "stickers-teacher-4": [751, 501, 251, 1],
        "stickers-faster": LEADING,
        "stickers-swiftbrush": [999],
        "stickers": [751, 501, 251, 1],
        "stickers-fast": [751, 501, 251],
    }
    four = make_student(tmp_path / "four", pipeline="TiuePipeline")
    student = load_student(four, device="cpu")
    parts = ("vae", "text_encoder", "tokenizer", "unet", "scheduler")
    one = TiuePipeline(**{name: getattr(student, name) for name in parts}, timesteps=[999])
    one.save_pretrained(tmp_path / "one")
    assert set(grids) == set(MINIATURE)
    for name, grid in grids.items():
        assert list(REGISTRY[name].timesteps) == grid
        decoders = REGISTRY[name].decoders
        more = [f"{name}:{tmp_path / 'one'}"] if name == "stickers-swiftbrush" else []
        for given in (name, *more):
            pipe = load(find(given), device="cpu")  # which holds its timesteps against the row's
            assert pipe.schedule(decoders=decoders).timesteps.tolist() == grid
    assert "[999]" in refused(f"stickers-swiftbrush:{four}")
    assert len({find(name).digest() for name in grids}) == len(grids) - 1  # `fast` has no files


def test_the_one_step_row_is_the_teacher_and_a_difference() -> None:
    """From the package alone, against W + B A and x_0 = (z - sigma eps) / alpha written out."""
    from safetensors.torch import load_file

    from tiue_core import students
    from tiue_core.core.noise import draw_noise
    from tiue_core.students.registry import STICKERS

    found = find("stickers-swiftbrush")
    assert found.source is not None and found.source.adapter is not None
    tensors = load_file(found.source.adapter)
    assert all(tensor.dtype == torch.float16 for tensor in tensors.values())
    teacher = students.load("stickers-teacher", device="cpu")
    layers = dict(teacher.unet.named_modules())
    for name in {name.partition(".lora_")[0] for name in tensors}:
        up, down = (tensors[f"{name}.lora_{side}.weight"].float() for side in "BA")
        weight = layers[name].weight
        weight.data += torch.einsum("or,ri->oi", up.flatten(1), down.flatten(1)).view_as(weight)
    pipe = load(found, device="cpu")
    prompts = ["a cat on a blue background", "a boat on a pink background"]
    latents = pipe(prompts, seed=SEEDS[:2], output_type="latent").images
    noise = draw_noise(SEEDS[:2], tuple(latents.shape[1:]))
    alphas = teacher.scheduler.alphas_cumprod.double()
    with torch.no_grad():
        eps = teacher.unet(noise, 999, teacher.encode_prompt(prompts)).sample.double()
    x0 = (noise - (1 - alphas[999]).sqrt() * eps) / alphas[999].sqrt()
    expected = alphas[0].sqrt() * x0 + (1 - alphas[0]).sqrt() * eps  # the schedule's last alpha
    assert (latents - expected).abs().max() < 1e-4 * expected.abs().max()
    source = students.find("stickers-one-step")
    assert source.content_hash() == found.digest() != students.find("stickers").content_hash()
    size = sum(file.stat().st_size for file in STICKERS.rglob("*.safetensors"))
    from tiue_core.train.ship import MOST

    assert size <= MOST


def test_every_row_has_its_test() -> None:
    tested = {*ROWS, "swiftbrush", "swiftbrush-v2", "instaflow", "tiue-sd1.5", "tiue-sd2.1"}
    tested |= {f"faster-sd{base}{scale}" for base in ("1.5", "2.1") for scale in ("", "-cfg4.5")}
    # gigagan and images are folders; the miniature's own rows are above
    assert {name for name in REGISTRY if not name.startswith("stickers")} == tested | {
        "gigagan",
        "images",
    }


def test_pictures_sizes_and_metadata(files: dict[str, str]) -> None:
    pipe = load(find(f"sd-turbo:{files['sd']}"), device="cpu")
    assert pipe.pixels == 16  # the checkpoint's own side, smaller than the row's
    out = pipe("a fox", seed=1, count=3)
    assert [image.size for image in out.images] == [(16, 16)] * 3 and out.seeds == [1, 2, 3]
    assert pipe("a fox", seed=1, width=24, height=8).images[0].size == (24, 8)
    assert pipe("a fox", seed=1, output_type="pt").images.shape == (1, 3, 16, 16)
    assert pipe.facts["timesteps"] == [999] and pipe.facts["guidance"] == 1.0
    for wrong in ({"width": 15}, {"steps": 4}, {"decoders": "fast"}, {"guidance_scale": 2}):
        with pytest.raises(ValueError, match=r"give a multiple|leave it out"):
            pipe("a fox", **wrong)


def test_a_recipe_decides_the_digest(files: dict[str, str]) -> None:
    names = ("sd-turbo", "sd-turbo-4", "sd1.5", "sd1.5-cfg4.5", "swiftbrush")
    digests = [find(f"{name}:{files['sd']}").digest() for name in names]
    assert len(set(digests)) == len(names)
    assert find(f"mine=sd-turbo:{files['sd']}").digest() == digests[0]


def refused(text: str) -> str:
    with pytest.raises(TiueError) as error:
        load(find(text), device="cpu")
    assert "\n" not in str(error.value) and ":" in str(error.value)
    return str(error.value)


def test_wrong_files_are_refused(files: dict[str, str], tmp_path: Path) -> None:
    sd, lora = files["sd+lora"].split("+")
    assert "pipeline + lora" in refused(f"tcd:{sd}")
    assert "does not exist" in refused(f"tcd:{sd}+{tmp_path / 'gone.safetensors'}")
    assert "takes none" in refused(f"lcm:{sd}")
    assert "use lcm" in refused(f"sd-turbo:{files['lcm']}")
    assert "does not fit" in refused(f"sdxl-lightning:{files['xl']}+{lora}")
    assert "text_encoder_2" in refused(f"sdxl-turbo:{sd}")
    assert "another's" in refused(f"sd-turbo:{files['xl']}")
    assert "sd-turbo" in refused("sd-turbos")
    assert "names no file" in refused("sd-turbo:")
    assert "is not a folder" in refused(f"gigagan:{tmp_path / 'none'}")
    assert "holds no pictures" in refused(f"gigagan:{tmp_path}")
    assert "gigagan:FOLDER" in refused("gigagan")
    assert "swiftbrush-v2:" in refused("swiftbrush-v2")
    v = hs.sd(tmp_path / "v")
    config = v / "scheduler" / "scheduler_config.json"
    config.write_text(config.read_text().replace("epsilon", "v_prediction"))
    assert "v_prediction" in refused(f"sd1.5:{v}")
    config.write_text(config.read_text().replace("v_prediction", "epsilon").replace("1000", "500"))
    assert "timesteps" in refused(f"sd1.5:{v}")


def test_names() -> None:
    assert parse("sd-turbo")[0] == "sd-turbo"
    assert parse("mine=sd-turbo")[0] == "mine"
    label, system, given = parse("a=tcd-4:x/y+z.safetensors")
    assert (label, system.name, given) == ("a", "tcd-4", ["x/y", "z.safetensors"])
    assert parse("one-step=runs/a/result")[1].student == "runs/a/result"
    assert parse("stickers")[1].decoders == "exact"


def test_a_download_asks_for_the_licence_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both repositories of a row, each under its own licence, and no file too many."""
    from types import SimpleNamespace

    import huggingface_hub
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HOME", str(tmp_path / "hf"))
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hf" / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    base = hs.sd(tmp_path / "base")
    lora = hs.lora_file(tmp_path / "Hyper-SD15-1step-lora.safetensors")
    asked: list[str] = []
    fetched: list[tuple[str, list[str]]] = []

    class Api:
        def model_info(self, hub_id: str, revision: Any = None) -> Any:
            names = [p.relative_to(base).as_posix() for p in base.rglob("*") if p.is_file()]
            if hub_id == "ByteDance/Hyper-SD":
                names = ["Hyper-SD15-1step-lora.safetensors", "Hyper-SD15-8steps-lora.safetensors"]
            files = [SimpleNamespace(rfilename=name) for name in names]
            card = SimpleNamespace(license="?")
            return SimpleNamespace(sha="c" * 40, siblings=files, card_data=card)

    def download(hub_id: str, allow_patterns: list[str], **_: Any) -> str:
        fetched.append((hub_id, allow_patterns))
        return str(tmp_path if hub_id == "ByteDance/Hyper-SD" else base)

    monkeypatch.setattr(huggingface_hub, "HfApi", Api)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    with pytest.raises(TiueError, match="licence is not accepted"):
        find("hyper-sd")
    assert not fetched

    def accept(terms: str) -> bool:
        asked.append(terms)
        return True

    found = find("hyper-sd", accept)
    assert [hub_id for hub_id, _ in fetched] == [
        "stable-diffusion-v1-5/stable-diffusion-v1-5",
        "ByteDance/Hyper-SD",
    ]
    assert fetched[1][1] == ["Hyper-SD15-1step-lora.safetensors"]
    assert "Open RAIL-M" in asked[0] and "Open RAIL++-M" in asked[1]
    assert found.paths[1] == lora
    assert load(found, device="cpu")("a fox", seed=0).images[0].size == (16, 16)
    import json

    pins = json.loads((tmp_path / "hf" / "tiue-students.json").read_text())
    assert pins["ByteDance/Hyper-SD"]["revision"] == "c" * 40


def test_the_docs_list_every_row() -> None:
    """Name, licence, files and timesteps, in docs/harness.md."""
    text = (Path(__file__).parent.parent / "docs" / "harness.md").read_text(encoding="utf-8")
    lines: dict[str, str] = {}
    for line in text[text.index("## Systems") :].splitlines():
        if line.startswith("| `"):
            lines.setdefault(line.split("`")[1], line)
    for name, system in REGISTRY.items():
        for licence in system.license.split("; "):
            assert licence.split(",")[0] in lines[name], name
        for part in system.parts:
            assert part.hub_id in lines[name] and part.file in lines[name]
        if system.timesteps:
            assert f"{system.timesteps[0]:g}" in lines[name]
            assert f"{system.timesteps[-1]:g} |" in lines[name]
        if system.guidance != 1:
            assert f"| {system.guidance:g}" in lines[name]
