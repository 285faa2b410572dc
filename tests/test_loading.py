"""What a loader opens is decided beforehand, and every weight of it has its place."""

from __future__ import annotations

import json
import pickle
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import helpers_students as helpers
import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from safetensors.torch import load_file, save_file
from transformers import CLIPTextModel, CLIPTokenizerFast

from tiue_core import TiuePipeline, students
from tiue_core.errors import TiueError
from tiue_core.students.folder import weights
from tiue_core.students.models import load_model, load_tokenizer

UNET, TEXT = "diffusion_pytorch_model.safetensors", "model.safetensors"


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return helpers.make_student(tmp_path_factory.mktemp("loading") / "student")


@pytest.fixture
def copy(made: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(made, tmp_path / "copy"))


@pytest.fixture
def unpickled(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """A record of every call of a function that could unpickle. They work on."""
    calls: list[str] = []

    def recorded(module: Any, name: str) -> None:
        real = getattr(module, name)

        def call(*arguments: Any, **options: Any) -> Any:
            if name != "load" or module is not np or options.get("allow_pickle"):
                calls.append(f"{module.__name__}.{name}")
            return real(*arguments, **options)

        monkeypatch.setattr(module, name, call)

    for module, name in ((torch, "load"), (np, "load"), (pickle, "load"), (pickle, "loads")):
        recorded(module, name)
    recorded(torch.serialization, "load")
    recorded(torch.jit, "load")

    class Unpickler(pickle._Unpickler):  # type: ignore[name-defined,misc]
        def __init__(self, *arguments: Any, **options: Any) -> None:
            calls.append("pickle.Unpickler")
            super().__init__(*arguments, **options)

    monkeypatch.setattr(pickle, "Unpickler", Unpickler)
    yield calls


def picture(source: Any) -> torch.Tensor:
    pipe = students.load(source, device="cpu")
    return pipe("a cat", seed=3, output_type="latent").images


def same(one: Any, other: Any) -> bool:
    """Every weight to the bit. The picture to float32's rounding: some processors' kernels add up
    otherwise where a tensor lies otherwise in its file."""
    pipes = [students.load(each, device="cpu") for each in (one, other)]
    for name in ("unet", "text_encoder", "vae"):
        weights, others = (getattr(pipe, name).state_dict() for pipe in pipes)
        if weights.keys() != others.keys():
            return False
        if not all(torch.equal(weight, others[key]) for key, weight in weights.items()):
            return False
    images = [pipe("a cat", seed=3, output_type="latent").images for pipe in pipes]
    return float((images[0] - images[1]).abs().max() / images[1].abs().max()) <= 1e-6


def variant(folder: Path, name: str, suffix: str, kind: Any = UNet2DConditionModel) -> None:
    """Write one model again, under a variant's name and in no other."""
    model = kind.from_pretrained(folder / name)
    for file in (folder / name).glob("*.safetensors"):
        file.unlink()
    model.save_pretrained(folder / name, variant=suffix)


def late_shards(folder: Path, **options: Any) -> None:
    """Pieces under the names that diffusers gave them once, without an index."""
    for file in helpers.shard(folder / "unet", UNet2DConditionModel):
        file.rename(file.with_name(file.name.replace(".safetensors", ".fp16.safetensors")))
    for index in (folder / "unet").glob("*.index*.json"):
        index.unlink()


def own_names(folder: Path) -> None:
    """Pieces under names of their own, which only an index can tell."""
    (index,) = (helpers.shard(folder / "unet", UNet2DConditionModel)[0].parent).glob("*index.json")
    content = json.loads(index.read_text())
    for name in set(content["weight_map"].values()):
        short = name.replace("-of-", "_")
        (folder / "unet" / name).rename(folder / "unet" / short)
        content["weight_map"] = {
            k: short if v == name else v for k, v in content["weight_map"].items()
        }
    index.write_text(json.dumps(content))


def stale_index(folder: Path) -> None:
    index = {"weight_map": {"conv_in.weight": "diffusion_pytorch_model-00001-of-00009.bin"}}
    variant(folder, "unet", "fp16")
    helpers.write_json(folder / "unet" / f"{UNET}.index.json", index)


def plain_and_sharded(folder: Path) -> None:
    plain = (folder / "unet" / UNET).read_bytes()
    helpers.shard(folder / "unet", UNet2DConditionModel, variant="fp16")
    (folder / "unet" / UNET).write_bytes(plain)


LAYOUTS = {
    "plain": lambda folder: None,
    "in pieces": lambda folder: helpers.shard(folder / "unet", UNet2DConditionModel),
    "fp16 in pieces": lambda folder: helpers.shard(
        folder / "unet", UNet2DConditionModel, variant="fp16"
    ),
    "pieces named as once": late_shards,
    "pieces with names of their own": own_names,
    "bf16 alone": lambda folder: variant(folder, "unet", "bf16"),
    "a text encoder in fp16": lambda folder: variant(folder, "text_encoder", "fp16", CLIPTextModel),
    "a VAE in fp16": lambda folder: variant(folder, "vae", "fp16", AutoencoderKL),
    "a stale index": stale_index,
    "plain and fp16 in pieces": plain_and_sharded,
    "beside non_ema": lambda folder: shutil.copy(
        folder / "vae" / UNET, folder / "unet" / "diffusion_pytorch_model.non_ema.safetensors"
    ),
    "beside a pickle": lambda folder: (folder / "unet" / "diffusion_pytorch_model.bin").write_bytes(
        pickle.dumps({"harmless": 1})
    ),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_paints_the_same_and_unpickles_nothing(
    made: Path, copy: Path, layout: str, unpickled: list[str]
) -> None:
    LAYOUTS[layout](copy)
    unpickled.clear()
    assert same(copy, made)
    assert unpickled == []


def test_the_recorder_records(tmp_path: Path, unpickled: list[str]) -> None:
    torch.save({"harmless": torch.zeros(1)}, tmp_path / "a.pt")
    torch.load(tmp_path / "a.pt")
    pickle.loads(pickle.dumps([1]))
    assert {"torch.load", "pickle.loads"} <= set(unpickled)


@pytest.mark.slow
def test_two_hundred_folders_unpickle_nothing(
    made: Path, tmp_path: Path, unpickled: list[str]
) -> None:
    layouts = [*LAYOUTS.values()]
    for number in range(200):
        folder = Path(shutil.copytree(made, tmp_path / "one"))
        first, second = layouts[number % len(layouts)], layouts[number % 7 * 3 % len(layouts)]
        for layout in (first, second) if first is not second else (first,):
            files = [file.name for file in (folder / "unet").glob("*.safetensors")]
            if files == [UNET]:  # the layouts write the plain file again
                layout(folder)
        unpickled.clear()
        assert same(folder, made)
        assert unpickled == []
        shutil.rmtree(folder)


@pytest.mark.parametrize(
    "name", ["../vae/x.safetensors", "/etc/passwd", "a.bin", "sub/a.safetensors", "", 3, None, "."]
)
def test_an_index_names_plain_safetensors_files_only(copy: Path, name: Any) -> None:
    file = copy / "unet" / UNET
    file.unlink()
    index = {"weight_map": {"conv_in.weight": name}}
    helpers.write_json(copy / "unet" / f"{UNET}.index.json", index)
    with pytest.raises(TiueError, match="no safetensors file beside it"):
        students.find(copy)


@pytest.mark.parametrize("part", ["unet", "tokenizer", "whole unet"])
def test_links_that_lead_out_of_the_folder(copy: Path, tmp_path: Path, part: str) -> None:
    home = copy / part.split()[-1]
    file = home / (UNET if home.name == "unet" else "vocab.json")
    away = tmp_path / "elsewhere"
    (home if " " in part else file).rename(away)
    (home if " " in part else file).symlink_to(away)
    with pytest.raises(TiueError, match="leads out of"):
        students.find(copy)


def test_links_into_the_hubs_own_store_are_its_way(copy: Path, tmp_path: Path) -> None:
    store = tmp_path / "models--a--b"
    snapshot = store / "snapshots" / "c0ffee"
    snapshot.parent.mkdir(parents=True)
    (store / "blobs").mkdir()
    copy.rename(snapshot)
    file = snapshot / "unet" / UNET
    file.rename(store / "blobs" / "abc")
    file.symlink_to(store / "blobs" / "abc")
    assert picture(snapshot).shape == (1, 4, 8, 8)


# --- weights and their places --------------------------------------------------------------


def rename(file: Path, change: Any) -> None:
    save_file({change(k): v for k, v in load_file(file).items()}, file)


def bare(key: str) -> str:
    return key.removeprefix("text_model.")


@pytest.mark.parametrize("prefix", ["", "text_model."])
def test_text_encoders_as_every_release_names_them(made: Path, copy: Path, prefix: str) -> None:
    rename(copy / "text_encoder" / TEXT, lambda key: prefix + bare(key))
    assert same(copy, made)


def test_what_is_saved_is_what_older_releases_read(made: Path, tmp_path: Path) -> None:
    pipe = students.load(made, device="cpu")
    CLIPTokenizerFast.from_pretrained(made / "tokenizer").save_pretrained(tmp_path / "new")
    for name in ("vocab.json", "merges.txt"):
        (tmp_path / "new" / name).unlink(missing_ok=True)
    pipe.tokenizer = load_tokenizer(tmp_path / "new")  # the one file that transformers 5 writes
    pipe.save_pretrained(tmp_path / "saved")
    keys = load_file(tmp_path / "saved" / "text_encoder" / TEXT).keys()
    assert all(key.startswith("text_model.") for key in keys)
    files = {file.name for file in (tmp_path / "saved" / "tokenizer").iterdir()}
    assert {"vocab.json", "merges.txt"} <= files
    assert same(tmp_path / "saved", made)


MODELS = [("unet", UNET), ("vae", UNET), ("text_encoder", TEXT)]


@pytest.mark.parametrize(("part", "file"), MODELS)
@pytest.mark.parametrize("fault", ["missing", "left over", "another shape", "integers"])
def test_weights_without_a_place_and_places_without_weights(
    copy: Path, part: str, file: str, fault: str
) -> None:
    tensors = load_file(copy / part / file)
    name = max(key for key in tensors if key.endswith(".weight"))
    if fault == "missing":
        del tensors[name]
    elif fault == "left over":
        tensors["some.more.weight"] = torch.zeros(2)
        name = "some.more.weight"
    elif fault == "another shape":
        tensors[name] = torch.zeros(7)
    else:
        tensors[name] = tensors[name].to(torch.int32)
    save_file(tensors, copy / part / file)
    with pytest.raises(TiueError, match=bare(name)) as error:
        students.load(copy, device="cpu")
    assert "\n" not in str(error.value)


def test_what_clip_has_beside_its_text_is_no_fault(made: Path, copy: Path) -> None:
    file = copy / "text_encoder" / TEXT
    tensors = load_file(file)
    tensors |= {"text_model.embeddings.position_ids": torch.arange(16)[None]}
    tensors |= {"logit_scale": torch.ones(()), "text_projection.weight": torch.ones(3, 32)}
    save_file(tensors, file)
    assert same(copy, made)


def test_a_config_that_describes_no_model(copy: Path) -> None:
    config = json.loads((copy / "unet" / "config.json").read_text())
    config["down_block_types"] = ["NoSuchBlock", "DownBlock2D"]
    helpers.write_json(copy / "unet" / "config.json", config)
    with pytest.raises(TiueError, match="does not describe a UNet2DConditionModel"):
        students.load(copy, device="cpu")


def test_a_model_is_as_diffusers_and_transformers_load_it(made: Path) -> None:
    for part, kind in (("unet", UNet2DConditionModel), ("vae", AutoencoderKL)):
        theirs, ours = kind.from_pretrained(made / part), load_model(kind, made / part)
        assert ours.state_dict().keys() == theirs.state_dict().keys()
        assert all(torch.equal(v, theirs.state_dict()[k]) for k, v in ours.state_dict().items())
        assert not ours.training and ours.dtype == theirs.dtype
        assert {**ours.config, "_name_or_path": 0} == {**theirs.config, "_name_or_path": 0}
    theirs, ours = (
        CLIPTextModel.from_pretrained(made / "text_encoder"),
        load_model(CLIPTextModel, made / "text_encoder"),
    )
    ids = torch.arange(16)[None]
    assert torch.equal(ours(ids)[0], theirs.eval()(ids)[0])


# --- no broken picture ---------------------------------------------------------------------


def spoil_weight(part: str, value: float) -> Any:
    def spoil(folder: Path) -> str:
        (file,) = weights(folder / part)
        tensors = load_file(file)
        name = min(key for key in tensors if key.endswith("weight") and tensors[key].ndim > 1)
        tensors[name].flatten()[3] = value
        save_file(tensors, file)
        return f"{part}: .*{bare(name)} holds NaN or infinity"

    return spoil


def spoil_config(file: str, said: str, **changes: Any) -> Any:
    def spoil(folder: Path) -> str:
        config = json.loads((folder / file).read_text())
        (folder / file).write_text(json.dumps({**config, **changes}))
        return said

    return spoil


BROKEN = {
    "a NaN in the UNet": spoil_weight("unet", float("nan")),
    "infinity in the UNet": spoil_weight("unet", float("inf")),
    "a NaN in the text encoder": spoil_weight("text_encoder", float("nan")),
    "infinity in the VAE": spoil_weight("vae", float("-inf")),
    "scaling 0": spoil_config("vae/config.json", "scaling_factor is 0", scaling_factor=0),
    "scaling NaN": spoil_config("vae/config.json", "scaling_factor is nan", scaling_factor=np.nan),
    "betas NaN": spoil_config(
        "scheduler/scheduler_config.json", "betas|beta", trained_betas=[float("nan")] * 1000
    ),
}


@pytest.mark.parametrize("fault", BROKEN)
def test_broken_numbers_are_named_and_paint_nothing(copy: Path, fault: str) -> None:
    said = BROKEN[fault](copy)
    with pytest.raises((TiueError, ValueError), match=said) as error:
        students.load(copy, device="cpu")("a cat", seed=0)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("strength", [1e308, 1e39])
def test_a_lora_too_strong_is_named(made: Path, tmp_path: Path, strength: float) -> None:
    from tiue_core.students.lora import Lora, load_loras

    pipe = students.load(made, device="cpu")
    file = helpers.write_lora(tmp_path / "strong.safetensors", helpers.lora_tensors())
    with pytest.raises(TiueError, match="strong"):
        load_loras(pipe, [Lora(file, strength)])
        pipe("a cat", seed=0)


def test_one_value_is_no_picture(pipe: TiuePipeline) -> None:
    with torch.no_grad():
        for weight in pipe.vae.decoder.conv_out.parameters():
            weight.zero_()
    with pytest.raises(TiueError, match="not a picture"):
        pipe("a cat", seed=0)


# --- configs against files -----------------------------------------------------------------


@pytest.mark.parametrize(
    ("file", "change"),
    [
        ("unet/config.json", {"layers_per_block": 10**9}),
        ("unet/config.json", {"layers_per_block": [1, -3]}),
        ("unet/config.json", {"transformer_layers_per_block": 10**6}),
        ("unet/config.json", {"cross_attention_dim": 2**40}),
        ("vae/config.json", {"layers_per_block": 10**7}),
        ("text_encoder/config.json", {"num_hidden_layers": 10**8}),
        ("text_encoder/config.json", {"num_hidden_layers": -1}),
        ("text_encoder/config.json", {"max_position_embeddings": 10**12}),
        ("scheduler/scheduler_config.json", {"num_train_timesteps": 200_000_000}),
        ("scheduler/scheduler_config.json", {"num_train_timesteps": "many"}),
        ("scheduler/scheduler_config.json", {"steps_offset": 10**26}),
        ("scheduler/scheduler_config.json", {"steps_offset": -0.5}),
        ("scheduler/scheduler_config.json", {"beta_schedule": True}),
        ("scheduler/scheduler_config.json", {"beta_schedule": "none of them"}),
        ("unet/config.json", {"sample_size": "x"}),
        ("unet/config.json", {"sample_size": [8]}),
        ("unet/config.json", {"sample_size": 0}),
        ("unet/config.json", {"norm_num_groups": True}),
        ("unet/config.json", {"downsample_padding": -1}),
        ("vae/config.json", {"scaling_factor": None}),
        ("unet/config.json", {"mid_block_scale_factor": [-1, 2]}),
        ("text_encoder/config.json", {"num_attention_heads": -1}),
        ("text_encoder/config.json", {"hidden_act": ["gelu"]}),
        ("tokenizer/tokenizer_config.json", {"model_max_length": "x"}),
    ],
)
def test_absurd_configs_are_refused_before_anything_is_built(
    copy: Path, file: str, change: dict[str, Any]
) -> None:
    content = json.loads((copy / file).read_text())
    helpers.write_json(copy / file, {**content, **change})
    with pytest.raises(TiueError, match=f"{next(iter(change))}|none of them") as error:
        students.load(copy, device="cpu")
    assert "\n" not in str(error.value)


def test_no_tokenizer(copy: Path) -> None:
    shutil.rmtree(copy / "tokenizer")
    with pytest.raises(TiueError, match="no tokenizer"):
        students.load(copy, device="cpu")


def test_a_tokenizer_without_its_config(made: Path, copy: Path) -> None:
    (copy / "tokenizer" / "tokenizer_config.json").unlink()
    pipe = students.load(copy, device="cpu")
    assert pipe.tokenizer.model_max_length == 16
    assert same(copy, made)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"time_cond_proj_dim": 8}, "guidance as an input"),
        ({"num_class_embeds": 3}, "class beside the prompt"),
    ],
)
def test_unets_that_want_more_than_a_prompt(copy: Path, change: Any, said: str) -> None:
    torch.manual_seed(0)
    unet = UNet2DConditionModel.from_config(
        {**UNet2DConditionModel.load_config(copy / "unet"), **change}
    )
    unet.save_pretrained(copy / "unet")
    with pytest.raises(ValueError, match=said):
        students.load(copy, device="cpu")


