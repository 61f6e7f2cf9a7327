"""The page, driven in Chromium as a person would: talk, stop, retry, edit, reload, look inside, lose the server."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from playwright.sync_api import expect, sync_playwright

from tests.helpers import ROOT, WAIT_SECONDS, axe_violations, needs_posix, started, with_axe, write_published

CHROMIUM = shutil.which("chromium")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="Chromium is not installed here")
QUIET = ["--disable-background-networking", "--disable-component-update", "--disable-sync", "--no-first-run",
         "--disable-quic", "--disable-gpu"]  # fmt: skip
PATIENCE = 60_000  # milliseconds; these machines are shared
expect.set_options(timeout=PATIENCE)
PICTURES = os.environ.get("DIALOGPT_PICTURES")  # a folder where screenshots are left to be looked at


@contextmanager
def server(port: int = 0, *flags: str) -> Iterator[tuple[str, subprocess.Popen[str]]]:
    command = [
        sys.executable,
        "-m",
        "dialogpt",
        "serve",
        "--port",
        str(port),
        "--log-level",
        "warning",
        "--grace",
        "1",
        *flags,
    ]
    with started(command, stderr=subprocess.PIPE) as process:
        assert process.stderr is not None
        line = process.stderr.readline()
        assert " answers at " in line, line
        yield line.split(" answers at ")[1].split(" ")[0], process
        process.send_signal(signal.SIGTERM)
        process.wait(timeout=WAIT_SECONDS)


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    with server(0, "--min-new-tokens", "5", "--threads", "1") as (url, _):
        yield url


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with sync_playwright() as play:
        browser = play.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", *QUIET])
        yield browser
        browser.close()


@pytest.fixture
def page(browser: Any, url: str) -> Iterator[Any]:
    context = browser.new_context(viewport={"width": 1000, "height": 800})
    page = context.new_page()
    page.set_default_timeout(PATIENCE)
    faults: list[str] = []
    page.on("pageerror", lambda error: faults.append(str(error)))
    page.goto(url)
    expect(page.locator("#model")).to_have_text("dialogpt: tiny")
    yield page
    context.close()
    assert faults == []


def new_page(browser: Any) -> Any:
    page = browser.new_page()
    page.set_default_timeout(PATIENCE)
    return page


def say(page: Any, text: str) -> str:
    """Say something, and wait for the whole reply."""
    number = page.locator("#log li").count()
    page.fill("#input", text)
    page.press("#input", "Enter")
    expect(page.locator("#log li .actions")).to_have_count(number + 2)
    reply: str = page.locator("#log li").last.locator(".text").inner_text()
    return reply


def open_conversation(page: Any, index: int) -> None:
    """Open a conversation of the list, the newest of which is the first."""
    page.locator("#conversations .open").nth(index).click()


def remove_conversation(page: Any) -> None:
    page.locator(".item.current").get_by_role("button", name="Delete").click()
    page.click("#confirm-delete")


def picture(page: Any, name: str) -> None:
    if PICTURES:
        page.screenshot(path=Path(PICTURES) / f"{name}.png")


def test_talk_and_find_it_again_after_a_reload(page: Any) -> None:
    first = say(page, "Hi! How are you?")
    second = say(page, "What is your name?")
    assert first.strip()
    assert page.locator("#window-text").inner_text().endswith("of 256 tokens")  # of the dialogue, not of the network
    assert "tokens/s" in page.locator("#speed").inner_text()
    page.reload()
    texts = page.locator("#log .text").all_inner_texts()
    assert texts == ["Hi! How are you?", first, "What is your name?", second]
    page.click("#new")
    assert page.locator("#log li").count() == 0
    open_conversation(page, 1)
    assert page.locator("#log li").count() == 4
    picture(page, "talk-light")
    page.emulate_media(color_scheme="dark")
    picture(page, "talk-dark")


def test_retry_and_edit(page: Any) -> None:
    say(page, "Hi!")
    say(page, "Tell me a story.")  # of which it knows more than one
    replies = set()
    for _ in range(6):
        page.locator("#log li").last.get_by_role("button", name="Retry").click()
        expect(page.locator("#log li .actions")).to_have_count(4)
        replies.add(page.locator("#log li").last.locator(".text").inner_text())
    assert len(replies) > 1
    page.locator("#log li").nth(0).get_by_role("button", name="Edit").click()
    page.get_by_label("Edit your message").fill("I am tired.")
    page.get_by_label("Edit your message").press("Enter")
    expect(page.locator("#log li .actions")).to_have_count(2)
    assert page.locator("#log .text").first.inner_text() == "I am tired."
    page.locator("#log li").nth(0).get_by_role("button", name="Edit").click()
    page.keyboard.press("Escape")
    assert page.locator("#log .text").first.inner_text() == "I am tired."


STOP_SOON = """() => {
    const wait = setInterval(() => {
        const reply = document.querySelectorAll("#log .text")[1];
        if (reply && reply.innerText.length > 10) {
            clearInterval(wait);
            document.querySelector("#stop").click();
        }
    }, 5);
}"""


def test_a_reply_is_stopped_and_what_was_said_is_kept(browser: Any, tmp_path: Path) -> None:
    """And the server says no more of it: the button stops both ends.

    The reply takes ten seconds if nobody stops it: tiny's longest is complete before a busy browser shows any of it.
    """
    write_published(tmp_path, n_positions=4096, n_embd=256, n_layer=8, n_head=8)
    flags = ["--min-new-tokens", "2000", "--max-new-tokens", "2000", "--threads", "1", "--dtype", "float64"]
    with server(0, "--model", str(tmp_path), *flags) as (url, _):
        page = new_page(browser)
        page.goto(url)
        page.fill("#input", "Tell me a story.")
        page.evaluate(STOP_SOON)  # in the page: from outside, on a busy machine, the reply is complete by then
        page.press("#input", "Enter")
        expect(page.locator("#log li .actions")).to_have_count(2)
        kept = page.locator("#log .text").nth(1).inner_text()
        assert len(kept) > 10
        assert page.locator("#problem").is_hidden()
        page.reload()
        assert page.locator("#log .text").nth(1).inner_text() == kept
        deadline = time.monotonic() + WAIT_SECONDS
        while time.monotonic() < deadline:
            health = page.request.get(f"{url}health").json()
            if health["running"] == 0:
                break
        assert health["running"] == 0
        said = re.search(r"dialogpt_tokens_total (\d+)", page.request.get(f"{url}metrics").text())
        assert said is not None
        assert int(said[1]) < 1900
        page.close()


def test_a_reply_of_nothing_is_told(browser: Any) -> None:
    """The end token wins every draw, five times over; the person can ask again."""
    with server(0, "--threads", "1", "--min-new-tokens", "0", "--sequence-bias", "[[[8191], 1000.0]]") as (url, _):
        page = new_page(browser)
        page.goto(url)
        page.fill("#input", "Hi!")
        page.press("#input", "Enter")
        expect(page.locator("#problem")).to_contain_text("The model said nothing.")
        expect(page.locator("#log li")).to_have_count(1)
        page.click("#again")
        expect(page.locator("#problem")).to_contain_text("The model said nothing.")
        page.close()


def test_text_is_shown_as_text(page: Any) -> None:
    """What a person types, and what a reply holds, is never HTML."""
    evil = "<img src=x onerror=\"document.title='taken'\"><script>document.title='taken'</script>"
    say(page, evil)
    body = {"choices": [{"index": 0, "delta": {"content": evil}, "logprobs": None, "finish_reason": None}]}
    stream = f"data: {json.dumps(body)}\n\ndata: [DONE]\n\n"
    page.route("**/v1/chat/completions", lambda route: route.fulfill(body=stream, content_type="text/event-stream"))
    assert say(page, "And you?") == evil
    page.reload()
    page.wait_for_timeout(200)
    assert page.title() == "dialogpt"
    assert page.locator("#log img, #log script").count() == 0
    assert page.locator("#log .text").first.inner_text() == evil


def test_see_inside_a_reply(page: Any) -> None:
    reply = say(page, "Hi! How are you?")
    page.get_by_role("button", name="See inside").click()
    tokens = page.locator(".tokens button")
    assert "".join(tokens.all_inner_texts()).replace("·", " ") == reply
    assert page.locator(".inside tr").count() in (5, 6)
    tokens.nth(1).focus()
    assert tokens.nth(1).get_attribute("aria-pressed") == "true"
    chosen = page.locator(".inside tr", has_text="▸")
    assert chosen.count() == 1
    assert "%" in chosen.inner_text()
    picture(page, "inside")
    faults: list[str] = []
    with page.context.expect_page() as opened:
        page.get_by_role("button", name="Look deeper").click()
    tab = opened.value
    tab.on("console", lambda message: faults.append(message.text) if message.type == "error" else None)
    expect(tab.locator("h1")).to_be_visible()
    assert tab.locator("svg, button").count() > 3  # its script has run
    assert faults == []
    tab.close()
    page.get_by_role("button", name="See inside").click()
    assert page.locator(".inside").count() == 0


@needs_posix
def test_the_server_dies_and_comes_back(browser: Any) -> None:
    with server() as (url, process):
        page = new_page(browser)
        page.goto(url)
        say(page, "Hi!")
        process.send_signal(signal.SIGKILL)
        process.wait()
    page.fill("#input", "Are you there?")
    page.press("#input", "Enter")
    page.wait_for_selector("#problem:not([hidden])")
    assert "The server does not answer. What you wrote is kept." in page.locator("#problem").inner_text()
    picture(page, "away")
    with server(int(url.rstrip("/").rsplit(":", 1)[1])):
        page.click("#again")
        expect(page.locator("#log li .actions")).to_have_count(4)
        assert page.locator("#problem").is_hidden()
        assert page.locator("#log .text").nth(2).inner_text() == "Are you there?"
    page.close()


def test_settings_and_a_key(browser: Any) -> None:
    with server(0, "--api-key", "secret") as (url, _):
        page = new_page(browser)
        page.goto(url)
        page.wait_for_selector("#problem:not([hidden])")
        assert "asks for an API key" in page.locator("#problem").inner_text()
        page.click("#open-settings")
        page.get_by_label("API key").fill("secret")
        page.get_by_label("Temperature", exact=True).fill("0")
        page.get_by_label("Longest reply", exact=True).fill("3")
        picture(page, "settings")
        page.get_by_role("button", name="Done").click()
        expect(page.locator("#model")).to_have_text("dialogpt: tiny")
        sent: list[Any] = []
        page.on("request", lambda request: sent.append(request.post_data_json) if request.method == "POST" else None)
        first = say(page, "Hi!")
        page.locator("#log li").last.get_by_role("button", name="Retry").click()
        expect(page.locator("#log li .actions")).to_have_count(2)
        assert page.locator("#log .text").nth(1).inner_text() == first
        assert (sent[0]["temperature"], sent[0]["max_tokens"]) == (0, 3)
        page.close()


def test_export_and_import(page: Any, tmp_path: Path) -> None:
    reply = say(page, "Hi!")
    with page.expect_download() as download:
        page.get_by_role("button", name="Save all").click()
    file = tmp_path / "kept.json"
    download.value.save_as(file)
    remove_conversation(page)
    expect(page.locator("#log li")).to_have_count(0)
    page.locator("#file").set_input_files(file)
    expect(page.locator("#log li")).to_have_count(2)
    assert page.locator("#log .text").all_inner_texts() == ["Hi!", reply]
    (tmp_path / "other.json").write_text('{"conversations": [{"messages": [{"role": "user"}]}]}')
    page.locator("#file").set_input_files(tmp_path / "other.json")
    page.wait_for_selector("#problem:not([hidden])")
    assert "other.json holds no conversations" in page.locator("#problem").inner_text()


@pytest.mark.parametrize(
    ("kept", "one"),
    [
        ("{", "{"),
        ("null", "null"),
        ('{"current": -1, "settings": null}', '{"messages": [], "used": {}}'),
        ('{"current": "x", "settings": [""]}', '{"messages": [{"role": "user", "content": "a"}], "made": "x"}'),
        ("[]", '{"messages": [{"role": "assistant", "content": "a", "tokens": [null, {"text": "a"}]}]}'),
        ('{"settings": {"top_k": "<b>"}}', '{"messages": [{"role": "system", "content": "a"}]}'),
    ],
)
def test_what_is_kept_may_be_damaged(page: Any, kept: str, one: str) -> None:
    page.evaluate(
        "([kept, one]) => {localStorage.setItem('dialogpt', kept); localStorage.setItem('dialogpt:x', one)}",
        [kept, one],
    )
    page.reload()
    expect(page.locator("#model")).to_have_text("dialogpt: tiny")
    say(page, "Hi!")
    page.locator("#log li").last.get_by_role("button", name="See inside").click()
    page.click("#open-settings")
    page.get_by_role("button", name="Done").click()


def test_two_tabs_keep_each_others_conversations(page: Any) -> None:
    other = page.context.new_page()
    other.set_default_timeout(PATIENCE)
    other.goto(page.url)
    say(other, "I am the second tab.")
    say(page, "I am the first tab.")
    page.reload()
    names = page.locator("#conversations .open").all_inner_texts()
    assert {"I am the first tab.", "I am the second tab."} <= set(names)
    open_conversation(page, names.index("I am the second tab."))
    say(page, "And I am here, too.")  # in the conversation that the other tab has open
    expect(other.locator("#log li")).to_have_count(4)
    other.click("#open-settings")
    other.get_by_role("button", name="Reset all").click()  # keeps, and overwrites nothing
    other.get_by_role("button", name="Done").click()
    page.reload()
    assert page.locator("#log li").count() == 4
    remove_conversation(page)
    expect(other.locator("#conversations .open")).to_have_text(["I am the first tab."])
    say(other, "Is it gone?")
    page.reload()
    assert page.locator("#conversations .open").all_inner_texts() == ["I am the first tab."]


def test_a_browser_without_room_says_so_and_goes_on(page: Any) -> None:
    page.evaluate("() => { Storage.prototype.setItem = () => { throw new Error('full'); }; }")
    reply = say(page, "Hi!")
    expect(page.locator("#problem")).to_contain_text("no room to keep the conversation")
    say(page, "And now?")
    assert page.locator("#log .text").all_inner_texts()[:3] == ["Hi!", reply, "And now?"]


def test_two_tabs_talk_at_the_same_time(page: Any) -> None:
    """In one conversation: the later of two replies went over the earlier; now it becomes a conversation of its own."""
    say(page, "Hi!")
    other = page.context.new_page()
    other.set_default_timeout(PATIENCE)
    other.goto(page.url)
    held: list[Any] = []
    page.route("**/v1/chat/completions", lambda route: held.append(route))
    page.fill("#input", "I am slow.")
    page.press("#input", "Enter")
    expect(page.locator("#log li.assistant")).to_have_count(2)
    say(other, "I am fast.")
    held[0].continue_()
    expect(page.locator("#log li .actions")).to_have_count(4)
    page.reload()
    shown = [page.locator("#log .text").all_inner_texts()]
    assert page.locator("#conversations .open").count() == 2
    for tab in (page, other):
        tab.locator(".item:not(.current) .open").click()
        shown.append(tab.locator("#log .text").all_inner_texts())
    assert {texts[3] == "I am fast." for texts in shown} == {True, False}
    assert {len(texts) for texts in shown} == {4, 5}  # what was written first is in both


def test_an_edit_that_is_not_answered_takes_nothing_away(page: Any) -> None:
    for text in ("First.", "Second.", "Third."):
        say(page, text)
    before = page.locator("#log .text").all_inner_texts()
    page.route("**/v1/chat/completions", lambda route: route.abort())
    page.locator("#log li").first.get_by_role("button", name="Edit").click()
    page.get_by_label("Edit your message").fill("Another.")
    page.keyboard.press("Enter")
    expect(page.locator("#problem")).to_contain_text("The server does not answer.")
    assert page.locator("#log .text").all_inner_texts() == before[1:]
    assert page.get_by_label("Edit your message").input_value() == "Another."
    page.get_by_role("button", name="Cancel").click()
    assert page.locator("#log .text").all_inner_texts() == before
    page.unroute("**/v1/chat/completions")
    page.click("#again")
    expect(page.locator("#log li .actions")).to_have_count(2)
    assert page.locator("#log .text").first.inner_text() == "Another."


def test_a_message_that_was_not_answered_can_be_asked_again(page: Any) -> None:
    page.route("**/v1/chat/completions", lambda route: route.abort())
    page.fill("#input", "Hi!")
    page.press("#input", "Enter")
    expect(page.locator("#problem")).to_be_visible()
    page.unroute("**/v1/chat/completions")
    page.reload()
    page.get_by_role("button", name="Ask again").click()
    expect(page.locator("#log li .actions")).to_have_count(2)
    expect(page.get_by_role("button", name="Ask again")).to_have_count(0)


def test_what_is_open_stays_open_and_a_reader_stays_where_they_are(page: Any) -> None:
    for _ in range(6):
        say(page, "Tell me more about it, please.\n\nAnd more.")
    page.locator("#log li.assistant").first.get_by_role("button", name="See inside").click()
    page.locator("#log li.user").nth(1).get_by_role("button", name="Edit").click()
    page.get_by_label("Edit your message").fill("I am still writing.")
    page.fill("#input", "Go on.")
    held: list[Any] = []
    page.route("**/v1/chat/completions", lambda route: held.append(route))
    page.press("#input", "Enter")
    expect(page.locator("#log li")).to_have_count(14)
    page.evaluate("document.getElementById('main').scrollTop = 0")
    other = page.locator("#log li.user").nth(3)
    assert other.get_by_role("button", name="Edit").is_disabled()
    held[0].continue_()
    expect(page.get_by_role("button", name="Retry")).to_be_visible()
    assert page.evaluate("document.getElementById('main').scrollTop") == 0
    assert page.locator(".inside").count() == 1
    assert page.get_by_label("Edit your message").input_value() == "I am still writing."
    tab = page.context.new_page()
    tab.set_default_timeout(PATIENCE)
    tab.goto(page.url)
    say(tab, "Here is another tab.")
    expect(page.locator("#log li")).to_have_count(16)
    assert page.locator(".inside").count() == 1
    assert page.get_by_label("Edit your message").input_value() == "I am still writing."
    page.evaluate("document.getElementById('main').scrollTop = 0")
    page.fill("#input", "And on.")
    page.press("#input", "Enter")
    expect(page.locator("#log li")).to_have_count(18)
    page.get_by_label("Edit your message").press("Escape")  # leaves the edit, and not the reply
    assert page.locator("#log li").count() == 18
    held[-1].continue_()
    expect(page.locator("#log li .actions")).to_have_count(18)


def test_a_browser_that_keeps_nothing_can_talk(browser: Any, url: str) -> None:
    """As with all cookies blocked: both stores throw when they are touched."""
    page = new_page(browser)
    page.add_init_script(
        "for (const name of ['localStorage', 'sessionStorage']) "
        "Object.defineProperty(window, name, {get() { throw new Error('denied'); }})"
    )
    faults: list[str] = []
    page.on("pageerror", lambda error: faults.append(str(error)))
    page.goto(url)
    assert say(page, "Hi!")
    expect(page.locator("#problem")).to_contain_text("no room to keep the conversation")
    page.click("#open-settings")
    page.get_by_label("API key").fill("key")
    page.get_by_role("button", name="Done").click()
    remove_conversation(page)
    expect(page.locator("#log li")).to_have_count(0)
    assert faults == []
    page.close()


def test_on_another_machine_of_the_network_it_works_too(browser: Any, url: str) -> None:
    """Over http a browser has no `crypto.randomUUID` there, and no clipboard; the page was dead without the first."""
    page = new_page(browser)
    page.add_init_script("delete Crypto.prototype.randomUUID; delete Navigator.prototype.clipboard")
    page.goto(url)
    assert say(page, "Hi!")
    page.locator("#log li").last.get_by_role("button", name="Copy").click()
    expect(page.locator("#problem")).to_contain_text("did not let the page copy")
    page.close()


def test_a_long_conversation_goes_on(page: Any) -> None:
    messages = [{"role": ("user", "assistant")[k % 2], "content": "word " * 20} for k in range(600)]
    page.evaluate("messages => localStorage.setItem('dialogpt:x', JSON.stringify({messages}))", messages)
    page.reload()
    assert say(page, "Hi!").strip()
    assert page.locator("#problem").is_hidden()


def test_retry_without_a_server_keeps_the_old_reply(page: Any) -> None:
    reply = say(page, "Hi!")
    page.route("**/v1/chat/completions", lambda route: route.abort())
    page.locator("#log li").last.get_by_role("button", name="Retry").click()
    page.wait_for_selector("#problem:not([hidden])")
    assert page.locator("#log .text").last.inner_text() == reply


def test_on_a_phone_nothing_is_cut_off(browser: Any, url: str) -> None:
    context = browser.new_context(viewport={"width": 360, "height": 640}, color_scheme="dark", has_touch=True)
    page = context.new_page()
    page.goto(url)
    say(page, "Hi! " + "a" * 200)
    page.get_by_role("button", name="See inside").click()
    assert page.evaluate("document.documentElement.scrollWidth") <= 360
    picture(page, "phone")
    context.close()


def test_everything_has_a_name_and_a_place_in_the_order_of_tabs(page: Any) -> None:
    say(page, "Hi!")
    nameless = page.evaluate(
        """[...document.querySelectorAll('button, input, select, textarea')].filter((each) =>
        !each.textContent.trim() && !each.labels?.length && !each.getAttribute('aria-label')).length"""
    )
    assert nameless == 0
    reply = page.locator("#log .text").last.inner_text()
    assert page.locator("[role=status]").text_content() == reply  # the whole reply is read out, once
    page.focus("#new")
    places = ["new"]
    for _ in range(16):
        page.keyboard.press("Tab")
        places.append(page.evaluate("document.activeElement.id || document.activeElement.textContent"))
    for wanted in ("new", "open-settings", "Copy", "Edit", "Retry", "See inside", "input", "send"):
        assert wanted in places, places


def test_it_needs_nothing_from_elsewhere(browser: Any, url: str) -> None:
    context = browser.new_context()
    page = context.new_page()
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    answer = page.goto(url)
    expect(page.locator("#model")).to_have_text("dialogpt: tiny")
    assert all(each.startswith((url, "data:")) for each in asked)
    assert "default-src 'none'" in answer.headers["content-security-policy"]
    context.close()


def test_an_opening_begins_a_conversation(page: Any) -> None:
    expect(page.locator("#empty-title")).to_have_text("Talk with tiny")
    page.locator("#openings button").first.click()
    expect(page.locator("#log li .actions")).to_have_count(2)
    assert page.locator("#empty").is_hidden()
    assert page.locator("#log .text").first.inner_text() == page.locator(".item.current .open").inner_text()


def test_conversations_are_found_and_renamed(page: Any) -> None:
    """Four entries were called "Hi!"."""
    for text in ("Hi!", "I like the sea."):
        say(page, text)
        page.click("#new")
    page.fill("#search", "SEA")
    assert page.locator("#conversations .open").all_inner_texts() == ["I like the sea."]
    page.fill("#search", "nowhere to be found")
    expect(page.locator(".nothing")).to_be_visible()
    page.fill("#search", "")
    page.locator(".item", has_text="Hi!").hover()
    page.get_by_role("button", name="Rename Hi!").click()
    page.get_by_label("Name of the conversation").fill("Greetings <b>")
    page.keyboard.press("Enter")
    page.reload()
    assert "Greetings <b>" in page.locator("#conversations .open").all_inner_texts()


def test_a_retry_keeps_the_earlier_reply_as_a_version(page: Any) -> None:
    first = say(page, "Tell me a story.")
    reply = page.locator("#log li").last
    for number in (2, 3):
        reply.get_by_role("button", name="Retry").click()
        expect(page.locator(".versions")).to_contain_text(f"{number}/{number}")
    reply.get_by_role("button", name="Later reply").click()  # round to the first
    expect(page.locator(".versions")).to_contain_text("1/3")
    assert reply.locator(".text").inner_text() == first
    page.reload()
    expect(page.locator(".versions")).to_contain_text("1/3")
    sent: list[Any] = []
    page.on("request", lambda request: sent.append(request.post_data_json) if request.method == "POST" else None)
    say(page, "And then?")
    assert sent[0]["messages"][1]["content"] == first


def test_several_replies_to_choose_from(page: Any) -> None:
    page.click("#open-settings")
    page.get_by_label("Replies to choose from", exact=True).fill("3")
    page.keyboard.press("Tab")
    page.get_by_role("button", name="Done").click()
    say(page, "Tell me a story.")
    expect(page.locator(".versions")).to_contain_text("1/3")


def test_settings_show_the_values_in_force(page: Any) -> None:
    page.click("#open-settings")
    defaults = page.request.get(page.url + "v1/models").json()["data"][0]["defaults"]
    temperature = page.get_by_label("Temperature", exact=True)
    assert float(temperature.input_value()) == defaults["temperature"]
    temperature.fill("1.5")
    page.keyboard.press("Tab")
    page.get_by_role("button", name="Reset Temperature").click()
    assert float(temperature.input_value()) == defaults["temperature"]
    temperature.fill("7")
    page.keyboard.press("Tab")
    assert json.loads(page.evaluate("localStorage.getItem('dialogpt')"))["settings"] == {}


@pytest.mark.parametrize(
    "content",
    [
        '["Hi!", "Hello."]',
        '[{"role": "system", "content": ""}, {"role": "user", "content": "Hi!"}, '
        '{"role": "assistant", "content": "Hello."}]',
        '{"messages": [{"role": "user", "content": "Hi!"}, {"role": "assistant", "content": "Hello."}]}',
        '{"turns": ["Hi!", "Hello."]}\n{"turns": ["Hi!", "Hello."]}\n',
    ],
)
def test_a_file_of_dialogue_is_opened(page: Any, content: str) -> None:
    file = {"name": "d.json", "mimeType": "application/json", "buffer": content.encode()}
    page.locator("#file").set_input_files(files=[file])
    expect(page.locator("#log .text")).to_have_text(["Hi!", "Hello."])


@pytest.mark.parametrize("answer", ["", "<html>", "null", "[]", '{"data": [{"id": 5}]}', '{"data": [{"id": "x"}]}'])
def test_a_proxy_that_answers_in_its_place_gets_a_sentence(browser: Any, url: str, answer: str) -> None:
    """The page showed JavaScript's own errors."""
    page = new_page(browser)
    faults: list[str] = []
    page.on("pageerror", lambda error: faults.append(str(error)))
    for path in ("**/v1/models", "**/v1/chat/completions"):
        page.route(path, lambda route: route.fulfill(body=answer, content_type="application/json"))
    page.goto(url)
    expect(page.locator("#problem")).to_contain_text("What answered is not this page's server")
    page.fill("#input", "Hi!")
    page.press("#input", "Enter")
    expect(page.locator("#problem")).to_contain_text("What answered is not this page's server")
    assert faults == []
    page.close()


