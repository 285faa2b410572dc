"""The engine: folders that are complete, whatever came in between."""

from __future__ import annotations

import errno
import json
import os
import signal
import sys
import threading
import time
from pathlib import Path
from typing import Any

import helpers_batch as helpers
import numpy as np
import pytest
from helpers_batch import make
from PIL import Image

from tiue_core import cli
from tiue_core.batch import session as sessions
from tiue_core.batch.manifest import Manifest, only_one
from tiue_core.batch.options import RunOptions as Plan
from tiue_core.batch.overview import contact_sheets, html_index
from tiue_core.errors import TiueError
from tiue_core.io import files
from tiue_core.io.images import SUFFIXES, a1111_parameters, encode, read_metadata

LIST = "prompt,seed,width,count\na cat,1,,2\na dog,2,32,1\na fox,3,,3\na bee,4,32,1\n"


@pytest.fixture
def plan(tmp_path: Path) -> Plan:
    path = tmp_path / "list.csv"
    path.write_text(LIST)
    return Plan(path, batch_size=2)


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "out"


def kinds(results: list[Any]) -> list[str]:
    return sorted(result.kind for result in results)


def pictures(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.glob("*.png")}


def records(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "manifest.jsonl").read_text().splitlines()]


# --- what a run makes ----------------------------------------------------------------------


def test_files_manifest_and_metadata_agree(plan: Plan, out: Path) -> None:
    run, results = make(plan, out)
    assert run.finished and run.counts.complete and kinds(results) == ["made"] * 7
    assert sorted(pictures(out)) == [
        *("000000_a-cat_1.png", "000001_a-cat_2.png", "000002_a-dog_2.png", "000003_a-fox_3.png"),
        *("000004_a-fox_4.png", "000005_a-fox_5.png", "000006_a-bee_4.png"),
    ]
    for record in records(out):
        metadata = read_metadata(out / record["file"])
        assert metadata["job"] == record["id"]
        assert {record[key] == metadata[key] for key in ("prompt", "seed", "width")} == {True}
        with Image.open(out / record["file"]) as image:
            assert image.size == (record["width"], record["height"])
            assert image.getpixel((0, 0)) == (record["seed"], 0, 0)


def test_batches_share_a_size_and_are_full(plan: Plan, out: Path) -> None:
    studio = helpers.studio()
    make(plan, out, studio=studio)
    assert studio.painter.batches == [  # type: ignore[attr-defined]
        *(["a cat", "a cat"], ["a fox", "a fox"], ["a fox"], ["a dog", "a bee"]),
    ]


def test_twice_is_nothing_new(plan: Plan, out: Path) -> None:
    make(plan, out)
    before = {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in out.glob("*.png")}
    manifest = (out / "manifest.jsonl").read_bytes()
    studio = helpers.studio()
    run, results = make(plan, out, studio=studio)
    assert kinds(results) == ["there"] * 7 and run.counts.complete
    assert studio.painter.batches == [] and studio.notes == []  # type: ignore[attr-defined]
    assert (out / "manifest.jsonl").read_bytes() == manifest
    after = {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in out.glob("*.png")}
    assert after == before


@pytest.mark.parametrize("after", range(4))
def test_stopped_and_run_again(plan: Plan, out: Path, tmp_path: Path, after: int) -> None:
    make(plan, tmp_path / "whole")
    with helpers.studio().run(plan, out) as run:
        for count, _ in enumerate(run):
            if count == after:
                run.cancel()
    assert not run.finished and run.counts.made == len(pictures(out)) == len(records(out))
    assert run.counts.made <= after + 4  # what was being painted, and no more
    make(plan, out)
    assert pictures(out) == pictures(tmp_path / "whole")
    assert len({record["id"] for record in records(out)}) == len(records(out)) == 7


def test_a_batch_that_is_cut_is_painted_whole_again(plan: Plan, out: Path) -> None:
    """A picture's last bit can depend on its batch, so batches stay what they were."""
    make(plan, out)
    whole = pictures(out)
    (out / "000001_a-cat_2.png").unlink()
    studio = helpers.studio()
    run, _ = make(plan, out, studio=studio)
    assert studio.painter.batches == [["a cat", "a cat"]]  # type: ignore[attr-defined]
    assert run.counts.made == 1 and pictures(out) == whole
    assert "1 pictures of the manifest are gone" in studio.notes[0]


