"""Wildcards as their authors meant them: beside dynamicprompts, and what it leaves open."""

from __future__ import annotations

import warnings
from collections import Counter
from pathlib import Path

import pytest

from tiue_core.batch import wildcards as module
from tiue_core.batch.syntax import TemplateError
from tiue_core.batch.wildcards import Wildcards


def folder(tmp_path: Path, **files: str | bytes) -> Path:
    for name, content in files.items():
        stem, _, suffix = name.rpartition("_")
        path = tmp_path / f"{stem}.{suffix}"
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return tmp_path


def draws(ours: Wildcards, template: str, count: int = 400) -> Counter[str]:
    return Counter(ours.sample(template, seed) for seed in range(count))


@pytest.mark.parametrize(
    "template",
    [
        *("{a|b|c}", "{3::a|b}", "{2$$a|b|c}", "{1-2$$ and $$a|b|c}", "__animal__", "__s/*__"),
        *(
            "${c={a|b}}${c} and ${c}",
            "{__animal__|x}",
            "{2$$__animal__}",
        ),
        *(
            "%{in {x|y}...$$a {b|c}}",
            "__place(where=sea)__",
            "x{ a | b }y",
            "{a||b} c",
            "{-2$$a|b}",
        ),
    ],
)
def test_the_same_distribution_as_dynamicprompts(tmp_path: Path, template: str) -> None:
    from dynamicprompts.generators import RandomPromptGenerator
    from dynamicprompts.wildcards import WildcardManager
    from scipy.stats import chi2_contingency

    where = folder(
        tmp_path,
        animal_txt="cat\ndog\n{red|blue} fox\n",
        place_txt="at the ${where:lake}\nunder ground\n",
        wood_yaml="s:\n  small: [tiny, 3::low]\n  big: [huge]\n",
    )
    count = 1500
    theirs = RandomPromptGenerator(WildcardManager(where), seed=5)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        expected = Counter(" ".join(text.split()) for text in theirs.generate(template, count))
    found = draws(Wildcards(where), template, count)
    keys = sorted(expected.keys() | found.keys())
    result = chi2_contingency([[one[key] for key in keys] for one in (expected, found)])
    assert len(keys) > 1 and result.pvalue > 1e-4, (expected, found)


