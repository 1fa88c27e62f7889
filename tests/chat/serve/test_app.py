"""The server as its clients see it: OpenAI's own, and those that send anything at all."""

import json
import socket
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import openai
import pytest
import requests

from model.decode.generate import Sampling, generate
from tests.chat.conftest import ABOUT_BAI, ABOUT_GU, MAYOR
from tests.helpers.server import ServerHandle, running_server

NAME = "我叫书白。"


@pytest.fixture(scope="module")
def talking(talker: Path) -> Iterator[ServerHandle]:
    """A server for the model that learnt a few dialogues by heart."""
    with running_server(talker) as server:
        yield server


@pytest.fixture(scope="module")
def babbling(endless: Path) -> Iterator[ServerHandle]:
    """A server for a model that never ends, with room for one answer and one that waits."""
    with running_server(endless, rows=1, queue_size=1, max_tokens=15_000, max_seconds=30) as server:
        yield server


def quiet(server: ServerHandle) -> None:
    """Wait until nothing is running."""
    until = time.monotonic() + 30
    while requests.get(f"{server.url}health", timeout=10).json() != {
        "status": "ok",
        "running": 0,
        "waiting": 0,
    }:
        assert time.monotonic() < until, "a row was not given free"
        time.sleep(0.02)


def test_openai_client_gets_an_answer(talking: ServerHandle) -> None:
    """A response that the official client cannot read; a system message that is not the reference."""
    chat = talking.client.chat.completions
    for reference, answer in ((ABOUT_BAI, "白云飞"), (ABOUT_GU, "顾长河"), ("", "我不知道。")):
        found = chat.create(**talking.request_body(MAYOR, reference=reference))
        choice = found.choices[0]
        assert (choice.message.role, choice.message.content, choice.finish_reason) == (
            "assistant",
            answer,
            "stop",
        )
        weights = talking.weights
        prompt = weights.template.encode_prompt(weights.tokenizer, [], MAYOR, reference)
        said = len(weights.tokenizer.encode(answer))
        assert (
            found.usage is not None
            and found.object == "chat.completion"
            and found.model == talking.model_name
        )
        usage = (found.usage.prompt_tokens, found.usage.completion_tokens, found.usage.total_tokens)
        assert usage == (len(prompt), said, len(prompt) + said)
    # Its own message, sent back as it is, is a turn of the conversation.
    first = chat.create(**talking.request_body(NAME)).choices[0].message
    messages: Any = [
        {"role": "user", "content": NAME},
        first.model_dump(),
        {"role": "user", "content": "我叫什么？"},
    ]
    assert (
        chat.create(model=talking.model_name, messages=messages).choices[0].message.content
        == "书白"
    )
    parts: Any = [
        {
            "role": "user",
            "content": [{"type": "text", "text": "镇长"}, {"type": "text", "text": "是谁？"}],
        }
    ]
    assert (
        chat.create(model=talking.model_name, messages=parts, stop=["知"])
        .choices[0]
        .message.content
        == "我不"
    )
    assert [each.id for each in talking.client.models.list()] == [
        talking.client.models.retrieve(talking.model_name).id
    ]


def test_openai_client_streams(talking: ServerHandle) -> None:
    """A stream that the official client cannot read, or that says something else than the whole answer."""
    request = talking.request_body(
        MAYOR, reference=ABOUT_BAI, stream=True, stream_options={"include_usage": True}
    )
    chunks = list(talking.client.chat.completions.create(**request))
    assert chunks[0].choices[0].delta.role == "assistant"
    assert "".join(each.choices[0].delta.content or "" for each in chunks[:-1]) == "白云飞"
    assert [each.choices[0].finish_reason for each in chunks[:-1]] == [None] * (len(chunks) - 2) + [
        "stop"
    ]
    assert (
        chunks[-1].choices == []
        and chunks[-1].usage is not None
        and len({each.id for each in chunks}) == 1
    )
    assert len(chunks) > 4, "the answer came in one piece"
    raw = talking.post(talking.request_body(MAYOR, stream=True))
    assert raw.headers["content-type"].startswith("text/event-stream")
    events = raw.text.split("\n\n")
    assert events[-2:] == ["data: [DONE]", ""] and all(
        each.startswith("data: {") for each in events[:-2]
    )
    assert (
        "".join(
            json.loads(each[6:])["choices"][0]["delta"].get("content", "") for each in events[:-2]
        )
        == "我不知道。"
    )


