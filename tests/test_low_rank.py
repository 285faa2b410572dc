"""A student as a low-rank difference from its teacher: what is kept, the file, the training."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from tiue_core import students
from tiue_core.errors import TiueError
from tiue_core.students.low_rank import LOW_RANK, add_low_rank
from tiue_core.train.loop import train
from tiue_core.train.low_rank import give_adapters, write_adapters
from tiue_core.train.recipe import DistillRecipe, load_recipe


@pytest.fixture
def others(pipe: Any) -> tuple[Any, Any]:
    """A teacher's UNet, and one that learned something: every weight is another."""
    teacher, learned = pipe.unet.eval().requires_grad_(False), copy.deepcopy(pipe.unet)
    generator = torch.Generator().manual_seed(3)
    for parameter in learned.parameters():
        parameter.data += 0.02 * torch.randn(parameter.shape, generator=generator)
    return teacher, learned


def matrices(unet: Any) -> dict[str, np.ndarray]:
    """(out, in) of every linear layer and convolution, float64."""
    return {
        name.removesuffix(".weight"): tensor.flatten(1).double().numpy()
        for name, tensor in unet.state_dict().items()
        if tensor.ndim in (2, 4)
    }


def test_all_numbers_are_the_student_itself(others: tuple[Any, Any], tmp_path: Path) -> None:
    teacher, learned = others
    student = copy.deepcopy(teacher)
    give_adapters(student, learned, 10**9)
    found = write_adapters(student, tmp_path).state_dict()
    for name, tensor in learned.state_dict().items():
        if tensor.ndim > 1:
            assert (found[name] - tensor).abs().max() < 1e-3, name  # float16 factors
        else:
            assert torch.equal(found[name], teacher.state_dict()[name])


@pytest.mark.parametrize("numbers", [300, 4000])
def test_what_is_kept_explains_most(others: tuple[Any, Any], numbers: int) -> None:
    """Eckart and Young with numpy; and no value left out is worth more a number than one kept."""
    teacher, learned = others
    student = copy.deepcopy(teacher)
    give_adapters(student, learned, numbers)
    used = sum(p.numel() for name, p in student.named_parameters() if ".lora_" in name)
    before, wanted = matrices(teacher), matrices(learned)
    cheapest = min(sum(matrix.shape) for matrix in before.values())
    assert numbers - cheapest < used <= numbers
    ranks = student.peft_config["default"].rank_pattern
    student.fuse_lora()
    student.unload_lora()
    now, kept, left = matrices(student), [], []
    for name, matrix in before.items():
        values = np.linalg.svd(wanted[name] - matrix, compute_uv=False)
        rank = ranks.get(name, 0)
        off = np.square(wanted[name] - now[name]).sum()
        assert off == pytest.approx(np.square(values[rank:]).sum(), rel=1e-4), name
        worth = np.square(values) / sum(matrix.shape)
        kept += worth[:rank].tolist()
        left += [(value, sum(matrix.shape)) for value in worth[rank:].tolist()]
    assert max(value for value, cost in left if cost <= numbers - used + cheapest) <= min(kept)


def test_the_file_makes_the_student_of_its_teacher(others: tuple[Any, Any], tmp_path: Path) -> None:
    """As diffusers loads and fuses it, and as training handed it on."""
    teacher, learned = others
    teacher.save_pretrained(tmp_path / "teacher")
    student = copy.deepcopy(teacher)
    give_adapters(student, learned, 20_000)
    handed = write_adapters(student, tmp_path / "made").state_dict()
    file = tmp_path / "made" / LOW_RANK
    tensors = load_file(file)
    assert all(tensor.dtype == torch.float16 for tensor in tensors.values())
    assert len({tensor.shape[0] for name, tensor in tensors.items() if "lora_A" in name}) > 1
    found = students.load_unet(tmp_path / "teacher", None, file)
    theirs = students.load_unet(tmp_path / "teacher")
    theirs.load_lora_adapter(tensors, prefix=None)
    theirs.fuse_lora()
    theirs.unload_lora()
    for name, tensor in found.state_dict().items():
        assert (tensor - handed[name]).abs().max() < 1e-6, name
        assert (tensor - theirs.state_dict()[name]).abs().max() < 1e-6, name
    for wrong in (
        {**tensors, "nowhere.lora_A.weight": torch.zeros(1, 2)},
        {name: tensor for name, tensor in tensors.items() if "lora_A" in name},
        {name: tensor[:, :1] if "lora_A" in name else tensor for name, tensor in tensors.items()},
    ):
        with pytest.raises(TiueError, match="does not fit this UNet"):
            add_low_rank(found, wrong)