def test_a_sample_costs_its_own_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Layers of files: as many lines are read as the prompt has, not as there could be."""
    for one, inner in zip("abcde", "bcde.", strict=True):
        lines = (f"__{inner}__ {one}{k}\n" if inner != "." else f"{k}\n" for k in range(200))
        (tmp_path / f"{one}.txt").write_text("".join(lines))
    ours, parsed = Wildcards(tmp_path), []
    parse = module.parse
    monkeypatch.setattr(module, "parse", lambda text: parsed.append(text) or parse(text))
    assert len(ours.sample("__a__", 3).split()) == 5
    assert len(parsed) < 20
    parsed.clear()
    assert ours.count("__a__") == 200**5 and len(parsed) < 1100  # every line once
    assert ours.count("__a__ __b__") == 200**9 and len(parsed) < 1200


def test_one_bad_line_is_left_out_and_named(tmp_path: Path) -> None:
    text = (
        "cat\n{red|blue fox\n__nothing__ dog\n# see __animal__\nbee # or __animal__\n__animal__\n"
    )
    ours = Wildcards(folder(tmp_path, animal_txt=text))
    assert set(draws(ours, "__animal__", 100)) == {"cat", "bee"}
    told = "\n".join(ours.left_out)
    assert "animal.txt:2: a brace { is not closed" in told
    assert "animal.txt:3: no wildcard file for __nothing__" in told
    assert "animal.txt:6: the wildcard file __animal__ includes itself" in told
    again = Wildcards(folder(tmp_path, fox_txt="cat\n{red|blue fox\n__nothing__ dog\n"))
    assert list(again.combinations("__fox__")) == ["cat"]


def test_an_empty_file_is_told_from_one_that_is_not_there(tmp_path: Path) -> None:
    (tmp_path / "empty.txt").write_text("# later\n")
    with pytest.raises(TemplateError, match="__empty__ has no lines: write some"):
        Wildcards(tmp_path).sample("a __empty__", 0)
    with pytest.raises(TemplateError, match=r"no wildcard file for __absent__ in .*: add it"):
        Wildcards(tmp_path).sample("a __absent__", 0)
    with pytest.raises(TemplateError, match="did you mean __empty__"):
        Wildcards(tmp_path).sample("a __Empty__", 0)


def test_truth_in_json_is_a_word_of_json(tmp_path: Path) -> None:
    (tmp_path / "all.json").write_text('{"flags": [true]}')
    assert Wildcards(tmp_path).sample("__flags__", 0) == "true"


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        ("\ufeffcafé\n".encode(), {"café"}),
        ("café\nthé\n".encode("utf-16"), {"café", "thé"}),
        ("café\r\ncat\r\n".encode("cp1252"), {"cat"}),
    ],
)
def test_encodings_are_read_or_refused_by_line(
    tmp_path: Path, data: bytes, expected: set[str]
) -> None:
    ours = Wildcards(folder(tmp_path, x_txt=data))
    assert set(draws(ours, "__x__", 50)) == expected
    assert ("x.txt:1: not UTF-8" in "".join(ours.left_out)) == (b"\xe9\r" in data)


def test_yaml_with_tabs_braces_and_a_bad_line(tmp_path: Path) -> None:
    text = "a:\n\tb:\n\t\t- {red|blue} fox\n\t\t- {cat|dog}\n\t\t- it's: here\n\t\t- 1990\n"
    ours = Wildcards(folder(tmp_path, x_yaml=text))
    expected = {"red fox", "blue fox", "cat", "dog", "it's: here", "1990"}
    assert set(draws(ours, "__a/b__", 200)) == expected
    ours = Wildcards(folder(tmp_path, x_yaml="a:\n  - cat\n  - 'dog\n  - bee\nb:\n  - x\n"))
    assert ours.files is not None and "x.yaml:" in ours.files.problems[0]
    with pytest.raises(TemplateError, match=r"no wildcard file for __c__ in .*x\.yaml:\d"):
        ours.sample("__c__", 0)


def test_weights_of_a_text_file_weigh(tmp_path: Path) -> None:
    found = draws(Wildcards(folder(tmp_path, x_txt="9::fox\ncat\n")), "__x__")
    assert set(found) == {"fox", "cat"} and found["fox"] > 5 * found["cat"]


def test_signs_as_themselves() -> None:
    ours = Wildcards()
    assert ours.sample(r"a \{b\|c\} \__x\__ snake__case, http://x.y/z {d|d}", 0) == (
        "a {b|c} __x__ snake__case, http://x.y/z d"
    )
    assert ours.sample("snake__case and other__case", 0) == "snake__case and other__case"


def test_in_turn_and_chosen_once(tmp_path: Path) -> None:
    ours = Wildcards(folder(tmp_path, x_txt="cat\ndog\n"))
    assert [ours.sample("{@a|b} __@x__", 7, turn) for turn in range(3)] == [
        *("a cat", "b dog", "a cat"),
    ]
    assert list(ours.combinations("${c=!{red|blue}}a ${c} cat on ${c}")) == [
        *("a red cat on red", "a blue cat on blue"),
    ]


def test_files_that_grow_without_end(tmp_path: Path) -> None:
    for one, inner in zip("abcdefghijklmno", "bcdefghijklmnop", strict=True):
        (tmp_path / f"{one}.txt").write_text(f"__{inner}__ __{inner}__\n")
    (tmp_path / "p.txt").write_text("x\n")
    with pytest.raises(TemplateError, match="grows without end"):
        Wildcards(tmp_path).sample("__a__", 0)