def test_a_file_without_its_line_gets_it(plan: Plan, out: Path) -> None:
    """Killed between the two: the file is known by the id inside."""
    make(plan, out)
    whole, manifest = pictures(out), out / "manifest.jsonl"
    lines = manifest.read_bytes().splitlines(keepends=True)
    manifest.write_bytes(b"".join(lines[:3]) + lines[3][:20])  # and a line cut off
    (out / ".tiue-0123.part").write_bytes(b"half")
    os.utime(out / ".tiue-0123.part", (0, 0))
    (out / ".tiue-4567.part").write_bytes(b"half")
    os.utime(out / ".tiue-4567.part", (4e9, 4e9))  # by a clock that was wrong
    run, _ = make(plan, out)
    assert run.counts.made == 4 and run.counts.there == 3 and pictures(out) == whole
    found = [record["id"] for _, record in Manifest(out, "").__class__(out, "")._lines()]
    assert len(found) == len(set(found)) == 7
    assert not list(out.glob("*.part"))


def test_somebody_elses_file_stays(plan: Plan, out: Path) -> None:
    out.mkdir()
    Image.new("RGB", (4, 4)).save(out / "000000_a-cat_1.png")
    theirs = (out / "000000_a-cat_1.png").read_bytes()
    _, results = make(plan, out)
    made = [result.path.name for result in results if result.job.index == 0]
    assert (out / "000000_a-cat_1.png").read_bytes() == theirs
    assert made[0].startswith("000000_a-cat_1_") and len(pictures(out)) == 8


def test_equal_rows_and_equal_names(tmp_path: Path, out: Path) -> None:
    plan = Plan("a cat --seed 1\na cat --seed 1\na dog --name x\na fox --name x\n", names="{slug}")
    _, results = make(plan, out)
    assert kinds(results) == ["again", "made", "made", "made"]
    names = sorted(pictures(out))
    assert names[0] == "a-cat.png" and names[1] == "x.png" and names[2].startswith("x_")
    _, results = make(plan, out)
    assert kinds(results) == ["again", "there", "there", "there"] and sorted(pictures(out)) == names


def test_rows_that_fail(tmp_path: Path, out: Path) -> None:
    plan = Plan("a cat --seed 1\nFAIL --seed 1\na dog --seed 1\n--seed 3\n")
    run, results = make(plan, out)
    assert kinds(results) == ["bad", "failed", "made", "made"] and not run.counts.complete
    assert [r.message for r in results if r.kind == "failed"] == ["line 2: it was asked to fail"]
    studio = helpers.studio()
    _, results = make(plan, out, studio=studio)
    assert kinds(results) == ["bad", "failed", "there", "there"]
    assert studio.painter.batches == []  # type: ignore[attr-defined]
    studio.painter._one = lambda job: Image.new("RGB", (8, 8))  # type: ignore[attr-defined]
    run, results = make(plan, out, studio=studio, retry_failed=True)
    assert kinds(results) == ["bad", "made", "there", "there"]
    assert len(pictures(out)) == 3


def test_a_list_that_changed(plan: Plan, out: Path) -> None:
    make(plan, out)
    text = LIST.replace("a dog,2,32,1\n", "a new one,,,1\n")
    plan.source.write_text(text)  # type: ignore[union-attr]
    studio = helpers.studio()
    _, results = make(plan, out, studio=studio)
    assert kinds(results) == ["made"] + ["there"] * 6
    assert studio.painter.batches == [["a new one"]]  # type: ignore[attr-defined]
    assert "list.csv or its options changed" in studio.notes[0]
    assert "1 pictures in" in studio.notes[1] and "does not have" in studio.notes[1]
    other = helpers.studio(student_hash="cd" * 32)
    _, results = make(plan, out, studio=other)
    assert kinds(results) == ["made"] * 7 and "the student is not that" in other.notes[0]


def test_a_list_that_changes_while_it_is_read(plan: Plan, out: Path) -> None:
    studio = helpers.studio()
    with studio.run(plan, out) as run:
        for _ in run:
            plan.source.write_text(LIST + "a cow,9,,1\n")  # type: ignore[union-attr]
    assert "changed while it was read" in studio.notes[-1]


