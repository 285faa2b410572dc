"""Other engines paint what torch paints, and are left where they do not."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from diffusers.models.attention_processor import AttnProcessor
from helpers_students import make_student
from torch import nn

from tiue_core import SplitUNet, TiuePipeline
from tiue_core.errors import TiueError
from tiue_core.export.metadata import read_set
from tiue_core.export.runtime import GraphSet
from tiue_core.export.sessions import installed
from tiue_core.export.write import CHECKED, export_set, weights_hash
from tiue_core.optimize import cache, engines
from tiue_core.optimize.graph_unet import GraphRunner, GraphUNet

pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")
PROMPTS, SEEDS = ["a cat", "", "dog, and 3 more."], [3, 4, 2**33 + 5]


@pytest.fixture(scope="module")
def pipe(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Two levels, random weights."""
    return TiuePipeline.from_pretrained(make_student(tmp_path_factory.mktemp("student")))


@pytest.fixture(scope="module")
def made(pipe: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A set of graphs, made once."""
    folder = tmp_path_factory.mktemp("set")
    return export_set(pipe, folder, record={"student": "tiny", "student_hash": "1", "loras": []})


@pytest.fixture
def home(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache that holds the set, and nothing is shipped."""
    monkeypatch.setenv("TIUE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(cache, "SHIPPED", tmp_path / "nothing")
    (tmp_path / "cache" / "graphs").mkdir(parents=True)
    (tmp_path / "cache" / "graphs" / "tiny").symlink_to(made, target_is_directory=True)
    return tmp_path / "cache"


def latents(pipe: Any, **options: Any) -> torch.Tensor:
    return pipe(PROMPTS, seed=SEEDS, output_type="latent", **options).images


@pytest.mark.parametrize("engine", installed())
@pytest.mark.parametrize("size", [{}, {"width": 24, "height": 16}])
def test_the_same_latents_and_pictures(
    pipe: Any, made: Path, engine: str, size: dict[str, int]
) -> None:
    picture, found = GraphSet(made, engine).run(PROMPTS, SEEDS, **size)
    wanted = pipe(PROMPTS, seed=SEEDS, output_type="latent", **size).images.numpy()
    pixels = pipe(PROMPTS, seed=SEEDS, output_type="pt", **size).images.numpy()
    assert np.abs(found - wanted).max() <= 1e-4 and wanted.std() > 1
    assert np.abs(picture - pixels).max() <= 1 / 255


@pytest.mark.parametrize("engine", ["auto", *installed()])
def test_a_pipeline_runs_in_an_engine(
    pipe: Any, home: Path, engine: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch_takes(monkeypatch, 1e9)
    expected, guided = latents(pipe), latents(pipe, guidance_scale=3.0, negative_prompt="dog")
    pixels = pipe(PROMPTS, seed=SEEDS, output_type="pt").images
    pipe.optimize(engine, dtype=torch.float32)
    try:
        runner = pipe._optimized
        assert isinstance(runner, GraphRunner) and isinstance(pipe.split_unet, GraphUNet)
        assert engine in ("auto", runner.graphs.engine)
        forbidden = forbid()
        assert (latents(pipe) - expected).abs().max() <= 1e-4
        assert (
            latents(pipe, guidance_scale=3.0, negative_prompt="dog") - guided
        ).abs().max() < 1e-3
        assert (pipe(PROMPTS, seed=SEEDS, output_type="pt").images - pixels).abs().max() <= 1 / 255
    finally:
        forbidden.undo()
        pipe.plain()


def torch_takes(monkeypatch: pytest.MonkeyPatch, seconds: float) -> list[str]:
    """PyTorch's time for a picture, as if it were measured; the prompts it was asked for."""
    asked: list[str] = []

    def measure(pipe: Any, prompt: str) -> float:
        asked.append(prompt)
        return seconds

    monkeypatch.setattr("tiue_core.optimize.optimize._seconds", measure)
    return asked


def test_no_engine_is_taken_that_is_slower_than_torch(
    pipe: Any, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = torch_takes(monkeypatch, 0.0)
    assert pipe.use_graphs("auto")._optimized is None
    assert pipe.use_graphs("auto")._optimized is None and asked == [CHECKED]  # once a machine
    pipe.use_graphs("onnxruntime")  # whoever names one gets it
    assert pipe._optimized.graphs.engine == "onnxruntime"
    pipe.plain()


def forbid() -> Any:
    """No torch model may run, until ``undo`` of what is returned. No hook: with one PyTorch is to
    paint."""

    def refuse(*_: Any) -> None:
        raise AssertionError("PyTorch ran")

    patch = pytest.MonkeyPatch()
    patch.setattr(nn.Module, "_call_impl", refuse)
    return patch


def test_what_a_graph_does_not_hold_torch_paints(pipe: Any, home: Path) -> None:
    fast, three = latents(pipe, decoders="fast"), latents(pipe, steps=3)
    weight = pipe.unet.conv_in.weight.data
    pipe.optimize("onnxruntime")
    try:
        assert (latents(pipe, decoders="fast") - fast).abs().max() <= 1e-4
        assert torch.equal(latents(pipe, steps=3), three)  # it starts at another timestep
        before = latents(pipe)
        weight.mul_(2)  # through .data: no version tells
        with pytest.warns(UserWarning, match="not those of the graph: PyTorch paints"):
            changed = latents(pipe)
        plain = TiuePipeline(**pipe.components)
        assert (changed - latents(plain)).abs().max() <= 1e-4
        assert (changed - before).abs().max() > 0.1
        weight.div_(2)
        assert torch.equal(latents(pipe), before)  # and the graphs stand for it again
    finally:
        pipe.plain()


class Louder(nn.SiLU):
    """What a stranger puts in a module's place by exchanging its class."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return 1.5 * super().forward(x)


class Doubled(AttnProcessor):
    def __call__(self, *given: Any, **named: Any) -> torch.Tensor:
        return 2 * super().__call__(*given, **named)


def hooked(pipe: Any, patch: Any) -> None:
    pipe.unet.mid_block.register_forward_hook(lambda _, __, out: out * 1.5)


def replaced(pipe: Any, patch: Any) -> None:
    modules = dict(pipe.text_encoder.named_modules())
    (layer,) = (modules[name] for name in modules if name.endswith("final_layer_norm"))
    forward = layer.forward
    layer.forward = lambda x: forward(x) * 1.5


def freeu(pipe: Any, patch: Any) -> None:
    pipe.unet.enable_freeu(s1=0.6, s2=0.2, b1=1.4, b2=1.6)


def processor(pipe: Any, patch: Any) -> None:
    pipe.unet.set_attn_processor(Doubled())


def exchanged(pipe: Any, patch: Any) -> None:
    pipe.vae.decoder.conv_act.__class__ = Louder


def wrapped(pipe: Any, patch: Any) -> None:
    for module in pipe.unet.modules():
        if isinstance(module, nn.Conv2d):
            module.padding_mode = "circular"


def tiled(pipe: Any, patch: Any) -> None:
    pipe.vae.enable_tiling()
    pipe.vae.tile_latent_min_size, pipe.vae.tile_sample_min_size = 8, 16


def merged(pipe: Any, patch: Any) -> None:
    pytest.importorskip("tomesd").apply_patch(pipe, ratio=0.5, use_rand=False)


def attention(pipe: Any, patch: Any) -> None:
    """As SageAttention is brought in: for all of a process."""
    own = F.scaled_dot_product_attention
    patch.setattr(
        F, "scaled_dot_product_attention", lambda q, *given, **named: own(1.5 * q, *given, **named)
    )


@pytest.mark.parametrize("first", [False, True])
@pytest.mark.parametrize(
    "alter", [hooked, replaced, freeu, processor, exchanged, wrapped, tiled, merged, attention]
)
def test_what_hangs_on_a_model_is_painted_and_said(
    made: Path, home: Path, tmp_path: Path, monkeypatch: Any, alter: Any, first: bool
) -> None:
    """No weight shows it, so a graph of the same weights is no answer. In float32 a merge may
    choose other tokens on another processor, but not on the same one."""
    pipe = TiuePipeline.from_pretrained(make_student(tmp_path / "student"))

    def paint(pipe: Any) -> Any:
        return pipe("a cat", seed=3, output_type="pt", height=32, width=32).images

    plain = paint(pipe)
    if first:
        alter(pipe, monkeypatch)
        with pytest.warns(UserWarning, match=r"onnxruntime is not taken \((an? .*|FreeU|circular)"):
            pipe.optimize("onnxruntime")
    else:
        pipe.optimize("onnxruntime")
        assert isinstance(pipe._optimized, GraphRunner)
        assert (paint(pipe) - plain).abs().max() <= 1e-3
        alter(pipe, monkeypatch)
        with pytest.warns(UserWarning, match=r"^(an? .*|FreeU|circular padding): PyTorch paints"):
            painted = paint(pipe)
        assert (painted - plain).abs().max() > 1e-3
    wanted = paint(TiuePipeline(**pipe.components))
    assert (paint(pipe) - wanted).abs().max() <= 1e-5 and (wanted - plain).abs().max() > 1e-3


def epsilon(pipe: Any) -> None:
    pipe.unet.conv_norm_out.eps = 0.5


def activation(pipe: Any) -> None:
    pipe.vae.decoder.conv_act = nn.ReLU()


def scaling(pipe: Any) -> None:
    pipe.vae.register_to_config(scaling_factor=0.4)


def text(pipe: Any) -> None:
    for module in pipe.text_encoder.modules():
        if isinstance(module, nn.LayerNorm):
            module.eps = 0.5


def test_what_is_set_on_a_model_is_painted_and_said(made: Path, home: Path, tmp_path: Path) -> None:
    """After a graph was taken; before, it is not found."""
    for alter in (epsilon, activation, scaling, text):
        pipe = TiuePipeline.from_pretrained(make_student(tmp_path / "student"))
        pipe.use_graphs("onnxruntime")
        before = pipe("a cat", seed=3, output_type="pt").images
        alter(pipe)
        with pytest.warns(UserWarning, match=r" of \w+ has changed: PyTorch paints"):
            painted = pipe("a cat", seed=3, output_type="pt").images
        wanted = TiuePipeline(**pipe.components)("a cat", seed=3, output_type="pt").images
        assert (wanted - before).abs().max() > 1e-3
        assert (painted - wanted).abs().max() <= 1e-5
        assert not isinstance(pipe.use_graphs("auto")._optimized, GraphRunner)


def test_what_changes_no_picture_leaves_the_graph(pipe: Any, home: Path) -> None:
    pipe.use_graphs("onnxruntime")
    before = latents(pipe)
    pipe.vae.enable_slicing()
    pipe.unet.set_attn_processor(AttnProcessor())
    pipe.unet.train()
    forbidden = forbid()
    try:
        assert torch.equal(latents(pipe), before)
    finally:
        forbidden.undo()
        pipe.vae.disable_slicing()
        pipe.unet.set_default_attn_processor()
        pipe.unet.eval()
        pipe.plain()


def test_weights_of_another_config_have_another_graph(pipe: Any) -> None:
    """As many numbers in as many layers make another picture with other heads."""
    before = weights_hash(pipe)
    assert weights_hash(TiuePipeline(**pipe.components)) == before
    heads, scaling = pipe.unet.config.attention_head_dim, pipe.vae.config.scaling_factor
    pipe.unet.register_to_config(attention_head_dim=4)
    other = weights_hash(pipe)
    pipe.unet.register_to_config(attention_head_dim=heads)
    pipe.vae.register_to_config(scaling_factor=0.5)
    assert len({before, other, weights_hash(pipe)}) == 3
    pipe.vae.register_to_config(scaling_factor=scaling)
    pipe.text_encoder.config.hidden_act = "gelu_new"
    assert weights_hash(pipe) != before
    pipe.text_encoder.config.hidden_act = "quick_gelu"
    assert weights_hash(pipe) == before


def test_other_weights_find_no_graph(home: Path, tmp_path: Path, pipe: Any) -> None:
    assert cache.find(student_hash="1") == home / "graphs" / "tiny"
    for other in ({"student_hash": "2"}, {"decoders": "fast"}, {"steps": 3}, {"draft": True}):
        assert cache.find(**{"student_hash": "1", **other}) is None
    weight = pipe.unet.conv_in.weight.data
    weight.mul_(2)
    pipe.optimize("auto")
    weight.div_(2)
    assert not isinstance(pipe._optimized, GraphRunner)
    pipe.plain()


@pytest.mark.parametrize("harm", ["cut", "format", "gone"])
def test_a_damaged_set_is_not_taken(made: Path, home: Path, tmp_path: Path, harm: str) -> None:
    import shutil

    (home / "graphs" / "tiny").unlink()
    folder = home / "graphs" / "tiny"
    shutil.copytree(made, folder)
    assert cache.find(student_hash="1") == folder
    if harm == "cut":
        part = folder / "student.encoder.onnx"
        part.write_bytes(part.read_bytes()[:-1])
    elif harm == "gone":
        (folder / "student.vae.onnx").unlink()
    else:
        about = json.loads((folder / "student.json").read_text())
        (folder / "student.json").write_text(json.dumps({**about, "format": 0}))
    with pytest.raises(TiueError, match="damaged or of another version"):
        read_set(folder)
    assert cache.find(student_hash="1") is None


def test_what_an_engine_waits_for_is_no_part_of_its_opening(
    home: Path, made: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is remembered: found beside other work it would be held against the engine for good."""
    run = GraphSet.run

    def waits(self: GraphSet, *given: Any) -> Any:
        time.sleep(2)
        return run(self, *given)

    monkeypatch.setattr(GraphSet, "run", waits)
    assert engines.choose(made, "onnxruntime", "float32") is not None
    (known,) = (one for one in cache.remembered().values() if isinstance(one, dict))
    assert known["opened"] < 2 < known["picture"]


def test_an_engine_that_paints_something_else_is_not_taken(
    pipe: Any, home: Path, made: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    image = GraphSet.image
    monkeypatch.setattr(GraphSet, "image", lambda self, z: image(self, z) * 0.9)
    monkeypatch.setattr(engines, "ENGINES", {"onnxruntime": engines.ENGINES["onnxruntime"]})
    with pytest.warns(UserWarning, match="of 255 from torch: not taken"):
        assert engines.choose(made, "onnxruntime") is None
    assert engines.choose(made, "onnxruntime") is None  # remembered, and not said again
    with pytest.warns(UserWarning, match=r"onnxruntime is not taken .*: PyTorch paints"):
        pipe.optimize("onnxruntime")
    assert not isinstance(pipe._optimized, GraphRunner)
    assert type(pipe.plain().split_unet) is SplitUNet


def test_engines_that_are_missing_or_unknown() -> None:
    with pytest.raises(TiueError, match="give auto, torch"):
        engines.check("tensorrt")


def test_the_cache_is_bounded_and_cleared(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, made: Path
) -> None:
    import shutil

    monkeypatch.setenv("TIUE_CACHE", str(tmp_path))
    monkeypatch.setattr(cache, "SHIPPED", tmp_path / "nothing")
    monkeypatch.setattr(cache, "LIMIT", 2)

    def copy(folder: Path) -> None:
        shutil.copytree(made, folder, dirs_exist_ok=True)

    for name in ("a", "b", "c"):
        place = cache.keep(copy, name)
        assert place == tmp_path / "graphs" / name and read_set(place)

    def fail(folder: Path) -> None:
        (folder / "half").write_bytes(b"x")
        raise OSError(28, "No space left on device")

    with pytest.raises(TiueError, match="no space left"):
        cache.keep(fail, "d")
    names = {path.name for path in (tmp_path / "graphs").iterdir()}
    assert len(names) == 2 and "d" not in names
    assert cache.clear() > 0 and not (tmp_path / "graphs").exists()
