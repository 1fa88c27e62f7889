"""The response objects of the protocol."""

import secrets
import time
from typing import Any

import orjson

from chat.prompt import FittedPrompt
from chat.serve.sequence import Finish, FinishReason

# The protocol's names of the reasons; it has none for a timeout or a disconnected client.
FINISH_REASONS: dict[FinishReason, str] = {
    "eos": "stop",
    "stop": "stop",
    "length": "length",
    "context": "length",
    "timeout": "length",
    "cancelled": "stop",
}
DONE_EVENT = b"data: [DONE]\n\n"


class CompletionResponse:
    """Build the objects that answer one request, whole or in chunks."""

    def __init__(self, model_name: str, prompt: FittedPrompt) -> None:
        self._model_name = model_name
        self._prompt = prompt
        self._id = f"chatcmpl-{secrets.token_hex(12)}"
        self._created = int(time.time())

    def completion(self, text: str, finish: Finish) -> dict[str, Any]:
        """Return the `chat.completion` of a whole answer."""
        choice = {
            "index": 0,
            "message": {"role": "assistant", "content": text, "refusal": None},
            "logprobs": None,
            "finish_reason": FINISH_REASONS[finish.finish_reason],
        }
        return {
            **self._envelope("chat.completion"),
            "choices": [choice],
            "usage": self._usage(finish),
            **self._extension(finish),
        }

    def chunk(self, delta: dict[str, str], finish: Finish | None = None) -> dict[str, Any]:
        """Return a `chat.completion.chunk`; the last one of an answer has its `finish`."""
        choice = {
            "index": 0,
            "delta": delta,
            "logprobs": None,
            "finish_reason": FINISH_REASONS[finish.finish_reason] if finish else None,
        }
        chunk = {**self._envelope("chat.completion.chunk"), "choices": [choice]}
        return {**chunk, **self._extension(finish)} if finish else chunk

    def usage_chunk(self, finish: Finish) -> dict[str, Any]:
        """Return the chunk with token counts that `stream_options.include_usage` asks for."""
        return {
            **self._envelope("chat.completion.chunk"),
            "choices": [],
            "usage": self._usage(finish),
        }

    def _envelope(self, object_type: str) -> dict[str, Any]:
        """Return the fields that all objects of the protocol have."""
        return {
            "id": self._id,
            "object": object_type,
            "created": self._created,
            "model": self._model_name,
        }

    def _usage(self, finish: Finish) -> dict[str, int]:
        num_prompt_tokens = len(self._prompt.ids)
        return {
            "prompt_tokens": num_prompt_tokens,
            "completion_tokens": finish.num_tokens,
            "total_tokens": num_prompt_tokens + finish.num_tokens,
        }

    def _extension(self, finish: Finish) -> dict[str, Any]:
        """Return this server's addition to the protocol: dropped turns and exact finish reason."""
        return {
            "babyllama": {
                "dropped_turns": self._prompt.num_dropped_turns,
                "ended": finish.finish_reason,
            }
        }


def encode_sse_event(data: dict[str, Any]) -> bytes:
    """Return a server-sent event with `data` as JSON.

    https://html.spec.whatwg.org/multipage/server-sent-events.html
    """
    return b"data: " + orjson.dumps(data) + b"\n\n"
