"""The page in a real Chromium: `pytest -m slow tests/page`."""

from __future__ import annotations

import base64
import io
import json
import random
import zipfile
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from served import DESK, PHONE, SLOW, png_of, shown, sideways, tiue

pytestmark = pytest.mark.slow
TABS = ("Live", "Inside", "Lists", "Compare")
LAST = "a gift and a boat on a pink background"
SAME = ("--engine", "torch")  # as the server of these tests


@pytest.fixture
def page(one_browser: Any, server: str):
    page = one_browser.new_page(viewport=DESK)
    page.outside, page.wrong = [], []

    def heard(request: Any) -> None:
        if not request.url.startswith((server, "data:", "blob:")):
            page.outside.append(request.url)

    page.on("request", heard)
    page.on("pageerror", lambda error: page.wrong.append(str(error)))
    page.goto(server, timeout=SLOW)
    yield page
    page.close()


def tab(page: Any, name: str) -> None:
    page.get_by_role("tab", name=name).click()


def message(page: Any) -> str:
    """The latest message on the page; it is taken off."""
    toast = page.locator(".toast-body").last
    toast.wait_for(timeout=SLOW)
    text = toast.inner_text()
    page.locator(".toast-close").last.click()
    return text


def test_typing_fast_ends_in_the_last_text_and_the_command_lines_bytes(
    page: Any, tmp_path: Path
) -> None:
    box = page.locator("#tiue-prompt textarea")
    shown(page, "a cat on a blue background", 0)
    page.evaluate(
        """() => { window.seen = []; new MutationObserver(() => {
            const image = document.querySelector('#tiue-picture img');
            if (image && window.seen.at(-1) !== image.dataset.prompt)
                window.seen.push(image.dataset.prompt);
        }).observe(document.querySelector('#tiue-picture'), { childList: true, subtree: true,
            attributes: true }); }"""
    )
    box.fill("")
    hand = random.Random(0)
    for letter in LAST:
        box.press_sequentially(letter, delay=0)
        page.wait_for_timeout(hand.uniform(5, 60))
    image = shown(page, LAST, 0)
    page.wait_for_timeout(4000)  # nothing older comes after it
    assert page.locator("#tiue-picture img").get_attribute("data-prompt") == LAST
    seen = page.evaluate("window.seen")
    while seen and not LAST.startswith(seen[0]):
        seen.pop(0)  # what was there before
    assert seen[-1] == LAST and seen == sorted(seen, key=len)
    assert len(seen) < len(LAST), "every letter was painted"

    ended = tiue("generate", LAST, "--seed", "0", *SAME, "--out", str(tmp_path), "--json")
    (file,) = json.loads(ended.stdout)["images"]
    assert png_of(image) == Path(file["path"]).read_bytes()
    with page.expect_download() as saved:
        page.get_by_role("link", name="Save PNG").first.click()
    assert Path(saved.value.path()).read_bytes() == Path(file["path"]).read_bytes()
    assert file["path"].endswith(saved.value.suggested_filename)
    assert image.get_attribute("alt") == f"Picture of: {LAST}"
    assert not page.outside and not page.wrong


def test_seed_pin_dice_examples_and_variations(page: Any) -> None:
    shown(page, "a cat on a blue background", 0)
    page.wait_for_function(
        "document.querySelectorAll('#tiue-variations button').length == 4", timeout=SLOW
    )
    second = page.locator('#tiue-variations button[data-seed="2"]')
    small = png_of(second.locator("img"))
    second.click()
    assert png_of(shown(page, "a cat on a blue background", 2)) == small
    assert page.locator("#tiue-seed input").input_value() == "2"

    page.locator("#tiue-seed input").fill("11")
    shown(page, "a cat on a blue background", 11)
    page.get_by_role("button", name="Dice").click()
    page.wait_for_function(
        "document.querySelector('#tiue-picture img').dataset.seed !== '11'", timeout=SLOW
    )
    rolled = page.locator("#tiue-seed input").input_value()
    page.get_by_text("a rocket on a white background").click()
    shown(page, "a rocket on a white background", int(rolled))

    page.get_by_label("Pin").uncheck()
    page.locator("#tiue-prompt textarea").press_sequentially("s")
    image = shown(page, "a rocket on a white backgrounds")
    drawn = image.get_attribute("data-seed")
    assert drawn != rolled
    page.wait_for_timeout(2500)
    assert page.locator("#tiue-picture img").get_attribute("data-seed") == drawn, "it loops"
    assert float(page.locator(".tiue-latency").first.get_attribute("data-ms")) > 1


