"""What makes the miniature's training fast and its decoder sharp, against plain arithmetic."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate.state import AcceleratorState
from diffusers import AutoencoderKL
from torch.nn import functional as F

from tiue_core.errors import TiueError
from tiue_core.train.attention import written_out
from tiue_core.train.patches import PatchCritic, apart, edges
from tiue_core.train.widen import widened


@pytest.fixture(autouse=True)
def its_own_accelerator() -> Iterator[None]:
    """A process has one precision; runs of another need it forgotten, before and after."""
    AcceleratorState._reset_state(reset_partial_state=True)
    yield
    AcceleratorState._reset_state(reset_partial_state=True)


def autoencoder(*widths: int, seed: int = 0) -> AutoencoderKL:
    torch.manual_seed(seed)
    return AutoencoderKL(
        latent_channels=4,
        block_out_channels=widths,
        layers_per_block=1,
        down_block_types=["DownEncoderBlock2D"] * len(widths),
        up_block_types=["UpDecoderBlock2D"] * len(widths),
    ).eval()


def test_attention_written_out_is_the_same_attention(pipe: Any) -> None:
    unet = pipe.unet
    size = unet.config.sample_size
    asked = (
        torch.randn(1, 4, size, size),
        torch.tensor([5]),
        torch.randn(1, 5, unet.config.cross_attention_dim),
    )
    results = []
    for _ in range(2):
        unet.zero_grad()
        made = unet(*asked).sample
        made.square().mean().backward()
        grads = torch.cat([p.grad.flatten() for p in unet.parameters() if p.grad is not None])
        results.append((made.detach(), grads))
        written_out(unet)
    (before, grads), (after, others) = results
    assert torch.allclose(before, after, atol=1e-5)
    assert (grads - others).norm() < 1e-2 * grads.norm()


def test_a_wider_network_begins_as_the_same_function() -> None:
    narrow, wide = autoencoder(32, 32, 64), autoencoder(32, 64, 128, seed=1)
    wide.load_state_dict(widened(narrow.state_dict(), wide.state_dict()))
    images = torch.rand(2, 3, 16, 16) * 2 - 1
    with torch.no_grad():
        wanted, found = narrow(images).sample, wide(images).sample
    assert torch.allclose(found, wanted, atol=2e-4)
    weight = wide.decoder.up_blocks[0].resnets[0].conv2.weight
    assert not torch.allclose(weight[:, 0::2], weight[:, 1::2])  # neighbours can part ways


def test_widths_that_are_no_multiples_are_one_line() -> None:
    narrow, wide = autoencoder(32, 64), autoencoder(32, 96)
    with pytest.raises(TiueError, match="multiples"):
        widened(narrow.state_dict(), wide.state_dict())


def test_edges_by_hand() -> None:
    made, wanted = torch.zeros(1, 1, 4, 4), torch.zeros(1, 1, 4, 4)
    made[0, 0, :, 2:] = 1  # one edge: 4 of 12 differences to the right, none below
    assert edges(made, wanted, (1,)) == pytest.approx(4 / 12)
    assert edges(made, wanted, (1, 2)) == pytest.approx((4 / 12 + 1) / 2)
    assert edges(made + 0.3, wanted, (1, 2)) == pytest.approx((4 / 12 + 1) / 2)


@torch.no_grad()
def test_what_the_critic_sees_apart_leaves_the_scores_out() -> None:
    torch.manual_seed(0)
    critic = PatchCritic((8, 16))
    one, two = torch.randn(2, 3, 32, 32), torch.randn(2, 3, 32, 32)
    seen, other = critic(one), critic(two)
    assert seen[-1].shape == (2, 1, 8, 8)
    wanted = (F.l1_loss(seen[0], other[0]) + F.l1_loss(seen[1], other[1])) / 2
    assert apart(seen, other) == pytest.approx(float(wanted))


def test_the_critic_pulls_as_hard_as_the_rest() -> None:
    from tiue_core.train.tasks.autoencoder import _balance

    decoded = torch.randn(3, 5, requires_grad=True)
    loss, fooled = (4 * decoded).sum(), (0.5 * decoded).sum()
    assert _balance(loss, fooled, decoded) == pytest.approx(8)


UNET = {
    "sample_size": 16,
    "in_channels": 4,
    "out_channels": 4,
    "layers_per_block": 1,
    "block_out_channels": [32, 32],
    "down_block_types": ["DownBlock2D", "DownBlock2D"],
    "up_block_types": ["UpBlock2D", "UpBlock2D"],
    "cross_attention_dim": 128,
    "attention_head_dim": 4,
}
WORDS = {
    "hidden_size": 128,
    "projection_dim": 128,
    "intermediate_size": 128,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
}


def teacher(out: Path, **settings: Any) -> Any:
    from tiue_core.train.recipe import TeacherRecipe

    return TeacherRecipe(
        task="teacher",
        out=out,
        autoencoder="stickers",
        batch_size=3,
        learning_rate=1e-3,
        precision="bf16",
        pool=6,
        unet=UNET,
        text_encoder=WORDS,
        sample_every=1000,
        log_every=1,
        **settings,
    )


def needs_font() -> None:
    from tiue_core.stickers.world import _font

    try:
        _font()
    except TiueError:
        pytest.skip("needs fonts-noto-color-emoji")


def test_a_teacher_resumes_with_the_pool_that_it_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tiue_core.train.run import run
    from tiue_core.train.tasks.teacher import TeacherTask

    needs_font()
    monkeypatch.setattr(TeacherTask, "sample", lambda *_: None)
    pools: dict[str, torch.Tensor] = {}
    renew = TeacherTask._renew

    def spy(task: TeacherTask, step: int) -> None:
        renew(task, step)
        pools[task.recipe.out.name] = task.latents.clone()

    monkeypatch.setattr(TeacherTask, "_renew", spy)
    run(teacher(tmp_path / "whole", steps=5, fresh=2))
    run(teacher(tmp_path / "parts", steps=3, fresh=2))
    run(teacher(tmp_path / "parts", steps=5, fresh=2))
    assert torch.equal(pools["whole"], pools["parts"])
    run(teacher(tmp_path / "still", steps=5, fresh=0))
    assert not torch.allclose(pools["whole"], pools["still"], atol=1e-1)


def test_a_teacher_goes_on_only_from_one_like_it(tmp_path: Path) -> None:
    from tiue_core.train.tasks.teacher import TeacherTask

    with pytest.raises(TiueError, match="built otherwise"):
        TeacherTask(teacher(tmp_path, steps=1, init="stickers-teacher"))


def test_a_series_is_run_in_its_order_and_with_its_own_teacher(tmp_path: Path) -> None:
    from tiue_core.train.make import RECIPES, plan, stages

    series = stages(RECIPES)
    names = [stage.name for stage in series]
    assert names == sorted(names, key=lambda name: int(name.split("-")[0])) and len(names) >= 9
    made = {stage.recipe.out.name: stage.recipe for stage in series}
    own = str(made["teacher"].out / "result")
    assert [getattr(made[name], "teacher", None) for name in ("student", "one-step")] == [own, own]
    seconds = dict(plan(series[2:3], torch.device("cpu")))
    assert seconds["3-judge"] > 0
    with pytest.raises(TiueError, match="begin with a number"):
        stages(tmp_path)


def test_a_decoder_learns_from_guesses_and_a_critic_and_its_encoder_stays(tmp_path: Path) -> None:
    from safetensors.torch import load_file

    from tiue_core.train.recipe import AutoencoderRecipe
    from tiue_core.train.run import run

    needs_font()
    shipped = Path("tiue_core/stickers/student/vae")
    model = json.loads((shipped / "config.json").read_text())
    recipe = AutoencoderRecipe(
        task="autoencoder",
        out=tmp_path,
        init="stickers",
        model={key: value for key, value in model.items() if key[0] != "_"},
        steps=2,
        batch_size=2,
        crop=128,
        pool=3,
        learning_rate=1e-4,
        precision="bf16",
        freeze_encoder=True,
        deterministic=0,
        latent_noise=0.03,
        edges=1.0,
        adversarial=0.5,
        smudge="stickers-teacher",
        log_every=1,
    )
    result = run(recipe)
    before = load_file(shipped / "diffusion_pytorch_model.safetensors")
    after = load_file(result / "diffusion_pytorch_model.safetensors")
    moved = {name for name in after if not torch.equal(after[name], before[name].float())}
    assert any(name.startswith("decoder.") for name in moved)
    assert not any(name.startswith(("encoder.", "quant_conv.")) for name in moved)
    logs = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert all(log["critic"] > 0 and log["likeness"] > 0 for log in logs)
