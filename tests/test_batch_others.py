"""Lists that other tools wrote: read as they were meant, or refused row by row."""

from __future__ import annotations

import errno
from pathlib import Path
from typing import Any

import helpers_batch as helpers
import pytest
from helpers_batch import make
from PIL import Image

from tiue_core.batch.jobs import Job
from tiue_core.batch.lists import read_text
from tiue_core.batch.options import RunOptions
from tiue_core.errors import TiueError


def jobs(source: Any, kind: str | None = "txt", **options: Any) -> list[Any]:
    return list(RunOptions(source, kind, **options).jobs(helpers.SETTINGS))


def one(source: Any, kind: str | None = "txt", **options: Any) -> Job:
    (job,) = jobs(source, kind, **options)
    assert isinstance(job, Job), job
    return job


def wrong(source: Any, kind: str | None = "txt", **options: Any) -> str:
    return "\n".join(str(row) for row in jobs(source, kind, **options) if not isinstance(row, Job))


def test_options_of_kohya_and_midjourney() -> None:
    job = one("1girl, :d --n ugly, bad --w 64 --h 32 --d 47 --l 7 --s 20")
    assert (job.prompt, job.negative) == ("1girl, :d", "ugly, bad")
    assert (job.width, job.height, job.seed) == (64, 32, 47)
    assert one("a cat --seed 5 --no dogs").negative == "dogs"
    for line in ("a cat --ar 16:9 --seed 5", "a cat --seed 5 --ar 16:9", "a cat --v 6"):
        assert "another program's option" in wrong(line)


@pytest.mark.parametrize(
    ("line", "seed", "negative"),
    [
        ("a cat --seed=7 --no=blue", 7, "blue"),
        ("a cat --Seed 7 --NO blue", 7, "blue"),
        ("a cat \u2014seed 7 \u2013no blue", 7, "blue"),  # what a phone makes of two dashes
        ("a cat --width=64", None, ""),
    ],
)
def test_options_as_people_write_them(line: str, seed: int | None, negative: str) -> None:
    (row,) = read_text(line)
    got = row.row  # type: ignore[union-attr]
    assert (got.prompt, got.seed, got.negative) == ("a cat", seed, negative)


@pytest.mark.parametrize(
    ("text", "kind", "why"),
    [
        ("a cat --sw 50 --seed 1", "txt", "'--sw' is another program's option"),
        ("a cat \u2014ar 16:9", "txt", "give --width and --height"),
        ("Steps: 20, Sampler: Euler a, Seed: 1", "txt", "what a picture says of itself"),
        ("Negative prompt: blurry", "txt", "what a picture says of itself"),
        ("prompt\na cat --ar 16:9\n", "csv", "'--ar' is an option of programs"),
        ('{"text": "a cat --v 6"}', "jsonl", "'--v' is an option of programs"),
        ("- a cat --no dogs", "yaml", "'--no' is an option of programs"),
    ],
)
def test_no_option_becomes_a_word(text: str, kind: str, why: str) -> None:
    (row,) = read_text(text, kind)
    assert why in str(row)


def test_dashes_that_are_no_options_stay() -> None:
    for text in ("a cat --sitting", "50% off -- a sale", "a --- b", "a \u2014sitting\u2014 cat"):
        (row,) = read_text(text)
        assert row.row.prompt == text  # type: ignore[union-attr]


def test_columns_of_data_sets() -> None:
    assert one("Prompts,Category\nA red car.,Colors\n", "csv").prompt == "A red car."
    row = '{"file_name": "0.png", "text": "a cat", "ok": true, "tags": ["x"], "a.b[0]": null}\n'
    assert one(row, "jsonl").prompt == "a cat"
    assert one('{"prompt": "a", "text": "b"}\n', "jsonl").prompt == "a"
    tsv = 'Prompt\tNote\na 12" pizza\tx\n"a b\ty\n'
    assert [job.prompt for job in jobs(tsv, "csv")] == ['a 12" pizza', '"a b']
    assert one("Prompt\tseed\r\na cat\t3\r\n").seed == 3  # Excel's "Unicode text"


def test_a_column_is_there_or_is_an_error_with_the_nearest_name() -> None:
    assert one("prompt,My Colour\na {my colour} cat,red\n", "csv").prompt == "a red cat"
    assert "{colr} is no column: did you mean {colour}" in wrong(
        "prompt,colour\na {colr} cat,red\n", "csv"
    )
    assert one("prompt,mood\na {mood} fox,\n", "csv").prompt == "a fox"
    assert "true (quote it" in wrong('{"prompt": "a {x}", "x": true}\n', "jsonl")


def test_styles_of_a1111() -> None:
    text = 'name,prompt,negative_prompt\nbase,{prompt} . sharp,"ugly, bad"\nbare,,ugly\n'
    assert [job.prompt for job in jobs(text, "csv", subject="a cat")] == ["a cat . sharp", "a cat"]
    assert "there is no prompt" in wrong(text, "csv")