def entries(page: Any) -> Any:
    """Buttons of the history that bring a picture back."""
    return page.locator(".tiue-grid button:not(.tiue-star)")


def entry(page: Any, prompt: str) -> Any:
    return page.locator(f'.tiue-grid button[title^="Take back: {prompt}, seed"]')


def test_history_stays_in_the_browser_and_can_be_switched_off(page: Any, server: str) -> None:
    box = page.locator("#tiue-prompt textarea")
    box.fill("a tree on a red background")
    box.blur()
    row = entry(page, "a tree on a red background")
    row.wait_for(timeout=SLOW)
    assert row.locator("img").get_attribute("src").startswith("data:image/")
    page.goto(server)  # without the link to that picture
    shown(page, "a cat on a blue background", 0)
    row.wait_for(timeout=SLOW)
    row.click()
    shown(page, "a tree on a red background", 0)
    page.get_by_label("Keep a history").uncheck()
    row.wait_for(state="detached", timeout=SLOW)
    box.fill("a boat on a red background")
    box.blur()
    shown(page, "a boat on a red background", 0)
    page.wait_for_timeout(1500)
    assert entries(page).count() == 0
    page.reload()
    shown(page, "a boat on a red background", 0)
    assert entries(page).count() == 0
    assert not page.wrong


def test_dice_and_taken_seeds_are_in_the_history_and_favourites_come_first(page: Any) -> None:
    shown(page, "a cat on a blue background", 0)
    page.click("#tiue-dice")  # which leaves the prompt box: its picture was rested upon, too
    page.wait_for_function("document.querySelectorAll('.tiue-grid li').length == 2", timeout=SLOW)
    page.locator(".tiue-star").first.click()
    page.wait_for_selector('.tiue-grid [aria-pressed="true"]', timeout=SLOW)
    favourite = entries(page).first.get_attribute("title")
    page.wait_for_function(
        "document.querySelectorAll('#tiue-variations button').length == 4", timeout=SLOW
    )
    taken = page.locator("#tiue-variations button").nth(1)
    seed = taken.get_attribute("data-seed")
    taken.click()
    shown(page, "a cat on a blue background", int(seed))
    page.wait_for_function("document.querySelectorAll('.tiue-grid li').length == 3", timeout=SLOW)
    assert entries(page).first.get_attribute("title") == favourite, "the favourite stays first"
    assert entries(page).nth(1).get_attribute("title").endswith(f"seed {seed}")


def test_the_address_brings_the_picture_back(page: Any, server: str, one_browser: Any) -> None:
    page.goto(
        f"{server}/?prompt=a+boat+on+a+red+background&seed=12&width=96&guidance=2", timeout=SLOW
    )
    image = shown(page, "a boat on a red background", 12)
    assert image.get_attribute("width") == "96"
    page.wait_for_function("location.search.includes('height=128')", timeout=SLOW)
    page.locator("#tiue-seed input").fill("13")
    before = png_of(shown(page, "a boat on a red background", 13))
    page.wait_for_function("location.search.includes('seed=13')", timeout=SLOW)
    page.reload()
    assert png_of(shown(page, "a boat on a red background", 13)) == before
    page.goto(f"{server}/?prompt=a+cat&student=nobody", timeout=SLOW)
    assert "no student 'nobody' here" in message(page)


def test_seed_and_link_are_copied(one_browser: Any, server: str) -> None:
    context = one_browser.new_context(permissions=["clipboard-read", "clipboard-write"])
    page = context.new_page()
    page.goto(server, timeout=SLOW)
    shown(page, "a cat on a blue background", 0)
    page.locator("#tiue-seed input").fill("41")
    shown(page, "a cat on a blue background", 41)
    for button, text in (("Copy seed", "41"), ("Copy link", "seed=41")):
        page.get_by_role("button", name=button).click()
        page.wait_for_function(
            "(text) => navigator.clipboard.readText().then((t) => t.includes(text))",
            arg=text,
            timeout=SLOW,
        )
    assert page.evaluate("navigator.clipboard.readText()").startswith(server)
    context.close()