@pytest.fixture
def recipe(pipe: Any, others: tuple[Any, Any], tmp_path: Path) -> DistillRecipe:
    pipe.save_pretrained(tmp_path / "teacher")
    others[1].save_pretrained(tmp_path / "learned" / "unet")
    (tmp_path / "prompts.txt").write_text("a cat\na dog\na fox\n")
    settings = {"steps": 4, "batch_size": 2, "learning_rate": 1e-3, "lora_rank": 4, "ema": 0.9}
    settings |= {"checkpoint_every": 2, "sample_every": 100, "log_every": 1, "decoders": 1}
    return DistillRecipe(
        task="distill",
        out=tmp_path / "run",
        teacher=str(tmp_path / "teacher"),
        prompts=str(tmp_path / "prompts.txt"),
        init=tmp_path / "learned" / "unet",
        low_rank=3000,
        timesteps=[999],
        **settings,
    )


def test_adapters_alone_learn_and_a_stopped_run_goes_on(recipe: DistillRecipe) -> None:
    from tiue_core.train.tasks.distill import DistillTask

    whole = train(recipe, DistillTask)
    parts = recipe.model_copy(update={"out": recipe.out.parent / "parts"})
    count = iter(range(9))
    with pytest.raises(TiueError, match="stopped after 2"):
        train(parts, DistillTask, stop=lambda: next(count) == 2)
    resumed = train(parts, DistillTask)
    file = whole / LOW_RANK
    assert file.read_bytes() == (resumed / LOW_RANK).read_bytes()
    begun = copy.deepcopy(students.load_unet(Path(recipe.teacher) / "unet")).requires_grad_(False)
    give_adapters(begun, students.load_unet(recipe.init), recipe.low_rank)
    at_first = {name: p for name, p in begun.named_parameters() if ".lora_" in name}
    moved = [
        (tensor - at_first[name.replace(".weight", ".default.weight")]).abs().max()
        for name, tensor in load_file(file).items()
    ]
    assert len(moved) == len(at_first) and min(moved) > 1e-5
    teacher, result = (
        students.load_unet(folder / "unet").state_dict() for folder in (Path(recipe.teacher), whole)
    )
    for name, tensor in result.items():
        if tensor.ndim == 1:
            assert torch.equal(tensor, teacher[name]), name
    pipe = students.load(whole, device="cpu")
    assert pipe.schedule().timesteps.tolist() == [999]


def test_its_plan_counts_the_adapters(recipe: DistillRecipe) -> None:
    from accelerate import Accelerator

    from tiue_core.train.plan import plan
    from tiue_core.train.tasks.distill import DistillTask

    task = DistillTask(recipe)
    found = plan(task, Accelerator(cpu=True))
    learned = [p for p in task.modules["student"].parameters() if p.requires_grad]
    assert found.student == sum(p.numel() for p in learned) <= 3000 and found.peak > 0


def test_a_beginning_is_needed(tmp_path: Path) -> None:
    file = tmp_path / "recipe.yaml"
    file.write_text(
        f"task: distill\nout: {tmp_path}\nteacher: x\nprompts: y\nsteps: 1\nbatch_size: 1\n"
        "learning_rate: 1.0\nlow_rank: 100\n"
    )
    with pytest.raises(TiueError, match="give its UNet as `init`"):
        load_recipe(file)
