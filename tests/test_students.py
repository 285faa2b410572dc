"""Students are found where they are, read as safetensors only, and refused in one line."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import helpers_students as helpers
import huggingface_hub
import numpy as np
import pytest
import torch
from diffusers import UNet2DConditionModel
from huggingface_hub import constants
from safetensors.torch import load_file, save_file

from tiue_core import students
from tiue_core.errors import TiueError
from tiue_core.io.files import read_header
from tiue_core.students import folder as folders
from tiue_core.students import hub
from tiue_core.students.lora import Lora, load_loras


@pytest.fixture(scope="module")
def sd15(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return helpers.make_student(tmp_path_factory.mktemp("sd15") / "mine")


@pytest.fixture(scope="module")
def sd21(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sd21") / "mine"
    return helpers.make_student(folder, context=64, linear=True, fp16=True)


@pytest.fixture
def copy(sd15: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(sd15, tmp_path / "copy"))


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty hub cache, and no way to the real hub."""
    monkeypatch.setattr(constants, "HF_HOME", str(tmp_path / "hf"))
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hf" / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    yield tmp_path / "hf"


def picture(pipe: Any, **settings: Any) -> np.ndarray:
    """(H, W, 3) in [0, 1]"""
    return pipe("a cat", seed=0, output_type="np", **settings).images[0]


def refused(action: Any, *arguments: Any, **settings: Any) -> str:
    with pytest.raises(TiueError) as error:
        action(*arguments, **settings)
    message = str(error.value)
    assert "\n" not in message and ": " in message
    return message


# --- folders -------------------------------------------------------------------------------


def test_folders_of_both_layouts_load(sd15: Path, sd21: Path) -> None:
    for folder in (sd15, sd21):
        pipe = students.load(folder, device="cpu")
        assert pipe.unet.dtype == torch.float32
        assert picture(pipe).shape == (16, 16, 3)
    weights = load_file(sd21 / "unet" / "diffusion_pytorch_model.fp16.safetensors")
    loaded = pipe.unet.state_dict()
    assert max((loaded[k] - w.float()).abs().max().item() for k, w in weights.items()) == 0


def test_what_a_pipeline_saves_is_read_again(sd15: Path, tmp_path: Path) -> None:
    pipe = students.load(sd15, device="cpu")
    pipe.save_pretrained(tmp_path / "saved")
    again = students.load(tmp_path / "saved", device="cpu")
    assert np.abs(picture(pipe) - picture(again)).max() == 0