def test_only_one_run_in_a_folder(plan: Plan, out: Path) -> None:
    out.mkdir()
    with only_one(out), pytest.raises(TiueError, match="another run"):
        make(plan, out)
    make(plan, out)


# --- the disk ------------------------------------------------------------------------------


def test_a_full_disk(plan: Plan, out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write = files.os.fsync
    seen: list[int] = []

    def full(handle: int) -> None:
        seen.append(handle)
        if len(seen) > 5:
            raise OSError(errno.ENOSPC, "No space left on device")
        write(handle)

    monkeypatch.setattr(files.os, "fsync", full)
    with pytest.raises(TiueError, match="no space left") as error:
        make(plan, out)
    assert "\n" not in str(error.value)
    monkeypatch.undo()
    assert not list(out.glob("*.part"))
    made = {record["file"] for record in records(out)}
    assert made == set(pictures(out)) and 0 < len(made) < 7
    run, _ = make(plan, out)
    assert run.counts.made == 7 - len(made) and len(pictures(out)) == 7


@pytest.mark.skipif(sys.platform != "linux" or os.geteuid() != 0, reason="mounts a small disk")
def test_a_disk_that_is_really_full(tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    if os.system(f"mount -t tmpfs -o size=256k none {disk} 2>/dev/null"):
        pytest.skip("no mount here")
    try:
        text = "".join(f"a cat --seed {seed} --width 256 --height 256\n" for seed in range(400))
        with pytest.raises(TiueError, match="no space left"):
            make(Plan(text), disk / "out")
        for path in (disk / "out").glob("*.png"):
            with Image.open(path) as image:
                image.load()
        assert not list((disk / "out").glob("*.part"))
        names = {record["file"] for _, record in Manifest(disk / "out", "")._lines()}
        assert names <= set(pictures(disk / "out")) and len(names) > 10
    finally:
        os.system(f"umount {disk}")


def test_a_folder_that_goes_away(plan: Plan, out: Path, tmp_path: Path) -> None:
    with (
        pytest.raises(TiueError, match="is gone: bring it back"),
        helpers.studio().run(plan, out) as run,
    ):
        for _ in run:
            if out.exists():
                out.rename(tmp_path / "unplugged")
    assert not out.exists()
    (tmp_path / "unplugged").rename(out)
    make(plan, out)
    assert len(pictures(out)) == 7


def test_links_that_lead_out(tmp_path: Path, out: Path) -> None:
    out.mkdir()
    (tmp_path / "elsewhere").mkdir()
    (out / "cats").symlink_to(tmp_path / "elsewhere", target_is_directory=True)
    with pytest.raises(TiueError, match="leads out of"):
        make(Plan("a cat --name cats/x\n"), out)
    assert not list((tmp_path / "elsewhere").iterdir())


# --- metadata ------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", SUFFIXES)
def test_metadata_of_every_format(plan: Plan, out: Path, kind: str) -> None:
    plan = Plan("a {cat|dog}, 猫 --negative 'bad \"art\"' --seed 7\n")
    _, results = make(plan, out, kind=kind)
    path = results[0].path
    assert path.suffix == SUFFIXES[kind]
    metadata = read_metadata(path)
    assert metadata["template"] == "a {cat|dog}, 猫" and metadata["negative"]
    assert metadata["prompt"] in ("a cat, 猫", "a dog, 猫") and metadata["seed"] == 7
    _, results = make(plan, out.with_name("bare"), kind=kind, metadata=False)
    with Image.open(results[0].path) as image:
        assert not image.getexif() and not getattr(image, "text", {})
    with pytest.raises(TiueError, match="does not say"):
        read_metadata(results[0].path)


@pytest.mark.parametrize("kind", SUFFIXES)
def test_a_reader_of_a1111_reads_it(kind: str, tmp_path: Path) -> None:
    """sd-parsers is such a reader, and none of ours."""
    from sd_parsers import ParserManager

    job = {
        "prompt": "a cat, on blue",
        "negative": "ugly, bad",
        "seed": 7,
        "width": 64,
        "height": 48,
    }
    metadata = {**job, "student": "plain", "student_hash": "ab" * 32, "timesteps": [9, 8, 7, 6]}
    path = tmp_path / f"picture{SUFFIXES[kind]}"
    path.write_bytes(encode(Image.new("RGB", (64, 48)), metadata, kind))
    info = ParserManager().parse(path)
    assert info is not None
    assert [prompt.value for prompt in info.prompts] == ["a cat, on blue"]
    assert [prompt.value for prompt in info.negative_prompts] == ["ugly, bad"]
    (sampler,) = info.samplers
    assert (sampler.name, sampler.parameters["seed"]) == ("TiUE", "7")
    assert [(model.name, model.hash) for model in info.models] == [("plain", "ab" * 5)]


def test_metadata_too_long_for_jpeg(tmp_path: Path) -> None:
    metadata = {"prompt": "猫" * 10_000, "seed": 1, "width": 8, "height": 8}
    with pytest.raises(TiueError, match="too long for JPEG"):
        encode(Image.new("RGB", (8, 8)), metadata, "jpeg")
    assert "Negative" not in a1111_parameters(metadata)


# --- to look at ----------------------------------------------------------------------------


def test_index_and_sheets(plan: Plan, out: Path) -> None:
    hostile = "</script><script>alert(1)</script> & 'x'"
    plan = Plan(f"{hostile} --seed 1 --name a/b\na cat --count 20\n")
    run, _ = make(plan, out)
    page = html_index(out, run.manifest.made()).read_text()
    data = page.split('id="data">')[1].split("</script>")[0]
    entries = json.loads(data)
    assert len(entries) == 21 and entries[0]["prompt"] == hostile
    assert page.count("<script") == 2 and all((out / entry["file"]).exists() for entry in entries)
    (sheet,) = contact_sheets(out, run.manifest.made())
    with Image.open(sheet) as image:
        array = np.asarray(image)
    for entry in entries[1:]:  # every picture's colour is on the sheet
        seed = int(entry["seed"])
        colour = [seed >> shift & 255 for shift in (0, 8, 16)]
        assert (np.abs(array.astype(int) - colour).max(axis=2) < 8).any()


# --- the command line ----------------------------------------------------------------------


@pytest.fixture
def tiue(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Any:
    monkeypatch.setattr(sessions.BatchSession, "open", lambda *_, **__: helpers.studio())

    def run(*words: Any) -> tuple[int, str, str]:
        capfd.readouterr()
        with pytest.raises(SystemExit) as ended:
            cli.main(["batch", *map(str, words)])
        return (int(ended.value.code or 0), *capfd.readouterr())

    return run


def test_the_command(tiue: Any, plan: Plan, out: Path) -> None:
    status, text, err = tiue(plan.source, "--out", out)
    assert status == 0 and err == "" and text.startswith("7 made, ")
    assert (out / "index.html").exists() and (out / "sheet-001.jpg").exists()
    status, text, _ = tiue(plan.source, "--out", out, "--json", "--no-sheet")
    assert status == 0 and json.loads(text)["there"] == 7


def test_strict_makes_nothing(tiue: Any, tmp_path: Path, out: Path) -> None:
    path = tmp_path / "list.csv"
    path.write_text("prompt,seed\na cat,1\na dog,x\n")
    status, text, err = tiue(path, "--out", out, "--strict", "--json")
    assert status == 1 and "list.csv:3: seed: 'x' is no seed" in err and not pictures(out)
    assert json.loads(text)["bad_rows"][0]["line"] == 3
    status, _, err = tiue(path, "--out", out)
    assert status == 1 and len(pictures(out)) == 1 and "1 made, 1 bad rows" in err


def test_dry_run_makes_nothing(tiue: Any, plan: Plan, out: Path) -> None:
    status, text, _ = tiue(plan.source, "--out", out, "--dry-run", "--json")
    assert status == 0 and not out.exists()
    told = json.loads(text)
    assert told["to_make"] == 7 and told["seconds"] >= 0
    assert told["first"][0] == {"file": "000000_a-cat_1", "prompt": "a cat", "seed": 1}


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--format", "gif"], "gif: give png or jpeg or webp"),
        (["--count", "0"], "0: give 1 or more"),
        (["--names", "../x"], "leads out of the folder"),
        (["--wildcards", "nowhere"], "no folder of wildcard files"),
        (["--student", "stikers"], "try stickers"),
        (["--engine", "rey"], "rey: give local or ray"),
        (["--encoding", "utf-99"], "no encoding 'utf-99'"),
    ],
)
def test_options_that_make_no_sense(tiue: Any, plan: Plan, words: Any, message: str) -> None:
    status, _, err = tiue(plan.source, *words)
    assert status in (1, 2) and message in err and len(err.splitlines()) == 1


def test_ctrl_c_stops_after_the_batch(
    tiue: Any, plan: Plan, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    paint = helpers.PlainPainter.paint

    def pressed(self: Any, jobs: Any) -> Any:
        if len(self.batches) == 1:
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(0.3)  # another thread may be the one to hear of it
        return paint(self, jobs)

    monkeypatch.setattr(helpers.PlainPainter, "paint", pressed)
    status, _, err = tiue(plan.source, "--out", out, "--batch-size", "2")
    assert threading.current_thread() is threading.main_thread()
    assert status == 130 and "stopping after this batch" in err and "; run again to go on" in err
    assert len(pictures(out)) == len(records(out)) == 4
    monkeypatch.undo()


def test_a_full_disk_is_one_line(
    tiue: Any, tmp_path: Path, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "list.txt"
    path.write_text("".join(f"a cat --seed {i}\n" for i in range(50)))
    seen: list[int] = []

    def full(handle: int) -> None:
        seen.append(handle)
        if len(seen) > 20:
            raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(files.os, "fsync", full)
    status, text, err = tiue(path, "--out", out, "--json")
    assert status == 1 and err.startswith("error: no space left") and len(err.splitlines()) == 1
    assert json.loads(text)["made"] == len(pictures(out)) == len(records(out)) > 0


def test_a_bad_folder_is_told_before_anything_is_loaded(plan: Plan, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(SystemExit) as ended:
        cli.main(["batch", str(plan.source), "--out", str(tmp_path / "file")])
    assert ended.value.code == 1


def test_a_picture_of_a_list_can_be_made_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """By `tiue generate --like`, from what the file says, and by a real pipeline."""
    import helpers_students
    from safetensors.torch import save_file

    from tiue_core import students

    student = helpers_students.make_student(tmp_path / "tiny")
    built_in = students.Student("stickers", "small", "Apache-2.0", folder=student)
    monkeypatch.setitem(students.REGISTRY, "stickers", built_in)
    save_file(helpers_students.lora_tensors(), tmp_path / "ink.safetensors")
    path = tmp_path / "list.txt"
    rows = ["a {cat|dog} --seed 3 --count 3", "a fox --seed 1 --lora ink:0.5 --width 24"]
    rows.append("long words " * 20 + "--seed 2 --negative ugly --decoders fast")
    path.write_text("\n".join(rows))

    def tiue(*words: Any) -> None:
        with pytest.raises(SystemExit) as ended:
            cli.main([*map(str, words), "--device", "cpu"])
        assert not ended.value.code, capfd.readouterr().err

    for kind in ("png", "webp"):
        out = tmp_path / kind
        tiue("batch", path, "--out", out, "--loras", tmp_path, "--format", kind)
        made = sorted(out.glob(f"0*.{kind}"))
        assert len(made) == 5
        err = capfd.readouterr().err
        assert err.count("1 prompts are longer") == err.count("1 negative prompts") == 1
        for picture in made:
            lora = ["--lora", tmp_path / "ink.safetensors"] if "fox" in picture.name else []
            tiue("generate", "--like", picture, "--out", out / "again", *lora)
            (again,) = (out / "again").glob("*.png")
            # WebP loses some, but what it says of its making is the same
            lossless = tmp_path / "png" / f"{picture.stem}.png"
            with Image.open(lossless) as one, Image.open(again) as other:
                difference = np.abs(np.asarray(one).astype(int) - np.asarray(other))
            assert difference.max() <= 1
            again.unlink()
    fox = [np.asarray(Image.open(path)) for path in sorted((tmp_path / "png").glob("*fox*"))]
    assert fox[0].shape[:2] == (16, 24)
