"""`tiue evaluate`: runs on the miniature, what is refused, tables, data sets, extractors."""

from __future__ import annotations

import csv
import io
import json
import re
import signal
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers_second import second
from PIL import Image
from safetensors.torch import save_file

from tiue_core.errors import TiueError
from tiue_core.evaluate import (
    data,
    features,
    latency,
    report,
    table,
)
from tiue_core.evaluate.data import DataSet
from tiue_core.evaluate.run import Options, Run

SYSTEMS = ("stickers", "stickers-teacher-4")


@contextmanager
def quiet(what: str, total: int | None) -> Any:
    yield lambda by: None


def evaluate(out: Path, systems: Any = SYSTEMS, dataset: DataSet | None = None, **more: Any) -> Any:
    settings: dict[str, Any] = {"halves": 4, "rounds": 0, "diversity": 1, "device": "cpu"}
    progress = more.pop("progress", quiet)
    extractor = more.pop("extractor", features.judge())
    return Run(
        systems,
        dataset or data.data_set("stickers", count=16),
        extractor,
        more.pop("clips", ()),
        Options(out, **{**settings, **more}),
        progress,
    ).go()


def numbers(result: dict[str, Any]) -> dict[str, Any]:
    return {label: row["figures"] for label, row in result["systems"].items()}


def pixels(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.rglob("*.png")}


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """A run that nothing interrupted."""
    pytest.importorskip("torchmetrics")
    out = tmp_path_factory.mktemp("whole") / "run"
    return out, evaluate(out)


# --- the run -------------------------------------------------------------------------------


def test_a_run_leaves_all_of_it(whole: tuple[Path, dict[str, Any]]) -> None:
    out, result = whole
    written = report.write_report(result, out)
    for name in ("table.md", "table.csv", "table.tex", "index.html", "diversity.png"):
        assert out / name in written
    assert set(result["systems"]) == set(SYSTEMS)
    for row in result["systems"].values():
        assert set(row["figures"]) == {
            *("fid", "precision", "recall", "f1", "density", "coverage", "thing", "background")
        }
        for figure in row["figures"].values():
            assert figure["low"] <= figure["value"] <= figure["high"]
        assert len(row["files"]) == 16 and all((out / file).is_file() for file in row["files"])
        assert row["figures"]["background"]["value"] == 1.0  # both paint backgrounds well
    assert json.loads((out / "results.json").read_text()) == result


def test_numbers_are_those_of_the_libraries(whole: tuple[Path, dict[str, Any]]) -> None:
    """From the files alone: pictures as they lie there, the judge, prdc, a square root by hand."""
    from prdc import compute_prdc
    from scipy.linalg import sqrtm

    from tiue_core.stickers.judge import Judge

    out, result = whole

    def looked(paths: list[Path]) -> np.ndarray:
        images = np.stack([np.asarray(Image.open(path).convert("RGB")) for path in paths])
        tensor = torch.from_numpy(images).permute(0, 3, 1, 2).float() / 127.5 - 1
        with torch.no_grad():
            return Judge.load().features(tensor).double().numpy()

    real = looked(sorted((out / "reference").glob("*.png")))
    for row in result["systems"].values():
        fake = looked([out / file for file in row["files"]])
        theirs = compute_prdc(real, fake, nearest_k=5)
        for name, value in theirs.items():
            assert row["figures"][name]["value"] == pytest.approx(float(value), abs=1e-6)
        a, b = np.cov(real, rowvar=False), np.cov(fake, rowvar=False)
        root = sqrtm(a + 1e-9 * np.eye(len(a))).real
        cross = np.trace(sqrtm(root @ b @ root + 1e-9 * np.eye(len(a))).real)
        fid = ((real.mean(0) - fake.mean(0)) ** 2).sum() + np.trace(a) + np.trace(b) - 2 * cross
        assert row["figures"]["fid"]["value"] == pytest.approx(fid, rel=1e-3)