def test_from_pretrained_knows_names_and_files(sd15: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from tiue_core import TiuePipeline

    built_in = students.Student("stickers", "", "Apache-2.0", folder=sd15)
    monkeypatch.setitem(students.REGISTRY, "stickers", built_in)
    expected = picture(students.load(sd15, device="cpu"))
    assert np.abs(picture(TiuePipeline.from_pretrained("stickers")) - expected).max() == 0
    unet = sd15 / "unet" / "diffusion_pytorch_model.safetensors"
    assert np.abs(picture(TiuePipeline.from_pretrained(str(unet))) - expected).max() == 0


def test_plain_weights_are_preferred_to_fp16(sd15: Path, copy: Path) -> None:
    plain = copy / "unet" / "diffusion_pytorch_model.safetensors"
    shutil.copy(plain, copy / "unet" / "diffusion_pytorch_model.fp16.safetensors")
    assert folders.weights(copy / "unet") == [plain]
    assert students.Source("", copy).content_hash() == students.Source("", sd15).content_hash()


def test_content_hash_follows_content_not_place(sd15: Path, copy: Path) -> None:
    before = students.find(copy).content_hash()
    assert before == students.find(sd15).content_hash() and len(before) == 64
    config = copy / "scheduler" / "scheduler_config.json"
    config.write_text(config.read_text().replace("0.012", "0.013"))
    assert students.find(copy).content_hash() != before


def test_dtype_and_device(sd15: Path) -> None:
    assert students.load(sd15, device="cpu", dtype="bf16").unet.dtype == torch.bfloat16
    assert "no dtype 'float8'" in refused(students.load, sd15, device="cpu", dtype="float8")
    assert "device 'gpu'" in refused(students.load, sd15, device="gpu")


@pytest.mark.parametrize(
    ("spoil", "expected"),
    [
        (lambda f: shutil.rmtree(f / "unet"), "has no UNet"),
        (lambda f: (f / "model_index.json").unlink(), "model_index.json is missing"),
        (lambda f: (f / "model_index.json").write_text("[" * 9999), "not readable JSON"),
        (lambda f: (f / "model_index.json").write_text("[]"), "not a JSON object"),
        (lambda f: (f / "vae" / "config.json").unlink(), "config.json is missing"),
        (lambda f: (f / "vae" / "config.json").write_text("{"), "not readable JSON"),
        (lambda f: shutil.rmtree(f / "vae"), "vae"),
        (lambda f: shutil.rmtree(f / "scheduler"), "scheduler_config.json is missing"),
        (lambda f: next((f / "vae").glob("*.safetensors")).unlink(), "no .safetensors file"),
    ],
)
def test_spoilt_folders(copy: Path, spoil: Any, expected: str) -> None:
    spoil(copy)
    assert expected in refused(students.find, copy)


def test_a_folder_with_pickles_only(copy: Path) -> None:
    weights = copy / "unet" / "diffusion_pytorch_model.safetensors"
    weights.rename(weights.with_suffix(".bin"))
    assert "holds only pickles" in refused(students.find, copy)


def test_a_pickle_beside_safetensors_is_not_touched(copy: Path) -> None:
    (copy / "unet" / "diffusion_pytorch_model.bin").write_bytes(b"\x80\x04boom")
    assert students.load(copy, device="cpu").unet.dtype == torch.float32


def test_a_truncated_model_in_a_folder(copy: Path) -> None:
    weights = copy / "unet" / "diffusion_pytorch_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    assert "reaches past the end" in refused(students.find, copy)


def test_a_missing_shard(copy: Path) -> None:
    shards = helpers.shard(copy / "unet", UNet2DConditionModel)
    shards[0].unlink()
    assert f"{shards[0].name} is missing" in refused(students.find, copy)


@pytest.mark.parametrize("entry", [["evil", "Evil"], [None, None], ["diffusers"], None])
@pytest.mark.parametrize("key", ["_class_name", "unet", "text_encoder"])
def test_folders_with_code_of_their_own(copy: Path, key: str, entry: Any) -> None:
    index = json.loads((copy / "model_index.json").read_text())
    index[key] = entry
    helpers.write_json(copy / "model_index.json", index)
    (copy / "evil.py").write_text("raise SystemExit('ran')")
    refused(students.find, copy)


# --- names ---------------------------------------------------------------------------------


def test_unknown_names(tmp_path: Path) -> None:
    assert "try stickers" in refused(students.find, "stikers")
    assert "try loopfree-sd1.5" in refused(students.find, "loopfree-1.5")
    assert "one of stickers, loopfree" in refused(students.find, "zzz")
    for path in (tmp_path / "absent", tmp_path / "absent.safetensors", "absent.ckpt", "./absent"):
        assert "does not exist" in refused(students.find, path)


def test_overview_needs_no_network(sd15: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    built_in = students.Student("stickers", "", "Apache-2.0", folder=sd15)
    monkeypatch.setitem(students.REGISTRY, "stickers", built_in)
    rows = {row["name"]: row for row in students.overview()}
    assert rows["stickers"]["here"] and not rows["loopfree-sd1.5"]["here"]
    assert "CC BY-NC 4.0" in rows["loopfree-sd2.1-base"]["licence"]
    assert "Open RAIL" in rows["loopfree-sd2.1-base"]["licence"]


# --- single files --------------------------------------------------------------------------


def test_pickles_are_refused(tmp_path: Path) -> None:
    for name in ("a.ckpt", "a.pt", "a.bin", "a.pth"):
        (tmp_path / name).write_bytes(b"\x80\x04]q\x00.")
        assert "is a pickle" in refused(students.find, tmp_path / name)
    torch.save({"weight": torch.zeros(1)}, tmp_path / "renamed.safetensors")
    assert "is a pickle" in refused(students.find, tmp_path / "renamed.safetensors")


ENTRY = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"", "truncated"),
        (b"\x10\x00\x00", "truncated"),
        (helpers.safetensors_bytes({"w": ENTRY}, b"8 bytes.")[:20], "truncated"),
        (helpers.safetensors_bytes({"w": ENTRY}, b"8 bytes.", length=2**63), "truncated"),
        (helpers.safetensors_bytes({"w": ENTRY}, b"8 bytes.", length=0), "truncated"),
        (helpers.safetensors_bytes(b"not json", b""), "not JSON"),
        (helpers.safetensors_bytes(b"\xff\xfe{}"), "not JSON"),
        (helpers.safetensors_bytes(b"[" * 200_000), "not JSON"),
        (helpers.safetensors_bytes([1, 2]), "not a table"),
        (helpers.safetensors_bytes({"w": 3}), "malformed"),
        (helpers.safetensors_bytes({"w": {**ENTRY, "dtype": "PKL"}}, b"8 bytes."), "malformed"),
        (helpers.safetensors_bytes({"w": {**ENTRY, "dtype": []}}, b"8 bytes."), "malformed"),
        (helpers.safetensors_bytes({"w": {**ENTRY, "shape": [-2]}}, b"8 bytes."), "malformed"),
        (helpers.safetensors_bytes({"w": {**ENTRY, "shape": [True]}}, b"8 bytes."), "malformed"),
        (
            helpers.safetensors_bytes({"w": {**ENTRY, "data_offsets": [0]}}, b"8 bytes."),
            "malformed",
        ),
        (helpers.safetensors_bytes({"w": ENTRY}, b"4 by"), "past the end"),
        (helpers.safetensors_bytes({"w": {**ENTRY, "data_offsets": [8, 0]}}, b"8 bytes."), "past"),
        (helpers.safetensors_bytes({"w": {**ENTRY, "shape": [3]}}, b"8 bytes."), "shape asks for"),
        (helpers.safetensors_bytes({"w": ENTRY}, b"8 bytes.and more"), "bytes follow"),
        (helpers.safetensors_bytes({"w": ENTRY, "v": ENTRY}, b"8 bytes."), "overlap"),
        (
            helpers.safetensors_bytes({"w": {**ENTRY, "data_offsets": [8, 16]}}, bytes(16)),
            "overlap or leave gaps",
        ),
    ],
    ids=lambda value: value if isinstance(value, str) else "file",
)
def test_hostile_headers(tmp_path: Path, content: bytes, expected: str) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(content)
    assert expected in refused(students.find, path)
    assert expected in refused(Lora.parse, str(path))


