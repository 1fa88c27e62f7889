"""The response objects of the protocol."""

import secrets
import time
from typing import Any

import orjson

from chat.prompt import FittedPrompt
from chat.serve.retrieval import Retrieved
from chat.serve.sequence import Finish, FinishReason
from data.copied_parts import copied_share, find_copied_parts, find_origins

# The protocol's names of the reasons; it has none for a timeout or a disconnected client.
FINISH_REASONS: dict[FinishReason, str] = {
    "eos": "stop",
    "stop": "stop",
    "length": "length",
    "context": "length",
    "timeout": "length",
    "cancelled": "stop",
}
SCORE_DIGITS = 2
DONE_EVENT = b"data: [DONE]\n\n"


class CompletionResponse:
    """Build the objects that answer one request, whole or in chunks."""

    def __init__(
        self, model_name: str, prompt: FittedPrompt, reference: str, retrieved: Retrieved | None
    ) -> None:
        self._model_name = model_name
        self._prompt = prompt
        # What the model reads of it.
        self._reference = reference[: prompt.num_reference_characters]
        self._retrieved = retrieved  # None: the request did not ask for it
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
            "babyllama": {**self._passage_fields(), **self._ending_fields(text, finish)},
        }

    def first_chunk(self) -> dict[str, Any]:
        """Return the `chat.completion.chunk` before the answer, with the passage it is about."""
        chunk = self._chunk({"role": "assistant", "content": ""})
        fields = self._passage_fields()
        return {**chunk, "babyllama": fields} if fields else chunk

    def text_chunk(self, text: str) -> dict[str, Any]:
        """Return the `chat.completion.chunk` of a piece of the answer."""
        return self._chunk({"content": text})

    def last_chunk(self, text: str, finish: Finish) -> dict[str, Any]:
        """Return the `chat.completion.chunk` after the answer, `text`."""
        chunk = self._chunk({}, FINISH_REASONS[finish.finish_reason])
        return {**chunk, "babyllama": self._ending_fields(text, finish)}

    def usage_chunk(self, finish: Finish) -> dict[str, Any]:
        """Return the chunk with token counts that `stream_options.include_usage` asks for."""
        return {
            **self._envelope("chat.completion.chunk"),
            "choices": [],
            "usage": self._usage(finish),
        }

    def _chunk(self, delta: dict[str, str], finish_reason: str | None = None) -> dict[str, Any]:
        choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish_reason}
        return {**self._envelope("chat.completion.chunk"), "choices": [choice]}

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

    # The fields of `babyllama`, this server's addition to the protocol.

    def _passage_fields(self) -> dict[str, Any]:
        """Return the passage that was looked for: null if none was found."""
        if self._retrieved is None:
            return {}
        passage = self._retrieved.passage
        if passage is None:
            return {"passage": None}
        hit = passage.hit
        return {
            "passage": {
                "title": hit.title,
                "text": self._passage_text(),
                "score": round(hit.score, SCORE_DIGITS),
                "source": hit.source,
                "kept": passage.is_kept,
            }
        }

    def _ending_fields(self, text: str, finish: Finish) -> dict[str, Any]:
        """Return dropped turns, exact finish reason, and what is copied from the passage."""
        fields: dict[str, Any] = {
            "dropped_turns": self._prompt.num_dropped_turns,
            "ended": finish.finish_reason,
        }
        if self._reference:
            fields["copied"] = {
                "share": copied_share(text, self._reference),
                "answer_parts": find_copied_parts(text, self._reference),
                "passage_parts": find_origins(text, self._passage_text()),
            }
        return fields

    def _passage_text(self) -> str:
        """Return what the model reads of a passage, without the title above it."""
        passage = self._retrieved.passage if self._retrieved else None
        title_length = len(passage.reference) - len(passage.hit.text) if passage else 0
        return self._reference[title_length:]


def encode_sse_event(data: dict[str, Any]) -> bytes:
    """Return a server-sent event with `data` as JSON.

    https://html.spec.whatwg.org/multipage/server-sent-events.html
    """
    return b"data: " + orjson.dumps(data) + b"\n\n"
