"""Files by somebody who means harm: each is the right kind of picture, or one line.

`hostile` makes number N of them, the same every time: headers that lie, numbers that break, configs
against weights, indexes, tokenizers, LoRAs of every kind. All are harmless to look at.
"""

from __future__ import annotations

import json
import random
import resource
import shutil
import signal
from pathlib import Path
from typing import Any

import helpers_students as helpers
import pytest
import torch
from diffusers import UNet2DConditionModel
from safetensors.torch import load_file, save_file

from tiue_core import students
from tiue_core.errors import TiueError
from tiue_core.students.folder import weights
from tiue_core.students.lora import Lora, load_loras

VALUES: list[Any] = [
    *(0, -1, 1, 3, 2**31, 2**63, 10**30, 0.0, -0.5, 1e308, float("nan"), float("inf")),
    *("", "x", "../../etc/passwd", "é" * 999, True, None, [], [0], [-1, 2], [10**9], ["x"]),
    *({}, {"a": [1]}, [[[]]], "float16", [32, 64, 64], ["DownBlock2D"] * 99),
]
NUMBERS = [float("nan"), float("inf"), -float("inf"), 1e38, -1e38, 0.0]
CONFIGS = ["unet/config.json", "vae/config.json", "text_encoder/config.json", "model_index.json"]
CONFIGS += ["scheduler/scheduler_config.json", "tokenizer/tokenizer_config.json"]
SECONDS, MEMORY = 10, 2 * 2**30


def config(folder: Path, chance: random.Random) -> None:
    file = folder / chance.choice(CONFIGS)
    content = json.loads(file.read_text())
    content[chance.choice(sorted(content))] = chance.choice(VALUES)
    file.write_text(json.dumps(content))


def tensors(folder: Path, chance: random.Random) -> None:
    (file,) = weights(folder / chance.choice(["unet", "vae", "text_encoder"]))
    content = load_file(file)
    spoil(content, chance)
    save_file(content, file)


def spoil(content: dict[str, torch.Tensor], chance: random.Random) -> None:
    name = chance.choice(sorted(content))
    tensor = content[name]
    kind = chance.randrange(7)
    if kind == 0:
        del content[name]
    elif kind == 1:
        content[f"{name}.more"] = tensor.clone()
    elif kind == 2:
        content[name] = torch.full_like(tensor.float(), chance.choice(NUMBERS))
    elif kind == 3:
        content[name] = tensor.to(chance.choice([torch.int8, torch.int64, torch.bool]))
    elif kind == 4:
        content[name] = tensor.flatten()[: chance.randrange(3)].clone()
    elif kind == 5:
        content[name] = tensor[None].clone()
    elif tensor.numel():
        content[name].view(-1)[chance.randrange(tensor.numel())] = chance.choice(NUMBERS)


def raw(file: Path, chance: random.Random) -> None:
    """Bytes of a file's head, length or end."""
    content = bytearray(file.read_bytes())
    kind = chance.randrange(5)
    if kind == 0:
        del content[chance.randrange(len(content)) :]
    elif kind == 1:
        content[:8] = chance.choice([2**63, 10**8, 0, 1, len(content)]).to_bytes(8, "little")
    elif kind == 2:
        content += b"\0" * chance.randrange(1, 99)
    else:
        for _ in range(chance.randrange(1, 9)):
            content[chance.randrange(8, min(len(content), 4000))] = chance.randrange(256)
    file.write_bytes(content)


def bytes_of_a_model(folder: Path, chance: random.Random) -> None:
    (file,) = weights(folder / chance.choice(["unet", "vae", "text_encoder"]))
    raw(file, chance)


def index(folder: Path, chance: random.Random) -> None:
    shards = helpers.shard(folder / "unet", UNet2DConditionModel)
    name = chance.choice(["../x.safetensors", "/etc/passwd", "a.bin", "x.safetensors", 7, None])
    (file,) = (folder / "unet").glob("*.index.json")
    content = json.loads(file.read_text())
    content["weight_map"][chance.choice(sorted(content["weight_map"]))] = name
    file.write_text(json.dumps(content))
    if chance.random() < 0.7:
        chance.choice(shards).unlink()


