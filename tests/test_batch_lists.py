"""Prompt lists: what they may say, what is said of bad rows, and 500 malformed ones."""

from __future__ import annotations

import io
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import fuzz_lists
import helpers_batch as helpers
import pytest

from tiue_core import cli
from tiue_core.batch import session as sessions
from tiue_core.batch.jobs import (
    BadName,
    Job,
    file_name,
    fill,
    safe,
)
from tiue_core.batch.lists import read_list, read_rows, read_text
from tiue_core.batch.options import Planner
from tiue_core.batch.options import RunOptions as Plan
from tiue_core.batch.schema import BadRow, Row
from tiue_core.batch.syntax import TemplateError
from tiue_core.batch.wildcards import Wildcards
from tiue_core.errors import TiueError


def rows(text: str, kind: str = "txt") -> list[Row]:
    found = list(read_text(text, kind))
    assert not [row for row in found if isinstance(row, BadRow)], found
    return [row.row for row in found]  # type: ignore[union-attr]


def bad(text: str, kind: str = "txt") -> list[str]:
    return [str(row) for row in read_text(text, kind, f"list.{kind}") if isinstance(row, BadRow)]


def prompts(text: str, kind: str = "txt") -> list[str]:
    return [row.row.prompt for row in read_text(text, kind) if not isinstance(row, BadRow)]


# --- the four kinds say the same -----------------------------------------------------------

SAME = {
    "txt": "# a comment\na cat, --seed 3 --width 64 --lora ink:0.5 --count 2 --name x/y\n\na dog\n",
    "csv": 'prompt,seed,width,lora,count,name\n"a cat,",3,64,ink:0.5,2,x/y\n\na dog,,,,,\n',
    "jsonl": '{"prompt": "a cat,", "seed": 3, "width": 64, "lora": {"ink": 0.5}, "count": 2, '
    '"name": "x/y"}\n"a dog"\n',
    "yaml": "- prompt: a cat,\n  seed: 3\n  width: 64\n  lora: [ink:0.5]\n  count: 2\n  name: x/y\n"
    "- a dog\n",
}