@pytest.mark.parametrize(
    "line",
    [
        'ink, "ink drawing of {prompt}, fine, black", "photo, blurry"',  # blanks before quotes
        'ink, "ink drawing of {prompt}, fine, black," "photo, blurry"',  # the comma inside
        'ink,"ink drawing of {prompt}, fine, black","photo, blurry"',
        'ink,"ink drawing of {prompt}, fine, black,"photo, blurry"',  # no quote at the end
    ],
)
def test_styles_with_quotes_as_people_write_them(line: str) -> None:
    (row,) = read_text(f"name,prompt,negative_prompt\n{line}\n", "csv")
    assert row.row.prompt == "ink drawing of {prompt}, fine, black"  # type: ignore[union-attr]
    assert row.row.negative == "photo, blurry"  # type: ignore[union-attr]


def test_rows_that_count_otherwise_stay_bad() -> None:
    text = 'prompt,mood\na "cat", "calm, still", x\nfox, wild\nowl,"all, of it\n'
    bad, fox, open_quote = read_text(text, "csv")
    assert "4 fields where the header has 2" in str(bad) or "3 fields" in str(bad)
    assert fox.row.columns == {"mood": "wild"}  # type: ignore[union-attr]
    assert "a quote that is opened here never closes" in str(open_quote)


def test_loras_in_prompts(tmp_path: Path) -> None:
    import helpers_students
    from safetensors.torch import save_file

    save_file(helpers_students.lora_tensors(), tmp_path / "ink.safetensors")
    job = one("a cat, <lora:ink:0.8> sharp", loras=tmp_path)
    assert job.prompt == "a cat, sharp" and job.loras[0][1] == 0.8
    assert "give --loras FOLDER" in wrong("a cat <lora:ink:0.8>")
    assert "no 'pen' in" in wrong("a cat {<lora:pen:1>|<lora:pen:2>}", loras=tmp_path)


def test_smaller_things() -> None:
    assert "what a spreadsheet writes for an error" in wrong("prompt,seed\n#N/A,1\n", "csv")
    own = one("a cat").seed
    assert one('{"prompt": "a cat", "seed": -1.0}\n', "jsonl").seed == own
    assert one("- {prompt: a cat, seed: 0123}\n", "yaml").seed == 123
    assert "seed" in wrong("- {prompt: a cat, seed: 1:30}\n", "yaml")
    assert "comes out empty" in wrong("{|}")
    assert "there is no row in this list" in wrong("")


def test_a_list_from_a_pipe(tmp_path: Path) -> None:
    import os
    import threading

    from tiue_core.batch.lists import once

    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    writer = threading.Thread(target=pipe.write_text, args=("a cat\na dog\n",))
    writer.start()
    text = once(pipe)
    writer.join()
    assert isinstance(text, str) and len(jobs(text)) == 2


def test_own_files_stay(tmp_path: Path) -> None:
    from tiue_core.batch.overview import contact_sheets, html_index

    (tmp_path / "index.html").write_text("mine")
    options = RunOptions("a cat --name sheet-001\n", format="jpeg")
    run, _ = make(options, tmp_path)
    picture = (tmp_path / "sheet-001.jpg").read_bytes()
    for _ in range(2):
        assert html_index(tmp_path, run.manifest.made()).name == "index-tiue.html"
        assert [p.name for p in contact_sheets(tmp_path, run.manifest.made())] == [
            "sheet-001-tiue.jpg"
        ]
    assert (tmp_path / "index.html").read_text() == "mine"
    assert (tmp_path / "sheet-001.jpg").read_bytes() == picture
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "manifest.jsonl").write_text('{"name": "not ours"}\n')
    with pytest.raises(TiueError, match="is no manifest"):
        make(options, tmp_path / "other")


def test_one_picture_that_cannot_be_written_fails_alone(tmp_path: Path) -> None:
    long = "猫" * 9_900
    run, results = make(RunOptions(f"a cat\n{long}\na dog\n", format="jpeg"), tmp_path)
    assert sorted(result.kind for result in results) == ["failed", "made", "made"]
    assert run.finished and not run.counts.complete


def test_names_are_cut_to_what_the_folder_takes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tiue_core.batch import engine

    monkeypatch.setattr(engine.os, "pathconf", lambda *_: 80)  # as on an encrypted disk
    make(RunOptions("a cat --name " + "猫" * 60), tmp_path)
    (path,) = tmp_path.glob("*.png")
    assert len(path.name.encode()) <= 80
    assert errno.ENAMETOOLONG in engine._NAMELESS


def test_another_format_is_made(tmp_path: Path) -> None:
    options = RunOptions("a cat\n")
    make(options, tmp_path)
    _, results = make(RunOptions("a cat\n", format="webp"), tmp_path)
    assert [result.kind for result in results] == ["made"] and list(tmp_path.glob("*.webp"))
    _, results = make(options, tmp_path)
    assert [result.kind for result in results] == ["there"]


def test_a_reader_is_not_misled_by_a_quoted_negative(tmp_path: Path) -> None:
    from sd_parsers import ParserManager

    make(RunOptions("a sign that says Negative prompt: none --negative ugly\n"), tmp_path)
    (path,) = tmp_path.glob("*.png")
    info = ParserManager().parse(path)
    assert info is not None and [one.value for one in info.negative_prompts] == ["ugly"]


def test_like_on_a_huge_picture(tmp_path: Path) -> None:
    from tiue_core.io.images import read_metadata

    Image.new("1", (20_000, 10_000)).save(tmp_path / "huge.png")
    with pytest.raises(TiueError, match="too many pixels"):
        read_metadata(tmp_path / "huge.png")
