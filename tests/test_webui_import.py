"""The WebUI extension without a WebUI: imports, refusals, and what install.py says."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import helpers_systems as hs
import pytest
import torch
from helpers_hosts import ROOT, imported_roots, installed, loaded
from safetensors.torch import load_file, save_file

from tiue_core.errors import TiueError
from tiue_core.students.checkpoint import Made

SOURCES = [ROOT / "scripts" / "tiue.py", *sorted((ROOT / "webui").glob("*.py"))]


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.name)
def test_what_the_extension_may_not_do(path: Path) -> None:
    roots = imported_roots(path)
    assert not roots & {"comfy", "nodes"}, f"{path} is of Forge, not of ComfyUI"


class Img2Img:
    pass


@pytest.fixture
def plan(monkeypatch: pytest.MonkeyPatch) -> Any:
    """``webui/plan.py`` with the one class that it asks of Forge."""
    processing = ModuleType("modules.processing")
    processing.StableDiffusionProcessingImg2Img = Img2Img  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "modules", ModuleType("modules"))
    monkeypatch.setitem(sys.modules, "modules.processing", processing)
    return loaded(ROOT / "webui" / "plan.py", "plan_alone")


def model(kind: str = "sd1", prediction: str = "epsilon", **changes: Any) -> Any:
    kinds = {f"is_{each}": each == kind for each in ("sd1", "sd2", "sdxl", "sd3")}
    predictor = SimpleNamespace(prediction_type=prediction)
    unet = SimpleNamespace(model=SimpleNamespace(predictor=predictor))
    info = SimpleNamespace(metadata={}, name_for_extra="somebody's")
    objects = SimpleNamespace(unet=unet)
    return SimpleNamespace(
        **{**kinds, "is_inpaint": False, "sd_checkpoint_info": info, "forge_objects": objects},
        **changes,
    )


def job(sd_model: Any = None, **changes: Any) -> Any:
    defaults = {"sampler_name": "TiUE One Pass", "enable_hr": False, "hr_sampler_name": None}
    return SimpleNamespace(sd_model=sd_model or model(), **{**defaults, **changes})


@pytest.mark.parametrize("kind", ["sdxl", "sd3", "flux"])
def test_other_models_are_refused(plan: Any, kind: str) -> None:
    with pytest.raises(TiueError, match="choose a checkpoint of a student of Stable Diffusion"):
        plan.Plan.make(job(model(kind)))


def test_a_webui_that_knows_no_stable_diffusion_2(plan: Any) -> None:
    """Forge Neo's models have no ``is_sd2``: Stable Diffusion 1 is painted, others are refused."""
    for kind in ("sd1", "sdxl"):
        neo = model(kind)
        del neo.is_sd2
        if kind == "sd1":
            assert len(plan.Plan.make(job(neo)).schedule) == 4
        else:
            with pytest.raises(TiueError, match="this model is SDXL"):
                plan.Plan.make(job(neo))


def test_an_inpainting_model_is_refused(plan: Any) -> None:
    painter = model()
    painter.is_inpaint = True
    with pytest.raises(TiueError, match="for inpainting"):
        plan.Plan.make(job(painter))


def test_a_files_own_k_and_timesteps_count(plan: Any) -> None:
    one = model()
    made = {**vars(Made.stable_diffusion("one")), "format": 1, "steps": 1, "timesteps": [999]}
    one.sd_checkpoint_info.metadata = {"tiue": made}  # as Forge hands it on: parsed
    made = plan.Plan.make(job(one))
    assert made.schedule.timesteps.tolist() == [999] and made.decoders == 1
    assert plan.Plan.make(job(one), 4).schedule.timesteps.tolist() == [751, 501, 251, 1]


def test_where_a_file_does_not_say_forges_prediction_counts(plan: Any) -> None:
    velocity = plan.Plan.make(job(model("sd2", "v_prediction"))).schedule
    assert velocity.prediction_type == "v_prediction"
    fast = plan.Plan.make(job(), 0, "fast")
    assert len(fast.schedule) == 3 and fast.decoders == 4


def test_an_entry_of_another_version_is_refused(plan: Any) -> None:
    odd = model()
    odd.sd_checkpoint_info.metadata = {"tiue": {"format": 99}}
    with pytest.raises(TiueError, match="written by another version"):
        plan.Plan.make(job(odd))


def test_what_a_student_was_not_trained_on_is_told(plan: Any, tmp_path: Path) -> None:
    (tmp_path / "prompts.txt").write_text("a cat on a blue background\n")
    tokens = {"cat</w>": 0, "dragon</w>": 1, "blue</w>": 2, "background</w>": 3, "on</w>": 4}
    engine = SimpleNamespace(tokenizer=SimpleNamespace(get_vocab=lambda: tokens))
    painter = model(text_processing_engine=engine)
    made = {**vars(Made.stable_diffusion("small")), "format": 1, "side": 128}
    painter.sd_checkpoint_info.metadata = {"tiue": made}

    def told(prompt: str, width: int = 128) -> list[str]:
        texts = {"all_prompts": [prompt] * 2, "all_negative_prompts": [""] * 2}
        asked = job(painter, width=width, height=128, **texts)
        return plan.untrained(asked, {"small": tmp_path})

    assert told("a (cat:1.2) BREAK a cat AND blue <lora:nobody:1>") == []
    assert told("a dragon") == [
        "the student does not know the prompt's 'dragon'; it knows: background, blue, cat"
    ]
    (line,) = told("a cat", 512)
    assert line.startswith("512 x 128 is far from the 128 x 128")


