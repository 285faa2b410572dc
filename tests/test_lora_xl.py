"""LoRAs for students in SDXL's layout, in every naming that the tools write."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import helpers_systems as hs
import pytest
import torch
from diffusers import StableDiffusionXLPipeline
from diffusers.utils import convert_state_dict_to_diffusers
from peft import LoraConfig, get_peft_model, get_peft_model_state_dict, inject_adapter_in_model
from safetensors.torch import load_file, save_file
from torch import Tensor

from tiue_core import students
from tiue_core.errors import TiueError
from tiue_core.students.lora import Lora, load_loras
from tiue_core.students.original import unet_tensors

UNET = LoraConfig(
    r=3,
    lora_alpha=5,
    target_modules=["to_q", "to_k", "to_out.0", "proj_in", "conv1", "ff.net.0.proj"],
    init_lora_weights=False,
)
TEXT = LoraConfig(
    r=2,
    lora_alpha=3,
    target_modules=["q_proj", "k_proj", "v_proj", "out_proj", "fc1"],
    init_lora_weights=False,
)
PARTS = {"unet": UNET, "text_encoder": TEXT, "text_encoder_2": TEXT}
PREFIXES = {"unet": "lora_unet", "text_encoder": "lora_te1", "text_encoder_2": "lora_te2"}


@pytest.fixture(scope="module", params=[True, False], ids=["linear", "convolutions"])
def student(request: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("xl") / "student"
    return hs.sdxl(folder, use_linear_projection=request.param)


@pytest.fixture(scope="module")
def loaded(student: Path) -> Callable[[], Any]:
    return lambda: students.load(student, device="cpu")


@pytest.fixture(scope="module")
def trained(loaded: Any) -> tuple[dict[str, dict[str, Tensor]], Tensor, Tensor]:
    """Adapters by PEFT on all three models: their tensors, the picture with and without."""
    pipe = loaded()
    before = paint(pipe)
    torch.manual_seed(1)
    tensors = {}
    for part, config in PARTS.items():
        model = getattr(pipe, part)
        inject_adapter_in_model(config, model)
        tensors[part] = {k: v.contiguous() for k, v in get_peft_model_state_dict(model).items()}
    return tensors, paint(pipe), before


def paint(pipe: Any) -> Tensor:
    return pipe("a cat", seed=3, output_type="latent").images


def holds(pipe: Any, file: Path, wanted: Tensor, before: Tensor) -> None:
    load_loras(pipe, [Lora(file)])
    assert (paint(pipe) - wanted).abs().max() <= 1e-5 * wanted.abs().max()
    assert (wanted - before).abs().max() > 1e-3 * wanted.abs().max()
    pipe.unload_lora_weights()
    assert torch.equal(paint(pipe), before)


def test_what_diffusers_saves(loaded: Any, trained: Any, tmp_path: Path) -> None:
    """As its training scripts do. Attention's layers have older names there than the others."""
    tensors, wanted, before = trained
    layers = {
        f"{part}_lora_layers": convert_state_dict_to_diffusers(found)
        for part, found in tensors.items()
    }
    notes = {f"{part}_lora_adapter_metadata": config.to_dict() for part, config in PARTS.items()}
    StableDiffusionXLPipeline.save_lora_weights(tmp_path, **layers, **notes)
    holds(loaded(), tmp_path / "pytorch_lora_weights.safetensors", wanted, before)


@pytest.mark.parametrize("naming", ["diffusers", "original", "original, other shapes"])
def test_kohyas_names(loaded: Any, trained: Any, tmp_path: Path, naming: str) -> None:
    tensors, wanted, before = trained
    config = loaded().unet.config
    file: dict[str, Tensor] = {}
    for part, found in tensors.items():
        for key, tensor in found.items():
            layer, side = re.match(r"(.*)\.lora_([AB])\.weight", key).groups()  # type: ignore[union-attr]
            if part != "unet":
                layer = "text_model." + layer.removeprefix("text_model.")
            elif naming != "diffusers":
                (layer,) = unet_tensors({f"{layer}.weight": 0}, config)
                layer = layer.removesuffix(".weight")
            if "shapes" in naming and "proj_in" in layer:
                tensor = tensor[:, :, 0, 0] if tensor.ndim == 4 else tensor[:, :, None, None]
            name = f"{PREFIXES[part]}_{layer.replace('.', '_')}"
            file[f"{name}.lora_{'down' if side == 'A' else 'up'}.weight"] = tensor.contiguous()
            file[f"{name}.alpha"] = torch.tensor(float(PARTS[part].lora_alpha))
    if naming != "diffusers":
        assert "lora_unet_input_blocks_1_1_transformer_blocks_0_attn1_to_q.alpha" in file
    save_file(file, tmp_path / "lora.safetensors")
    holds(loaded(), tmp_path / "lora.safetensors", wanted, before)


