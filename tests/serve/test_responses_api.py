"""OpenAI's Responses interface, by OpenAI's own client."""

from __future__ import annotations

from typing import Any

import openai
import pytest

from tests.serve.helpers import HELLO, Served


def test_a_response_is_that_of_a_chat(served: Served) -> None:
    chat = served.client.chat.completions.create(model="tiny", messages=HELLO, temperature=0).choices[0].message.content
    text = HELLO[0]["content"]
    parts: Any = [{"role": "user", "content": [{"type": "input_text", "text": text}]}]
    for given in (text, HELLO, parts):
        response = served.client.responses.create(model="tiny", input=given, temperature=0)
        assert response.output_text == chat
        assert (response.status, response.error) == ("completed", None)
        assert response.usage is not None
        assert response.usage.total_tokens == response.usage.input_tokens + response.usage.output_tokens
    dialogue: Any = [*HELLO, {"role": "assistant", "content": [{"type": "output_text", "text": chat}]}, *HELLO]
    assert served.client.responses.create(model="tiny", input=dialogue, instructions="Be kind.").output_text
    short = served.client.responses.create(model="tiny", input=text, max_output_tokens=2)
    assert short.status == "incomplete"
    assert short.incomplete_details is not None
    assert short.incomplete_details.reason == "max_output_tokens"


def test_a_stream_builds_the_response_up(served: Served) -> None:
    events = list(served.client.responses.create(model="tiny", input="Hi! How are you?", temperature=0, stream=True))
    assert [event.sequence_number for event in events] == list(range(len(events)))
    kinds = [event.type.removeprefix("response.") for event in events]
    assert kinds[:4] == ["created", "in_progress", "output_item.added", "content_part.added"]
    assert kinds[-4:] == ["output_text.done", "content_part.done", "output_item.done", "completed"]
    assert set(kinds[4:-4]) == {"output_text.delta"}
    text = "".join(event.delta for event in events if event.type == "response.output_text.delta")
    last: Any = events[-1]
    assert last.response.output_text == text != ""
    with served.client.responses.stream(model="tiny", input="Hi! How are you?", temperature=0) as stream:
        assert stream.get_final_response().output_text == text  # its accumulator accepts them


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"previous_response_id": "resp_1"}, "previous_response_id is not implemented, as nothing is stored"),
        ({"tools": [{"type": "web_search"}]}, "tools is not implemented"),
        ({"text": {"format": {"type": "json_object"}}}, "text.format is not implemented"),
        ({"reasoning": {"effort": "low"}}, "reasoning is not implemented"),
        ({"temperature": 3}, "less than or equal to 2"),
        ({"input": []}, "at least 1 item"),
    ],
)
def test_what_is_not_done_is_refused_by_name(served: Served, settings: Any, sentence: str) -> None:
    with pytest.raises(openai.BadRequestError, match=sentence):
        served.client.responses.create(**{"model": "tiny", "input": "Hi!", **settings})