def test_good_headers_pass(tmp_path: Path) -> None:
    kinds = (torch.float32, torch.float16, torch.bfloat16, torch.int64, torch.bool, torch.uint8)
    tensors = {str(kind): torch.zeros(2, 3).to(kind) for kind in kinds}
    tensors |= {"scalar": torch.tensor(1.0), "empty": torch.zeros(0, 4)}
    save_file(tensors, tmp_path / "good.safetensors", metadata={"format": "pt"})
    shapes = read_header(tmp_path / "good.safetensors")
    assert shapes == {name: tuple(tensor.shape) for name, tensor in tensors.items()}


def test_a_whole_checkpoint(sd15: Path, tmp_path: Path) -> None:
    path = tmp_path / "checkpoint.safetensors"
    save_file(helpers.single_file_tensors(sd15), path)
    expected = picture(students.load(sd15, device="cpu"))
    pipe = students.load(path, base=sd15, device="cpu")
    assert np.abs(picture(pipe) - expected).max() <= 1e-6


@pytest.mark.parametrize("naming", ["diffusers", "original", "original without prefix"])
def test_a_unet_alone(sd15: Path, copy: Path, naming: str) -> None:
    """The base is found beside the file; the UNet is the file's, not the base's."""
    prefix = "model.diffusion_model."
    tensors = load_file(sd15 / "unet" / "diffusion_pytorch_model.safetensors")
    if naming != "diffusers":
        tensors = helpers.single_file_tensors(sd15)
        tensors = {key: value for key, value in tensors.items() if key.startswith(prefix)}
    if naming == "original without prefix":
        tensors = {key.removeprefix(prefix): value for key, value in tensors.items()}
    save_file({key: 0.5 * value for key, value in tensors.items()}, copy / "half.safetensors")
    halved = students.load(sd15, device="cpu")
    for parameter in halved.unet.parameters():
        parameter.data.mul_(0.5)
    pipe = students.load(copy / "half.safetensors", device="cpu")
    assert np.abs(picture(pipe) - picture(halved)).max() <= 1e-6


