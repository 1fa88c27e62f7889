"""The client of OpenAI's protocol, on a real server with real faults."""

import json
import time
from collections.abc import Iterator

import pytest

from common.errors import UserError
from evaluate.tournament import endpoint as endpoint_module
from evaluate.tournament.endpoint import MAX_ATTEMPTS, Endpoint, RequestRefused
from tests.helpers.judge_server import Asked, Response, judge_server

KEY = "sk-secret-0123456789"
BODY = {"model": "m", "messages": [{"role": "user", "content": "问"}]}
GOOD = json.dumps({"choices": [{"message": {"content": "7 5"}}]}).encode()


def connect(url: str, key: str = KEY, timeout: float = 5.0) -> Endpoint:
    return Endpoint(f"{url}/chat/completions", key, "JUDGE_KEY", timeout)


def error_body(message: str) -> bytes:
    return json.dumps({"error": {"message": message}}).encode()


FAULTS = {
    "busy": Response(429, headers=(("Retry-After", "0"),)),
    "crash": Response(500, b"<html>oops</html>"),
    "down": Response(503, headers=(("Retry-After", "Wed, 21 Oct 2026 07:28:00 GMT"),)),
    "half": Response(200, b'{"choices": [{"mess'),
    "no text": Response(200, b"\xff\xfe"),
    "no choice": Response(200, b'{"choices": []}'),
    "nested": Response(200, b"[" * 100_000),
    "number": Response(200, b'{"choices": [{"message": {"content": 7}}]}'),
    "huge": Response(200, GOOD.replace(b"7 5", b"7 5" + b" " * (5 << 20))),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", FAULTS)
def test_transient_faults_are_tried_again(name: str) -> None:
    """A tournament that ends at the first hiccup of a server."""
    responses = iter([FAULTS[name], FAULTS[name], "7 5"])
    with judge_server(lambda _: next(responses)) as server:
        assert connect(server.url).ask(BODY) == "7 5"
        assert len(server.asked) == 3
        assert [asked.body for asked in server.asked] == [BODY] * 3


@pytest.mark.slow
def test_server_that_breaks_off_is_tried_again() -> None:
    """Half a reply taken for a whole one."""
    responses: Iterator[Response] = iter(
        [Response(200, GOOD, headers=(("Content-Length", "9999"),)), Response(200, GOOD)]
    )
    with judge_server(lambda _: next(responses)) as server:
        assert connect(server.url, timeout=0.2).ask(BODY) == "7 5"
        assert len(server.asked) == 2


def test_lasting_faults_end_with_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    """Endless attempts, waits that do not grow, or a reason that is hidden."""
    waits: list[float] = []
    monkeypatch.setattr(endpoint_module.time, "sleep", waits.append)
    monkeypatch.setattr(endpoint_module, "INITIAL_BACKOFF_SECONDS", 1.0)
    with judge_server(lambda _: Response(500, error_body("模型\n崩溃"))) as server:
        with pytest.raises(UserError) as caught:
            connect(server.url).ask(BODY)
        assert f"status 500, 模型 崩溃, in {MAX_ATTEMPTS} attempts" in str(caught.value)
        assert len(server.asked) == MAX_ATTEMPTS and waits == [1, 2, 4, 8]
    with pytest.raises(UserError, match=r"cannot be reached, or breaks off .*Connection refused"):
        connect(server.url).ask(BODY)
    waits.clear()
    busy = Response(429, headers=(("Retry-After", "7"),))
    with judge_server(lambda _: busy) as server, pytest.raises(UserError):
        connect(server.url).ask(BODY)
    assert waits == [7, 7, 7, 8]
    waits.clear()
    busy = Response(429, headers=(("Retry-After", "99999999"),))
    with judge_server(lambda _: busy) as server, pytest.raises(UserError):
        connect(server.url).ask(BODY)
    assert max(waits) == 60


@pytest.mark.slow
def test_slow_server_is_tried_again() -> None:
    """A command that waits for a dead server forever."""

    def reply(_: Asked) -> str:
        if len(server.asked) == 1:
            time.sleep(0.4)
        return "6 6"

    with judge_server(reply) as server:
        assert connect(server.url, timeout=0.1).ask(BODY) == "6 6"


@pytest.mark.parametrize("status", [400, 413, 422])
def test_refused_requests_are_not_tried_again(status: int) -> None:
    """One prompt that is too long ending the tournament, or being sent five times."""
    with judge_server(lambda _: Response(status, error_body("too long"))) as server:
        with pytest.raises(RequestRefused, match=f"status {status}, too long"):
            connect(server.url).ask(BODY)
        assert len(server.asked) == 1


@pytest.mark.parametrize(
    ("status", "message"),
    [
        (401, "environment variable JUDGE_KEY"),
        (403, "environment variable JUDGE_KEY"),
        (404, "check --endpoint (…/v1) and --judge"),
    ],
)
def test_wrong_settings_end_at_once_without_the_key(status: int, message: str) -> None:
    """A key on the screen, in the words of the server; attempts that cannot succeed."""
    body = error_body(f"Incorrect key {KEY} \x1b[2J")
    with judge_server(lambda _: Response(status, body)) as server:
        with pytest.raises(UserError) as caught:
            connect(server.url).ask(BODY)
        assert message in str(caught.value) and "Incorrect key ***" in str(caught.value)
        assert KEY not in str(caught.value) and str(caught.value).isprintable()
        assert len(server.asked) == 1


@pytest.mark.parametrize("status", [301, 302, 307, 308])
def test_redirects_do_not_get_the_key(status: int) -> None:
    """The key, or the answers, sent to a server that the user did not name."""
    with judge_server(lambda _: "7 5") as other:
        target = f"{other.url}/chat/completions?key={KEY}"
        redirect = Response(status, headers=(("Location", target),))
        with judge_server(lambda _: redirect) as server:
            with pytest.raises(UserError, match=f"redirects to {other.url}") as caught:
                connect(server.url).ask(BODY)
            assert KEY not in str(caught.value)
        assert other.asked == []


def test_key_is_sent_as_bearer_token_or_not_at_all(
    tmp_path: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Passwords of ~/.netrc in place of the key; a key that comes back in a reply and is stored."""
    netrc = f"{tmp_path}/netrc"
    with open(netrc, "w") as file:
        file.write("default login user password hunter2\n")
    monkeypatch.setenv("NETRC", netrc)
    with judge_server(lambda asked: f"8 8\n{asked.headers.get('authorization')}") as server:
        assert connect(server.url).ask(BODY) == "8 8\nBearer ***"
        assert connect(server.url, key="").ask(BODY) == "8 8\nNone"


def test_empty_completion_is_empty_text() -> None:
    """A reply without content, such as a refusal, that is asked again and again."""
    empty = Response(200, b'{"choices": [{"message": {"content": null}}]}')
    with judge_server(lambda _: empty) as server:
        assert connect(server.url).ask(BODY) == ""
        assert len(server.asked) == 1