def test_a_saved_picture_that_is_dropped_restores_its_settings(page: Any, tmp_path: Path) -> None:
    options = ("--seed", "77", "--negative", "a cat", "--guidance", "3", "--width", "96", *SAME)
    ended = tiue("generate", LAST, *options, "--out", str(tmp_path), "--json", "--quiet")
    (file,) = json.loads(ended.stdout)["images"]
    shown(page, "a cat on a blue background", 0)
    page.evaluate(
        """(data) => {
            const bytes = Uint8Array.from(atob(data), (letter) => letter.charCodeAt(0));
            const transfer = new DataTransfer();
            transfer.items.add(new File([bytes], 'a.png', { type: 'image/png' }));
            document.body.dispatchEvent(
                new DragEvent('drop', { dataTransfer: transfer, bubbles: true, cancelable: true }));
        }""",
        base64.b64encode(Path(file["path"]).read_bytes()).decode(),
    )
    shown(page, LAST, 77)
    image = page.locator('#tiue-picture img[data-seed="77"][width="96"]')
    image.wait_for(timeout=SLOW)
    assert png_of(image) == Path(file["path"]).read_bytes(), "the very bytes of the command line"
    page.locator("button", has_text="Student, size, negative prompt").click()
    assert page.get_by_label("Negative prompt").input_value() == "a cat"
    photo = tmp_path / "photo.png"
    Image.new("RGB", (8, 8)).save(photo)
    page.locator(".tiue-drop input").set_input_files(photo)
    assert "does not say how it was made" in message(page)


def test_negative_prompt_size_presets_and_count(page: Any, tmp_path: Path) -> None:
    plain = png_of(shown(page, "a cat on a blue background", 0))
    page.locator("button", has_text="Student, size, negative prompt").click()
    page.get_by_label("Negative prompt").fill("blue")
    page.wait_for_selector('#tiue-picture img[data-settings*="negative"]', timeout=SLOW)
    guided = png_of(page.locator("#tiue-picture img"))
    assert guided != plain
    ended = tiue(
        *("generate", "a cat on a blue background", "--negative", "blue"),
        *("--out", str(tmp_path), "--json", "--quiet"),
        *SAME,
    )
    assert guided == Path(json.loads(ended.stdout)["images"][0]["path"]).read_bytes()
    page.get_by_label("Size", exact=True).click()
    page.get_by_role("option", name="portrait").click()
    page.wait_for_selector('#tiue-picture img[width="96"][height="128"]', timeout=SLOW)
    page.get_by_role("spinbutton", name="Variations").fill("2")
    page.locator("#tiue-seed input").fill("5")
    page.wait_for_function(
        """[...document.querySelectorAll('#tiue-variations button')].map((b) => b.dataset.seed)
            .join() === '6,7'""",
        timeout=SLOW,
    )


def test_enter_paints_and_shift_enter_is_a_new_line(page: Any) -> None:
    shown(page, "a cat on a blue background", 0)
    page.get_by_label("Pin").uncheck()
    box = page.locator("#tiue-prompt textarea")
    box.focus()
    page.keyboard.press("End")
    before = page.locator("#tiue-picture img").get_attribute("src")
    page.keyboard.press("Enter")  # an unpinned seed: another picture of the same prompt
    page.wait_for_function(
        "(old) => document.querySelector('#tiue-picture img').src !== old", arg=before, timeout=SLOW
    )
    assert "\n" not in box.input_value()
    page.keyboard.press("Shift+Enter")
    page.keyboard.type("and a boat")
    assert box.input_value() == "a cat on a blue background\nand a boat"
    shown(page, "a cat on a blue background and a boat")
    assert page.evaluate("document.activeElement.tagName") == "TEXTAREA", "the focus is kept"
    heard = page.locator(".tiue-past [role=status]")
    page.wait_for_function(
        "document.querySelector('.tiue-past [role=status]').textContent.includes('and a boat')",
        timeout=SLOW,
    )
    assert heard.inner_text().startswith("Picture of: ")


def test_unknown_words_are_told_beside_the_picture(page: Any) -> None:
    page.locator("#tiue-prompt textarea").fill("a dragon in space")
    shown(page, "a dragon in space")
    page.get_by_text("the student does not know the prompt's 'dragon', 'in', 'space'").wait_for(
        timeout=SLOW
    )