def test_single_files_that_do_not_serve(sd15: Path, sd21: Path, tmp_path: Path) -> None:
    unet = load_file(sd15 / "unet" / "diffusion_pytorch_model.safetensors")
    alone = tmp_path / "elsewhere" / "unet.safetensors"
    alone.parent.mkdir()
    save_file(unet, alone)
    assert "text encoder, VAE and tokenizer" in refused(students.load, alone, device="cpu")
    assert "does not fit" in refused(students.load, alone, base=sd21, device="cpu")
    assert "--base" in refused(students.load, alone, base=alone, device="cpu")
    checkpoint = tmp_path / "elsewhere" / "checkpoint.safetensors"
    save_file(helpers.single_file_tensors(sd15), checkpoint)
    assert "configs and tokenizer" in refused(students.load, checkpoint, device="cpu")
    unet.pop("mid_block.resnets.0.conv1.weight")
    save_file(unet, alone)
    assert "does not fit" in refused(students.load, alone, base=sd15, device="cpu")
    original = helpers.single_file_tensors(sd15)
    original = {key: value for key, value in original.items() if "diffusion_model" in key}
    original.pop("model.diffusion_model.middle_block.0.in_layers.2.weight")
    save_file(original, alone)
    message = refused(students.load, alone, base=sd15, device="cpu")
    assert "some of its tensors are missing" in message
    save_file({"w": torch.zeros(1)}, alone)
    assert "has no UNet" in refused(students.load, alone, device="cpu")
    lora = helpers.write_lora(alone, helpers.lora_tensors())
    assert "pass it with --lora" in refused(students.load, lora, device="cpu")


# --- LoRA ----------------------------------------------------------------------------------


def merged(sd15: Path, *loras: tuple[dict[str, torch.Tensor], float]) -> np.ndarray:
    """The picture of a student whose weights are W + strength * up @ down."""
    pipe = students.load(sd15, device="cpu")
    for tensors, strength in loras:
        for key, down in tensors.items():
            if key.endswith("lora_A.weight"):
                layer = pipe.unet.get_submodule(key.removeprefix("unet.").split(".lora_A")[0])
                up = tensors[key.replace("lora_A", "lora_B")]
                layer.weight.data += strength * up @ down
    return picture(pipe)


@pytest.mark.parametrize("naming", ["diffusers", "kohya"])
@pytest.mark.parametrize("strength", [1.0, 0.25, 0.0, -1.0])
def test_lora_equals_merged_weights(
    sd15: Path, tmp_path: Path, naming: str, strength: float
) -> None:
    tensors = helpers.lora_tensors()
    named = tensors if naming == "diffusers" else helpers.kohya_lora_tensors()
    path = helpers.write_lora(tmp_path / "my.style v1.2.safetensors", named)
    pipe = students.load(sd15, device="cpu")
    plain = picture(pipe)
    load_loras(pipe, [Lora.parse(f"{path}:{strength}")])
    styled = picture(pipe)
    assert np.abs(styled - merged(sd15, (tensors, strength))).max() <= 1e-5
    assert (np.abs(styled - plain).max() > 1e-4) == (strength != 0)


def test_two_loras_at_once(sd15: Path, tmp_path: Path) -> None:
    one, two = helpers.lora_tensors(), helpers.lora_tensors(rank=3)
    paths = [
        helpers.write_lora(tmp_path / f"{name}.safetensors", tensors)
        for name, tensors in (("one", one), ("two", two))
    ]
    pipe = students.load(sd15, device="cpu")
    load_loras(pipe, [Lora(paths[0], 0.5), Lora(paths[1], -0.3)])
    assert np.abs(picture(pipe) - merged(sd15, (one, 0.5), (two, -0.3))).max() <= 1e-5


