"""LoRAs of every kind, as the tools that make them write them, against those tools' own merge."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import helpers_students as helpers
import pytest
import torch
from diffusers import UNet2DConditionModel
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from torch import Tensor

from tiue_core import students
from tiue_core.errors import TiueError
from tiue_core.students.lora import Lora, load_loras

lycoris = pytest.importorskip("lycoris")


@pytest.fixture(scope="module", params=["SD 1", "SD 2"])
def student(request: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("kinds") / "student"
    linear = request.param == "SD 2"
    return helpers.make_student(folder, context=64 if linear else 32, linear=linear)


def paint(pipe: Any) -> Tensor:
    return pipe("a cat", seed=3, output_type="latent").images


KINDS: dict[str, dict[str, Any]] = {
    "plain": {"algo": "lora"},
    "tucker": {"algo": "lora", "use_tucker": True},
    "dora by output": {"algo": "lora", "dora_wd": True},
    "dora by input": {"algo": "lora", "dora_wd": True, "wd_on_output": False},
    "loha": {"algo": "loha"},
    "loha tucker": {"algo": "loha", "use_tucker": True},
    "loha dora": {"algo": "loha", "dora_wd": True},
    "lokr": {"algo": "lokr"},
    "lokr small": {"algo": "lokr", "linear_dim": 2, "decompose_both": True, "factor": 4},
    "lokr tucker": {"algo": "lokr", "linear_dim": 1, "conv_dim": 1, "use_tucker": True},
    "full": {"algo": "full"},
    "ia3": {"algo": "ia3"},
    "norms": {"algo": "lora", "train_norm": True},
}


def made(unet: Any, kind: str) -> Any:
    torch.manual_seed(5)
    lycoris.LycorisNetwork.apply_preset({"target_module": ["ResnetBlock2D", "Transformer2DModel"]})
    settings = {"linear_dim": 4, "linear_alpha": 2.0, "conv_dim": 4, "conv_alpha": 2.0}
    network = lycoris.create_lycoris(unet, 1.0, **{**settings, **KINDS[kind]})
    network.apply_to()
    with torch.no_grad():
        for name, weight in network.named_parameters():
            if "dora_scale" in name:
                weight.mul_(1 + 0.2 * torch.rand_like(weight))
            else:
                weight.add_(0.05 * torch.randn_like(weight))
    return network


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_lycoris_is_its_own_merge(student: Path, tmp_path: Path, kind: str) -> None:
    theirs = students.load(student, device="cpu")
    before = paint(theirs)
    network = made(theirs.unet, kind)
    tensors = {k: v.detach().contiguous() for k, v in network.state_dict().items()}
    save_file(tensors, tmp_path / "lora.safetensors")
    # As it was trained: its own merge scales LoHa and LoKr by alpha / rank once more.
    expected = paint(theirs)
    network.restore()
    if not kind.startswith("lo"):
        network.merge_to(1.0)
        assert (paint(theirs) - expected).abs().max() <= 1e-5 * expected.abs().max()
    ours = students.load(student, device="cpu")
    load_loras(ours, [Lora(tmp_path / "lora.safetensors")])
    assert (paint(ours) - expected).abs().max() <= 1e-5 * expected.abs().max()
    assert (expected - before).abs().max() > 1e-3
    ours.unload_lora_weights()
    assert torch.equal(paint(ours), before)


@pytest.mark.parametrize("kind", KINDS)
def test_a_strength_is_so_far_between(student: Path, tmp_path: Path, kind: str) -> None:
    """The weights without and with it, which are held against the tool at strength 1."""
    network = made(students.load(student, device="cpu").unet, kind)
    tensors = {k: v.detach().contiguous() for k, v in network.state_dict().items()}
    save_file(tensors, tmp_path / "lora.safetensors")
    found = []
    for given in (1.0, 0.3):
        pipe = students.load(student, device="cpu")
        before = {name: weight.clone() for name, weight in pipe.unet.state_dict().items()}
        load_loras(pipe, [Lora(tmp_path / "lora.safetensors", given)])
        found.append(pipe.unet.state_dict())
    for name, weight in before.items():
        wanted = weight + 0.3 * (found[0][name] - weight)
        assert (found[1][name] - wanted).abs().max() <= 1e-5 * wanted.abs().max().clamp(1e-3)


def test_the_pipelines_own_door_takes_what_the_command_line_does(
    student: Path, tmp_path: Path
) -> None:
    """``load_lora_weights``: by diffusers alone a DoRA in LyCORIS' names is a plain LoRA."""
    network = made(students.load(student, device="cpu").unet, "dora by output")
    named = {k: v.detach().contiguous() for k, v in network.state_dict().items()}
    save_file(named, tmp_path / "pytorch_lora_weights.safetensors")
    theirs, _ = pefts(student, tmp_path)
    for file, given in ((tmp_path / "pytorch_lora_weights.safetensors", tmp_path), (theirs,) * 2):
        door, line = students.load(student, device="cpu"), students.load(student, device="cpu")
        before = paint(door)
        load_loras(line, [Lora(file)])
        door.load_lora_weights(given)
        assert torch.equal(paint(door), paint(line)) and not torch.equal(paint(door), before)
        door.unload_lora_weights()
        assert torch.equal(paint(door), before)
    door.load_lora_weights(theirs, adapter_name="zorb")
    door.set_adapters(["zorb"], [0.0])
    assert torch.equal(paint(door), before)
    with pytest.raises(TiueError, match="zorb is loaded already"):
        door.load_lora_weights(theirs, adapter_name="zorb")