def test_the_page_is_small(url: str) -> None:
    """What a phone loads before it can talk: at most 60 kB."""
    folder = ROOT / "dialogpt" / "serve" / "static"
    total = 0
    for path in folder.iterdir():
        answer = httpx.get(f"{url}static/{path.name}", headers={"Accept-Encoding": "gzip"})
        assert answer.headers["content-encoding"] == "gzip"
        total += int(answer.headers["content-length"])
        known = httpx.get(f"{url}static/{path.name}", headers={"If-None-Match": answer.headers["etag"]})
        assert (known.status_code, known.content) == (304, b"")
    assert 5_000 < total < 60_000
    assert httpx.get(f"{url}static/..%2fapp.py").status_code == httpx.get(f"{url}static/nothing.js").status_code == 404


def test_the_page_is_complete_after_two_exchanges(browser: Any, url: str) -> None:
    """On a phone's network each takes half a second: it painted after two of them, and could be used after four."""
    page = new_page(browser)
    page.goto(url)
    expect(page.locator("#model")).to_have_text("dialogpt: tiny")
    loaded = page.evaluate(
        "performance.getEntriesByType('resource').map(e => [e.name.split('/').pop(), e.initiatorType])"
    )
    assert not [name for name, _ in loaded if name.endswith(".css")]
    assert page.evaluate("document.querySelectorAll('style').length") == 1
    modules = {path.name for path in (ROOT / "dialogpt" / "serve" / "static").glob("*.js")} - {"main.js"}
    named = page.locator("link[rel=modulepreload]").evaluate_all("all => all.map(each => each.href.split('/').pop())")
    assert set(named) == modules
    assert page.evaluate("getComputedStyle(document.body).margin") == "0px"  # the policy lets the style in
    page.close()


