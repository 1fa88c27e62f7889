"""The HTTP interface as clients see it: OpenAI's client, and clients that send garbage."""

import json
import socket
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import requests

from chat.examples import find_examples
from data.shards import ShardSet
from model.decode.generate import generate
from model.decode.sampling import Sampling
from tests.chat.conftest import BAI_REFERENCE, GU_REFERENCE, MAYOR_QUESTION, write_run_on
from tests.helpers.server import ServerHandle, running_server

NAME = "我叫书白。"
ENDLESS_QUESTION = "说个不停"


@pytest.fixture(scope="module")
def talking(talker: Path) -> Iterator[ServerHandle]:
    """A server for the model that memorized a few dialogues."""
    with running_server(talker) as server:
        yield server


@pytest.fixture(scope="module")
def babbling(endless: Path) -> Iterator[ServerHandle]:
    """A server for a model that never ends, with one running and one waiting request at most."""
    with running_server(
        endless, max_sequences=1, max_queued=1, max_new_tokens=15_000, timeout_seconds=30
    ) as server:
        yield server


def health(server: ServerHandle) -> Any:
    return requests.get(f"{server.url}health", timeout=10).json()


def wait_until_idle(server: ServerHandle) -> None:
    """Wait until no request is running or waiting."""
    deadline = time.monotonic() + 30
    while health(server) != {"status": "ok", "running": 0, "waiting": 0}:
        assert time.monotonic() < deadline, "a request still has its place in the batch"
        time.sleep(0.02)


@pytest.mark.slow
def test_openai_client_gets_an_answer(talking: ServerHandle) -> None:
    """Prevents a response that OpenAI's client cannot read, and a document without effect."""
    loaded_model = talking.loaded_model
    for reference, answer in (
        (BAI_REFERENCE, "白云飞"),
        (GU_REFERENCE, "顾长河"),
        ("", "我不知道。"),
    ):
        completion = talking.client.chat.completions.create(
            **talking.request_body(MAYOR_QUESTION, reference=reference)
        )
        choice = completion.choices[0]
        assert (choice.message.role, choice.message.content) == ("assistant", answer)
        assert choice.finish_reason == "stop"
        assert completion.object == "chat.completion" and completion.model == talking.model_name
        prompt = loaded_model.template.encode_prompt(
            loaded_model.tokenizer, [], MAYOR_QUESTION, reference
        )
        num_answer_tokens = len(loaded_model.tokenizer.encode(answer))
        usage = completion.usage
        assert usage is not None
        assert (usage.prompt_tokens, usage.completion_tokens) == (len(prompt), num_answer_tokens)
        assert usage.total_tokens == len(prompt) + num_answer_tokens


def test_system_message_is_part_of_the_prompt(talking: ServerHandle) -> None:
    """Prevents a system message that is left out, or taken for a reference."""
    loaded_model = talking.loaded_model
    messages: Any = [
        {"role": "system", "content": "你是一名厨师，说话要简短。"},
        {"role": "user", "content": MAYOR_QUESTION},
    ]
    completion = talking.client.chat.completions.create(
        model=talking.model_name, messages=messages, max_tokens=1
    )
    prompt = loaded_model.template.encode_prompt(
        loaded_model.tokenizer, [], MAYOR_QUESTION, system="你是一名厨师，说话要简短。"
    )
    without_system = loaded_model.template.encode_prompt(loaded_model.tokenizer, [], MAYOR_QUESTION)
    assert completion.usage is not None
    assert completion.usage.prompt_tokens == len(prompt) > len(without_system)


@pytest.mark.slow
def test_earlier_turns_are_part_of_the_prompt(talking: ServerHandle) -> None:
    """Prevents an answer that the client sends back from being refused or ignored."""
    create = talking.client.chat.completions.create
    first_message = create(**talking.request_body(NAME)).choices[0].message
    messages: Any = [
        {"role": "user", "content": NAME},
        first_message.model_dump(),
        {"role": "user", "content": "我叫什么？"},
    ]
    completion = create(model=talking.model_name, messages=messages)
    assert completion.choices[0].message.content == "书白"


def test_text_parts_and_stop_string(talking: ServerHandle) -> None:
    """Prevents a question sent in parts from losing one, and a stop string without effect."""
    parts: Any = [{"type": "text", "text": "镇长"}, {"type": "text", "text": "是谁？"}]
    completion = talking.client.chat.completions.create(
        model=talking.model_name, messages=[{"role": "user", "content": parts}], stop=["知"]
    )
    assert completion.choices[0].message.content == "我不"