def test_run_again_and_killed_in_between(
    whole: tuple[Path, dict[str, Any]], tmp_path: Path
) -> None:
    """The same numbers, the same bytes; and what is there is not painted again."""
    before, result = whole
    seen = [0]

    @contextmanager
    def stopping(what: str, total: int | None) -> Any:
        def advance(by: int) -> None:
            seen[0] += by
            if seen[0] == 21:  # in the second system's pictures or the first one's look
                raise KeyboardInterrupt

        yield advance

    out = tmp_path / "run"
    with pytest.raises(KeyboardInterrupt):
        evaluate(out, progress=stopping)
    assert 0 < len(pixels(out)) < len(pixels(before))
    times = {path: path.stat().st_mtime_ns for path in out.rglob("images/*/*.png")}
    again = evaluate(out)
    assert numbers(again) == numbers(result)
    assert pixels(out / "images") == pixels(before / "images")
    assert all(path.stat().st_mtime_ns == then for path, then in times.items())
    # a third time: nothing is looked at again, and a system more leaves the others alone
    for file in (out / "kept").iterdir():
        file.touch()
    three = evaluate(out, (*SYSTEMS, "stickers-fast"))
    assert {label: numbers(three)[label] for label in SYSTEMS} == numbers(result)


@pytest.mark.slow
def test_a_real_kill(tmp_path: Path) -> None:
    def command(out: Path) -> list[str]:
        return [
            *(sys.executable, "-m", "tiue_core", "evaluate", *SYSTEMS, "--data", "stickers"),
            *("--count", "48", "--halves", "4", "--no-time", "--device", "cpu", "--out", str(out)),
        ]

    killed, out = subprocess.Popen(command(tmp_path / "killed")), tmp_path / "killed"
    while len(list(out.glob("images/stickers-teacher-4/*.png"))) < 8:
        assert killed.poll() is None
        time.sleep(0.05)
    killed.send_signal(signal.SIGKILL)
    killed.wait()
    for folder in (out, tmp_path / "whole"):
        subprocess.run(command(folder), check=True, capture_output=True)
    for name in ("results.json", "table.csv", "table.md", "table.tex", "index.html"):
        assert (out / name).read_bytes() == (tmp_path / "whole" / name).read_bytes(), name


def test_a_system_can_be_the_reference(tmp_path: Path) -> None:
    """As DrawBench's: FID 0, density 1 and coverage 1 in its own row, which takes no place."""
    prompts = tmp_path / "mine.txt"
    prompts.write_text("\n".join(f"a cat on a {c} background" for c in ("red", "blue", "pink") * 4))
    mine = data.data_set(str(prompts), reference="stickers-teacher-4")
    out = tmp_path / "run"
    result = evaluate(out, ("stickers", "teacher=stickers-teacher-4"), mine, diversity=0)
    own = result["systems"]["teacher"]
    assert own["is_reference"] and own["figures"]["fid"]["value"] == pytest.approx(0, abs=1e-3)
    assert own["figures"]["density"]["value"] == pytest.approx(1)
    assert own["figures"]["coverage"]["value"] == 1
    assert result["systems"]["stickers"]["figures"]["fid"]["value"] > 1
    assert "teacher (reference)" in table.markdown(result)
    assert all(cell.place == 0 for cell in table.cells(result)["teacher"].values())
    # not named, it is painted all the same and has no row
    hidden = evaluate(tmp_path / "hidden", ("stickers",), mine, diversity=0)
    assert list(hidden["systems"]) == ["stickers"]
    assert numbers(hidden)["stickers"] == numbers(result)["stickers"]


def test_pictures_carry_how_to_make_them_again(whole: tuple[Path, dict[str, Any]]) -> None:
    from tiue_core.io.images import read_metadata

    out, result = whole
    for label, sampler in (("stickers", None), ("stickers-teacher-4", "ddim")):
        metadata = read_metadata(out / result["systems"][label]["files"][3])
        assert metadata["prompt"] == result["data"]["prompts"][3] and metadata["seed"] == 3
        assert metadata.get("sampler") == sampler
        assert metadata["timesteps"] == [751, 501, 251, 1]


# --- what is refused -----------------------------------------------------------------------


def refused(action: Any, *arguments: Any, **more: Any) -> str:
    with pytest.raises(TiueError) as error:
        action(*arguments, **more)
    assert "\n" not in str(error.value) and ":" in str(error.value)
    return str(error.value)


def pictures(folder: Path, count: int, size: tuple[int, int] = (128, 128)) -> Path:
    folder.mkdir()
    for index in range(count):
        noise = np.random.default_rng(index).integers(0, 255, (*size[::-1], 3), dtype=np.uint8)
        Image.fromarray(noise).save(folder / f"{index}.png")
    return folder