def test_concurrent_requests_match_single_requests(endless: Path) -> None:
    """Answers mixed up, or changed by the company they were made in."""
    with running_server(endless, rows=4, queue_size=20, max_tokens=40) as server:
        weights = server.weights
        questions = ["讲" + "很长很长的" * (7 * n % 12) + "故事" for n in range(9)]

        def alone(question: str, number: int) -> str:
            ids = weights.template.encode_prompt(weights.tokenizer, [], question)
            sampling = (
                Sampling(temperature=0.0) if number % 2 else Sampling(temperature=1.0, top_p=0.9)
            )
            return weights.tokenizer.decode(
                list(generate(weights.model, ids, sampling, max_new_tokens=40, seed=number))
            )

        def asked(question: str, number: int) -> str:
            options: dict[str, Any] = (
                {} if number % 2 else {"temperature": 1.0, "top_p": 0.9, "seed": number}
            )
            if number % 3:
                found = server.client.chat.completions.create(
                    **server.request_body(question, **options)
                )
                assert found.choices[0].finish_reason == "length"
                return found.choices[0].message.content or ""
            chunks = server.client.chat.completions.create(
                **server.request_body(question, stream=True, **options)
            )
            return "".join(each.choices[0].delta.content or "" for each in chunks)

        with ThreadPoolExecutor(9) as pool:
            answers = list(pool.map(asked, questions, range(9)))
        assert answers == [alone(question, number) for number, question in enumerate(questions)]
        assert len(set(answers)) == 9


def test_disconnect_frees_the_sequence_slot(babbling: ServerHandle) -> None:
    """Rows that are computed for clients that have gone, until the server is full of them."""
    request = babbling.request_body("说个不停")
    with babbling.post({**request, "stream": True}, stream=True) as response:
        lines = response.iter_lines()  # held: the connection is closed with it
        next(lines)
        assert requests.get(f"{babbling.url}health", timeout=10).json()["running"] == 1
    quiet(babbling)
    for stream in (False, True):  # not a byte of the answer was waited for
        with pytest.raises(
            (requests.Timeout, requests.ConnectionError)
        ):  # the latter: while the body is read
            requests.post(
                f"{babbling.url}v1/chat/completions",
                json={**request, "stream": stream},
                timeout=(5, 0.3 if not stream else 0.001),
            )
        quiet(babbling)


def test_full_server_sends_retry_after(babbling: ServerHandle) -> None:
    """A queue without an end, a refusal that the client takes for a fault."""
    request = babbling.request_body("说个不停", stream=True)
    with babbling.post(request, stream=True) as first:
        lines = first.iter_lines()
        next(lines)
        with ThreadPoolExecutor(1) as pool:
            second = pool.submit(babbling.post, babbling.request_body("短", max_tokens=3))
            until = time.monotonic() + 30
            while (
                requests.get(f"{babbling.url}health", timeout=10).json()["waiting"] == 0
                and time.monotonic() < until
            ):
                time.sleep(0.02)
            with pytest.raises(openai.RateLimitError) as refused:
                babbling.client.chat.completions.create(**babbling.request_body("短"))
            assert int(refused.value.response.headers["Retry-After"]) > 0
            assert refused.value.code == "rate_limit_exceeded"
            first.close()
            assert second.result().json()["usage"]["completion_tokens"] == 3
    quiet(babbling)


def test_request_time_limit(endless: Path) -> None:
    """An answer that blocks a row for ever, or a cut that looks like an end."""
    with running_server(
        endless, rows=1, queue_size=1, max_tokens=15_000, max_seconds=1.5
    ) as server:
        found = server.post(server.request_body("说个不停")).json()
        assert (
            found["babyllama"]["ended"] == "timeout"
            and found["choices"][0]["finish_reason"] == "length"
        )
        assert 0 < found["usage"]["completion_tokens"] < 15_000


def test_oldest_turns_are_dropped_and_overlong_prompt_is_protocol_error(
    talking: ServerHandle,
) -> None:
    """A long conversation that is refused, or cut without a word; a traceback for a long question."""
    turns = ["这句话很长很长。", "好的。"] * 60
    found = talking.post(talking.request_body(*turns, MAYOR, reference=ABOUT_BAI)).json()
    assert (
        found["babyllama"]["dropped_turns"] > 30
        and found["usage"]["prompt_tokens"] <= talking.weights.context_length
    )
    with pytest.raises(openai.BadRequestError) as refused:
        talking.client.chat.completions.create(**talking.request_body("问" * 3000))
    assert refused.value.code == "context_length_exceeded" and refused.value.param == "messages"