@pytest.mark.parametrize("kind", SAME)
@pytest.mark.parametrize("newline", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_four_kinds_one_meaning(tmp_path: Path, kind: str, newline: str, encoding: str) -> None:
    path = tmp_path / f"list.{kind}"
    path.write_bytes(SAME[kind].replace("\n", newline).encode(encoding))
    cat, dog = (row.row for row in read_list(path))  # type: ignore[union-attr]
    assert (cat.prompt, cat.seed, cat.width, cat.count, cat.name) == ("a cat,", 3, 64, 2, "x/y")
    assert [(lora.name, lora.strength) for lora in cat.lora] == [("ink", 0.5)]
    assert dog == Row(prompt="a dog")


def test_lines_of_a1111() -> None:
    line = (
        '--prompt a "big" cat --negative_prompt "bad art, ugly" --steps 20 --cfg_scale 7 --n_iter 3'
    )
    (row,) = rows(f"{line} --seed -1 --sampler_name Euler a --width 64\n")
    assert (row.prompt, row.negative) == ("a big cat", "bad art, ugly")
    assert (row.count, row.seed, row.width) == (3, None, 64)
    assert rows("a cat -- really --so to speak\n")[0].prompt == "a cat -- really --so to speak"


def test_spreadsheets() -> None:
    text = 'sep=;\nPrompt;Negative Prompt;my colour\n"a ""big"" cat\non two lines";ugly;blue\n'
    (row,) = rows(text, "csv")
    assert row.prompt == 'a "big" cat on two lines' and row.negative == "ugly"
    assert row.columns == {"my_colour": "blue"}
    assert prompts("prompt\tseed\na\t1\n", "csv") == ["a"]


@pytest.mark.parametrize(
    ("kind", "text", "message"),
    [
        (
            "csv",
            "prompt,seed\na,x\n",
            "list.csv:2: seed: 'x' is no seed: give a whole number from 0",
        ),
        ("csv", "prompt,seed\na,1,2\n", "list.csv:2: 3 fields where the header has 2"),
        ("csv", "prompt,seed\n,1\n", "list.csv:2: prompt: there is no prompt"),
        ("csv", "a cat\na dog\n", "list.csv:1: the first line names no column 'prompt'"),
        ("csv", "prompt,a,A\nx,y,z\n", "list.csv:1: two columns are called 'a'"),
        ("csv", 'prompt\na\n"b\nc\nd\n', "list.csv:3: a quote that is opened here never closes"),
        ("txt", "a\n\n# x\n--prompt b --size 3\n", "list.txt:4: '--size' is no option"),
        ("txt", "--seed 3\n", "list.txt:1: prompt: there is no prompt"),
        ("txt", 'a --name "x\n', "list.txt:1: a quote is not closed"),
        ("txt", "a --seed 3 --seed 4\n", "list.txt:1: seed: the option is there twice"),
        ("jsonl", '"a"\n{"prompt": 3, "width": 7}\n', "list.jsonl:2: width: 7 is no size"),
        ("jsonl", '{"prompt": ["a"]}\n', "list.jsonl:1: prompt: a list where a text is wanted"),
        ("jsonl", '{"prompt": "a"\n', "list.jsonl:1: this line is no JSON"),
        ("jsonl", '{"prompt": "a", "prompt": "b"}\n', "a key is there twice"),
        ("yaml", "- a\n- prompt: yes\n", "list.yaml:2: prompt: true (quote it to mean the word)"),
        ("yaml", "- a\n- b: {c\n- d\n", "the list cannot be read from here on"),
        ("yaml", "prompt: a\n", "list.yaml:1: this is no list: start every row with '- '"),
        ("yaml", "- {prompt: a, decoders: slow}\n", "decoders: 'slow': give one of exact, fast"),
        ("yaml", "- {prompt: a, lora: {x: strong}}\n", "lora: 'x:strong' is no LoRA"),
        ("yaml", "- {prompt: a, lora: ../x}\n", "lora: '../x' is a path"),
    ],
)
def test_a_bad_row_says_where_and_what_is_allowed(kind: str, text: str, message: str) -> None:
    assert message in "\n".join(bad(text, kind))


def test_a_bad_row_leaves_the_others_alone() -> None:
    text = 'prompt,seed\na,1\nb,x\n"c,1\nd,2\ne,3\n'
    assert prompts(text, "csv") == ["a", "d", "e"]
    assert prompts('"a"\n{\n"b"\n', "jsonl") == ["a", "b"]


def test_bytes_that_are_not_utf8_are_one_bad_row(tmp_path: Path) -> None:
    path = tmp_path / "list.csv"
    path.write_bytes("prompt\ngood\nméchant\nfine\n".encode("cp1252"))
    found = list(read_list(path))
    assert [isinstance(row, BadRow) for row in found] == [False, True, False]
    assert "save the list as UTF-8" in str(found[1])
    assert not [row for row in read_list(path, encoding="cp1252") if isinstance(row, BadRow)]


def test_files_that_are_no_lists(tmp_path: Path) -> None:
    (tmp_path / "list.docx").write_text("x")
    for path, message in (
        (tmp_path / "absent.csv", "does not exist"),
        (tmp_path / "list.docx", "is no prompt list"),
        (tmp_path, "is no prompt list"),
    ):
        with pytest.raises(TiueError, match=message):
            read_list(path)


def test_lists_are_streamed() -> None:
    """The first row is there before the second is read."""

    def lines(first: str) -> Any:
        yield from first.splitlines(keepends=True)
        raise AssertionError("read too far")

    for kind, first in (("txt", "a\n"), ("csv", "prompt\na\n"), ("jsonl", '"a"\n')):
        assert next(read_rows(lines(first), kind, "x")).row.prompt == "a"  # type: ignore[union-attr]
    # PyYAML reads ahead by a buffer, no more
    many = io.StringIO("- a cat\n" * 100_000)
    assert next(read_rows(many, "yaml", "x")).row.prompt == "a cat"  # type: ignore[union-attr]
    assert many.tell() < 20_000


# --- wildcards -----------------------------------------------------------------------------


def test_a_yaml_row_of_too_many_values_is_refused_by_itself() -> None:
    values = "{prompt: a, lora: [" + "[a, {b: c}], " * 20_000 + "]}"
    first, bad, last = read_text(f"- a\n- {values}\n- last\n", "yaml")
    assert str(bad) == "list:2: there are more than 10000 values in one row"
    assert (first.row.prompt, last.row.prompt) == ("a", "last")  # type: ignore[union-attr]


@pytest.fixture
def files(tmp_path: Path) -> Path:
    folder = tmp_path / "wild"
    folder.mkdir()
    (folder / "animal.txt").write_text("# animals\ncat\ndog\n{red|blue} fox\n")
    (folder / "loop.txt").write_text("a\n__loop__\n")
    (folder / "loop2.txt").write_text("__loop3__\n")
    (folder / "loop3.txt").write_text("__loop2__\n")
    (folder / "things.yaml").write_text("colours: [red, blue]\n")
    return folder


def test_combinations_are_those_of_dynamicprompts(files: Path) -> None:
    from dynamicprompts.generators import CombinatorialPromptGenerator
    from dynamicprompts.wildcards import WildcardManager

    ours = Wildcards(files)
    theirs = CombinatorialPromptGenerator(WildcardManager(files))
    for template in (
        *(
            "{a|b} {c|d}",
            "{2$$a|b|c}",
            "{1-2$$ and $$a|b|c}",
            "__animal__ {x|y}",
            "{2$$__animal__}",
        ),
        *("${c={red|blue}}a ${c} cat", "{a|{b|c}}", "%{in {x|y}...$$a {b|c}}", "__colours__"),
    ):
        expected = [" ".join(str(prompt).split()) for prompt in theirs.generate(template, None)]
        assert list(ours.combinations(template)) == expected
        assert ours.count(template) >= len(expected) > 1


def test_counts_are_exact_where_nothing_repeats(files: Path) -> None:
    ours = Wildcards(files)
    for template in ("{a|b} {c|d}", "{2$$a|b|c}", "{1-3$$a|b|c}", "__animal__ {x|y}", "{a|{b|c}}"):
        assert ours.count(template) == len(list(ours.combinations(template)))
    assert ours.count("{a|b}" * 40) == 2**40


def test_a_choice_is_its_seeds(files: Path) -> None:
    ours, again = Wildcards(files), Wildcards(files)
    drawn = [ours.sample("a __animal__ and {a|b|c}", seed) for seed in range(50)]
    assert drawn == [again.sample("a __animal__ and {a|b|c}", seed) for seed in range(50)]
    assert {prompt.split()[1] for prompt in drawn} == {"cat", "dog", "red", "blue"}


def test_signs_that_are_not_syntax_stay() -> None:
    ours = Wildcards()
    assert list(ours.combinations("#1 {a|b}, 50% off, $5")) == [
        f"#1 {x}, 50% off, $5" for x in "ab"
    ]
    assert ours.sample("100% #hashtag, a|b, $5", 0) == "100% #hashtag, a|b, $5"


@pytest.mark.parametrize(
    ("template", "message"),
    [
        ("{a|b", "not closed"),
        ("{a|b}" * 40, "more than|1,099,511,627,776 combinations"),
        ("{a|b}" * 300, "too many braces"),
        ("{" * 30 + "}" * 30, "too many braces"),
        ("__loop__", "includes itself"),
        ("__loop2__", "includes itself"),
        ("__nothing__", "no wildcard file for __nothing__"),
        ("__../secret__", "no wildcard file"),
        ("${x}", "is not set"),
        ("{20$$" + "|".join("abcdefghijklmnopqrstuvwx") + "}", "joins 20 texts"),
    ],
)
def test_templates_that_are_refused(files: Path, template: str, message: str) -> None:
    (files.parent / "secret.txt").write_text("secret\n")
    with pytest.raises(TemplateError, match=message):
        list(Wildcards(files).combinations(template))


# --- names, seeds, ids ---------------------------------------------------------------------


@pytest.mark.parametrize("name", ["../x", "/x", "a/../../x", "~/x", "C:x", "..\\x", "a/ .. /x"])
def test_names_that_lead_elsewhere_are_refused(name: str) -> None:
    with pytest.raises(BadName):
        file_name(name, {})


def test_names_are_safe_everywhere(tmp_path: Path) -> None:
    for name in (
        "con",
        "NUL.txt",
        "a:b?",
        "x" * 999,
        "🐱" * 99,
        "trail. ",
        "-rf",
        "a\x00b",
        "lpt1.",
    ):
        path = tmp_path / (safe(name) + ".png")
        path.write_bytes(b"")
        assert path.parent == tmp_path and len(path.name.encode()) < 255
        assert path.name == path.name.strip(" .-") and not set('<>:"|?*\\\0') & set(path.name)
    assert safe("con") == "_con" and safe("NUL.txt") == "_NUL.txt"
    assert str(file_name("{x}/{index:3}", {"x": "a/b", "index": 7})) == "a-b/007"
    assert fill("a {Color} {cat|dog}", {"color": "red"}) == "a red {cat|dog}"


def jobs(text: str, kind: str = "txt", **options: Any) -> list[Job]:
    found = list(Planner(helpers.SETTINGS, Plan("", **options)).jobs(read_text(text, kind)))
    assert all(isinstance(job, Job) for job in found), found
    return found  # type: ignore[return-value]


def test_a_rows_seed_is_its_own_wherever_it_stands() -> None:
    first, second = jobs("a cat\na dog\n")
    assert [job.id for job in jobs("a new one\na dog\na cat\n")[1:]] == [second.id, first.id]
    assert first.seed != second.seed
    twice = jobs("a cat --count 2\na cat\n")
    assert [job.seed - first.seed for job in twice] == [0, 1, 2]
    assert [job.seed for job in jobs("a cat\na dog --count 2\n", seed=5)] == [5, 5, 6]


def test_the_id_is_of_everything_that_decides_the_picture() -> None:
    from dataclasses import replace

    line = "a cat --seed 1 --width 16 --negative x"
    (job,) = jobs(line)
    changed = (
        *("a dog", "--seed 2", "--width 32", "--height 32", "--negative y", "--decoders fast"),
    )
    ids = {job.id}
    for change in changed:
        option = change.partition(" ")[0]
        text = line.replace("a cat", change) if option == "a" else ""
        if not text:
            parts = [part for part in line.split(" --") if not f"--{part}".startswith(option)]
            text = " --".join([*parts, change.removeprefix("--")])
        ids.add(jobs(text)[0].id)
    for field, value in (("student_hash", "cd" * 32), ("timesteps", (999,)), ("dtype", "float16")):
        settings = replace(helpers.SETTINGS, **{field: value})
        (other,) = Planner(settings, Plan("")).jobs(read_text(line))
        ids.add(other.id)  # type: ignore[union-attr]
    assert len(ids) == 1 + len(changed) + 3
    assert jobs(f"{line} --name other/name")[0].id == job.id  # where it goes is not what it is


def test_loras_are_looked_up_in_their_folder(tmp_path: Path) -> None:
    import helpers_students
    from safetensors.torch import save_file

    save_file(helpers_students.lora_tensors(), tmp_path / "ink.safetensors")
    (one,) = jobs("a --lora ink:0.5", loras=tmp_path)
    (two,) = jobs("a --lora ink:0.6", loras=tmp_path)
    assert one.id != two.id and one.loras[0][:2] == (str(tmp_path / "ink.safetensors"), 0.5)
    (row,) = Planner(helpers.SETTINGS, Plan("", loras=tmp_path)).jobs(read_text("a --lora pen"))
    assert "lora: no 'pen' in" in str(row) and "there is ink" in str(row)


# --- lists made by chance -------------------------------------------------------------------


@pytest.fixture
def tiue(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Callable[..., Any]:
    """The command line, with painting made easy."""
    monkeypatch.setattr(sessions.BatchSession, "open", lambda *_, **__: helpers.studio())

    def run(*words: Any) -> tuple[int, str, str]:
        capfd.readouterr()
        with pytest.raises(SystemExit) as ended:
            cli.main(["batch", *map(str, words)])
        return (int(ended.value.code or 0), *capfd.readouterr())

    return run


def test_the_index_that_is_told_is_ours(tiue: Any, tmp_path: Path) -> None:
    (tmp_path / "list.txt").write_text("a cat\n")
    out = tmp_path / "out"
    out.mkdir()
    (out / "index.html").write_text("mine")
    _, told, _ = tiue(tmp_path / "list.txt", "--out", out)
    assert told.rstrip().endswith("index-tiue.html")
    _, told, _ = tiue(tmp_path / "list.txt", "--out", out, "--no-index")
    assert "see" not in told


def test_a_dash_is_what_is_piped_in(
    tiue: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO("un café\n".encode())))
    status, told, _ = tiue("-", "--out", tmp_path / "out")
    assert status == 0 and told.startswith("1 made")


_PARTS = [pytest.param(part, marks=[pytest.mark.slow] * (part >= 8)) for part in range(40)]


@pytest.mark.parametrize("part", _PARTS)
def test_lists_made_by_chance(
    tiue: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, part: int
) -> None:
    inside = tmp_path / "inside"
    inside.mkdir()
    monkeypatch.chdir(inside)
    slowest = (0.0, 0)
    for number in range(part * 50, part * 50 + 50):
        fuzzed = fuzz_lists.make(number)
        path, out = inside / f"{number}.{fuzzed.suffix}", inside / f"out-{number}"
        path.write_bytes(fuzzed.data)
        wild = inside / f"wild-{number}"
        for folder, files in ((wild, fuzzed.wildcards), (out, fuzzed.own)):
            for name, data in files.items():
                (folder / name).parent.mkdir(parents=True, exist_ok=True)
                (folder / name).write_bytes(data)
        before = {found: _content(found) for found in tmp_path.rglob("*")}
        began = time.process_time()
        words = [path, "--out", out, "--wildcards", wild, *fuzzed.options]
        if fuzzed.combinations:
            words += ["--combinations", "--max-combinations", "50"]
        status, _, err = tiue(*words)
        slowest = max(slowest, (time.process_time() - began, number))
        assert status in (0, 1) and "Traceback" not in err, (number, err)
        assert "error: unexpected" not in err, (number, err)
        after = {found: _content(found) for found in tmp_path.rglob("*")}
        assert before.items() <= after.items(), number  # nobody's file is another one now
        assert all(out in found.parents for found in after.keys() - before.keys()), number
        lines = [json.loads(line) for line in _lines(out / "manifest.jsonl")]
        made = [line for line in lines if line["status"] == "made"]
        prompts = {line["prompt"].removeprefix("a cat, ") for line in made}
        if "--encoding" not in fuzzed.options:
            assert prompts >= set(fuzzed.kept), (number, err)
        assert all((out / line["file"]).read_bytes() for line in made), number
        assert len({line["file"] for line in made}) == len(made), number
        failed = len(made) < len(lines)
        assert (status == 1) == (failed or "bad rows" in err), (number, err)
    print(f"slowest: {slowest[0]:.2f} s of the processor, list {slowest[1]}")
    assert slowest[0] < 10  # a list that hangs, on any machine


def _content(path: Path) -> bytes:
    return path.read_bytes() if path.is_file() else b""


def _lines(path: Path) -> list[bytes]:
    return path.read_bytes().splitlines() if path.exists() else []