def test_runs_that_are_refused_before_anything_is_painted(tmp_path: Path) -> None:
    out, mine = tmp_path / "run", pictures(tmp_path / "mine", 16)
    few = data.data_set("stickers", count=5)
    assert "too few for k = 5" in refused(evaluate, out, dataset=few)
    assert "two systems are called" in refused(evaluate, out, ("stickers", "stickers"))
    assert "no system named" in refused(evaluate, out, ("no-such",))
    for missing in ("stickers-swiftbrush:", "sd-turbo:", "images:", ""):
        gone = f"{missing}{tmp_path / 'gone'}"
        assert str(tmp_path / "gone") in refused(evaluate, out, ("stickers", gone))
    assert "12 prompts" in refused(
        evaluate, out, (f"images:{mine}",), data.data_set("stickers", count=12)
    )
    same = data.data_set("stickers", count=16, reference=str(mine))
    assert "the same folder" in refused(evaluate, out, (f"images:{mine}",), same)
    linked = tmp_path / "linked"
    linked.symlink_to(mine)
    same = data.data_set("stickers", count=16, reference=str(linked))
    assert "the same folder" in refused(evaluate, out, (f"images:{mine}",), same)
    assert not out.exists()
    listed = tmp_path / "list.txt"
    listed.write_text("a cat\n" * 8)
    assert "--reference" in refused(evaluate, out, dataset=data.data_set(str(listed)))