# --- hashes --------------------------------------------------------------------------------


def test_a_header_whose_length_begins_like_a_pickle(tmp_path: Path) -> None:
    from tiue_core.io.files import read_header, refuse_pickle

    for start in (b"\x80\x02", b"\x80\x04"):
        length = int.from_bytes(start + b"\0" * 6, "little")
        header = json.dumps({"a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}).encode()
        file = tmp_path / "a.safetensors"
        file.write_bytes(length.to_bytes(8, "little") + header.ljust(length) + b"\0" * 4)
        assert load_file(file).keys() == read_header(file).keys() == {"a"}
    torch.save({"a": torch.zeros(3)}, file)
    with pytest.raises(TiueError, match="pickle"):
        read_header(file)
    file.write_bytes(pickle.dumps({"{": "{" * 700}, protocol=2))
    with pytest.raises(TiueError, match="pickle"):
        refuse_pickle(file)


def test_the_same_content_is_the_same_file(tmp_path: Path) -> None:
    from safetensors import safe_open

    from tiue_core.train.lora.kohya import write

    tensors = {"b": torch.ones(2, 3).half(), "a": torch.arange(5)}
    metadata = {f"key {n}": f"é {n}" for n in range(20)}
    for name in ("one", "two"):
        write(tmp_path / name, tensors, dict(reversed(metadata.items())))
    assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes()
    with safe_open(tmp_path / "one", "pt") as file:
        assert file.metadata() == metadata
        assert all(torch.equal(file.get_tensor(key), value) for key, value in tensors.items())


@pytest.mark.parametrize(
    ("file", "change"),
    [
        ("vae/config.json", {"scaling_factor": 0.5}),
        ("model_index.json", {"timesteps": [999], "steps": 1}),
        ("unet/config.json", {"norm_eps": 1e-3}),
    ],
)
def test_whatever_decides_a_picture_is_hashed(copy: Path, file: str, change: Any) -> None:
    before = students.find(copy).content_hash()
    content = json.loads((copy / file).read_text())
    helpers.write_json(copy / file, {**content, **change})
    assert students.find(copy).content_hash() != before
    helpers.write_json(copy / file, {**content, "_diffusers_version": "9"})
    assert students.find(copy).content_hash() == before