def test_fused_it_stays(student: Path, tmp_path: Path) -> None:
    pipe = students.load(student, device="cpu")
    network = made(students.load(student, device="cpu").unet, "loha")
    save_file({k: v.detach() for k, v in network.state_dict().items()}, tmp_path / "a.safetensors")
    load_loras(pipe, [Lora(tmp_path / "a.safetensors", 0.5)])
    with_it = paint(pipe)
    pipe.fuse_lora()
    pipe.unload_lora_weights()
    assert torch.equal(paint(pipe), with_it)


def test_what_is_not_known_is_named(student: Path, tmp_path: Path) -> None:
    name = "lora_unet_down_blocks_0_attentions_0_proj_in"
    file = tmp_path / "a.safetensors"
    save_file({f"{name}.oft_blocks": torch.zeros(2, 4, 4)}, file)
    pipe = students.load(student, device="cpu")
    with pytest.raises(TiueError, match=r"not known .*oft_blocks"):
        load_loras(pipe, [Lora(file)])
    save_file({f"{name}.diff": torch.zeros(3, 5)}, file)
    with pytest.raises(TiueError, match="another model"):
        load_loras(pipe, [Lora(file)])


OPTIONS: list[dict[str, Any]] = [
    {},
    {"use_rslora": True},
    {"alpha_pattern": {"to_q": 7}},
    {"rank_pattern": {"to_q": 2}},
]


@pytest.mark.parametrize("options", OPTIONS)
def test_pefts_own_files(student: Path, tmp_path: Path, options: dict[str, Any]) -> None:
    torch.manual_seed(1)
    config = LoraConfig(
        r=3, lora_alpha=5, target_modules=["to_q", "conv1"], init_lora_weights=False, **options
    )
    unet = UNet2DConditionModel.from_pretrained(student / "unet")
    model = get_peft_model(unet, config)
    model.save_pretrained(tmp_path)
    expected, ours = students.load(student, device="cpu"), students.load(student, device="cpu")
    expected.unet = model.merge_and_unload()
    load_loras(ours, [Lora(tmp_path / "adapter_model.safetensors")])
    wanted = paint(expected)
    assert (paint(ours) - wanted).abs().max() <= 1e-5 * wanted.abs().max()
    (tmp_path / "adapter_config.json").unlink()
    with pytest.raises(TiueError, match=r"adapter_config.json is missing"):
        load_loras(ours, [Lora(tmp_path / "adapter_model.safetensors")])


