"""Textual inversions in every tool's naming, against diffusers' own answer of the same vectors."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import helpers_students as helpers
import helpers_systems as hs
import pytest
import torch
from diffusers import StableDiffusionPipeline, StableDiffusionXLPipeline
from safetensors.torch import save_file
from torch import Tensor

from tiue_core import TiuePipeline
from tiue_core.core.packed import unpack
from tiue_core.errors import TiueError

THREE = torch.randn(2, 3, 32, generator=torch.Generator().manual_seed(1))
WORD = "<zorb>"


@pytest.fixture
def pipe(tmp_path: Path) -> Any:
    return TiuePipeline.from_pretrained(helpers.make_student(tmp_path / "student"))


@pytest.fixture
def double(tmp_path: Path) -> Any:
    return TiuePipeline.from_pretrained(hs.sdxl(tmp_path / "xl", second=48))


def stock(folder: Path) -> Any:
    none: Any = {"safety_checker": None, "feature_extractor": None}
    return StableDiffusionPipeline(
        **TiuePipeline.from_pretrained(folder).components, **none, requires_safety_checker=False
    )


FORMS: dict[str, tuple[str, str, Any]] = {
    "diffusers": ("any name", WORD, THREE[0]),
    "diffusers, one vector": ("any name", WORD, THREE[0, 0]),
    "Automatic1111": (WORD, "emb_params", THREE[0]),
    "Automatic1111, one vector": (WORD, "emb_params", THREE[0, :1]),
    "one of SDXL's": (WORD, "clip_l", THREE[1]),
}


@pytest.mark.parametrize("form", FORMS)
def test_a_word_is_what_diffusers_makes_of_its_vectors(
    pipe: Any, tmp_path: Path, form: str
) -> None:
    stem, name, vectors = FORMS[form]
    file = tmp_path / f"{stem}.safetensors"
    save_file({name: vectors.contiguous()}, file)
    prompt = f"a {WORD} cat"
    before = pipe.encode_prompt([prompt])
    pipe.load_textual_inversion(file)
    theirs = stock(tmp_path / "student")
    theirs.load_textual_inversion({WORD: vectors})
    wanted = theirs.encode_prompt(prompt, "cpu", 1, False)[0]
    assert (pipe.encode_prompt([prompt]) - wanted).abs().max() <= 1e-6
    assert (wanted - before).abs().max() > 0.1
    pipe.unload_textual_inversion()
    assert torch.equal(pipe.encode_prompt([prompt]), before)


def test_a_folder_and_a_word_of_ones_own(pipe: Any, tmp_path: Path) -> None:
    save_file({"<a>": THREE[0]}, tmp_path / "learned_embeds.safetensors")
    save_file({"emb_params": THREE[1]}, tmp_path / "b.safetensors")
    pipe.load_textual_inversion(tmp_path, token="<c>")
    pipe.load_textual_inversion([str(tmp_path / "b.safetensors"), tmp_path], token=["<d>", None])
    assert {"<c>", "<c>_2", "<d>_2", "<a>_2"} <= {*pipe.tokenizer.get_added_vocab()}


def answer(pipe: Any, prompt: str) -> tuple[Tensor, Tensor]:
    embeds, added = unpack(pipe.unet, pipe.encode_prompt([prompt]), (8, 8), 8)
    return embeds, added["text_embeds"]


@pytest.mark.parametrize("second", [3, 2])
def test_both_of_sdxls_text_encoders(double: Any, tmp_path: Path, second: int) -> None:
    generator = torch.Generator().manual_seed(2)
    width = double.text_encoder_2.get_input_embeddings().weight.shape[1]
    tensors = {"clip_g": torch.randn(second, width, generator=generator), "clip_l": THREE[0]}
    file = tmp_path / f"{WORD}.safetensors"
    save_file({name: vectors.contiguous() for name, vectors in tensors.items()}, file)
    prompt = f"a {WORD} cat"
    before = answer(double, prompt)
    double.load_textual_inversion(file)
    theirs = StableDiffusionXLPipeline.from_pretrained(
        tmp_path / "xl", use_safetensors=True, add_watermarker=False
    )
    for name, end in (("clip_l", ""), ("clip_g", "_2")):
        to = {one: getattr(theirs, one + end) for one in ("tokenizer", "text_encoder")}
        theirs.load_textual_inversion(tensors[name], token=WORD, **to)
    given = theirs.encode_prompt(prompt, device="cpu", num_images_per_prompt=1)
    for ours, wanted, plain in zip(
        answer(double, prompt), (given[0], given[2]), before, strict=True
    ):
        assert (ours - wanted).abs().max() <= 1e-6 and (wanted - plain).abs().max() > 1e-3
    double.unload_textual_inversion()
    assert all(map(torch.equal, answer(double, prompt), before))


def test_a_file_for_one_of_two_says_so(double: Any, pipe: Any, tmp_path: Path) -> None:
    one, two = tmp_path / "one.safetensors", tmp_path / "two.safetensors"
    save_file({"emb_params": THREE[0]}, one)
    save_file({"clip_l": THREE[0], "clip_g": torch.ones(3, 48)}, two)
    with pytest.raises(TiueError, match="one of the student's two text encoders"):
        double.load_textual_inversion(one)
    with pytest.raises(TiueError, match="for two text encoders"):
        pipe.load_textual_inversion(two)
    double.load_textual_inversion(
        one, "<a>", tokenizer=double.tokenizer, text_encoder=double.text_encoder
    )
    assert "<a>" in double.tokenizer.get_added_vocab()


BAD: dict[str, tuple[dict[str, Tensor], str]] = {
    "another width": ({"<a>": torch.ones(3, 64)}, r"another model \(<a> is 64 wide, .* 32\)"),
    "NaN": ({"<a>": torch.full((3, 32), float("nan"))}, "<a> holds NaN"),
    "integers": ({"<a>": torch.ones(3, 32, dtype=torch.int32)}, "no file of vectors"),
    "a picture": ({"<a>": torch.ones(1, 3, 32)}, "no file of vectors"),
    "a LoRA": (helpers.lora_tensors(), "no file of one word's vectors"),
    "nothing": ({"<a>": torch.ones(0, 32)}, "no file of vectors"),
}


@pytest.mark.parametrize("fault", BAD)
def test_what_is_no_embedding_is_one_line(pipe: Any, tmp_path: Path, fault: str) -> None:
    tensors, said = BAD[fault]
    file = helpers.write_lora(tmp_path / "a.safetensors", tensors)
    words, vocabulary = len(pipe.tokenizer), pipe.text_encoder.get_input_embeddings().weight.shape
    with pytest.raises(TiueError, match=said) as error:
        pipe.load_textual_inversion(file)
    assert "\n" not in str(error.value) and len(pipe.tokenizer) == words
    assert pipe.text_encoder.get_input_embeddings().weight.shape == vocabulary


@pytest.mark.parametrize("kind", ["TiuePipeline", "TiueXLPipeline"])
@pytest.mark.parametrize("how", ["file", "folder", "name", "name in a list"])
@pytest.mark.parametrize("what", ["embedding", "LoRA"])
def test_nothing_is_unpickled(
    request: Any, tmp_path: Path, kind: str, how: str, what: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = request.getfixturevalue("pipe" if kind == "TiuePipeline" else "double")
    learned = {"embedding": "learned_embeds.bin", "LoRA": "pytorch_lora_weights.bin"}[what]
    tensors = {"<a>": THREE[0]} if what == "embedding" else helpers.lora_tensors()
    torch.save(tensors, tmp_path / learned)
    monkeypatch.setattr(torch, "load", lambda *_, **__: pytest.fail("unpickled"))
    load = one.load_textual_inversion if what == "embedding" else one.load_lora_weights
    source: Any = str(tmp_path / learned if how == "file" else tmp_path)
    options = {"weight_name": learned} if how.startswith("name") else {}
    if how == "name in a list" and what == "embedding":
        source = [source]
    with pytest.raises((TiueError, OSError)):
        load(source, **options)