GOOD: dict[str, Any] = {"messages": [{"role": "user", "content": "问"}]}
IMAGE = [{"type": "image_url", "image_url": {"url": "data:image/png;base64,"}}]


@pytest.mark.parametrize(
    ("change", "status", "param", "code"),
    [
        ({"model": "gpt-4o"}, 404, "model", "model_not_found"),
        ({"model": None}, 400, "model", "missing_required_parameter"),
        ({"model": 7}, 400, "model", "invalid_value"),
        ({"messages": []}, 400, "messages", "invalid_value"),
        ({"messages": "你好"}, 400, "messages", "invalid_value"),
        ({"messages": ["你好"]}, 400, "messages[0]", "invalid_value"),
        (
            {"messages": [{"role": "tool", "content": "问"}]},
            400,
            "messages[0].role",
            "invalid_value",
        ),
        (
            {"messages": [{"role": "user", "content": 7}]},
            400,
            "messages[0].content",
            "invalid_value",
        ),
        (
            {"messages": [{"role": "user", "content": IMAGE}]},
            400,
            "messages[0].content",
            "unsupported_parameter",
        ),
        ({"messages": [{"role": "user", "content": "  "}]}, 400, "messages[0].content", None),
        (
            {"messages": [{"role": "user", "content": "问", "name": "甲"}]},
            400,
            "messages[0].name",
            "unsupported_parameter",
        ),
        ({"messages": [{"role": "system", "content": "资料"}]}, 400, "messages", None),
        ({"messages": [{"role": "assistant", "content": "答"}]}, 400, "messages[0]", None),
        ({"messages": GOOD["messages"] * 2}, 400, "messages[1]", None),
        (
            {"messages": [*GOOD["messages"], {"role": "system", "content": "资料"}]},
            400,
            "messages[1]",
            None,
        ),
        ({"n": 2}, 400, "n", "unsupported_parameter"),
        ({"tools": [{"type": "function"}]}, 400, "tools", "unsupported_parameter"),
        (
            {"response_format": {"type": "json_object"}},
            400,
            "response_format",
            "unsupported_parameter",
        ),
        ({"logprobs": True}, 400, "logprobs", "unsupported_parameter"),
        ({"temprature": 1}, 400, "temprature", "unknown_parameter"),
        ({"temperature": 3}, 400, "temperature", "invalid_value"),
        ({"temperature": "1"}, 400, "temperature", "invalid_value"),
        ({"top_p": -0.1}, 400, "top_p", "invalid_value"),
        ({"max_tokens": 0}, 400, "max_tokens", "invalid_value"),
        ({"max_tokens": 1.5}, 400, "max_tokens", "invalid_value"),
        ({"stream": 1}, 400, "stream", "invalid_value"),
        ({"seed": 1 << 63}, 400, "seed", "invalid_value"),
        ({"stop": ["a"] * 5}, 400, "stop", "invalid_value"),
        ({"stop": [""]}, 400, "stop[0]", "invalid_value"),
        ({"frequency_penalty": 9}, 400, "frequency_penalty", "invalid_value"),
    ],
)
def test_bad_request_error_names_the_field(
    talking: ServerHandle, change: dict[str, Any], status: int, param: str, code: str | None
) -> None:
    """A request that is answered as if it had not asked, a traceback, an error that no client understands."""
    response = talking.post({"model": talking.model_name, **GOOD, **change})
    error = response.json()["error"]
    assert (response.status_code, error["param"], error["code"]) == (status, param, code), error
    assert (
        error["type"] == "invalid_request_error"
        and param in error["message"]
        and len(error["message"]) < 200
    )


def test_no_op_request_fields_are_accepted(talking: ServerHandle) -> None:
    """A client that is turned away for the defaults that it sends along."""
    harmless = {
        "n": 1,
        "tools": [],
        "tool_choice": "none",
        "logprobs": False,
        "logit_bias": {},
        "user": "u",
        "stop": None,
        "response_format": {"type": "text"},
        "stream": None,
        "temperature": None,
        "max_completion_tokens": 2,
    }
    found = talking.post({"model": talking.model_name, **GOOD, **harmless}).json()
    assert found["usage"]["completion_tokens"] <= 2