def test_kernels_of_one_by_one_either_way(student: Path, tmp_path: Path) -> None:
    """kohya's scripts store SD 2's linear projections as convolutions', others SD 1's as linear."""
    name, width = "down_blocks.0.attentions.0.proj_in", 32
    pipe = students.load(student, device="cpu")
    layer = pipe.unet.get_submodule(name)
    down, up = torch.randn(2, width), torch.randn(width, 2) * 0.1
    other = layer.weight.ndim == 2
    tail = (slice(None), slice(None), None, None) if other else ...
    layer.weight.data += (up @ down).view(layer.weight.shape)
    expected = paint(pipe)
    flat = "lora_unet_" + name.replace(".", "_")
    file = tmp_path / "a.safetensors"
    save_file(
        {
            f"{flat}.lora_down.weight": down[tail].contiguous(),
            f"{flat}.lora_up.weight": up[tail].contiguous(),
            f"{flat}.alpha": torch.tensor(2.0),
        },
        file,
    )
    pipe = students.load(student, device="cpu")
    load_loras(pipe, [Lora(file)])
    assert (paint(pipe) - expected).abs().max() <= 1e-5 * expected.abs().max()


def test_the_same_file_twice_is_both_strengths(student: Path, tmp_path: Path) -> None:
    context = (
        64
        if json.loads((student / "unet/config.json").read_text())["use_linear_projection"]
        else 32
    )
    file = helpers.write_lora(tmp_path / "a.safetensors", helpers.lora_tensors(context=context))
    one, two = (students.load(student, device="cpu") for _ in range(2))
    load_loras(one, [Lora(file, 0.75)])
    load_loras(two, [Lora(file, 0.5), Lora(file, 0.25)])
    assert (paint(one) - paint(two)).abs().max() <= 1e-5


@pytest.mark.parametrize("fault", ["NaN", "infinity", "alpha"])
def test_a_lora_of_broken_numbers_is_named(student: Path, tmp_path: Path, fault: str) -> None:
    tensors = helpers.kohya_lora_tensors()
    name = next(k for k in tensors if k.endswith("alpha" if fault == "alpha" else "up.weight"))
    tensors[name] = torch.full_like(tensors[name], float("nan" if fault == "NaN" else "inf"))
    file = helpers.write_lora(tmp_path / "a.safetensors", tensors)
    with pytest.raises(TiueError, match=f"{name} holds NaN"):
        load_loras(students.load(student, device="cpu"), [Lora(file)])
    assert load_file(file)


@pytest.mark.parametrize("options", OPTIONS)
def test_diffusers_own_metadata(student: Path, tmp_path: Path, options: dict[str, Any]) -> None:
    from diffusers import StableDiffusionPipeline
    from diffusers.utils import convert_state_dict_to_diffusers
    from peft import get_peft_model_state_dict

    torch.manual_seed(1)
    theirs = students.load(student, device="cpu")
    config = LoraConfig(
        r=3, lora_alpha=5, target_modules=["to_q", "conv1"], init_lora_weights=False, **options
    )
    theirs.unet.add_adapter(config)
    StableDiffusionPipeline.save_lora_weights(
        tmp_path,
        unet_lora_layers=convert_state_dict_to_diffusers(get_peft_model_state_dict(theirs.unet)),
        unet_lora_adapter_metadata=config.to_dict(),
    )
    wanted, ours = paint(theirs), students.load(student, device="cpu")
    load_loras(ours, [Lora(tmp_path / "pytorch_lora_weights.safetensors")])
    assert (paint(ours) - wanted).abs().max() <= 1e-5 * wanted.abs().max()


@pytest.mark.parametrize("layers", [["q"], ["k", "v"], ["v", "out"]], ids="".join)
def test_any_of_a_text_encoders_attention(student: Path, tmp_path: Path, layers: list[str]) -> None:
    """diffusers knows kohya's names by out_proj, and leaves the others out where there is none."""
    torch.manual_seed(2)
    pipe, tensors = students.load(student, device="cpu"), {}
    encoder = getattr(pipe.text_encoder, "text_model", pipe.text_encoder)
    before = paint(pipe)
    for layer in layers:
        weight = encoder.get_submodule(f"encoder.layers.0.self_attn.{layer}_proj").weight.data
        down, up = torch.randn(2, weight.shape[1]), 0.3 * torch.randn(weight.shape[0], 2)
        weight += 1.5 / 2 * up @ down
        name = f"lora_te_text_model_encoder_layers_0_self_attn_{layer}_proj"
        tensors |= {f"{name}.lora_down.weight": down, f"{name}.lora_up.weight": up}
        tensors[f"{name}.alpha"] = torch.tensor(1.5)
    save_file(tensors, tmp_path / "a.safetensors")
    wanted, ours = paint(pipe), students.load(student, device="cpu")
    load_loras(ours, [Lora(tmp_path / "a.safetensors")])
    assert (paint(ours) - wanted).abs().max() <= 1e-5 * wanted.abs().max()
    assert (wanted - before).abs().max() > 1e-4