def tokenizer(folder: Path, chance: random.Random) -> None:
    file = chance.choice(sorted((folder / "tokenizer").iterdir()))
    kind = chance.randrange(3)
    if kind == 0:
        file.unlink()
    else:
        file.write_bytes(chance.choice([b"", b"{", b"[]", b"\xff\xfe", b"[" * 9999, b"null"]))


def lora(folder: Path, chance: random.Random) -> None:
    made = chance.choice([helpers.lora_tensors, helpers.kohya_lora_tensors, lycoris_tensors])()
    file = folder / "lora.safetensors"
    metadata = None
    if chance.random() < 0.3:
        said = {"unet.r": 10**9, "unet.lora_alpha": chance.choice([10**9, "x", None, -1, [2]])}
        metadata = {"lora_adapter_metadata": json.dumps(said), "ss_network_dim": "1000000000"}
    else:
        spoil(made, chance)
    save_file({k: v.contiguous() for k, v in made.items()}, file, metadata=metadata)
    if chance.random() < 0.3:
        raw(file, chance)


def lycoris_tensors() -> dict[str, torch.Tensor]:
    name = "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn2_to_q"
    return {
        **{f"{name}.hada_{a}": torch.randn(32, 2) for a in ("w1_a", "w2_a")},
        **{f"{name}.hada_{b}": torch.randn(2, 32) for b in ("w1_b", "w2_b")},
        f"{name}.alpha": torch.tensor(1.0),
    }


def checkpoint(folder: Path, chance: random.Random) -> None:
    content = helpers.single_file_tensors(folder)
    spoil(content, chance)
    file = folder / "whole.safetensors"
    save_file({k: v.contiguous() for k, v in content.items()}, file)
    if chance.random() < 0.3:
        raw(file, chance)


KINDS = [config, config, tensors, tensors, bytes_of_a_model, index, tokenizer, lora, lora]
KINDS += [checkpoint]


def hostile(number: int, student: Path, place: Path) -> None:
    """Number ``number`` of the set, in the folder ``place``."""
    shutil.copytree(student, place)
    KINDS[number % len(KINDS)](place, random.Random(number))


def outcome(place: Path) -> str:
    """What became of it: "a picture", or the one line."""
    whole = place / "whole.safetensors"
    try:
        pipe = students.load(whole if whole.exists() else place, device="cpu", base=None)
        if (place / "lora.safetensors").exists():
            load_loras(pipe, [Lora(place / "lora.safetensors")])
        images = pipe("a cat", seed=1, output_type="pt").images
    except (TiueError, ValueError) as error:
        assert "\n" not in str(error), error
        return str(error)
    assert images.isfinite().all() and images.std() > 0
    return "a picture"


@pytest.fixture(scope="module")
def student(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return helpers.make_student(tmp_path_factory.mktemp("hostile") / "student")


def held(numbers: range, student: Path, folder: Path) -> list[str]:
    """What did not hold of these."""

    def late(*_: Any) -> None:
        raise TimeoutError(f"over {SECONDS} s")

    faults, before = [], resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    signal.signal(signal.SIGALRM, late)
    for number in numbers:
        place = folder / str(number)
        hostile(number, student, place)
        signal.alarm(6 * SECONDS)  # of a machine with other things to do
        try:
            outcome(place)
        except Exception as error:
            kind = KINDS[number % len(KINDS)].__name__
            faults.append(f"{number} ({kind}): {type(error).__name__}: {str(error)[:150]}")
        finally:
            signal.alarm(0)
        shutil.rmtree(place)
    grown = 1024 * (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
    return [*faults, *([f"{grown} bytes more"] if grown > MEMORY else [])]


def test_some_of_the_hostile_set(student: Path, tmp_path: Path) -> None:
    assert held(range(40), student, tmp_path) == []


@pytest.mark.slow
def test_the_whole_hostile_set(student: Path, tmp_path: Path) -> None:
    assert held(range(500), student, tmp_path) == []