@pytest.mark.parametrize(
    ("raw", "status"),
    [
        (b"", 400),
        (b"{", 400),
        (b"[]", 400),
        (b"\xff\xfe", 400),
        (b"[" * 5000, 400),
        (b'{"model": NaN}', 400),
        (b'{"model": "\\ud800"}', 400),
        (b'{"messages": "' + b"x" * 200_000 + b'"}', 413),
    ],
)
def test_invalid_body_is_refused(talking: ServerHandle, raw: bytes, status: int) -> None:
    """A fault of the server for bytes that are no JSON, memory for a body of any size."""
    response = talking.post(data=raw, headers={"Content-Type": "application/json"})
    assert response.status_code == status and response.json()["error"]["message"], response.text
    quiet(talking)


def test_unbounded_body_is_refused(talking: ServerHandle) -> None:
    """A body sent in chunks, without a length, that fills the memory."""
    blocks = (b" " * 10_000 for _ in range(1000))
    try:
        response = talking.post(data=blocks, headers={"Content-Type": "application/json"})
        assert response.status_code == 413
    except requests.ConnectionError:
        pass  # the answer was lost with the connection, which was closed while we were sending
    quiet(talking)


def test_unknown_paths_and_methods_get_error_object(talking: ServerHandle) -> None:
    """HTML or plain text where a client expects the protocol."""
    for method, path, status in (
        ("GET", "v1/chat/completions", 405),
        ("POST", "health", 405),
        ("GET", "v1/nothing", 404),
        ("GET", "v1/models/gpt-4o", 404),
        ("GET", "../pyproject.toml", 404),
    ):
        response = requests.request(method, f"{talking.url}{path}", timeout=10)
        assert (
            response.status_code == status
            and response.json()["error"]["type"] == "invalid_request_error"
        )


def test_cross_origin_page_is_refused(talking: ServerHandle) -> None:
    """A web site that talks to the model through its visitor's browser, or takes our address for its own name."""
    elsewhere = {"Origin": "https://elsewhere.example"}
    asked = requests.options(
        f"{talking.url}v1/chat/completions",
        timeout=10,
        headers={
            **elsewhere,
            "Access-Control-Request-Method": "POST",
            "Access-Control-Request-Headers": "content-type",
        },
    )
    answer = talking.post(talking.request_body(MAYOR), headers=elsewhere)
    for response in (asked, answer):
        assert not any(name.lower().startswith("access-control") for name in response.headers)
    assert asked.status_code == 405
    # What a page may send without asking first: a form, or text.
    for kind in ("text/plain", "application/x-www-form-urlencoded", ""):
        response = talking.post(
            data=json.dumps(talking.request_body(MAYOR)), headers={"Content-Type": kind}
        )
        assert response.status_code == 415
    for host, status in (
        ("elsewhere.example", 403),
        ("elsewhere.example:8000", 403),
        ("127.0.0.1.elsewhere.example", 403),
        ("", 403),
        ("localhost", 200),
        ("localhost:80", 200),
        ("[::1]:8000", 200),
        ("10.0.0.7:80", 200),
    ):
        assert (
            requests.get(f"{talking.url}v1/models", headers={"Host": host}, timeout=10).status_code
            == status
        ), host


def test_api_key_is_required(talker: Path) -> None:
    """A key that guards nothing."""
    with running_server(talker, api_key="key-1") as server:
        assert requests.get(f"{server.url}health", timeout=10).status_code == 200
        for header in (
            {},
            {"Authorization": "Bearer 1"},
            {"Authorization": "Basic x"},
            {"Authorization": "Bearer"},
        ):
            for path in ("v1/models", "v1/chat/completions", "v1/nothing"):
                response = requests.get(f"{server.url}{path}", headers=header, timeout=10)
                assert (
                    response.status_code == 401
                    and response.json()["error"]["code"] == "invalid_api_key"
                )
        right = {"Authorization": "Bearer key-1"}
        assert server.post(server.request_body(MAYOR), headers=right).status_code == 200


def test_incomplete_request_does_not_block_other_clients(talking: ServerHandle) -> None:
    """A server that waits for one connection with all others behind it."""
    host, port = talking.url.removeprefix("http://").rstrip("/").split(":")
    with socket.create_connection((host, int(port))) as half:
        half.sendall(
            b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
            b"Content-Length: 50\r\n\r\n{"
        )
        assert talking.post(talking.request_body(MAYOR)).status_code == 200
    quiet(talking)
