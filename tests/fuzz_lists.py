"""Prompt lists made by chance, with wildcard files and what already lies in the folder: malformed
ones, and as other programs write them. `make(number)` gives the same every time."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from dataclasses import dataclass

NAMES = (
    *(
        "../../evil",
        "/etc/evil",
        "C:\\evil",
        "..\\..\\evil",
        "a/../../evil",
        "~/evil",
        "con",
        "NUL",
    ),
    *("com1.png", "x" * 500, "a\x00b", "a/b/c/d/e/f/g/h/i/j", "...", "  ", "-rf", "{index}/../x"),
    *(
        "{nope}",
        "evil\n",
        "aux/prn",
        "\u202eevil",
        "a:b*?|<>",
        "{seed",
        "evil.",
        "%2e%2e/evil",
        ".",
    ),
    *("./evil", "//evil", "\\\\server\\evil", "file:///evil", "{{index}}", "🐱" * 100, "_" * 3000),
)
VALUES = (
    *("", " ", "-1", "1e400", "NaN", "-0", "1.5", "0x10", "12abc", "9" * 40, "true", "null", "½"),
    *(
        "1_000",
        "١٢٣",
        "2147483648",
        "-99999999999999999999",
        "inf",
        "\x00",
        "[1]",
        "{}",
        "1,5",
        "7 7",
    ),
)
PROMPTS = (
    *(
        "",
        " ",
        "x" * 10_000,
        "x" * 10_001,
        "x" * 200_000,
        "a\x00cat",
        "a\x07cat",
        "\ufffd",
        "\u202e",
    ),
    *(
        "{a|b",
        "a|b}",
        "{" * 200,
        "{" * 40 + "}" * 40,
        "{a|b}" * 40,
        "{a|b}" * 400,
        "{}",
        "{|}",
        "$$",
    ),
    *(
        "__loop__",
        "__loop2__",
        "__missing__",
        "__",
        "____",
        "__../../../etc/passwd__",
        "__/etc/passwd__",
    ),
    *("{2$$a|b", "{99999999999$$a|b}", "{-5$$a|b}", "{2-1$$a|b}", "{0::a|0::b}", "{1e9::a|b}"),
    *("${x}", "${x=${x}}${x}", "${x={a|b}}${x}", "%{a$$b}", "%{", "${", "# no", "{@a|b}", "{!a|b}"),
    *(
        "{30$$" + "|".join("abcdefgh" * 4) + "}",
        "__loop__" * 50,
        "{__loop__|a}",
        "{prompt}",
        "--",
        "--x",
    ),
    *(
        "<lora:x:1>",
        "--seed",
        "--seed x",
        "--prompt",
        '--prompt "open',
        "--count 3 --count 4",
        "\\",
    ),
)
# As the programs that people come from write them, and what asks for the files below.
OTHERS = (
    *("__top__", "__top__ __top__ --count 4", "{2$$__long__}", "__long__", "__@long__", "__odd__"),
    *("__deep/*__", "__odd*__", "__things/colours__", "{1-3$$ and $$__long__|__top__|x}"),
    *(
        "a snake__case word",
        "a __long__x",
        "\\__top\\__ and \\{a\\|b\\}",
        "${c=!{red|blue}} ${c} ${c}",
    ),
    *("{@a|b} --count 3", "__@animal__", "{a|b|}", "{a|}", "{1-$$a|b|c}", "{-2$$a|b|c}", "3::fox"),
    *("a cat --n bad --w 16 --h 16 --d 3 --l 7 --s 20", "a --d 1 --d 2", "a --w 13", "a --h x"),
    *("a --ar 16:9 --seed 5 --no x", "--ar 1:1", "a --no red, blue --v 6", "a --niji", "a --- b"),
    *("<lora:ink:0.8> a", "a <lora:ink", "a <lora:../x:1>", "a <lora:ink:x>", "{<lora:ink:1>|a}"),
    *("{my colour} cat", "{colour} cat", "{seed} cat", "{My Colour|red} cat", "#N/A", "#NAME?"),
    *('he said "Negative prompt: no"', "a\tb", "a {red,|blue} cat, {{x}}", "50% of it $5 #1"),
)
LORAS = ("a:", ":1", "a:b:c", "../../evil:1", "x:nan", "x:1e9", "/etc/passwd", "a,,b", "missing:1")
COLUMNS = (
    "seed",
    "width",
    "height",
    "count",
    "name",
    "lora",
    "decoders",
    "negative",
    "free",
    "prompt",
    "my colour",
    "text",
    "Caption",
)


@dataclass
class Fuzzed:
    """A malformed list. `kept`: prompts of good rows that must be made all the same."""

    suffix: str
    data: bytes
    kept: list[str]
    combinations: bool
    wildcards: dict[str, bytes]
    own: dict[str, bytes]  # files that are in the folder of pictures before
    options: list[str]


def make(number: int) -> Fuzzed:
    dice = random.Random(number)
    suffix = ("txt", "csv", "jsonl", "yaml")[number % 4]
    rows = [_row(dice) for _ in range(dice.randint(1, 4))]
    text, kept = _WRITERS[suffix](dice, rows)
    data = text.encode("utf-8", "surrogatepass")
    damage = dice.random()
    if damage < 0.3:
        data, kept = _damaged(dice, text, data), []
    combinations = dice.random() < 0.3
    return Fuzzed(
        suffix, data, kept, combinations, _wildcards(dice), _own(dice), _command(dice, suffix)
    )


def _command(dice: random.Random, suffix: str) -> list[str]:
    choices: list[list[str]] = [
        *([], [], [], ["--no-sheet"], ["--format", "jpeg"], ["--format", "webp", "--no-metadata"]),
        *(["--count", "3"], ["--names", "{name}/{index}"], ["--names", "{slug}/{seed}"]),
        *(["--prompt", "a cat"], ["--seed", "7"], ["--read-as", suffix], ["--encoding", "cp1252"]),
        *(["--decoders", "fast"], ["--batch-size", "1"], ["--retry-failed"]),
    ]
    return dice.choice(choices)


def _own(dice: random.Random) -> dict[str, bytes]:
    names = ("index.html", "sheet-001.jpg", "sheet-001-tiue.jpg", "index-tiue.html", "notes.txt")
    found = (*names, "000000_first-row_1.png", "sheet-001.png", "first row.png", "red/000000.png")
    return {name: b"somebody's own " + name.encode() for name in dice.sample(found, 4)}


def _wildcards(dice: random.Random) -> dict[str, bytes]:
    """Layers, a long file, some that lead nowhere, and one in three damaged."""
    odd = [
        *(
            "red # a comment with __odd__",
            "// only a comment",
            "3::fox",
            "0::never",
            "x::y",
            "{a|b",
        ),
        *(
            "{a|b}}",
            "__missing__",
            "__odd__",
            "__top__",
            "a snake__case",
            "#ff0000",
            "",
            " ",
            "a|b",
        ),
        *("${c}", "${c=a}${c}", "{2$$__long__}", "caf\u00e9", "\ufffd", "a\x00b", "x" * 5000, "-"),
    ]
    layer = [[f"__{inner}__ {k}" for k in range(100)] for inner in ("mid", "low", "long")]
    texts = {
        "top.txt": "\n".join(layer[0]),
        "mid.txt": "\n".join(layer[1]),
        "low.txt": "\n".join(layer[2]),
        "long.txt": "\n".join(f"word {k}" for k in range(3000)),
        "odd.txt": "\n".join(dice.choice(odd) for _ in range(dice.randint(0, 12))),
        "deep/one.txt": dice.choice(odd) + "\nfine",
        "animal.txt": "# animals\ncat\ndog\n{red|blue} fox\n",
        "loop.txt": "a\n__loop__\n",
        "loop2.txt": "__loop3__\n",
        "loop3.txt": "__loop2__\n",
        "things.yaml": "colours:\n  - red\n"
        + "".join(f"  - {dice.choice(odd)}\n" for _ in range(3))
        + dice.choice(["\t- tab\n", "  - {a|b} c\n", "more: [x, *y]\n", "- : -\n", ""]),
        "more.json": dice.choice(
            ['{"a": ["x", {"b": 1}]}', '["x", 1, null]', "{", "[" * 3000, "1"]
        ),
    }
    files = {name: text.encode() for name, text in texts.items()}
    for name in dice.sample(sorted(files), 4):
        files[name] = _damaged(dice, texts[name], files[name])
    return files


def _row(dice: random.Random) -> dict[str, str]:
    chance = dice.random()
    prompts = PROMPTS if chance < 0.4 else OTHERS if chance < 0.8 else (f"a cat {dice.random()}",)
    row = {"prompt": dice.choice(prompts)}
    for name in dice.sample(COLUMNS, dice.randint(0, 4)):
        pool = {"name": NAMES, "lora": LORAS, "prompt": PROMPTS}.get(name, VALUES)
        row[name] = dice.choice(pool)
    return row


def _damaged(dice: random.Random, text: str, data: bytes) -> bytes:
    """Bytes that are no longer what they were, or in another encoding."""
    kind = dice.randrange(8)
    if kind == 0:
        return text.encode("utf-16", "surrogatepass")
    if kind == 1:
        return b"\xef\xbb\xbf" + data
    if kind == 2:
        return text.encode("utf-16-le", "surrogatepass")  # and no mark that says so
    if kind == 3:
        return b"\xff\xfe" + data
    if kind == 4:
        return data[: dice.randrange(len(data) + 1)]
    if kind == 5:
        return bytes(dice.randrange(256) for _ in range(dice.randrange(2000)))
    if kind == 6:
        return data.replace(b"\n", dice.choice([b"\r", b"\r\n", b"\x0b", b"\n\n\n"]))
    broken = bytearray(data)
    for _ in range(1 + len(broken) // 50):
        if broken:
            broken[dice.randrange(len(broken))] = dice.randrange(256)
    return bytes(broken)


def _txt(dice: random.Random, rows: list[dict[str, str]]) -> tuple[str, list[str]]:
    lines = []
    for row in rows:
        options = [f"--{name} {value}" for name, value in row.items() if name != "prompt"]
        lines.append(" ".join([row["prompt"], *options]).replace("\n", " "))
    return _among(lines, "first row", "last row"), ["first row", "last row"]


def _csv(dice: random.Random, rows: list[dict[str, str]]) -> tuple[str, list[str]]:
    names = ["prompt", *dict.fromkeys(name for row in rows for name in row if name != "prompt")]
    if dice.random() < 0.1:
        wrong = dice.choice(
            ["", "prompt,prompt", "promt,seed", '"prompt', ",,", "a b;c", "prompt,,"]
        )
        return wrong + "\n" + _among([",".join(row.values()) for row in rows], "x", "y"), []
    lines = []
    for row in rows:
        cells = [row.get(name, "") for name in names]
        if dice.random() < 0.5:
            cells = ['"' + cell.replace('"', '""') + '"' for cell in cells]
        if dice.random() < 0.2:
            cells += ["more"] * dice.randint(1, 3)
        if dice.random() < 0.2:
            cells = cells[: dice.randint(0, len(cells))]
        line = ",".join(cells)
        lines.append('"' + line if dice.random() < 0.1 else line)
    first, last = (f"{name} row" + "," * (len(names) - 1) for name in ("first", "last"))
    return ",".join(names) + "\n" + _among(lines, first, last), ["first row", "last row"]


def _jsonl(dice: random.Random, rows: list[dict[str, str]]) -> tuple[str, list[str]]:
    nested: list[Callable[[], str]] = [
        lambda: "[" * 5000,
        lambda: '{"a":' * 3000 + "1" + "}" * 3000,
        lambda: json.dumps({"prompt": {"nested": ["deep"]}}),
        lambda: json.dumps({"prompt": "x", "seed": {"a": 1}, "free": [1, 2]}),
        lambda: '{"prompt": "x", "prompt": "y"}',
        lambda: '{"prompt": NaN}',
        lambda: '{"prompt": "x", "seed": 1' + "0" * 5000 + "}",
        lambda: json.dumps([1, 2]),
        lambda: "null",
        lambda: '{"prompt": "\\ud800"}',
        lambda: json.dumps({"prompt": None, "count": True}),
        lambda: json.dumps({"prompt": "x", "": "y", "a b c": "z", "9": 1}),
        lambda: json.dumps({"prompt": "x", "lora": [{"a": 1}, 3]}),
        lambda: '{"prompt": "cut off',
    ]
    lines = [json.dumps(row) if dice.random() < 0.5 else dice.choice(nested)() for row in rows]
    good = [json.dumps({"prompt": f"{name} row"}) for name in ("first", "last")]
    return _among(lines, *good), ["first row", "last row"]


def _yaml(dice: random.Random, rows: list[dict[str, str]]) -> tuple[str, list[str]]:
    bomb = "&a [x, x]\n" + "".join(
        f"- &{chr(98 + i)} [{', '.join([f'*{chr(97 + i)}'] * 9)}]\n" for i in range(9)
    )
    strange = [
        bomb,
        "&x {prompt: a, <<: [*x, *x]}\n",
        "!!python/object/apply:os.system ['touch evil']\n",
        "!!binary aGVsbG8=\n",
        "2026-01-01\n",
        "{prompt: yes, seed: 1:30}\n",
        "? [complex, key]\n  : value\n",
        "{prompt: *nowhere}\n",
        "[" * 400 + "\n",
        "\tprompt: tab\n",
        "{prompt: |\n",
        "{1: 2, prompt: x, null: y}\n",
        "prompt: x\n  prompt: y\n---\n- second document\n",
    ]
    lines = [
        json.dumps(row) + "\n" if dice.random() < 0.5 else dice.choice(strange) for row in rows
    ]
    return "- first row\n" + "".join(f"- {line}" for line in lines) + "- last row\n", ["first row"]


def _among(lines: list[str], first: str, last: str) -> str:
    return "\n".join([first, *lines, last]) + "\n"


_WRITERS = {"txt": _txt, "csv": _csv, "jsonl": _jsonl, "yaml": _yaml}