def pefts(student: Path, folder: Path, **options: Any) -> tuple[Path, Any]:
    """One of PEFT's own files, trained a little, and the UNet that it is merged into."""
    torch.manual_seed(1)
    given = {"r": 3, "lora_alpha": 5, "target_modules": ["conv1", "to_out.0"], **options}
    model = get_peft_model(
        UNet2DConditionModel.from_pretrained(student / "unet"), LoraConfig(**given)
    )
    model.peft_config["default"].init_lora_weights = True
    model.save_pretrained(folder / "start")
    model.peft_config["default"].init_lora_weights = given.get("init_lora_weights", True)
    with torch.no_grad():
        for weight in model.parameters():
            weight += 0.05 * torch.randn_like(weight) * weight.requires_grad
    model.save_pretrained(folder)
    if isinstance(start := given.get("init_lora_weights"), str):
        model.peft_config["default"].init_lora_weights = start
        model.save_pretrained(
            folder / "converted", path_initial_model_for_weight_conversion=folder / "start"
        )
    return folder / "adapter_model.safetensors", model.merge_and_unload()


@pytest.mark.parametrize("options", [{"lora_bias": True}, {"use_dora": True}], ids=str)
def test_what_pefts_files_hold_beside_matrices(
    student: Path, tmp_path: Path, options: dict[str, Any]
) -> None:
    expected, ours = students.load(student, device="cpu"), students.load(student, device="cpu")
    before = paint(ours)
    file, expected.unet = pefts(student, tmp_path, **options)
    load_loras(ours, [Lora(file)])
    wanted = paint(expected)
    assert (wanted - before).abs().max() > 1e-3
    assert (paint(ours) - wanted).abs().max() <= 1e-5 * wanted.abs().max()


@pytest.mark.parametrize("start", ["pissa", "olora"])
def test_a_start_that_changes_the_models_own_weights(
    student: Path, tmp_path: Path, start: str
) -> None:
    """The matrices are then no difference from the model; converted by PEFT they are."""
    file, merged = pefts(student, tmp_path, init_lora_weights=start, target_modules=["to_q"])
    expected, ours = students.load(student, device="cpu"), students.load(student, device="cpu")
    with pytest.raises(TiueError, match=f"from {start}, .*path_initial_model"):
        load_loras(ours, [Lora(file)])
    tensors = {
        "unet." + name.removeprefix("base_model.model."): tensor
        for name, tensor in load_file(file).items()
    }
    said = json.dumps({"unet.init_lora_weights": start, "unet.lora_alpha": 5, "unet.r": 3})
    save_file(tensors, tmp_path / "b.safetensors", {"lora_adapter_metadata": said})
    with pytest.raises(TiueError, match=f"from {start}"):
        load_loras(ours, [Lora(tmp_path / "b.safetensors")])
    expected.unet = merged
    load_loras(ours, [Lora(tmp_path / "converted" / "adapter_model.safetensors")])
    wanted = paint(expected)
    assert (paint(ours) - wanted).abs().max() <= 1e-5 * wanted.abs().max()


def modules_to_save(student: Path, folder: Path) -> tuple[Path, str]:
    return pefts(student, folder, modules_to_save=["conv_in"])[0], "conv_in.bias"


def biases(student: Path, folder: Path) -> tuple[Path, str]:
    return pefts(student, folder, bias="all")[0], "conv_in.bias"


def beside(named: dict[str, Tensor], name: str, tensor: Tensor) -> Any:
    def make(student: Path, folder: Path) -> tuple[Path, str]:
        return helpers.write_lora(folder / "a.safetensors", {**named, name: tensor}), name

    make.__name__ = name.rpartition(".")[2]
    return make


