"""Unknown fields of any body are told, with the name that may be meant; roles that do not exist are refused."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.serve.helpers import HELLO, Served, serve

HI = HELLO[0]
REPLY = {"role": "assistant", "content": "Fine."}
CHAT, TEXT, RESPONSES = "/v1/chat/completions", "/v1/completions", "/v1/responses"


@pytest.mark.parametrize(
    ("path", "body", "warning"),
    [
        (CHAT, {"messages": [HI | {"contnet": "x"}]}, "'messages[0].contnet' is unknown; is 'content' meant?"),
        (
            CHAT,
            {"messages": [HI | {"content": [{"type": "text", "text": "Hi", "txt": "x"}]}]},
            "'messages[0].content[0].txt' is unknown; is 'text' meant?",
        ),
        (
            CHAT,
            {"messages": HELLO, "stream_options": {"include_usge": True}},
            "'stream_options.include_usge' is unknown; is 'include_usage' meant?",
        ),
        (TEXT, {"prompt": "Hi", "stream_options": {"odd": 1}}, "'stream_options.odd' is unknown"),
        (TEXT, {"promt": "Hi"}, "'promt' is unknown; is 'prompt' meant?"),
        (TEXT, {"prompt_text": "Hi"}, "'prompt_text' is unknown; is 'prompt' meant?"),
        (TEXT, {"prompt": ["Hi", "Why?"], "maxtokens": 3}, "'maxtokens' is unknown; is 'max_tokens' meant?"),
        (RESPONSES, {"input": [HI | {"rolle": "x"}]}, "'input[0].rolle' is unknown; is 'role' meant?"),
        (
            RESPONSES,
            {"input": [HI | {"content": [{"type": "input_text", "text": "Hi", "txt": 1}]}]},
            "'input[0].content[0].txt' is unknown; is 'text' meant?",
        ),
        (RESPONSES, {"input": "Hi", "text": {"frmat": 1}}, "'text.frmat' is unknown; is 'format' meant?"),
        (
            RESPONSES,
            {"input": "Hi", "max_output_token": 3},
            "'max_output_token' is unknown; is 'max_output_tokens' meant?",
        ),
        ("/api/chat", {"messages": [HI | {"image": "x"}]}, "'messages[0].image' is unknown; is 'images' meant?"),
        (
            "/api/chat",
            {"messages": HELLO, "options": {"temprature": 0}},
            "'options.temprature' is unknown; is 'temperature' meant?",
        ),
        ("/api/chat", {"messages": HELLO, "options": {"messages": 1}}, "'options.messages' is unknown"),
        ("/api/generate", {"prompt": "Hi", "systm": "x"}, "'systm' is unknown; is 'system' meant?"),
        ("/inspect", {"messages": [HI, REPLY | {"nmae": "x"}]}, "'messages[1].nmae' is unknown; is 'name' meant?"),
    ],
)
def test_an_unknown_field_is_told_of_wherever_it_is(served: Served, path: str, body: Any, warning: str) -> None:
    """Only the topmost of two endpoints were; `options` with `messages` was a fault of the server (a TypeError)."""
    answer = served.post(body | {"stream": False}, path)
    assert (answer.status_code, answer.headers.get("x-dialogpt-warning")) == (200, warning), answer.text


@pytest.mark.parametrize(
    ("path", "body"),
    [
        (CHAT, {"messages": [HI | {"contnet": "x"}]}),
        (TEXT, {"prompt": ["a", "b"], "x": 1}),
        (RESPONSES, {"input": "Hi", "x": 1}),
        ("/api/chat", {"messages": HELLO, "options": {"x": 1}}),
        ("/api/generate", {"prompt": "Hi", "x": 1}),
        ("/inspect", {"messages": [HI, REPLY], "x": 1}),
    ],
)
def test_a_strict_server_refuses_them_everywhere(served: Served, path: str, body: Any) -> None:
    """Only the chat and text completions did."""
    with serve(served.engine, strict=True) as strict:
        refused = strict.post(body, path)
        assert (refused.status_code, "this server is strict: '" in refused.text) == (400, True), refused.text


@pytest.mark.parametrize(
    ("path", "name"), [(CHAT, "messages"), (RESPONSES, "input"), ("/api/chat", "messages"), ("/inspect", "messages")]
)
@pytest.mark.parametrize("role", ["usre", "", "User", None, 3])
def test_a_role_that_does_not_exist_is_refused(served: Served, path: str, name: str, role: Any) -> None:
    """It was taken as a turn, in silence."""
    refused = served.post({name: [HI | {"role": role}, REPLY]}, path)
    error = refused.json()["error"]
    message = error if path.startswith("/api/") else error["message"]
    assert refused.status_code == 400
    assert message.startswith(f"{name}[0].role: Input should be '")
    assert f"found {role!r}" in message
    if error is not message:
        assert (error["param"], error["code"]) == (f"{name}[0].role", "invalid_value")


def test_a_message_without_content_is_refused(served: Served) -> None:
    """Of the user it was a blank turn; the assistant's may only have called a tool."""
    refused = served.post({"messages": [{"role": "user", "contents": "Hi"}]})
    assert (refused.status_code, "the role 'user' has no content" in refused.text) == (400, True)


def test_tools_are_no_turns(served: Served) -> None:
    """A dialogue that another model began, with tools, goes on without them: their results were turns."""
    call = {"id": "1", "type": "function", "function": {"name": "f", "arguments": "{}"}}
    with_tools = [
        HI,
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "content": '{"degrees": 20}', "tool_call_id": "1"},
        REPLY,
        HI,
    ]
    plain = served.post({"messages": [HI, REPLY, HI], "temperature": 0}).json()
    answer = served.post({"messages": with_tools, "temperature": 0})
    assert answer.json()["usage"] == plain["usage"]
    assert answer.json()["choices"] == plain["choices"]
    assert "1 messages of tools were dropped" in answer.headers["x-dialogpt-warning"]


def test_a_thousand_unknown_fields_are_five_warnings(served: Served) -> None:
    body = {"messages": [HI | {f"x{k}": 1 for k in range(500)}] * 20, "max_tokens": 2}
    warning = served.post(json.loads(json.dumps(body))).headers["x-dialogpt-warning"]
    assert warning.count("is unknown") == 5


def test_any_setting_is_one_of_a_response_too(served: Served) -> None:
    """`top_k` was taken by /v1/responses in silence, and did nothing."""
    one = [served.post({"input": "Hi!", "top_k": 1, "seed": seed}, RESPONSES).json() for seed in (1, 2, 3)]
    assert len({answer["output"][0]["content"][0]["text"] for answer in one}) == 1
    refused = served.post({"input": "Hi!", "top_k": -1}, RESPONSES)
    assert "top_k must be a non-negative integer, got -1" in refused.json()["error"]["message"]
