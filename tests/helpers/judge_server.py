"""A server of OpenAI's chat-completions protocol that answers as a test tells it to."""

import json
import re
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, NamedTuple

PROMPT_PARTS = re.compile(
    "【问题】\n(.*)\n【问题结束】.*【回答一】\n(.*)\n【回答一结束】.*【回答二】\n(.*)\n【回答二结束】",
    re.DOTALL,
)


class Response(NamedTuple):
    """What the server sends instead of a completion."""

    status: int
    body: bytes = b"{}"
    headers: tuple[tuple[str, str], ...] = ()


class Asked(NamedTuple):
    """A request: the parts of the judge's prompt, the body, and the headers in lower case."""

    question: str
    answer_1: str
    answer_2: str
    body: dict[str, Any]
    headers: dict[str, str]


Reply = Callable[[Asked], str | Response]


class JudgeServer:
    """A running server, and what it was asked."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.asked: list[Asked] = []

    @property
    def pairs(self) -> list[tuple[str, str, str]]:
        """Return the question and the two answers of each request, in order."""
        return [asked[:3] for asked in self.asked]


@contextmanager
def judge_server(reply: Reply) -> Iterator[JudgeServer]:
    """Run a server whose completions, or other responses, `reply` makes."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            parts = PROMPT_PARTS.search(body["messages"][-1]["content"])
            asked = Asked(
                *(parts.groups() if parts else ("", "", "")),
                body,
                {name.lower(): value for name, value in self.headers.items()},
            )
            server.asked.append(asked)
            response = reply(asked)
            if isinstance(response, str):
                message = {"role": "assistant", "content": response}
                response = Response(200, json.dumps({"choices": [{"message": message}]}).encode())
            self.send_response(response.status)
            for name, value in response.headers:
                self.send_header(name, value)
            if "Content-Length" not in dict(response.headers):
                self.send_header("Content-Length", str(len(response.body)))
            self.end_headers()
            self.wfile.write(response.body)

        def log_message(self, *_: Any) -> None:
            pass

    http_server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server = JudgeServer(f"http://127.0.0.1:{http_server.server_port}/v1")
    thread = threading.Thread(target=http_server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield server
    finally:
        http_server.shutdown()
        thread.join()
        http_server.server_close()