def test_a_licence_that_is_not_accepted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is downloaded, nor painted with the systems that are here."""
    from types import SimpleNamespace

    import huggingface_hub
    from huggingface_hub import constants

    def fetch(*_: Any, **__: Any) -> str:
        raise AssertionError("downloaded")

    api = SimpleNamespace(
        model_info=lambda *_, **__: SimpleNamespace(sha="c" * 40, siblings=[], card_data=None)
    )
    monkeypatch.setattr(constants, "HF_HOME", str(tmp_path / "hf"))
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hf" / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(huggingface_hub, "HfApi", lambda: api)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", fetch)
    text = refused(evaluate, tmp_path / "run", ("stickers", "sdxl-turbo"))
    assert "licence is not accepted" in text and "Non-Commercial" in text
    assert "--accept-license" in text and not (tmp_path / "run").exists()


def test_references_that_are_refused(tmp_path: Path) -> None:
    mine, few = pictures(tmp_path / "mine", 16), pictures(tmp_path / "few", 5)
    out = tmp_path / "run"

    def against(folder: Path) -> str:
        dataset = data.data_set("stickers", count=16, reference=str(folder))
        return refused(evaluate, out, (f"images:{mine}",), dataset)

    assert "the reference has 5 pictures, 6 at least" in against(few)
    mixed = pictures(tmp_path / "mixed", 15)
    Image.new("RGB", (64, 64)).save(mixed / "99.png")
    assert "99.png is 64 x 64, others of the reference are 128 x 128" in against(mixed)
    broken = pictures(tmp_path / "broken", 16)
    whole = (broken / "3.png").read_bytes()
    (broken / "3.png").write_bytes(whole[: len(whole) // 2])  # a copy that was cut short
    assert "3.png cannot be read as a picture" in against(broken)
    assert not list(tmp_path.rglob("results.json")) and not list(tmp_path.rglob("table.*"))


def test_pictures_that_are_refused(tmp_path: Path) -> None:
    mine = pictures(tmp_path / "mine", 16)
    Image.new("RGB", (64, 128)).save(mine / "7.png")
    text = refused(evaluate, tmp_path / "a", (f"images:{mine}",))
    assert "7.png is 64 x 128, others of images are 128 x 128" in text
    (mine / "7.png").write_bytes(b"\x89PNG\r\n\x1a\n broken")
    assert "cannot be read as a picture" in refused(evaluate, tmp_path / "b", (f"images:{mine}",))
    assert not list(tmp_path.rglob("results.json"))


def test_features_that_are_no_numbers(tmp_path: Path) -> None:
    from dataclasses import replace

    judge = features.judge()

    def overflow(images: torch.Tensor) -> dict[str, torch.Tensor]:
        looked = judge.look(images)
        return {**looked, "features": looked["features"] * float("inf")}

    broken = replace(judge, look=overflow, digest="broken")
    mine = pictures(tmp_path / "mine", 16)
    text = refused(evaluate, tmp_path / "run", (f"images:{mine}",), extractor=broken)
    assert "are not numbers" in text and not (tmp_path / "run" / "results.json").exists()


def test_a_folder_of_another_comparison(whole: tuple[Path, dict[str, Any]]) -> None:
    out, result = whole
    assert "another comparison" in refused(evaluate, out, seed=5)
    other = data.data_set("stickers", count=20)
    assert "another comparison" in refused(evaluate, out, dataset=other)
    assert json.loads((out / "results.json").read_text())["systems"] == result["systems"]


# --- tables --------------------------------------------------------------------------------


def made_up() -> dict[str, Any]:
    def row(fid: float, density: float, ms: float | None, **more: Any) -> dict[str, Any]:
        clock = {"ms": ms, "memory": 2e9, "device": "X", "dtype": "f", "threads": 1}
        figures = {"fid": {"value": fid, "low": fid - 1, "high": fid + 1}}
        figures["density"] = {"value": density}
        entry = {"system": "s", "steps": 1, "guidance": 1.0, "pictures": 6, "side": 8}
        entry |= {"licence": "MIT", "digest": "d", "paper": None, "files": ["a b/0.png"] * 6}
        return {**entry, "figures": figures, "time": clock if ms else None, **more}

    return {
        "data": {
            "name": "n",
            "about": "six prompts",
            "prompts": ["</script><b>&"] * 6,
            "whole": 0,
            "paper": "2014",
        },
        "nearest": 5,
        "halves": 4,
        "seed": 0,
        "features": "F",
        "clips": {},
        "systems": {
            "a_1": row(13.094, 0.5, 10.0, paper="Ours"),
            "b": row(13.091, 0.7, 5.0),
            "c": row(20.0, 0.7, None),
            "d": row(16.0, 0.1, 7.0),
            "ref": row(0.0, 1.0, 3.0, is_reference=True),
        },
        "diversity": {"prompts": [], "seeds": 8, "files": {}},
    }


def test_best_is_bold_and_second_underlined() -> None:
    """Ties in print are ties; the reference takes no place; less is more where it is."""
    cells = table.cells(made_up())
    places = {
        name: [cells[label][name].place for label in cells] for name in ("fid", "density", "ms")
    }
    assert places == {
        "fid": [1, 1, 0, 2, 0],
        "density": [2, 1, 1, 0, 0],
        "ms": [0, 1, 0, 2, 0],
    }
    text = table.markdown(made_up(), beside=True)
    assert "| a_1 | 1 | **13.09** ± 1.00 (13.09) | <u>0.500</u> | 10.0 | **2.00** |" in text
    assert "| c | 1 | 20.00 ± 1.00 | **0.700** | - | - |" in text
    tex = table.latex(made_up())
    assert r"a\_1 & 1 & {\textbf{13.09}\,\tiny$\pm$1.00} & \underline{0.500}" in tex
    rows = list(csv.DictReader(io.StringIO(table.as_csv(made_up()))))
    assert float(rows[0]["fid"]) == 13.094 and float(rows[0]["fid_low"]) == 12.094
    assert rows[0]["fid_paper"] == "13.09" and rows[2]["ms"] == ""
    short = {**made_up(), "data": {**made_up()["data"], "whole": 100}}
    assert "Only 6 of its 100 prompts" in table.markdown(short)


def test_the_page_holds_its_data_safely() -> None:
    page = report.flip_page(made_up())
    assert "<b>&" not in page and page.count("</script>") == 1
    found = re.search(r"const DATA = (\{.*\});\n", page)
    assert found and json.loads(found[1])["prompts"][0] == "</script><b>&"
    assert len(json.loads(found[1])["systems"]) == 5


@pytest.mark.slow
def test_the_page_in_a_browser(
    whole: tuple[Path, dict[str, Any]], request: pytest.FixtureRequest
) -> None:
    import os
    import shutil

    names = ("chromium", "chromium-browser", "google-chrome")
    browser = os.environ.get("TIUE_CHROMIUM") or next(filter(None, map(shutil.which, names)), None)
    if browser is None:
        pytest.skip("no Chromium: apt-get install chromium, or $TIUE_CHROMIUM")
    out, result = whole
    report.write_report(result, out)
    prompts, wrong = result["data"]["prompts"], []
    playwright = request.getfixturevalue("playwright_driver")
    chromium = playwright.chromium.launch(executable_path=browser, args=["--no-sandbox"])
    page = chromium.new_page(viewport={"width": 390, "height": 800})
    page.on("pageerror", lambda error: wrong.append(str(error)))
    page.on("requestfailed", lambda request: wrong.append(request.url))
    page.goto((out / "index.html").as_uri())
    page.keyboard.press("ArrowRight")
    assert page.inner_text("#prompt") == prompts[1]
    page.keyboard.press("ArrowLeft")
    page.keyboard.press("ArrowLeft")
    assert page.inner_text("#prompt") == prompts[-1]
    word = prompts[3].split()[-2]
    page.fill("#search", word)
    assert page.inner_text("#total") == f"of {sum(word in one for one in prompts)}"
    page.uncheck("#which input >> nth=0")
    assert page.locator("figure").count() == len(SYSTEMS) - 1
    page.wait_for_function("[...document.images].every((image) => image.naturalWidth)")
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    chromium.close()
    assert not wrong


# --- data sets -----------------------------------------------------------------------------


def test_prompts_are_read_word_for_word(tmp_path: Path) -> None:
    wanted = ["a {red|blue} cat", "two, dogs", "__x__"]
    files = {
        "a.txt": "\n".join(wanted) + "\n\n",
        "b.csv": 'Category,Prompts\nx,a {red|blue} cat\ny,"two, dogs"\nz,__x__\n',
        "c.tsv": "Prompt\tCategory\na {red|blue} cat\tx\ntwo, dogs\ty\n__x__\tz\n",
        "d.jsonl": "\n".join(json.dumps({"prompt": one}) for one in wanted),
        "e.json": json.dumps(wanted),
    }
    for name, text in files.items():
        (tmp_path / name).write_text(text)
        assert data.read_prompts(tmp_path / name) == wanted, name
    (tmp_path / "f.csv").write_text("a,b\n1,2\n")
    (tmp_path / "g.json").write_text("{")
    (tmp_path / "h.txt").write_text("\n")
    (tmp_path / "i.txt").write_bytes(b"\xff\xfe\x00")
    for name in ("f.csv", "g.json", "h.txt", "i.txt", "none.txt"):
        refused(data.read_prompts, tmp_path / name)


def test_benchmark_lists(tmp_path: Path) -> None:
    listed = tmp_path / "drawbench.txt"
    listed.write_text("\n".join(f"prompt {i}" for i in range(200)))
    found = data.data_set("drawbench", prompts=listed)
    assert len(found.prompts) == 200 and found.teacher == "sd2.1" and found.paper == "drawbench"
    assert data.data_set("drawbench", prompts=listed, count=4).prompts == tuple(
        f"prompt {i}" for i in (0, 50, 100, 150)
    )
    assert "1632" in refused(data.data_set, "partiprompts", prompts=listed)
    assert "Jialuo21/DrawBench" in refused(data.data_set, "drawbench")
    assert "no data set" in refused(data.data_set, "drawbenches")


def test_coco(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(data.COCO, "coco2017-5k", ("val2017", 3))
    pictures(tmp_path / "val2017", 4)
    notes = [
        {"id": 10 * image + n, "image_id": image, "caption": f"picture {image}\n caption {n}"}
        for image in range(4)
        for n in range(5)
    ]
    (tmp_path / "annotations").mkdir()
    captions = tmp_path / "annotations" / "captions_val2017.json"
    captions.write_text(json.dumps({"annotations": notes}))
    found = data.data_set("coco2017-5k", folder=tmp_path)
    assert len(found.prompts) == 3 and len(found.reference) == 4
    assert len({text.split()[1] for text in found.prompts}) == 3  # one caption a picture
    captions.write_text(json.dumps({"annotations": notes[::-1]}))
    assert data.data_set("coco2017-5k", folder=tmp_path).prompts == found.prompts
    captions.write_text("[]")
    refused(data.data_set, "coco2017-5k", folder=tmp_path)
    refused(data.data_set, "coco2014-30k", folder=tmp_path)
    assert "--data-dir" in refused(data.data_set, "coco2014-30k")


def test_templates(tmp_path: Path) -> None:
    for name in ("cat", "dog", "wild"):
        pictures(tmp_path / name, 2)
    found = data.data_set("afhq", folder=tmp_path, count=9)
    assert found.prompts[::3] == ("a photo of cat", "a photo of dog", "a photo of wild animal")
    assert len(found.reference) == 6 and len(found.prompts) == 9
    assert data.data_set("celeba-hq").prompts[-1] == "a photo of woman"
    assert "man is missing" in refused(data.data_set, "celeba-hq", folder=tmp_path)


# --- extractors ----------------------------------------------------------------------------


def photo(width: int, height: int) -> Image.Image:
    y, x = np.mgrid[:height, :width]
    rgb = np.stack([x * 255 / width, y * 255 / height, x * y / 600], axis=2)
    return Image.fromarray(rgb.astype(np.uint8))


def test_pictures_are_cropped_and_resized_as_the_protocol_says() -> None:
    image = photo(400, 301)
    middle = np.asarray(image)[:, 49:350]
    wanted = Image.fromarray(middle).resize((256, 256), Image.Resampling.LANCZOS)
    assert np.array_equal(np.asarray(features.crop_256(image)), np.asarray(wanted))
    image = photo(200, 240)  # without steep edges
    small = features.resize_clean(image, 299)
    assert small.shape == (3, 299, 299) and small.min() >= 0 and small.max() <= 255
    rounded = np.asarray(image.resize((299, 299), Image.Resampling.BICUBIC), dtype=np.float32)
    # PIL's 8-bit resize rounds twice, once a direction
    assert np.abs(small.numpy().transpose(1, 2, 0) - rounded).max() < 2
    assert not torch.equal(small, small.round())


def test_clean_fid_agrees_on_the_resize() -> None:
    resize = second("cleanfid.resize")
    image = photo(256, 256)
    theirs = resize.build_resizer("clean")(np.asarray(image)).transpose(2, 0, 1)
    assert np.array_equal(features.resize_clean(image, 299).numpy(), theirs)


@pytest.fixture(scope="module")
def inception_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from tiue_core.evaluate.inception import Inception

    torch.manual_seed(0)
    model = Inception()
    for name, tensor in model.state_dict().items():
        if name.endswith("running_mean"):
            tensor.normal_(0, 0.1)
        elif name.endswith("running_var"):
            tensor.uniform_(0.5, 1.5)
    file = tmp_path_factory.mktemp("inception") / "inception.safetensors"
    save_file({name: t.contiguous() for name, t in model.state_dict().items()}, file)
    return file


def test_inception_from_a_file(inception_file: Path, tmp_path: Path) -> None:
    extractor = features.inception(inception_file)
    paths = [tmp_path / "a.png", tmp_path / "b.jpg"]
    photo(300, 200).save(paths[0])
    photo(128, 128).save(paths[1])
    found = features.measure(extractor, paths, tmp_path / "kept")["features"]
    assert found.shape == (2, 2048) and torch.isfinite(found).all() and found.std() > 0
    kept = list((tmp_path / "kept").iterdir())
    assert len(kept) == 1
    assert torch.equal(features.measure(extractor, paths, tmp_path / "kept")["features"], found)
    photo(128, 120).save(paths[1])  # another picture under the same name
    again = features.measure(extractor, paths, tmp_path / "kept")["features"]
    assert torch.equal(again[0], found[0]) and not torch.equal(again[1], found[1])
    save_file({"fc.weight": torch.zeros(2)}, tmp_path / "other.safetensors")
    assert "not the Inception of FID" in refused(features.inception, tmp_path / "other.safetensors")
    (tmp_path / "w.pth").write_bytes(b"PK\x03\x04")
    assert "pickle" in refused(features.inception, tmp_path / "w.pth")


def test_torch_fidelity_agrees_on_inception(
    inception_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    theirs = second("torch_fidelity.feature_extractor_inceptionv3")
    from safetensors.torch import load_file

    from tiue_core.evaluate.inception import Inception

    weights = load_file(inception_file)
    whole = {**weights, "fc.weight": torch.zeros(1008, 2048), "fc.bias": torch.zeros(1008)}
    monkeypatch.setattr(theirs.torch, "load", lambda *_, **__: whole)
    network = theirs.FeatureExtractorInceptionV3("x", ["2048"], "any")
    assert set(network.state_dict()) == set(whole)
    image = torch.from_numpy(np.array(photo(299, 299))).permute(2, 0, 1)[None]
    expected = network(image)[0]
    found = Inception.load(inception_file)(image.float())
    assert (found - expected).abs().max() < 1e-4 * expected.abs().max()


@pytest.fixture
def clip_folder(tmp_path: Path) -> Path:
    """A tiny random CLIP in transformers' layout."""
    from small import small_tokenizer
    from transformers import CLIPConfig, CLIPModel

    folder = tmp_path / "clip"
    folder.mkdir()
    tokenizer = small_tokenizer(folder)
    tokenizer.save_pretrained(folder)
    ids = {"bos_token_id": len(tokenizer) - 2, "eos_token_id": len(tokenizer) - 1}
    shared = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2}
    shared |= {"num_attention_heads": 4}
    config = CLIPConfig(
        text_config={**shared, **ids, "vocab_size": len(tokenizer), "max_position_embeddings": 48},
        vision_config={**shared, "image_size": 32, "patch_size": 8},
        projection_dim=24,
    )
    torch.manual_seed(0)
    CLIPModel(config).save_pretrained(folder)
    return folder


