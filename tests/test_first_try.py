"""What people type first, and what they expect of it: 64 commands.

    pytest tests/test_first_try.py                 # each one a test
    python tests/test_first_try.py                 # the table: what was typed, what came of it

A row is a command line, the status it ends with, and a pattern that what it says must match.
"""

from __future__ import annotations

import contextlib
import io
import re
import shlex
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import helpers_students as helpers
import pytest
from huggingface_hub import constants

from tiue_core import cli
from tiue_core.pipelines.load import load
from tiue_core.students.registry import REGISTRY, Student

PNG = r"out/0000_a-cat_0\.png"
EVERY = ("generate", "batch", "app", "export", "distill", "lora", "evaluate", "bench", "students")

FIRST = [
    # the command itself
    ("", 0, r"Usage: tiue.*generate.*batch"),
    ("-h", 0, r"Usage: tiue"),
    ("--help", 0, r"Usage: tiue"),
    ("-V", 0, r"^tiue \d+\.\d+"),
    ("--version", 0, r"^tiue \d+\.\d+"),
    ("help", 2, r"No such command 'help'.*tiue --help"),
    ("'a cat'", 2, r'tiue generate "a cat"'),
    ("generat 'a cat'", 2, r"Did you mean 'generate'"),
    ("--config", 2, r"No such option"),
    *((f"{command} -h", 0, rf"Usage: tiue {command}") for command in EVERY),
    ("students", 0, r"stickers  \[here\]"),
    ("students --json", 0, r'"name": "stickers"'),
    # one picture
    ("generate", 2, r"PROMPT.*quotes"),
    ("generate 'a cat'", 0, PNG),
    ("generate ''", 0, r"out/0000_image_0\.png"),
    ("generate a cat on a hat", 0, r'hint: these are 5 prompts.*"a cat on a hat"'),
    ("generate 'a cat' -o pics", 0, r"pics/0000_a-cat_0"),
    ("generate 'a cat' --out pics", 0, r"pics/0000_a-cat_0"),
    ("generate 'a cat' --output pics", 2, r"No such option.*--out"),
    ("generate 'a cat' -n 2", 0, r"0001_a-cat_1"),
    ("generate 'a cat' --count 2", 0, r"0001_a-cat_1"),
    ("generate 'a cat' -n 0", 2, r"give 1 or more"),
    ("generate 'a cat' --seed 7", 0, r"a-cat_7"),
    ("generate 'a cat' --seed random", 0, r"a-cat_\d+\.png"),
    ("generate 'a cat' --seed x", 2, r"--seed.*whole number, or random"),
    ("generate 'a cat' --seed -1", 1, r"seed is -1"),
    ("generate 'a cat' --negative 'a dog'", 0, PNG),
    ("generate 'a cat' --negative 'a dog' --guidance 1", 0, r"warning: --negative does nothing"),
    ("generate 'a cat' --guidance 3", 0, PNG),
    ("generate 'a cat' --guidance much", 2, r"--guidance"),
    ("generate 'a cat' --width 32", 0, r"32 x 16 is far from the 16 x 16"),
    ("generate 'a cat' --width 13", 1, r"multiple of 2, such as 12"),
    ("generate 'a cat' -q", 0, rf"^{PNG}\s*$"),
    ("-q generate 'a cat'", 0, rf"^{PNG}\s*$"),
    ("generate 'a cat' --json", 0, r'"images"'),
    ("generate 'a cat' --steps 2", 0, PNG),
    ("generate 'a cat' --decoders fast", 0, PNG),
    ("generate 'a cat' --fast", 2, r"No such option"),
    ("generate 'a cat' --student stikers", 1, r"try stickers"),
    ("generate 'a cat' --device gpu", 1, r"device 'gpu' cannot be used here"),
    ("generate 'a cat' --lora none.safetensors", 1, r"none\.safetensors does not exist"),
    ("generate --like made.png", 0, r"0000_a-cat_3"),
    ("generate --like made.png --seed 4", 0, r"0000_a-cat_4"),
    ("generate --like photo.png", 1, r"does not say how it was made"),
    ("generate -- -a-cat", 0, r"0000_a-cat_0"),
    # lists
    ("batch", 2, r"LIST"),
    ("batch list.txt", 0, r"2 made"),
    ("batch list.csv --out pics", 0, r"2 made.*; in pics, see pics/index\.html"),
    ("batch list.txt --dry-run", 0, r"2 pictures to make"),
    ("batch absent.csv", 1, r"absent\.csv does not exist"),
    ("batch made.png", 1, r"."),
    # the rest
    ("app --port 99999", 2, r"0 to 65535"),
    ("export", 2, r"Missing"),
    ("export stickers", 2, r"--out"),
    ("lora", 2, r"Missing"),
    ("distill absent.yaml", 1, r"absent\.yaml"),
]


@contextlib.contextmanager
def _anew(folder: Path, student: Path) -> Iterator[None]:
    """A folder as a newcomer has it; the small student stands in for the built-in one."""
    from PIL import Image

    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setattr(constants, "HF_HOME", str(folder / "hf"))
        patch.setattr(constants, "HF_HUB_CACHE", str(folder / "hf" / "hub"))
        patch.setattr(constants, "HF_HUB_OFFLINE", True)
        patch.setenv("XDG_CONFIG_HOME", str(folder / "config"))
        built_in = Student("stickers", "small", "Apache-2.0", folder=student)
        patch.setitem(REGISTRY, "stickers", built_in)
        Path("list.txt").write_text("a cat\na dog\n")
        Path("list.csv").write_text("prompt,seed\na cat,1\na dog,2\n")
        Image.new("RGB", (16, 16)).save("photo.png")
        typed("generate 'a cat' --seed 3 -o made")
        next(Path("made").glob("*.png")).rename("made.png")
        yield


