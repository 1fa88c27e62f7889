"""What a chat-completions request says: https://platform.openai.com/docs/api-reference/chat/create.

A field that would change the answer and that this server does not know is refused, never passed over.
"""

from dataclasses import dataclass, replace
from typing import Annotated, Any, Literal, TypeVar

import orjson
from annotated_types import Interval
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator
from pydantic_core import PydanticCustomError

from chat.serve.errors import ProtocolError
from chat.terminal.settings import SETTINGS
from model.decode.generate import Sampling

MAX_STOP_STRINGS, MAX_STOP_CHARACTERS = 4, 128
# Fields of the protocol that mean nothing here and change no answer.
IGNORED_FIELDS = (
    "user",
    "metadata",
    "store",
    "service_tier",
    "safety_identifier",
    "prompt_cache_key",
    "parallel_tool_calls",
)
# Fields that are understood only where they ask for nothing: what each may then hold besides null, "", [] and {}.
UNSUPPORTED_FIELDS: dict[str, tuple[Any, ...]] = {
    "tools": (),
    "tool_choice": ("none", "auto"),
    "functions": (),
    "function_call": ("none", "auto"),
    "logit_bias": (),
    "logprobs": (False,),
    "top_logprobs": (0,),
    "response_format": ({"type": "text"},),
    "modalities": (["text"],),
    "audio": (),
    "prediction": (),
    "reasoning_effort": (),
    "verbosity": (),
    "web_search_options": (),
    "n": (1,),
}
_SETTING_RANGES = {
    setting.name: Interval(ge=setting.minimum, le=setting.maximum) for setting in SETTINGS
}
_Value = TypeVar("_Value")


def _join_text_parts(content: Any) -> Any:
    """A content that is a list of text parts as one text."""
    if not isinstance(content, list):
        return content
    for part in content:
        kind = part.get("type") if isinstance(part, dict) else None
        if kind != "text" or not isinstance(part.get("text"), str):
            raise PydanticCustomError(
                "unsupported", "not supported: this model reads parts of type text only"
            )
    return "".join(part["text"] for part in content)


def _drop_neutral_fields(
    values: Any, unsupported: dict[str, tuple[Any, ...]], ignored: tuple[str, ...] = ()
) -> Any:
    """A JSON object without what it does not ask for. PydanticCustomError for what it may not ask for."""
    if not isinstance(values, dict):
        return values
    for name, harmless in unsupported.items():
        if _is_set(values.get(name)) and values[name] not in harmless:
            raise PydanticCustomError("unsupported", "not supported by this server", {"name": name})
    return {
        name: value
        for name, value in values.items()
        if value is not None and name not in (*unsupported, *ignored)
    }


def _is_set(value: Any) -> bool:
    return value is not None and value not in ("", [], {})


class _StrictModel(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)


class Message(_StrictModel):
    """One message of a conversation."""

    role: Literal["system", "developer", "user", "assistant"]
    content: Annotated[str, BeforeValidator(_join_text_parts)] = ""

    @model_validator(mode="before")
    @classmethod
    def _drop_unset_fields(cls, values: Any) -> Any:
        # The client's own messages, sent back, name all the fields that a message can have.
        return _drop_neutral_fields(
            values,
            dict.fromkeys(
                (
                    "name",
                    "refusal",
                    "audio",
                    "function_call",
                    "tool_calls",
                    "tool_call_id",
                    "annotations",
                ),
                (),
            ),
        )


class StreamOptions(_StrictModel):
    """What a stream tells besides."""

    include_usage: bool = False
    include_obfuscation: bool = False


