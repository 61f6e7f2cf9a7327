"""The page, opened from the disk in Chromium without a network: keyboard, pointer, phone, and hostile text."""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from dialogpt.chat import Chat
from dialogpt.inspect import Inspection, render_page
from dialogpt.inspect.explain import explain

DIALOGUE = [
    "Hi! My name is Anna.",
    "Hello Anna! What's new?",
    "I have a dog.",
    "A dog! What's its name?",
    "What is my name?",
]
HOSTILE = (
    "<img src=x onerror=\"document.title='ran'\"></script><script>document.title='ran'</script>{{script}}<!-- \u2028"
)
CHROMIUM = shutil.which("chromium")
AXE = os.environ.get("DIALOGPT_AXE")  # a file axe.min.js, of the npm package axe-core
PICTURES = os.environ.get("DIALOGPT_PICTURES")  # a folder where screenshots are left to be looked at
PAGE_LIMIT = 1_000_000  # bytes
in_chromium = pytest.mark.skipif(CHROMIUM is None, reason="Chromium is not installed here")
with_axe = pytest.mark.skipif(AXE is None, reason="DIALOGPT_AXE names no axe.min.js (npm install axe-core)")


@pytest.fixture(scope="module")
def chat() -> Chat:
    return Chat.load("tiny", seed=1)


@pytest.fixture(scope="module")
def found(chat: Chat) -> Inspection:
    return explain(chat, DIALOGUE, "Your name is Anna.", name="tiny")