def test_clip_score_is_torchmetrics_without_the_hundred(
    clip_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from torchmetrics.multimodal.clip_score import CLIPScore
    from transformers import CLIPImageProcessor, CLIPModel, CLIPProcessor, CLIPTokenizerFast

    extractor = features.clip("clip-b32", clip_folder)
    prompts = ["a red fox", "two cats"]
    paths = [tmp_path / "0.png", tmp_path / "1.png"]
    photo(300, 200).save(paths[0])
    photo(90, 128).save(paths[1])
    looked = features.measure(extractor, paths)["image"]
    assert extractor.texts is not None
    found = features.clip_scores(looked, extractor.texts(prompts))
    assert found.shape == (2,) and (found.abs() <= 1).all()

    def their() -> Any:
        images = CLIPImageProcessor(size={"shortest_edge": 32}, crop_size=32)
        tokenizer = CLIPTokenizerFast.from_pretrained(clip_folder)
        model = CLIPModel.from_pretrained(clip_folder).eval()
        for name in ("get_image_features", "get_text_features"):  # not tensors since transformers 5
            original = getattr(model, name)

            def features_of(*given: Any, original: Any = original, **more: Any) -> torch.Tensor:
                out = original(*given, **more)
                return out if isinstance(out, torch.Tensor) else out.pooler_output

            monkeypatch.setattr(model, name, features_of)
        return model, CLIPProcessor(image_processor=images, tokenizer=tokenizer)

    try:
        model, processor = their()
    except ImportError as missing:  # the processor wants torchvision in some versions
        pytest.skip(str(missing))
    for i in range(2):
        metric = CLIPScore(model_name_or_path=lambda: (model, processor))
        square = features.crop_256(Image.open(paths[i]).convert("RGB"))
        pixels = torch.from_numpy(np.array(square)).permute(2, 0, 1)
        metric.update(pixels, "A photo depicts " + prompts[i])
        score = float(metric.compute())  # clamped at zero
        assert max(float(found[i]), 0) == pytest.approx(score / 100, abs=2e-3)
    assert "needs one picture a prompt" in refused(
        features.clip_scores, looked, extractor.texts(prompts[:1])
    )
    assert "has no CLIP" in refused(features.clip, "clip-g14", tmp_path)


def test_a_run_with_clip_alone(clip_folder: Path, tmp_path: Path) -> None:
    """No reference is needed, and the interval is that of a mean."""
    clip = features.clip("clip-b32", clip_folder)
    listed = tmp_path / "list.txt"
    listed.write_text("\n".join(["a cat", "a dog", "a pig", "an owl"]))
    mine = pictures(tmp_path / "mine", 4)
    dataset = data.data_set(str(listed))
    result = evaluate(
        tmp_path / "run", (f"images:{mine}",), dataset, extractor=None, clips=(clip,), halves=8
    )
    assert set(numbers(result)["images"]) == {"clip-b32"}
    figure = numbers(result)["images"]["clip-b32"]
    assert figure["low"] < figure["value"] < figure["high"]
    assert "CLIP B/32" in table.markdown(result)


# --- time ----------------------------------------------------------------------------------


def test_time_is_of_the_parts_and_the_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    from tiue_core.baselines.find import find
    from tiue_core.baselines.load import load

    calls = {"text": 0, "vae": 0}
    pipe = load(find("stickers-teacher-4"), device="cpu")
    for name, module in (("text", pipe.text_encoder), ("vae", pipe.vae.decoder)):
        forward = module.forward

        def slower(*args: Any, name: str = name, forward: Any = forward, **more: Any) -> Any:
            calls[name] += 1
            time.sleep(0.05)
            return forward(*args, **more)

        monkeypatch.setattr(module, "forward", slower)
    found = latency.measure(pipe, side=128, decoders="exact", rounds=2)
    assert calls["vae"] == 4 and calls["text"] == 8  # the prompt and the empty one, every time
    assert found["vae"] >= 50 and found["text"] >= 100 and found["unet"] > 0
    assert found["low"] <= found["ms"] <= found["high"]
    assert found["ms"] >= 150 and found["pixels"] == 128


def test_a_student_reads_its_prompt_every_time() -> None:
    """It remembers prompts, which must not flatter it."""
    from tiue_core.baselines.find import find
    from tiue_core.baselines.load import load

    pipe = load(find("stickers"), device="cpu")
    found = latency.measure(pipe, side=128, decoders="exact", rounds=3)
    assert found["text"] > 0
    assert found["text"] + found["vae"] < found["high"]


# --- the command ---------------------------------------------------------------------------


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from tiue_core import cli
    from tiue_core.baselines.registry import REGISTRY

    def run(*arguments: str) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as ended:
            cli.main(["evaluate", *arguments])
        caught = capsys.readouterr()
        return int(ended.value.code or 0), caught.out, caught.err

    status, out, _ = run("--list-systems", "--json")
    rows = json.loads(out)
    assert status == 0 and [row["name"] for row in rows] == list(REGISTRY)
    assert all(row["licence"] and row["about"] for row in rows)
    status, out, _ = run("--list-systems")
    assert all(name in out for name in REGISTRY) and "Stability AI" in out
    status, out, _ = run("--paper")
    assert status == 0 and "Table S1" in out and "Table S2" in out and "0.468 [" in out
    status, out, _ = run("--paper", "--json")
    assert len(json.loads(out)["suspect"]) >= 4
    for wrong in (
        ("sd-turbos", "--data", "stickers"),
        ("stickers", "--data", "nothing"),
        ("stickers", "--data", "afhq"),
        ("--data", "drawbench"),
        ("stickers", "--data", "stickers", "--clip", "clip-b16=x"),
        ("stickers", "--data", "stickers", "--features", str(tmp_path / "none.safetensors")),
    ):
        status, out, err = run(*wrong, "--out", str(tmp_path / "run"), "--no-time")
        assert status == 1 and not out and err.startswith("error: ") and err.count("\n") == 1, wrong
    assert not (tmp_path / "run").exists()


def test_generate_with_a_system(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from tiue_core import cli
    from tiue_core.io.images import read_metadata

    def run(*arguments: str) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as ended:
            cli.main(["generate", *arguments])
        caught = capsys.readouterr()
        return int(ended.value.code or 0), caught.out, caught.err

    given = ("--system", "stickers-teacher-4", "--device", "cpu")
    rounded = (*given, "--dtype", "bfloat16")  # the picture says so, and is made again that way
    status, out, _ = run("a cat on a blue background", *rounded, "--out", str(tmp_path / "a"))
    assert status == 0
    path = Path(out.strip())
    metadata = read_metadata(path)
    assert (metadata["system"], metadata["guidance"]) == ("stickers-teacher-4", 2.0)
    assert metadata["timesteps"] == [751, 501, 251, 1]
    status, out, _ = run("--like", str(path), "--device", "cpu", "--out", str(tmp_path / "b"))
    assert status == 0 and Path(out.strip()).read_bytes() == path.read_bytes()
    status, _, err = run("a cat", *given, "--student", "stickers", "--out", str(tmp_path / "c"))
    assert status == 1 and "--student" in err and not (tmp_path / "c").exists()
    status, out, _ = run("a cat", *given, "--width", "63", "--json", "--out", str(tmp_path / "d"))
    assert status == 1 and "multiple of 8" in json.loads(out)["error"]