def test_on_a_phone_the_picture_is_in_sight_while_typing(one_browser: Any, server: str) -> None:
    page = one_browser.new_page(
        viewport={"width": 390, "height": 460}, has_touch=True
    )  # a keyboard
    page.goto(server, timeout=SLOW)
    shown(page, "a cat on a blue background")
    page.locator("#tiue-prompt textarea").tap()
    page.keyboard.press("End")
    page.keyboard.type("s")
    shown(page, "a cat on a blue backgrounds")
    page.wait_for_timeout(500)
    for part in ("#tiue-picture img", "#tiue-prompt textarea"):
        box = page.locator(part).bounding_box()
        assert box["y"] >= 0 and box["y"] + box["height"] <= 460, (part, box)
    page.close()


def test_a_new_file_clears_what_the_last_list_made(page: Any, tmp_path: Path) -> None:
    tab(page, "Lists")
    page.locator("#tiue-list textarea").fill("prompt,seed\na cat on a blue background,1\n")
    page.get_by_text("1 picture to make").wait_for(timeout=SLOW)
    page.click("#tiue-make")
    page.wait_for_selector("#tiue-progress:has-text('1 made')", timeout=SLOW)
    page.wait_for_selector("#tiue-gallery img", timeout=SLOW)
    other = tmp_path / "other.csv"
    other.write_text("prompt,seed\na boat on a blue background,1\n")
    page.locator("#tiue-upload input[type=file]").set_input_files(other)
    page.wait_for_selector("#tiue-gallery img", state="detached", timeout=SLOW)
    page.wait_for_selector("#tiue-zip", state="hidden", timeout=SLOW)
    assert "made" not in page.locator("#tiue-progress").inner_text()


def test_a_list_with_a_bad_row(page: Any, tmp_path: Path) -> None:
    tab(page, "Lists")
    rows = "prompt,seed,count\na cat on a blue background,1,2\na boat,many,\n"
    page.locator("#tiue-list textarea").fill(rows)
    bad = page.locator("tr.tiue-bad")
    page.get_by_text("2 pictures to make, 1 bad row left out").wait_for(timeout=SLOW)
    assert bad.count() == 1 and "seed: 'many' is no seed" in bad.inner_text()
    page.click("#tiue-make")
    page.wait_for_selector("#tiue-progress:has-text('2 made, 1 bad row left out')", timeout=SLOW)
    page.wait_for_selector("#tiue-gallery img", timeout=SLOW)
    with page.expect_download(timeout=SLOW) as saved:
        page.click("#tiue-zip")
    with zipfile.ZipFile(saved.value.path()) as archive:
        names = set(archive.namelist())
        assert {"manifest.jsonl", "index.html"} <= names
        pictures = sorted(name for name in names if name.endswith(".png"))
        assert len(pictures) == 2
        list_file = tmp_path / "list.csv"
        list_file.write_text(rows)
        same = ("--batch-size", "4", "--out", str(tmp_path / "out"), *SAME)
        made = tiue("batch", str(list_file), *same)
        assert "2 made" in made.stdout + made.stderr
        for name in pictures:
            assert archive.read(name) == (tmp_path / "out" / name).read_bytes()
            Image.open(io.BytesIO(archive.read(name))).verify()