def test_model_list(talking: ServerHandle) -> None:
    """Prevents clients that ask for the list of models from failing."""
    models = talking.client.models
    retrieved_model = models.retrieve(talking.model_name)
    assert [each.id for each in models.list()] == [retrieved_model.id] == [talking.model_name]


@pytest.mark.slow
def test_examples_are_listed(
    talking: ServerHandle, talker: Path, sample_sets: dict[str, ShardSet], tmp_path: Path
) -> None:
    """Prevents a page without the examples that the terminal has, or with another model's."""
    assert requests.get(f"{talking.url}v1/examples", timeout=10).json()["data"] == []
    run = write_run_on(tmp_path / "run", talker, [sample_sets["redgpt"]])
    with running_server(run) as server:
        listed = requests.get(f"{server.url}v1/examples", timeout=10).json()["data"]
    expected = [(example.reference, example.questions) for example in find_examples(run)]
    assert [(each["reference"], tuple(each["questions"])) for each in listed] == expected != []


def test_openai_client_streams(talking: ServerHandle) -> None:
    """Prevents a stream that OpenAI's client cannot read, or one with another text."""
    request = talking.request_body(
        MAYOR_QUESTION,
        reference=BAI_REFERENCE,
        stream=True,
        stream_options={"include_usage": True},
    )
    *chunks, usage_chunk = list(talking.client.chat.completions.create(**request))
    choices = [chunk.choices[0] for chunk in chunks]
    assert choices[0].delta.role == "assistant"
    assert "".join(choice.delta.content or "" for choice in choices) == "白云飞"
    assert len(chunks) > 3, "the answer came in one piece"
    assert [choice.finish_reason for choice in choices] == [None] * (len(chunks) - 1) + ["stop"]
    assert usage_chunk.choices == [] and usage_chunk.usage is not None
    assert len({chunk.id for chunk in (*chunks, usage_chunk)}) == 1


def test_stream_is_valid_server_sent_events(talking: ServerHandle) -> None:
    """Prevents a stream that only OpenAI's client understands."""
    response = talking.post(talking.request_body(MAYOR_QUESTION, stream=True))
    assert response.headers["content-type"].startswith("text/event-stream")
    *events, done_event, rest = response.text.split("\n\n")
    assert (done_event, rest) == ("data: [DONE]", "")
    chunks = [json.loads(event.removeprefix("data: ")) for event in events]
    text = "".join(chunk["choices"][0]["delta"].get("content", "") for chunk in chunks)
    assert text == "我不知道。"


@pytest.mark.slow
def test_concurrent_requests_match_single_requests(endless: Path) -> None:
    """Prevents answers that are mixed up, or that depend on the other requests in the batch."""
    questions = ["讲" + "很长很长的" * (7 * n % 12) + "故事" for n in range(9)]
    with running_server(endless, max_sequences=4, max_queued=20, max_new_tokens=40) as server:
        loaded_model = server.loaded_model

        def generate_alone(question: str, number: int) -> str:
            ids = loaded_model.template.encode_prompt(loaded_model.tokenizer, [], question)
            sampling = Sampling(temperature=1.0, top_p=0.9)
            if number % 2:
                sampling = Sampling(temperature=0.0)
            answer_ids = list(
                generate(loaded_model.model, ids, sampling, max_new_tokens=40, seed=number)
            )
            return loaded_model.tokenizer.decode(answer_ids)

        def request_answer(question: str, number: int) -> str:
            options: dict[str, Any] = {"temperature": 1.0, "top_p": 0.9, "seed": number}
            if number % 2:
                options = {}  # greedy, the server's default
            create = server.client.chat.completions.create
            if number % 3:
                completion = create(**server.request_body(question, **options))
                assert completion.choices[0].finish_reason == "length"
                return completion.choices[0].message.content or ""
            chunks = create(**server.request_body(question, stream=True, **options))
            return "".join(chunk.choices[0].delta.content or "" for chunk in chunks)

        with ThreadPoolExecutor(9) as pool:
            answers = list(pool.map(request_answer, questions, range(9)))
        expected = [generate_alone(question, number) for number, question in enumerate(questions)]
        assert answers == expected and len(set(answers)) == 9