@pytest.fixture(scope="module")
def file(found: Inspection, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("page") / "page.html"
    path.write_text(render_page(found), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    from playwright.sync_api import sync_playwright

    with sync_playwright() as play:
        browser = play.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu"])
        yield browser
        browser.close()


@pytest.fixture
def opened(browser: Any) -> Iterator[Any]:
    """Opens a file in a new page without a network; a fault of its script or a request fails the test."""
    faults: list[str] = []
    contexts = []

    def note(message: Any) -> None:
        if message.type in ("error", "warning"):
            faults.append(message.text)

    def open_file(path: Path, **options: Any) -> Any:
        context = browser.new_context(offline=True, **{"viewport": {"width": 1280, "height": 900}} | options)
        contexts.append(context)
        page = context.new_page()
        page.set_default_timeout(30_000)  # these machines are shared
        page.on("pageerror", lambda error: faults.append(str(error)))
        page.on("console", note)
        page.on("request", lambda request: faults.append(request.url) if request.url.startswith("http") else None)
        page.goto(path.as_uri())
        return page

    yield open_file
    for context in contexts:
        context.close()
    assert faults == []


def test_a_dialogue_of_six_turns_is_a_small_page_of_its_own(found: Inspection) -> None:
    page = render_page(found)
    assert len(page.encode()) < PAGE_LIMIT
    assert not re.search(r"""(src|href)=["']?(https?:)?//""", page)
    assert "default-src 'none'" in page


def test_the_data_in_the_page_are_the_inspection_rounded(found: Inspection) -> None:
    text = re.search(r'<script type="application/json" id="data">(.*?)</script>', render_page(found), re.DOTALL)
    assert text is not None
    data = json.loads(text[1])
    assert [token["text"] for token in data["tokens"]] == [token["text"] for token in found["tokens"]]
    assert data["reply"]["log_probability"] == pytest.approx(found["reply"]["log_probability"], rel=1e-4)


def test_no_text_ends_the_element_that_holds_it(chat: Chat) -> None:
    page = render_page(explain(chat, [HOSTILE], HOSTILE, name=HOSTILE))
    assert page.count("</script>") == 2
    assert page.count("<script") == 2
    assert "{{script}}" in page  # a text that is a placeholder stays a text
    assert "<img" not in page


@in_chromium
def test_html_in_a_dialogue_runs_nowhere(chat: Chat, opened: Any, tmp_path: Path) -> None:
    path = tmp_path / "hostile.html"
    path.write_text(render_page(explain(chat, [HOSTILE], HOSTILE, name=HOSTILE)), encoding="utf-8")
    page = opened(path)
    for _ in range(3):
        page.click("#next")
    assert page.title() != "ran"
    assert page.locator("main img, main script").count() == 0
    assert page.locator("#turns").text_content().count("<img src=x onerror") == 2


@in_chromium
def test_every_token_is_reached_by_keyboard(found: Inspection, file: Path, opened: Any) -> None:
    page = opened(file)
    first = found["reply"]["first"]
    page.locator(f"#t{first}").focus()
    assert "token 1 of the reply" in page.locator("#chosen").inner_text()
    page.keyboard.press("ArrowRight")
    assert "name" in page.locator("#chosen .what").inner_text()
    assert page.locator("#turns [tabindex='0']").count() == 1
    page.keyboard.press("ArrowUp")
    assert "token 1 of turn 5" in page.locator("#chosen").inner_text()
    page.keyboard.press("Home")
    assert "nothing to predict" in page.locator("#choice").inner_text()
    assert page.locator("#lens").is_hidden()
    page.keyboard.press("End")
    assert "end of turn" in page.locator("#spoken").text_content()
    assert page.url.endswith(f"#token-{len(found['tokens']) - 1}")


@in_chromium
def test_the_panels_say_what_the_data_say(found: Inspection, file: Path, opened: Any) -> None:
    page = opened(file)
    place = next(k for k in range(found["reply"]["first"], len(found["tokens"])) if found["tokens"][k]["text"] == " An")
    page.click(f"#t{place}")
    token = found["tokens"][place]
    heads = page.locator("#choice thead").inner_text()
    assert "temperature 0.2" in heads
    assert "top-p 0.9" in heads
    assert "removed" in page.locator("#choice .removed").inner_text()
    assert page.locator("#choice tr.chosen").count() == 1
    assert page.locator("#lens tbody tr").count() == 7
    settled = page.locator("#lens tbody tr", has_text="settles").inner_text()
    assert settled.startswith(f"layer {token['settles']}")
    assert page.locator("#attention tbody tr").count() == 6
    page.click("#attention summary")
    page.locator("#attention .heads button").nth(5).click()
    assert "layer 2, head 2" in page.locator("#attention .strip").inner_text()
    page.get_by_role("button", name=re.compile("Its lead over")).click()
    assert "ahead of" in page.locator("#contributions").inner_text()
    assert page.locator("#contributions svg rect").count() >= 2 * 6
    assert page.locator("#ablation li").count() == 6


@in_chromium
def test_pointing_at_a_token_shows_it_for_as_long(file: Path, opened: Any) -> None:
    from playwright.sync_api import expect

    page = opened(file)
    before = page.locator("#chosen .where").inner_text()
    page.hover("#t3")
    expect(page.locator("#chosen .where")).to_contain_text("token 4 of turn 1")
    page.hover("h1")
    expect(page.locator("#chosen .where")).to_have_text(before)


@in_chromium
@pytest.mark.parametrize("width", [320, 390, 1280])
def test_nothing_is_wider_than_the_screen(file: Path, opened: Any, width: int) -> None:
    page = opened(file, viewport={"width": width, "height": 844}, has_touch=width < 500)
    token = page.locator("#t5")
    if width < 500:
        token.tap()
        assert token.bounding_box()["height"] >= 30
    else:
        token.click()
    assert "token 6" in page.locator("#chosen").inner_text()
    assert page.evaluate("document.documentElement.scrollWidth") <= width


@in_chromium
def test_beams_candidates_and_drafts_have_their_panel(chat: Chat, opened: Any, tmp_path: Path) -> None:
    beams = Chat(chat.model, chat.tokenizer, replace(chat.generation, num_beams=3, do_sample=False, max_new_tokens=8))
    path = tmp_path / "beams.html"
    path.write_text(render_page(explain(beams, ["Hi! How are you?"])), encoding="utf-8")
    page = opened(path)
    assert page.locator("#considered").is_visible()
    assert page.locator("#considered svg .node").count() > 3
    assert page.locator("#considered tr.chosen").count() == 1


@with_axe
@in_chromium
@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [390, 1280])
def test_axe_finds_nothing(file: Path, opened: Any, scheme: str, width: int) -> None:
    page = opened(file, viewport={"width": width, "height": 900}, color_scheme=scheme, bypass_csp=True)
    page.click("#attention summary")
    if PICTURES:
        page.evaluate("scrollTo(0, 0)")
        page.screenshot(path=Path(PICTURES) / f"explain-{scheme}-{width}.png", full_page=True)
    page.evaluate(Path(AXE or "").read_text(encoding="utf-8"))
    problems = page.evaluate("axe.run().then(r => r.violations.map(v => [v.id, v.nodes.map(n => n.html)]))")
    assert problems == []