@pytest.mark.parametrize("naming", [helpers.lora_tensors, helpers.kohya_lora_tensors])
def test_a_lora_for_another_model(sd15: Path, tmp_path: Path, naming: Any) -> None:
    pipe = students.load(sd15, device="cpu")
    plain = picture(pipe)
    wide = helpers.write_lora(tmp_path / "wide.safetensors", naming(context=64))
    message = refused(load_loras, pipe, [Lora(wide)])
    assert "for another model" in message and "to_k is (32, 32) here, (32, 64) there" in message
    deeper = {
        key.replace("down_blocks.0", "down_blocks.2").replace("down_blocks_0", "down_blocks_2"): v
        for key, v in naming().items()
    }
    path = helpers.write_lora(tmp_path / "deeper.safetensors", deeper)
    message = refused(load_loras, pipe, [Lora(path)])
    assert "this one has no unet.down_blocks.2" in message
    assert np.abs(picture(pipe) - plain).max() == 0  # and nothing of it stayed


def test_a_lora_of_the_text_encoder_counts_too(sd15: Path, tmp_path: Path) -> None:
    def tensors(width: int) -> dict[str, torch.Tensor]:
        named = {}
        for layer in ("q", "k", "v", "out"):
            name = f"lora_te_text_model_encoder_layers_0_self_attn_{layer}_proj"
            named[f"{name}.lora_down.weight"] = torch.randn(2, width)
            named[f"{name}.lora_up.weight"] = torch.randn(width, 2)
        return named

    pipe = students.load(sd15, device="cpu")
    plain = picture(pipe)
    load_loras(pipe, [Lora(helpers.write_lora(tmp_path / "a.safetensors", tensors(32)))])
    assert np.abs(picture(pipe) - plain).max() > 0
    other = helpers.write_lora(tmp_path / "b.safetensors", tensors(64))
    assert "for another model" in refused(
        load_loras, students.load(sd15, device="cpu"), [Lora(other)]
    )


def test_a_lora_of_sdxl(sd15: Path, tmp_path: Path) -> None:
    name = "lora_te2_text_model_encoder_layers_0_self_attn_q_proj"
    tensors = {
        f"{name}.lora_down.weight": torch.zeros(2, 8),
        f"{name}.lora_up.weight": torch.zeros(8, 2),
    }
    path = helpers.write_lora(tmp_path / "xl.safetensors", tensors)
    assert "for another model" in refused(
        load_loras, students.load(sd15, device="cpu"), [Lora(path)]
    )


def test_what_is_not_a_lora(sd15: Path, tmp_path: Path) -> None:
    pipe = students.load(sd15, device="cpu")
    half = {k: v for k, v in helpers.lora_tensors().items() if "lora_A" in k}
    for tensors in ({"w": torch.zeros(2, 2)}, half, {"lora_unet_x.hada_w1_a": torch.zeros(2, 2)}):
        path = helpers.write_lora(tmp_path / "odd.safetensors", tensors)
        assert "is not a LoRA" in refused(load_loras, pipe, [Lora(path)])


def test_lora_on_the_command_line(tmp_path: Path) -> None:
    path = helpers.write_lora(tmp_path / "a.safetensors", helpers.lora_tensors())
    assert Lora.parse(str(path)) == Lora(path, 1.0)
    assert Lora.parse(f"{path}:-0.5") == Lora(path, -0.5)
    colon = helpers.write_lora(tmp_path / "b:2", helpers.lora_tensors())
    assert Lora.parse(str(colon)) == Lora(colon, 1.0)
    for text in (f"{path}:nan", f"{path}:inf", f"{path}:strong", "absent.safetensors:1"):
        refused(Lora.parse, text)
    record = Lora(path, 0.5).record()
    assert record["name"] == "a" and record["strength"] == 0.5 and len(record["hash"]) == 64


# --- the hub -------------------------------------------------------------------------------