def typed(line: str) -> tuple[int, str]:
    """Run a command line; its status, and all it says."""
    said = io.StringIO()
    with (
        contextlib.redirect_stdout(said),
        contextlib.redirect_stderr(said),
        pytest.raises(SystemExit) as ended,
    ):
        cli.main(shlex.split(line))
    return int(ended.value.code or 0), said.getvalue()


@pytest.fixture(scope="module")
def student(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return helpers.make_student(tmp_path_factory.mktemp("first") / "tiny")


def test_there_are_64() -> None:
    assert len(FIRST) == 64 and len({line for line, _, _ in FIRST}) == 64


@pytest.mark.parametrize(
    ("line", "status", "pattern"), FIRST, ids=[f"tiue {row[0]}" for row in FIRST]
)
def test_first_try(tmp_path: Path, student: Path, line: str, status: int, pattern: str) -> None:
    with _anew(tmp_path, student):
        ended, said = typed(line)
    assert ended == status, said
    assert re.search(pattern, said, re.S), said
    assert "Traceback" not in said


def test_a_configuration_file_and_the_environment(
    tmp_path: Path, student: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = tmp_path / "config.yaml"
    config.write_text("generate: {out: mine, count: 2, seed: 5}\nbatch: {batch-size: 1}\n")
    monkeypatch.setenv("TIUE_CONFIG", str(config))
    with _anew(tmp_path, student):
        assert "mine/0001_a-cat_6" in typed("generate 'a cat'")[1]
        assert "mine/0002_a-cat_9" in typed("generate 'a cat' --seed 9 -n 1")[1]
        # A picture says how it was made, whatever the configuration says.
        assert "again/0000_a-cat_3" in typed("generate --like made.png -o again -n 1")[1]
        monkeypatch.setenv("TIUE_GENERATE_OUT", "elsewhere")
        assert "elsewhere/0000_a-cat_5" in typed("generate 'a cat'")[1]
        for text, words in (
            ("generate: {colour: red}", "'colour' is no option of generate"),
            ("generat: {}", "'generat' is no command: try generate"),
            ("[1, 2]", "has no sections"),
            ("generate: [", "cannot be read as YAML"),
        ):
            config.write_text(text)
            status, said = typed("generate 'a cat'")
            assert status == 1 and words in said
        config.unlink()
        assert "check $TIUE_CONFIG" in typed("generate 'a cat'")[1]


def test_short_options_mean_the_same_everywhere() -> None:
    import typer

    group: Any = typer.main.get_command(cli.build())
    short = {"--out": "-o", "--count": "-n", "--quiet": "-q"}
    seen = set()
    for command in group.commands.values():
        for option in command.params:
            for long in short.keys() & set(option.opts):
                assert short[long] in option.opts, f"{command.name} {long}"
                seen.add((command.name, long))
    assert {(name, "--out") for name in ("generate", "batch", "lora", "export")} <= seen


def test_negative_and_guidance_are_the_pipelines_and_in_the_metadata(
    tmp_path: Path, student: Path
) -> None:
    import numpy as np
    from PIL import Image

    from tiue_core.io.images import read_metadata

    with _anew(tmp_path, student):
        _, said = typed("generate 'a cat' --negative 'a dog' --guidance 3 -o guided")
        made = Path(said.strip())
        pipe = load(student, device="cpu")
        expected = pipe("a cat", seed=0, guidance_scale=3, negative_prompt="a dog").images[0]
        with Image.open(made) as image:
            assert np.abs(np.asarray(image).astype(int) - np.asarray(expected)).max() <= 1
            assert "Negative prompt: a dog\n" in image.text["parameters"]
        metadata = read_metadata(made)
        assert (metadata["negative"], metadata["guidance"]) == ("a dog", 3)
        _, said = typed(f"generate --like {made} -o again")
        assert Path(said.strip()).read_bytes() == made.read_bytes()


def test_the_shell_completes_commands_and_students(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for words, position, expected in (
        ("tiue gen", "1", "generate"),
        ("tiue generate --student stick", "3", "stickers"),
        ("tiue generate --neg", "2", "--negative"),
    ):
        monkeypatch.setenv("_TIUE_COMPLETE", "complete_bash")
        monkeypatch.setenv("COMP_WORDS", words)
        monkeypatch.setenv("COMP_CWORD", position)
        with pytest.raises(SystemExit):
            cli.main([])
        assert expected in capfd.readouterr().out.split()


def test_control_c_says_what_there_is(
    tmp_path: Path, student: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tiue_core import TiuePipeline

    call, calls = TiuePipeline.__call__, []

    def stopped(self: Any, *args: Any, **options: Any) -> Any:
        calls.append(1)
        if len(calls) > 1:
            raise KeyboardInterrupt
        return call(self, *args, **options)

    with _anew(tmp_path, student):
        monkeypatch.setattr(TiuePipeline, "__call__", stopped)
        status, said = typed("generate 'a cat' -n 9 --json")
    assert status == 130 and "stopped: 4 of 9 made, in out" in said
    assert said.count('"path"') == 4


def main() -> None:
    import tempfile

    right = 0
    with tempfile.TemporaryDirectory() as top:
        student = helpers.make_student(Path(top) / "tiny")
        for number, (line, status, pattern) in enumerate(FIRST):
            folder = Path(top) / str(number)
            folder.mkdir()
            with _anew(folder, student):
                ended, said = typed(line)
            good = ended == status and bool(re.search(pattern, said, re.S))
            right += good
            print(f"{'as expected' if good else 'NOT'}  tiue {line}")
    print(f"{right} of {len(FIRST)} do what is expected")
    sys.exit(right != len(FIRST))


if __name__ == "__main__":
    main()