class CompletionRequest(_StrictModel):
    """The JSON of a request. top_k, repetition_penalty and no_repeat_ngram are this server's own."""

    model: str
    messages: list[Message] = Field(min_length=1)
    stream: bool = False
    stream_options: StreamOptions = StreamOptions()
    max_tokens: int | None = Field(None, ge=1)
    max_completion_tokens: int | None = Field(None, ge=1)
    temperature: float | None = Field(None, ge=0, le=2)
    top_p: Annotated[float, _SETTING_RANGES["top_p"]] | None = None
    top_k: Annotated[int, _SETTING_RANGES["top_k"]] | None = None
    repetition_penalty: Annotated[float, _SETTING_RANGES["repetition_penalty"]] | None = None
    no_repeat_ngram: Annotated[int, _SETTING_RANGES["no_repeat_ngram"]] | None = None
    frequency_penalty: float = Field(0.0, ge=-2, le=2)
    presence_penalty: float = Field(0.0, ge=-2, le=2)
    stop: list[Annotated[str, Field(min_length=1, max_length=MAX_STOP_CHARACTERS)]] = Field(
        [], max_length=MAX_STOP_STRINGS
    )
    seed: int | None = Field(None, ge=-(1 << 63), lt=1 << 63)

    @model_validator(mode="before")
    @classmethod
    def _drop_unset_fields(cls, values: Any) -> Any:
        values = _drop_neutral_fields(values, UNSUPPORTED_FIELDS, IGNORED_FIELDS)
        if isinstance(values, dict) and isinstance(values.get("stop"), str):
            values = {**values, "stop": [values["stop"]]}
        return values


@dataclass(frozen=True)
class RequestConversation:
    """A conversation as the template has it: a reference, whole turns, and the question to be answered."""

    reference: str
    turns: list[tuple[str, str]]
    question: str


def parse_request(body: bytes) -> CompletionRequest:
    """The request that a body holds. ProtocolError, 400, that names the field."""
    try:
        values = orjson.loads(body)
    except orjson.JSONDecodeError as error:
        raise ProtocolError(
            400, f"the body is not valid JSON: {error}", code="invalid_json"
        ) from None
    if not isinstance(values, dict):
        raise ProtocolError(400, "the body has to be a JSON object", code="invalid_json")
    try:
        return CompletionRequest.model_validate(values)
    except ValidationError as error:
        raise _validation_protocol_error(error) from None


def _validation_protocol_error(error: ValidationError) -> ProtocolError:
    detail = error.errors(include_url=False, include_input=False)[0]
    field_path = "".join(
        f"[{part}]" if isinstance(part, int) else f".{part}" for part in detail["loc"]
    ).lstrip(".")
    if detail["type"] == "extra_forbidden":
        return ProtocolError(
            400,
            f"{field_path}: this server knows no such field",
            param=field_path,
            code="unknown_parameter",
        )
    if detail["type"] == "unsupported":
        field_path = ".".join(filter(None, (field_path, detail.get("ctx", {}).get("name"))))
        return ProtocolError(
            400, f"{field_path}: {detail['msg']}", param=field_path, code="unsupported_parameter"
        )
    code = "missing_required_parameter" if detail["type"] == "missing" else "invalid_value"
    return ProtocolError(400, f"{field_path}: {detail['msg']}", param=field_path, code=code)


def conversation_from_messages(messages: list[Message]) -> RequestConversation:
    """The conversation of the messages. ProtocolError where the template has no place for one."""
    entries = [
        (f"messages[{index}]", each.role, each.content) for index, each in enumerate(messages)
    ]
    reference = entries.pop(0)[2] if entries[0][1] in ("system", "developer") else ""
    for index, (place, role, content) in enumerate(entries):
        if role in ("system", "developer"):
            raise ProtocolError(
                400, f"{place}: the reference (role {role}) is one message, the first", param=place
            )
        expected = "assistant" if index % 2 else "user"
        if role != expected:
            raise ProtocolError(
                400,
                f"{place}: user and assistant take turns, the user first; expected {expected}",
                param=place,
            )
        if role == "user" and not content.strip():
            raise ProtocolError(
                400, f"{place}.content: a question is empty", param=f"{place}.content"
            )
    if not entries or entries[-1][1] != "user":
        raise ProtocolError(400, "messages: the last one has to be the user's", param="messages")
    texts = [content for _, _, content in entries]
    return RequestConversation(
        reference.strip(), list(zip(texts[:-1:2], texts[1::2], strict=True)), texts[-1]
    )


def resolve_sampling(body: CompletionRequest, defaults: Sampling) -> Sampling:
    """How to choose ids: what the request says, and the server's defaults where it says nothing."""

    def said(value: _Value | None, default: _Value) -> _Value:
        return default if value is None else value

    return replace(
        defaults,
        temperature=said(body.temperature, defaults.temperature),
        top_p=said(body.top_p, defaults.top_p),
        top_k=said(body.top_k, defaults.top_k),
        repetition_penalty=said(body.repetition_penalty, defaults.repetition_penalty),
        no_repeat_ngram=said(body.no_repeat_ngram, defaults.no_repeat_ngram),
    )
