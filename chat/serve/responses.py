"""The protocol's response objects."""

import secrets
import time
from typing import Any

import orjson

from chat.serve.prompt import Prompt
from chat.serve.sequence import End, Over

FINISH: dict[End, str] = {"eos": "stop", "stop": "stop", "length": "length", "context": "length", "timeout": "length",
                          "gone": "stop"}
DONE = b"data: [DONE]\n\n"


class Answer:
    """The objects that answer one request, whole or in chunks."""

    def __init__(self, model: str, prompt: Prompt) -> None:
        self._model, self._prompt = model, prompt
        self._id, self._created = f"chatcmpl-{secrets.token_hex(12)}", int(time.time())

    def whole(self, text: str, over: Over) -> dict[str, Any]:
        """A `chat.completion`."""
        message = {"role": "assistant", "content": text, "refusal": None}
        choice = {"index": 0, "message": message, "logprobs": None, "finish_reason": FINISH[over.end]}
        return {**self._head("chat.completion"), "choices": [choice], "usage": self._usage(over), **self._besides(over)}

    def piece(self, delta: dict[str, str], over: Over | None = None) -> dict[str, Any]:
        """A `chat.completion.chunk`; the last of the answer with what it is `over` for."""
        choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": FINISH[over.end] if over else None}
        return {**self._head("chat.completion.chunk"), "choices": [choice], **(self._besides(over) if over else {})}

    def usage(self, over: Over) -> dict[str, Any]:
        """The chunk behind the last that counts the tokens."""
        return {**self._head("chat.completion.chunk"), "choices": [], "usage": self._usage(over)}

    def _head(self, kind: str) -> dict[str, Any]:
        return {"id": self._id, "object": kind, "created": self._created, "model": self._model}

    def _usage(self, over: Over) -> dict[str, int]:
        read = len(self._prompt.ids)
        return {"prompt_tokens": read, "completion_tokens": over.tokens, "total_tokens": read + over.tokens}

    def _besides(self, over: Over) -> dict[str, Any]:
        """What the protocol has no place for: turns that were forgotten, and why exactly the answer ended."""
        return {"babyllama": {"dropped_turns": self._prompt.dropped, "ended": over.end}}


def packed(data: dict[str, Any]) -> bytes:
    """An event of a stream (https://html.spec.whatwg.org/multipage/server-sent-events.html)."""
    return b"data: " + orjson.dumps(data) + b"\n\n"