def test_on_a_phone_conversations_are_in_a_drawer(browser: Any, url: str) -> None:
    context = browser.new_context(viewport={"width": 360, "height": 640}, has_touch=True, is_mobile=True)
    page = context.new_page()
    page.goto(url)
    say(page, "Hi!")
    assert page.locator("#sidebar").is_hidden()
    page.click("#menu")
    picture(page, "drawer")
    page.keyboard.press("Escape")
    assert page.locator("#sidebar").is_hidden()
    page.click("#menu")
    page.click("#new")
    assert page.locator("#sidebar").is_hidden()
    assert page.locator("#log li").count() == 0
    small = page.evaluate(
        """[...document.querySelectorAll('.actions button')].filter((each) => each.getBoundingClientRect().height < 44)
        .length"""
    )
    assert small == 0
    context.close()


@with_axe
@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [390, 1000])
def test_axe_finds_nothing_in_any_state(browser: Any, url: str, scheme: str, width: int) -> None:
    context = browser.new_context(
        viewport={"width": width, "height": 800}, color_scheme=scheme, bypass_csp=True, reduced_motion="reduce"
    )
    page = context.new_page()
    page.set_default_timeout(PATIENCE)
    page.goto(url)
    found: dict[str, list[Any]] = {}

    def look(state: str) -> None:
        picture(page, f"{state}-{scheme}-{width}")
        if problems := axe_violations(page):
            found[state] = problems

    look("empty")
    say(page, "Hi! How are you?")
    look("talk")
    page.locator("#log li").last.get_by_role("button", name="Retry").click()
    expect(page.locator("#log li .actions")).to_have_count(2)
    look("versions")
    page.get_by_role("button", name="See inside").click()
    expect(page.locator("#log .inside")).to_be_visible()
    look("inside")
    page.locator("#log li").first.get_by_role("button", name="Edit").click()
    look("edit")
    page.get_by_role("button", name="Cancel").click()
    page.click("#open-settings")
    look("settings")
    page.get_by_role("button", name="Done").click()
    if width < 500:
        page.click("#menu")
        look("drawer")
    page.fill("#search", "hi")
    look("search")
    page.locator(".item.current").get_by_role("button", name="Delete").click()
    look("confirm")
    page.get_by_role("button", name="Keep it").click()
    context.set_offline(True)
    if width < 500:
        page.locator("#shade").click(position={"x": width - 10, "y": 400})
    page.fill("#input", "Are you there?")
    page.press("#input", "Enter")
    expect(page.locator("#problem")).to_be_visible()
    look("problem")
    context.close()
    assert found == {}
