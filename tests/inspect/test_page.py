"""The page, opened from the disk in Chromium without a network: keyboard, pointer, phone, and hostile text."""

from __future__ import annotations

import copy
import json
import os
import re
import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch

from dialogpt.chat import Chat
from dialogpt.decoding.speculative import Draft
from dialogpt.inspect import Inspection, render_page
from dialogpt.inspect.explain import explain
from dialogpt.model import GPT2
from tests.helpers import FavoursLong, axe_violations, with_axe

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
PICTURES = os.environ.get("DIALOGPT_PICTURES")  # a folder where screenshots are left to be looked at
PAGE_LIMIT = 1_000_000  # bytes
in_chromium = pytest.mark.skipif(CHROMIUM is None, reason="Chromium is not installed here")

KINDS = ["given", "beams", "candidates", "draft"]


def blurred(network: GPT2) -> GPT2:
    """A copy with noise in its weights: a draft that is right at times."""
    copied = copy.deepcopy(network)
    generator = torch.Generator().manual_seed(1)
    for parameter in copied.parameters():
        parameter.data.add_(0.06 * torch.randn(parameter.shape, generator=generator))
    return copied


@pytest.fixture(scope="module")
def chat() -> Chat:
    return Chat.load("tiny", seed=1)


@pytest.fixture(scope="module")
def found(chat: Chat) -> Inspection:
    return explain(chat, DIALOGUE, "Your name is Anna.", name="tiny")


@pytest.fixture(scope="module")
def inspected(chat: Chat, found: Inspection) -> Callable[[str], Inspection]:
    """An inspection for each thing that may be considered beside a reply."""
    short = replace(chat.generation, max_new_tokens=8)

    def inspect(kind: str) -> Inspection:
        if kind == "beams":
            beams = Chat(chat.model, chat.tokenizer, replace(chat.generation, num_beams=3, do_sample=False))
            return explain(beams, ["What is your name?"])
        if kind == "candidates":
            warm = replace(short, temperature=1.0)
            ranked = Chat(chat.model, chat.tokenizer, warm, reranker=FavoursLong(), num_candidates=4)
            return explain(ranked, ["Tell me a story."], seed=1)
        if kind == "draft":
            drafted = Chat(chat.model, chat.tokenizer, chat.generation, draft=Draft(blurred(chat.model)))
            return explain(drafted, ["Hi!", "Hello.", "What is your name?"], seed=1)
        return found

    return cache(inspect)


@pytest.fixture(scope="module")
def file_of(inspected: Callable[[str], Inspection], tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    folder = tmp_path_factory.mktemp("pages")

    def write(kind: str) -> Path:
        path = folder / f"{kind}.html"
        path.write_text(render_page(inspected(kind)), encoding="utf-8")
        return path

    return cache(write)


@pytest.fixture
def file(file_of: Callable[[str], Path]) -> Path:
    return file_of("given")


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
@pytest.mark.parametrize("kind", KINDS)
def test_nothing_is_wider_than_the_screen(file_of: Callable[[str], Path], opened: Any, kind: str, width: int) -> None:
    page = opened(file_of(kind), viewport={"width": width, "height": 844}, has_touch=width < 500)
    token = page.locator("#t5")
    if width < 500:
        token.tap()
        assert token.bounding_box()["height"] >= 30
    else:
        token.click()
    assert token.get_attribute("aria-pressed") == "true"
    assert page.evaluate("document.documentElement.scrollWidth") <= width


@in_chromium
def test_a_reply_that_was_simply_sampled_has_nothing_beside_it(file_of: Callable[[str], Path], opened: Any) -> None:
    assert opened(file_of("given")).locator("#considered").is_hidden()


@in_chromium
def test_the_tree_of_a_beam_search_leads_to_the_reply(
    inspected: Callable[[str], Inspection], file_of: Callable[[str], Path], opened: Any
) -> None:
    found = inspected("beams")
    assert found["considered"] is not None
    page = opened(file_of("beams"))
    panel = page.locator("#considered")
    assert panel.locator("svg .node").count() == len(found["considered"]["branches"])
    followed = panel.locator("svg g:has(.node.best) text").all_text_contents()
    assert followed.pop() == "end"
    assert "".join(followed).replace("·", " ") == found["reply"]["text"]
    rows = panel.locator("tbody tr")
    assert rows.count() == len(found["considered"]["beams"])
    assert panel.locator("tr.chosen").inner_text().startswith(found["reply"]["text"])


@in_chromium
def test_candidates_stand_in_the_order_of_their_ranks(
    inspected: Callable[[str], Inspection], file_of: Callable[[str], Path], opened: Any
) -> None:
    found = inspected("candidates")
    assert found["considered"] is not None
    page = opened(file_of("candidates"))
    rows = page.locator("#considered tbody tr")
    assert rows.locator(".piece").all_inner_texts() == [one["text"] for one in found["considered"]["candidates"]]
    ranks = [float(cell) for cell in rows.locator("td:nth-child(2)").all_inner_texts()]
    assert len(ranks) == 4
    assert ranks == sorted(ranks, reverse=True)
    assert "chosen" in rows.first.inner_text()
    assert page.locator("#considered .badge").count() == 1


@in_chromium
def test_draft_tokens_are_green_or_struck(
    inspected: Callable[[str], Inspection], file_of: Callable[[str], Path], opened: Any
) -> None:
    found = inspected("draft")
    assert found["considered"] is not None
    rounds = found["considered"]["rounds"]
    proposed, accepted = sum(len(one["tokens"]) for one in rounds), sum(one["accepted"] for one in rounds)
    assert 0 < accepted < proposed  # the draft of this test is right at times
    page = opened(file_of("draft"))
    panel = page.locator("#considered")
    assert panel.locator(".round").count() == len(rounds)
    assert panel.locator(".round .yes").count() == accepted
    struck = panel.locator(".round .no")
    assert struck.count() == proposed - accepted
    assert "line-through" in struck.first.evaluate("each => getComputedStyle(each).textDecoration")
    assert f"suggested {proposed} tokens; {accepted} are" in panel.inner_text()


@with_axe
@in_chromium
@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [390, 1280])
@pytest.mark.parametrize("kind", KINDS)
def test_axe_finds_nothing(file_of: Callable[[str], Path], opened: Any, kind: str, scheme: str, width: int) -> None:
    page = opened(file_of(kind), viewport={"width": width, "height": 900}, color_scheme=scheme, bypass_csp=True)
    page.click("#attention summary")
    if PICTURES:
        page.evaluate("scrollTo(0, 0)")
        page.screenshot(path=Path(PICTURES) / f"explain-{kind}-{scheme}-{width}.png", full_page=True)
    assert axe_violations(page) == []