def test_a_webui_without_forges_backend_gets_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """AUTOMATIC1111's original has no ``backend``: the accordion says so, nothing else happens."""
    said: list[str] = []

    class Block:
        def __init__(self, *_: Any, **__: Any) -> None:
            pass

        def __enter__(self) -> None:
            pass

        def __exit__(self, *_: object) -> None:
            pass

    gradio, modules, scripts = (ModuleType(name) for name in ("gradio", "modules", "scripts"))
    gradio.Accordion, gradio.Markdown = Block, said.append  # type: ignore[attr-defined]
    scripts.Script, scripts.AlwaysVisible = object, object()  # type: ignore[attr-defined]
    modules.scripts = scripts  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "gradio", gradio)
    monkeypatch.setitem(sys.modules, "modules", modules)
    module = loaded(ROOT / "scripts" / "tiue.py", "tiue_script")
    assert "needs a WebUI with Forge's backend" in capsys.readouterr().out
    script = module.TiUE()
    assert script.ui(False) == [] and "this one has none" in said[0]
    script.before_process(SimpleNamespace())
    script.process(SimpleNamespace())


# --- install.py ----------------------------------------------------------------------------


@pytest.mark.parametrize("backend", [True, False])
def test_install_in_a_webui_asks_for_nothing(tmp_path: Path, backend: bool) -> None:
    """Whose pins are its own: diffusers is not even looked for, and the launcher sees a 0."""
    (tmp_path / "modules").mkdir()
    (tmp_path / "modules" / "launch_utils.py").touch()
    if backend:
        (tmp_path / "backend").mkdir()
    result = installed(tmp_path / "extensions" / "tiue", PYTHONPATH=str(tmp_path))
    assert result.returncode == 0 and result.stderr == ""
    assert len(result.stdout.splitlines()) == 1
    assert ("TiUE One Pass" if backend else "needs a WebUI with Forge's backend") in result.stdout
    assert not (tmp_path / "models").exists()


def test_install_elsewhere_says_what_it_is(tmp_path: Path) -> None:
    result = installed(tmp_path / "somewhere" / "tiue")
    assert result.returncode == 1 and "diffusers is missing" in result.stdout
    assert "neither ComfyUI's nor a WebUI's" in result.stdout
    assert not (tmp_path / "models").exists()


@pytest.fixture
def students(plan: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    """``webui/students.py`` with the little that it asks of Forge, whose families take anything."""

    class Family:
        @classmethod
        def matches(cls, shape: Any) -> bool:
            return True

    families = SimpleNamespace(SD15=Family, SD20=Family)
    guess = {"latent": SimpleNamespace(), "model_list": families}
    monkeypatch.setitem(sys.modules, "huggingface_guess", SimpleNamespace(**guess))
    models = SimpleNamespace(model_path=str(tmp_path / "models"), list_models=lambda: None)
    monkeypatch.setitem(sys.modules, "modules", SimpleNamespace(sd_models=models))
    monkeypatch.setitem(sys.modules, "alone.plan", plan)
    (tmp_path / "models" / "tiue").mkdir(parents=True)
    return loaded(ROOT / "webui" / "students.py", "alone.students", "alone")


def test_a_folder_of_sdxls_layout_is_not_converted_for_forge(students: Any, tmp_path: Path) -> None:
    """Whatever Forge's families say of its widths."""
    assert students.convert(str(hs.sd(tmp_path / "sd"))) == "sd.safetensors"
    with pytest.raises(TiueError, match="Forge cannot load it: use it in ComfyUI") as error:
        students.convert(str(hs.sdxl(tmp_path / "xl")))
    assert "\n" not in str(error.value)
    assert not (tmp_path / "models" / "tiue" / "xl.safetensors").exists()


def test_the_miniature_of_an_earlier_release_is_made_again(
    students: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(students, "_KEPT", tmp_path / "kept")
    (tmp_path / "kept").mkdir()
    shown, weight = students.put_in_place(), "model.diffusion_model.out.2.bias"
    first, at = load_file(shown)[weight].clone(), shown.stat().st_mtime_ns
    assert students.put_in_place() == shown and shown.stat().st_mtime_ns == at  # once
    other = shutil.copytree(students.STICKERS, tmp_path / "later")
    (file,) = (other / "unet").glob("*.safetensors")
    tensors = load_file(file)
    tensors["conv_out.bias"] += 1
    save_file(tensors, file, {"format": "pt"})
    monkeypatch.setattr(students, "STICKERS", other)
    assert torch.equal(load_file(students.put_in_place())[weight], first + 1)