@pytest.mark.slow
def test_disconnect_frees_the_sequence_slot(babbling: ServerHandle) -> None:
    """Prevents sequences decoded for nobody, until the batch is full of them."""
    request = babbling.request_body(ENDLESS_QUESTION)
    with babbling.post({**request, "stream": True}, stream=True) as response:
        lines = response.iter_lines()  # keeps the connection open
        next(lines)
        assert health(babbling)["running"] == 1
    wait_until_idle(babbling)
    # Clients that leave before the first byte: of a whole answer, and of a stream.
    for stream, read_timeout in ((False, 0.3), (True, 0.001)):
        # A ConnectionError if the client leaves while its body is read.
        with pytest.raises((requests.Timeout, requests.ConnectionError)):
            requests.post(
                f"{babbling.url}v1/chat/completions",
                json={**request, "stream": stream},
                timeout=(5, read_timeout),
            )
        wait_until_idle(babbling)


@pytest.mark.slow
def test_full_server_sends_retry_after(babbling: ServerHandle) -> None:
    """Prevents an endless queue, and a refusal that the client takes for a failure."""
    import openai

    short_request = babbling.request_body("短", max_tokens=3)
    endless_request = babbling.request_body(ENDLESS_QUESTION, stream=True)
    with babbling.post(endless_request, stream=True) as running_response:
        lines = running_response.iter_lines()
        next(lines)
        with ThreadPoolExecutor(1) as pool:
            waiting_response = pool.submit(babbling.post, short_request)
            deadline = time.monotonic() + 30
            while health(babbling)["waiting"] == 0 and time.monotonic() < deadline:
                time.sleep(0.02)
            with pytest.raises(openai.RateLimitError) as refused:
                babbling.client.chat.completions.create(**short_request)
            assert int(refused.value.response.headers["Retry-After"]) > 0
            assert refused.value.code == "rate_limit_exceeded"
            running_response.close()
            assert waiting_response.result().json()["usage"]["completion_tokens"] == 3
    wait_until_idle(babbling)


@pytest.mark.slow
def test_request_time_limit(endless: Path) -> None:
    """Prevents an answer that blocks its place for ever, or a cut that looks like an end."""
    with running_server(
        endless, max_sequences=1, max_queued=1, max_new_tokens=15_000, timeout_seconds=1.5
    ) as server:
        completion = server.post(server.request_body(ENDLESS_QUESTION)).json()
    assert completion["babyllama"]["ended"] == "timeout"
    assert completion["choices"][0]["finish_reason"] == "length"
    assert 0 < completion["usage"]["completion_tokens"] < 15_000


def test_oldest_turns_are_dropped(talking: ServerHandle) -> None:
    """Prevents a long conversation that is refused, or cut without a word."""
    turns = ["这句话很长很长。", "好的。"] * 60
    request = talking.request_body(*turns, MAYOR_QUESTION, reference=BAI_REFERENCE)
    completion = talking.client.chat.completions.create(**request).model_dump()
    assert completion["babyllama"]["dropped_turns"] > 30
    assert completion["usage"]["prompt_tokens"] <= talking.loaded_model.context_length


@pytest.mark.parametrize(
    ("question", "reference"), [("问" * 3000, ""), (MAYOR_QUESTION, "资料很长。" * 1000)]
)
def test_overlong_prompt_is_a_protocol_error(
    talking: ServerHandle, question: str, reference: str
) -> None:
    """Prevents a traceback for a long question, or a reference that is cut without a word."""
    import openai

    with pytest.raises(openai.BadRequestError) as refused:
        talking.client.chat.completions.create(
            **talking.request_body(question, reference=reference)
        )
    assert refused.value.code == "context_length_exceeded" and refused.value.param == "messages"