def test_uploads(page: Any, tmp_path: Path) -> None:
    tab(page, "Lists")
    upload = page.locator("#tiue-upload input[type=file]")
    good = tmp_path / "list.txt"
    good.write_text("a cat on a red background --seed 3\n")
    upload.set_input_files(good)
    page.wait_for_function(
        "document.querySelector('#tiue-list textarea').value.includes('--seed 3')", timeout=SLOW
    )
    page.get_by_text("1 picture to make").wait_for(timeout=SLOW)

    zipped, disguised = tmp_path / "a.zip", tmp_path / "bomb.csv"
    with zipfile.ZipFile(zipped, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a.csv", b"0" * 100_000_000)
    disguised.write_bytes(zipped.read_bytes())
    huge = tmp_path / "huge.txt"
    with huge.open("wb") as file:
        file.truncate(200 << 20)
    for path, words in ((zipped, "type"), (disguised, "no text"), (huge, "size")):
        page.reload()
        tab(page, "Lists")
        page.locator("#tiue-upload input[type=file]").set_input_files(path)
        assert words in message(page).lower(), path.name


def test_what_is_refused_is_said_on_the_page(page: Any) -> None:
    shown(page, "a cat on a blue background", 0)
    page.locator("#tiue-prompt textarea").fill("x" * 1_000_000)
    assert "1000000 characters: give up to" in message(page)
    page.locator("#tiue-prompt textarea").fill("<b>a cat</b>")
    shown(page, "<b>a cat</b>")
    assert page.locator("#tiue-picture b").count() == 0


def test_inside_and_compare(page: Any) -> None:
    tab(page, "Inside")
    page.get_by_role("button", name="Look inside").click()
    page.wait_for_selector("#tiue-features img", timeout=SLOW)
    assert page.locator("#tiue-sums img").count() == 5
    before = page.locator("#tiue-inside img").get_attribute("src")
    other = "(old) => document.querySelector('#tiue-inside img').src !== old"
    page.get_by_role("spinbutton", name="Weight of decoder 1").fill("0.2")
    page.wait_for_function(other, arg=before, timeout=SLOW)
    page.get_by_label("Prompt", exact=True).locator("visible=true").fill("a boat")
    page.wait_for_selector('#tiue-inside img[alt="Picture of: a boat"]', timeout=SLOW)
    tab(page, "Compare")
    page.get_by_role("button", name="Compare").last.click()
    page.wait_for_selector("#tiue-compare img", timeout=SLOW)
    assert page.locator("#tiue-compare img").count() == 2
    assert "PSNR" in page.locator("#tiue-compare").inner_text()
    slider = page.locator("#tiue-compare input[type=range]")
    slider.focus()
    page.keyboard.press("ArrowRight")  # with the keyboard alone
    at = "getComputedStyle(document.querySelector('.tiue-versus')).getPropertyValue('--at')"
    assert page.evaluate(at) == "51%"


def test_a_phone_needs_no_scrolling_sideways(one_browser: Any, server: str) -> None:
    page = one_browser.new_page(viewport=PHONE, has_touch=True)
    page.goto(server, timeout=SLOW)
    shown(page, "a cat on a blue background")
    for name in TABS:
        tab(page, name)
        if name == "Lists":
            page.wait_for_selector("tr.tiue-bad", timeout=SLOW)
        elif name == "Inside":
            page.get_by_role("button", name="Look inside").click()
            page.wait_for_selector("#tiue-features img", timeout=SLOW)
        elif name == "Compare":
            page.get_by_role("button", name="Compare").last.click()
            page.wait_for_selector("#tiue-compare img", timeout=SLOW)
        page.wait_for_timeout(500)
        assert sideways(page) == 0, name
    page.close()


def test_every_control_has_a_name_and_the_keyboard_reaches_it(page: Any) -> None:
    shown(page, "a cat on a blue background")
    nameless = """() => [...document.querySelectorAll('input, textarea, button, select, img')]
        .filter((part) => part.checkVisibility() && !(part.ariaLabel || part.title || part.alt
            || part.labels?.length || part.innerText?.trim() || part.closest('label')
            || part.getAttribute('aria-labelledby') || part.closest('[aria-label]')))
        .map((part) => part.outerHTML.slice(0, 200))"""
    for name in TABS:
        tab(page, name)
        page.wait_for_timeout(400)
        assert page.evaluate(nameless) == [], name
    tab(page, "Live")
    page.locator("#tiue-prompt textarea").focus()
    reached = set()
    for _ in range(20):
        page.keyboard.press("Tab")
        reached.add(page.evaluate("document.activeElement.closest('[id^=tiue]')?.id"))
    assert {"tiue-seed", "tiue-dice", "tiue-variations"} <= reached


def test_broken_weights_are_told_on_the_page(one_browser: Any, tmp_path: Path) -> None:
    import shutil

    import torch
    from safetensors.torch import load_file, save_file
    from served import ROOT, served

    broken = tmp_path / "broken"
    shutil.copytree(ROOT / "tiue_core/stickers/student", broken)
    (file,) = (broken / "unet").glob("*.safetensors")
    weights = load_file(file)
    name = next(iter(weights))
    weights[name] = torch.full_like(weights[name], float("nan"))
    save_file(weights, file, metadata={"format": "pt"})
    with served("--student", str(broken)) as (url, process):
        page = one_browser.new_page(viewport=DESK)
        page.goto(url, timeout=SLOW)
        page.locator("#tiue-prompt textarea").fill("a dog")
        told = message(page)
        assert "broken" in told and "NaN" in told and "choose another student" in told
        assert process.poll() is None, "the page goes on"
        page.close()