ATTENTION = "down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_q"
FLAT = "lora_unet_" + ATTENTION.replace(".", "_")
TO_Q = {name: one for name, one in helpers.kohya_lora_tensors().items() if FLAT in name}
UNUSED = [
    modules_to_save,
    biases,
    beside(helpers.lora_tensors(), f"unet.{ATTENTION}.dora_scale", torch.ones(32, 1)),
    beside(helpers.kohya_lora_tensors(), "bundle_emb.zorb.clip_l", torch.ones(2, 32)),
    beside(TO_Q, f"{FLAT}.diff", torch.ones(32, 32)),
    beside({f"{FLAT}.diff": torch.ones(32, 32)}, f"{FLAT}.diff_b", torch.ones(32)),
    beside(helpers.lora_tensors(), "unet.conv_in.lora_A.weight", torch.ones(2, 4).int()),
]


@pytest.mark.parametrize("make", UNUSED, ids=lambda make: make.__name__)
def test_nothing_of_a_file_is_left_out_in_silence(student: Path, tmp_path: Path, make: Any) -> None:
    file, name = make(student, tmp_path)
    pipe = students.load(student, device="cpu")
    before = paint(pipe)
    for load in (lambda: load_loras(pipe, [Lora(file)]), lambda: pipe.load_lora_weights(file)):
        with pytest.raises(TiueError, match=name.rpartition(f"{FLAT}.")[2]) as error:
            load()
        assert "\n" not in str(error.value) and torch.equal(paint(pipe), before)


OTHERS: dict[str, Any] = {
    "diag-oft": {"algo": "diag-oft"},
    "boft": {"algo": "boft"},
    "glora": {"algo": "glora"},
}


@pytest.mark.parametrize("kind", OTHERS)
def test_other_kinds_of_lycoris_are_named(
    student: Path, tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(KINDS, kind, OTHERS[kind])
    network = made(students.load(student, device="cpu").unet, kind)
    save_file(
        {k: v.detach().contiguous() for k, v in network.state_dict().items()},
        tmp_path / "a.safetensors",
    )
    with pytest.raises(TiueError, match=r"a kind of LoRA that is not known \(.*(oft_blocks|a1)"):
        load_loras(students.load(student, device="cpu"), [Lora(tmp_path / "a.safetensors")])


def others_of_peft() -> dict[str, Any]:
    import peft

    target = {"target_modules": ["attn1.to_q"]}
    return {
        "VeRA": peft.VeraConfig(r=3, **target),
        "LoHa": peft.LoHaConfig(r=3, **target),
        "LoKr": peft.LoKrConfig(r=3, **target),
        "OFT": peft.OFTConfig(oft_block_size=4, r=0, **target),
        "IA3": peft.IA3Config(feedforward_modules=[], **target),
        "AdaLoRA": peft.AdaLoraConfig(init_r=4, target_r=2, total_step=10, **target),
    }


@pytest.mark.parametrize("kind", ["VeRA", "LoHa", "LoKr", "OFT", "IA3", "AdaLoRA"])
def test_other_kinds_of_peft_are_refused(student: Path, tmp_path: Path, kind: str) -> None:
    unet = UNet2DConditionModel.from_pretrained(student / "unet")
    get_peft_model(unet, others_of_peft()[kind]).save_pretrained(tmp_path)
    with pytest.raises(TiueError, match="is not a LoRA that can be read") as error:
        load_loras(
            students.load(student, device="cpu"), [Lora(tmp_path / "adapter_model.safetensors")]
        )
    assert "\n" not in str(error.value)


def test_ranks_that_do_not_fit_are_refused(student: Path, tmp_path: Path) -> None:
    tensors = helpers.lora_tensors()
    name = next(name for name in tensors if "to_q.lora_A" in name)
    tensors[name] = torch.cat([tensors[name]] * 2)
    file = helpers.write_lora(tmp_path / "a.safetensors", tensors)
    with pytest.raises(TiueError):
        load_loras(students.load(student, device="cpu"), [Lora(file)])