VALID_BODY: dict[str, Any] = {"messages": [{"role": "user", "content": "问"}]}
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
        ({"messages": [{"role": "assistant", "content": "答"}]}, 400, "messages", None),
        (
            {
                "messages": [
                    *VALID_BODY["messages"],
                    {"role": "system", "content": "简短。"},
                    *VALID_BODY["messages"],
                ]
            },
            400,
            "messages",
            None,
        ),
        ({"documents": [{"text": "一"}, {"text": "二"}]}, 400, "documents", "invalid_value"),
        ({"documents": [{"text": " "}]}, 400, "documents[0].text", "invalid_value"),
        (
            {"documents": [{"text": "一", "title": "二"}]},
            400,
            "documents[0].title",
            "unknown_parameter",
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
    """Prevents a bad field that is ignored, and an error that does not name the field."""
    response = talking.post({"model": talking.model_name, **VALID_BODY, **change})
    error = response.json()["error"]
    assert (response.status_code, error["param"], error["code"]) == (status, param, code), error
    assert error["type"] == "invalid_request_error"
    assert param in error["message"] and len(error["message"]) < 200


def test_no_op_request_fields_are_accepted(talking: ServerHandle) -> None:
    """Prevents the refusal of clients that send default values of unsupported fields."""
    neutral_fields = {
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
    body = {"model": talking.model_name, **VALID_BODY, **neutral_fields}
    assert talking.post(body).json()["usage"]["completion_tokens"] <= 2


@pytest.mark.parametrize(
    ("body", "status"),
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
def test_invalid_body_is_refused(talking: ServerHandle, body: bytes, status: int) -> None:
    """Prevents an internal error for bytes that are not JSON, and a body of any size."""
    response = talking.post(data=body, headers={"Content-Type": "application/json"})
    assert response.status_code == status and response.json()["error"]["message"], response.text
    wait_until_idle(talking)


def test_unbounded_body_is_refused(talking: ServerHandle) -> None:
    """Prevents a body sent in chunks, without a length, from filling the memory."""
    blocks = (b" " * 10_000 for _ in range(1000))
    try:
        response = talking.post(data=blocks, headers={"Content-Type": "application/json"})
        assert response.status_code == 413
    except requests.ConnectionError:
        pass  # the server closed the connection while the client was still sending
    wait_until_idle(talking)


def test_unknown_paths_and_methods_get_error_object(talking: ServerHandle) -> None:
    """Prevents HTML or plain text where a client expects the protocol's error object."""
    for method, path, status in (
        ("GET", "v1/chat/completions", 405),
        ("POST", "health", 405),
        ("GET", "v1/nothing", 404),
        ("GET", "v1/models/gpt-4o", 404),
        ("GET", "../pyproject.toml", 404),
    ):
        response = requests.request(method, f"{talking.url}{path}", timeout=10)
        assert response.status_code == status
        assert response.json()["error"]["type"] == "invalid_request_error"


def test_cross_origin_page_is_refused(talking: ServerHandle) -> None:
    """Prevents a foreign web page from using the model through its visitor's browser."""
    foreign_origin = {"Origin": "https://elsewhere.example"}
    preflight = requests.options(
        f"{talking.url}v1/chat/completions",
        timeout=10,
        headers={
            **foreign_origin,
            "Access-Control-Request-Method": "POST",
            "Access-Control-Request-Headers": "content-type",
        },
    )
    completion = talking.post(talking.request_body(MAYOR_QUESTION), headers=foreign_origin)
    for response in (preflight, completion):
        assert not any(name.lower().startswith("access-control") for name in response.headers)
    assert preflight.status_code == 405


@pytest.mark.parametrize("media_type", ["text/plain", "application/x-www-form-urlencoded", ""])
def test_body_that_needs_no_preflight_is_refused(talking: ServerHandle, media_type: str) -> None:
    """Prevents a request that a foreign web page can send without asking first."""
    body = json.dumps(talking.request_body(MAYOR_QUESTION))
    response = talking.post(data=body, headers={"Content-Type": media_type})
    assert response.status_code == 415


@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("elsewhere.example", 403),
        ("elsewhere.example:8000", 403),
        ("127.0.0.1.elsewhere.example", 403),
        ("", 403),
        ("localhost", 200),
        ("localhost:80", 200),
        ("[::1]:8000", 200),
        ("[::1]", 200),
        ("10.0.0.7:80", 200),
    ],
)
def test_foreign_host_name_is_refused(talking: ServerHandle, host: str, status: int) -> None:
    """Prevents DNS rebinding: a web page whose own host name points to this machine."""
    response = requests.get(f"{talking.url}v1/models", headers={"Host": host}, timeout=10)
    assert response.status_code == status


@pytest.mark.slow
def test_api_key_is_required(talker: Path) -> None:
    """Prevents an API key that protects nothing."""
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
                assert response.status_code == 401
                assert response.json()["error"]["code"] == "invalid_api_key"
        valid_key = {"Authorization": "Bearer key-1"}
        assert (
            server.post(server.request_body(MAYOR_QUESTION), headers=valid_key).status_code == 200
        )


@pytest.mark.slow
def test_incomplete_request_does_not_block_other_clients(talking: ServerHandle) -> None:
    """Prevents one slow client from blocking all others."""
    host, port = talking.url.removeprefix("http://").rstrip("/").split(":")
    with socket.create_connection((host, int(port))) as slow_client:
        slow_client.sendall(
            b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\n"
            b"Content-Type: application/json\r\nContent-Length: 50\r\n\r\n{"
        )
        assert talking.post(talking.request_body(MAYOR_QUESTION)).status_code == 200
    wait_until_idle(talking)