class FakeHub:
    """A hub of folders: what `huggingface_hub` would fetch from the network, it copies."""

    def __init__(self, cache: Path) -> None:
        self.cache, self.folders, self.asked = cache / "hub", {}, []
        self.commit, self.license, self.fail = "1" * 40, "cc-by-nc-4.0", None

    def model_info(self, _: Any, hub_id: str, *, revision: str | None = None) -> Any:
        self.asked.append(("info", revision))
        if self.fail:
            raise self.fail
        folder = self.folders[hub_id]
        names = [p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file()]
        return SimpleNamespace(
            sha=revision if revision and len(revision) == 40 else self.commit,
            siblings=[SimpleNamespace(rfilename=name) for name in names],
            card_data=SimpleNamespace(license=self.license),
        )

    def snapshot_download(
        self, hub_id: str, *, revision: str, allow_patterns: list[str], tqdm_class: Any = None
    ) -> str:
        self.asked.append(("download", revision))
        repository = self.cache / ("models--" + hub_id.replace("/", "--"))
        snapshot = repository / "snapshots" / revision
        for name in allow_patterns:
            (snapshot / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(self.folders[hub_id] / name, snapshot / name)
        (repository / "refs").mkdir(exist_ok=True)
        (repository / "refs" / "main").write_text(self.commit)
        return str(snapshot)


AUTHORS = "senmaonk/loopfree-sd2.1-base"


@pytest.fixture
def fake_hub(cache: Path, sd21: Path, monkeypatch: pytest.MonkeyPatch) -> FakeHub:
    fake = FakeHub(cache)
    fake.folders = {AUTHORS: sd21, "someone/student": sd21}
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(
        huggingface_hub.HfApi, "model_info", lambda self, *a, **k: fake.model_info(self, *a, **k)
    )
    monkeypatch.setattr(huggingface_hub, "snapshot_download", fake.snapshot_download)
    return fake


def test_first_download_asks_for_the_licence(fake_hub: FakeHub) -> None:
    message = refused(students.find, "loopfree-sd2.1-base")
    assert "CC BY-NC 4.0" in message and "--accept-license" in message
    shown = []
    refused(students.find, "loopfree-sd2.1-base", accept_license=lambda t: shown.append(t))
    assert "CC BY-NC 4.0" in shown[0] and AUTHORS in shown[0] and "Open RAIL" in shown[0]
    assert not any(kind == "download" for kind, _ in fake_hub.asked)


def test_then_it_is_pinned_and_works_off_line(
    fake_hub: FakeHub, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = students.find("loopfree-sd2.1-base", accept_license=True)
    assert source.revision == "1" * 40 and source.name == "loopfree-sd2.1-base"
    pinned = json.loads((cache / "tiue-students.json").read_text())
    assert pinned[AUTHORS]["revision"] == "1" * 40 and "CC BY-NC" in pinned[AUTHORS]["licence"]
    fake_hub.asked.clear()
    fake_hub.commit = "2" * 40  # the repository moves on
    (source.path.parents[1] / "refs" / "main").write_text("2" * 40)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    for name in ("loopfree-sd2.1-base", AUTHORS):
        assert students.find(name) == source
    assert fake_hub.asked == []
    assert picture(students.load(source, device="cpu")).shape == (16, 16, 3)
    assert students.overview()[1]["revision"] == "1" * 40
    shutil.rmtree(cache / "hub")  # downloaded again, it is still the pinned commit
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    assert students.find(AUTHORS, accept_license=True).revision == "1" * 40


def test_an_interrupted_download_goes_on(fake_hub: FakeHub) -> None:
    source = students.find(AUTHORS, accept_license=True)
    next((source.path / "unet").glob("*.safetensors")).unlink()
    assert students.find(AUTHORS, accept_license=True) == source
    assert [kind for kind, _ in fake_hub.asked].count("download") == 2


def test_what_another_tool_downloaded_is_used_and_pinned(fake_hub: FakeHub, sd21: Path) -> None:
    names = [p.relative_to(sd21).as_posix() for p in sd21.rglob("*") if p.is_file()]
    fake_hub.snapshot_download(AUTHORS, revision="1" * 40, allow_patterns=names)
    assert students.find(AUTHORS).revision == "1" * 40  # no licence to ask for: it is here
    assert hub.pins()[AUTHORS]["revision"] == "1" * 40


def test_a_revision_of_choice(fake_hub: FakeHub, cache: Path) -> None:
    chosen = students.find(f"someone/student@{'3' * 40}", accept_license=True)
    assert chosen.revision == "3" * 40
    assert not (cache / "tiue-students.json").exists()  # asked for by name, so nothing to pin
    refused(students.find, "someone/student", accept_license=lambda terms: "cc-by-nc" not in terms)


def test_only_what_is_needed_is_downloaded(fake_hub: FakeHub, sd21: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(sd21, tmp_path / "repository"))
    plain = folder / "vae" / "diffusion_pytorch_model.safetensors"
    shutil.copy(folder / "vae" / "diffusion_pytorch_model.fp16.safetensors", plain)
    for extra in ("v2-1.safetensors", "unet/diffusion_pytorch_model.bin", "safety_checker/x.json"):
        (folder / extra).parent.mkdir(exist_ok=True)
        (folder / extra).write_text("{}")
    fake_hub.folders["someone/student"] = folder
    path = students.find("someone/student", accept_license=True).path
    files = {p.relative_to(path).as_posix() for p in path.rglob("*.*") if p.is_file()}
    assert not {f for f in files if f.endswith((".bin", "2-1.safetensors"))}
    assert not {f for f in files if f.startswith("safety_checker")}
    assert "unet/diffusion_pytorch_model.fp16.safetensors" in files
    assert {f for f in files if f.startswith("vae/") and "fp16" in f} == set()


def test_pickled_repositories(fake_hub: FakeHub, sd21: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(sd21, tmp_path / "repository"))
    weights = folder / "unet" / "diffusion_pytorch_model.fp16.safetensors"
    weights.rename(folder / "unet" / "diffusion_pytorch_model.bin")
    fake_hub.folders["someone/student"] = folder
    assert "holds only pickles" in refused(students.find, "someone/student", accept_license=True)
    assert [kind for kind, _ in fake_hub.asked] == ["info"]
    shutil.rmtree(folder / "unet")
    assert "has no UNet" in refused(students.find, "someone/student", accept_license=True)


def _hub_error(kind: str) -> Exception:
    response = SimpleNamespace(headers={}, status_code=404, request=None)
    return getattr(huggingface_hub.errors, kind)("many\nlines", response=response)


def test_the_hub_says_no(fake_hub: FakeHub) -> None:
    for error, expected in (
        (ConnectionError("many\nlines"), "hub cannot be reached (ConnectionError)"),
        (OSError(28, "No space left on device"), "no space left"),
        (_hub_error("RepositoryNotFoundError"), "no student 'someone/student'"),
        (_hub_error("RevisionNotFoundError"), "no revision"),
        (_hub_error("GatedRepoError"), "asks for a login"),
    ):
        fake_hub.fail = error
        assert expected in refused(students.find, "someone/student", accept_license=True)


def test_off_line_and_not_here() -> None:
    assert "HF_HUB_OFFLINE" in refused(students.find, AUTHORS, accept_license=True)


def test_a_spoilt_pin_file_is_no_pin(cache: Path) -> None:
    cache.mkdir()
    for text in ("{", "[]", '{"a/b": 3}'):
        (cache / "tiue-students.json").write_text(text)
        assert hub.pins() == {}


def test_a_checkpoint_keeps_what_it_has(sd15: Path, tmp_path: Path) -> None:
    """Its own text encoder or autoencoder counts, also where the other is missing."""
    tensors = helpers.single_file_tensors(sd15)
    for kept, lost in (("first_stage", "cond_stage"), ("cond_stage", "first_stage")):
        own = {k: v * 1.05 if k.startswith(kept) else v for k, v in tensors.items()}
        own = {k: v.contiguous() for k, v in own.items() if not k.startswith(lost)}
        save_file(own, tmp_path / "some.safetensors")
        pipe = students.load(tmp_path / "some.safetensors", device="cpu", base=sd15)
        part = "vae" if kept == "first_stage" else "text_encoder"
        ours = getattr(pipe, part).state_dict()
        theirs = getattr(students.load(sd15, device="cpu"), part).state_dict()
        name = next(k for k in ours if k.endswith("weight"))
        assert torch.allclose(ours[name], theirs[name] * 1.05)


@pytest.mark.parametrize("telling", ["key", "metadata"])
def test_a_checkpoint_says_what_it_predicts(sd15: Path, tmp_path: Path, telling: str) -> None:
    tensors = {k: v.contiguous() for k, v in helpers.single_file_tensors(sd15).items()}
    metadata = {"modelspec.prediction_type": "v"} if telling == "metadata" else None
    if telling == "key":
        tensors |= {"v_pred": torch.zeros(0), "ztsnr": torch.zeros(0)}
    save_file(tensors, tmp_path / "v.safetensors", metadata=metadata)
    pipe = students.load(tmp_path / "v.safetensors", device="cpu", base=sd15)
    assert pipe.schedule().prediction_type == "v_prediction"
    assert bool(pipe.scheduler.config.rescale_betas_zero_snr) == (telling == "key")


def test_arguments_count_for_single_files_too(sd15: Path, tmp_path: Path) -> None:
    from diffusers import EulerDiscreteScheduler

    from tiue_core import TiuePipeline

    file = tmp_path / "whole.safetensors"
    tensors = helpers.single_file_tensors(sd15)
    save_file({k: v.contiguous() for k, v in tensors.items()}, file)
    other = EulerDiscreteScheduler(beta_schedule="scaled_linear")
    pipe = TiuePipeline.from_pretrained(str(file), base=sd15, timesteps=[999], scheduler=other)
    assert pipe.schedule().timesteps.tolist() == [999] and pipe.scheduler is other
    del tensors["cond_stage_model.transformer.text_model.final_layer_norm.weight"]
    save_file({k: v.contiguous() for k, v in tensors.items()}, file)
    assert "final_layer_norm.weight" in refused(students.load, file, device="cpu", base=sd15)


def test_an_sdxl_checkpoint_is_refused(sd15: Path, tmp_path: Path) -> None:
    tensors = helpers.single_file_tensors(sd15)
    tensors["model.diffusion_model.label_emb.0.0.weight"] = torch.zeros(32, 80)
    save_file({k: v.contiguous() for k, v in tensors.items()}, tmp_path / "xl.safetensors")
    message = refused(students.load, tmp_path / "xl.safetensors", device="cpu", base=sd15)
    assert "SDXL's sizes beside the prompt" in message


@pytest.mark.parametrize("part", ["whole", "unet"])
def test_a_base_says_which_timesteps(sd15: Path, copy: Path, tmp_path: Path, part: str) -> None:
    """Those that the student was trained for; a checkpoint of another tool's has none."""
    index = json.loads((copy / "model_index.json").read_text())
    helpers.write_json(copy / "model_index.json", {**index, "timesteps": [999], "steps": 1})
    tensors = helpers.single_file_tensors(sd15)
    kept = {k: v.contiguous() for k, v in tensors.items() if part == "whole" or "diffusion" in k}
    save_file(kept, tmp_path / "a.safetensors")
    pipe = students.load(tmp_path / "a.safetensors", device="cpu", base=copy)
    assert pipe.schedule().timesteps.tolist() == [999]


def test_stable_diffusion_2_in_one_file(tmp_path: Path) -> None:
    """OpenCLIP's names, and what its files have more than a student uses: a layer, a projection."""
    from tiue_core.students.checkpoint import Parts, write

    folder = helpers.make_student(tmp_path / "student", context=1024, linear=True)
    file = write(Parts.of_folder(folder), tmp_path / "student.safetensors")
    tensors, inside = load_file(file), "cond_stage_model.model."
    layer = f"{inside}transformer.resblocks.0."
    more = {k.replace(".0.", ".1.", 1): 2 * v for k, v in tensors.items() if k.startswith(layer)}
    assert len(more) == 12
    more |= {
        f"{inside}logit_scale": torch.ones(()),
        f"{inside}text_projection": torch.ones(1024, 1024),
    }
    save_file({**tensors, **more}, file)
    expected = picture(students.load(folder, device="cpu"))
    pipe = students.load(file, device="cpu", base=folder)
    assert np.abs(picture(pipe) - expected).max() <= 1e-6
    for name in ("transformer.resblocks.0.mlp.c_fc.bias", "ln_final.bias"):
        lacking = {k: v for k, v in tensors.items() if k != inside + name}
        save_file(lacking, file)
        assert "lacks 1 of" in refused(students.load, file, device="cpu", base=folder)
