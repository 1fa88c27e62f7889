"""The protocol's response objects."""

import secrets
import time
from typing import Any

import orjson

from chat.serve.prompt import FittedPrompt
from chat.serve.sequence import Finish, FinishReason

FINISH_REASONS: dict[FinishReason, str] = {
    "eos": "stop",
    "stop": "stop",
    "length": "length",
    "context": "length",
    "timeout": "length",
    "gone": "stop",
}
DONE_EVENT = b"data: [DONE]\n\n"


class CompletionResponse:
    """The objects that answer one request, whole or in chunks."""

    def __init__(self, model: str, prompt: FittedPrompt) -> None:
        self._model, self._prompt = model, prompt
        self._id, self._created = f"chatcmpl-{secrets.token_hex(12)}", int(time.time())

    def completion(self, text: str, finish: Finish) -> dict[str, Any]:
        """A `chat.completion`."""
        message = {"role": "assistant", "content": text, "refusal": None}
        choice = {
            "index": 0,
            "message": message,
            "logprobs": None,
            "finish_reason": FINISH_REASONS[finish.finish_reason],
        }
        return {
            **self._envelope("chat.completion"),
            "choices": [choice],
            "usage": self._usage_counts(finish),
            **self._extension_fields(finish),
        }

    def chunk(self, delta: dict[str, str], finish: Finish | None = None) -> dict[str, Any]:
        """A `chat.completion.chunk`; the last of the answer with what it is `finish` for."""
        choice = {
            "index": 0,
            "delta": delta,
            "logprobs": None,
            "finish_reason": FINISH_REASONS[finish.finish_reason] if finish else None,
        }
        return {
            **self._envelope("chat.completion.chunk"),
            "choices": [choice],
            **(self._extension_fields(finish) if finish else {}),
        }

    def usage_chunk(self, finish: Finish) -> dict[str, Any]:
        """The chunk behind the last that counts the tokens."""
        return {
            **self._envelope("chat.completion.chunk"),
            "choices": [],
            "usage": self._usage_counts(finish),
        }

    def _envelope(self, kind: str) -> dict[str, Any]:
        return {"id": self._id, "object": kind, "created": self._created, "model": self._model}

    def _usage_counts(self, finish: Finish) -> dict[str, int]:
        read = len(self._prompt.ids)
        return {
            "prompt_tokens": read,
            "completion_tokens": finish.num_tokens,
            "total_tokens": read + finish.num_tokens,
        }

    def _extension_fields(self, finish: Finish) -> dict[str, Any]:
        """What the protocol has no place for: turns that were forgotten, and why exactly the answer ended."""
        return {
            "babyllama": {
                "dropped_turns": self._prompt.num_dropped_turns,
                "ended": finish.finish_reason,
            }
        }


def encode_sse_event(data: dict[str, Any]) -> bytes:
    """An event of a stream (https://html.spec.whatwg.org/multipage/server-sent-events.html)."""
    return b"data: " + orjson.dumps(data) + b"\n\n"