@pytest.mark.parametrize("part", PARTS)
def test_pefts_own_files_say_which_model(loaded: Any, tmp_path: Path, part: str) -> None:
    pipe = loaded()
    before = paint(pipe)
    torch.manual_seed(2)
    model = get_peft_model(getattr(pipe, part), PARTS[part])
    model.save_pretrained(tmp_path)
    setattr(pipe, part, model.merge_and_unload())
    holds(loaded(), tmp_path / "adapter_model.safetensors", paint(pipe), before)
    if part == "unet":
        return
    config = tmp_path / "adapter_config.json"
    config.write_text(
        re.sub(r'"base_model_class": "\w+"', '"base_model_class": "M"', config.read_text())
    )
    with pytest.raises(TiueError, match="may be for text_encoder or text_encoder_2"):
        load_loras(loaded(), [Lora(tmp_path / "adapter_model.safetensors")])


@pytest.mark.parametrize("naming", ["lycoris", "original"])
def test_lycoris_kinds(loaded: Any, tmp_path: Path, naming: str) -> None:
    lycoris = pytest.importorskip("lycoris")
    pipe = loaded()
    before = paint(pipe)
    torch.manual_seed(5)
    lycoris.LycorisNetwork.apply_preset({"target_module": ["ResnetBlock2D", "Transformer2DModel"]})
    sizes = {"linear_dim": 4, "linear_alpha": 2.0, "conv_dim": 4, "conv_alpha": 2.0}
    network = lycoris.create_lycoris(pipe.unet, 1.0, algo="loha", **sizes)
    network.apply_to()
    with torch.no_grad():
        for weight in network.parameters():
            weight.add_(0.05 * torch.randn_like(weight))
    file = {key: tensor.detach().contiguous() for key, tensor in network.state_dict().items()}
    wanted = paint(pipe)
    if naming == "original":
        names = [name for name, _ in loaded().unet.named_modules() if name]
        renamed = unet_tensors({f"{name}.weight": name for name in names}, pipe.unet.config)
        flat = {
            "lycoris_" + name.replace(".", "_"): "lora_unet_"
            + key.removesuffix(".weight").replace(".", "_")
            for key, name in renamed.items()
        }
        file = {flat[k.partition(".")[0]] + "." + k.partition(".")[2]: v for k, v in file.items()}
    save_file(file, tmp_path / "lora.safetensors")
    holds(loaded(), tmp_path / "lora.safetensors", wanted, before)


def test_what_diffusers_would_leave_out_is_an_error(
    loaded: Any, trained: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It logs and goes on; and nothing stays of a file that was loaded before the one at fault."""
    tensors, _, before = trained
    found = convert_state_dict_to_diffusers(tensors["unet"])
    StableDiffusionXLPipeline.save_lora_weights(tmp_path, unet_lora_layers=found)
    file = tmp_path / "pytorch_lora_weights.safetensors"
    named = load_file(file)
    save_file(named, tmp_path / "again.safetensors")
    pipe = loaded()
    monkeypatch.setattr("tiue_core.students.lora.in_shape", lambda pipe, tensors: tensors)
    with pytest.raises(TiueError, match="diffusers leaves out 24 of its 40 layers"):
        load_loras(pipe, [Lora(file)])
    monkeypatch.undo()
    other = tmp_path / "other.safetensors"
    save_file({k.replace("down_blocks.0", "down_blocks.7"): v for k, v in named.items()}, other)
    with pytest.raises(TiueError, match="another model"):
        load_loras(pipe, [Lora(file), Lora(other)])
    assert torch.equal(paint(pipe), before)
