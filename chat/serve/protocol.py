"""Parse and check chat-completions requests.

https://platform.openai.com/docs/api-reference/chat/create

A field that would change the answer and is not supported is refused, never ignored.
"""

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Annotated, Any, Literal

import orjson
from annotated_types import Interval
from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)
from pydantic_core import PydanticCustomError

from chat.serve.errors import ProtocolError
from chat.terminal.settings import SETTINGS
from data.sources import dialogue
from data.sources.base import SchemaError, strip_blank_lines
from data.sources.openai_messages import SPEAKER_BY_ROLE
from model.decode.sampling import Sampling

MAX_STOP_STRINGS = 4
MAX_STOP_CHARACTERS = 128
# Of a search.
DEFAULT_HITS = 5
MAX_HITS = 20
# Fields of the protocol that do not change the answer.
IGNORED_FIELDS = (
    "user",
    "metadata",
    "store",
    "service_tier",
    "safety_identifier",
    "prompt_cache_key",
    "parallel_tool_calls",
)
# Fields that are accepted only with a value that does not change the answer: null, "", [], {} or
# one of these.
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
UNSUPPORTED_MESSAGE_FIELDS: dict[str, tuple[Any, ...]] = {
    "name": (),
    "refusal": (),
    "audio": (),
    "function_call": (),
    "tool_calls": (),
    "tool_call_id": (),
    "annotations": (),
}
_SETTING_RANGES = {
    setting.name: Interval(ge=setting.minimum, le=setting.maximum) for setting in SETTINGS
}


def _join_text_parts(content: Any) -> Any:
    """Return a message's content, with a list of text parts joined to one text.

    Raises PydanticCustomError for a part that is not text, such as an image.
    """
    if not isinstance(content, list):
        return content
    for part in content:
        kind = part.get("type") if isinstance(part, dict) else None
        if kind != "text" or not isinstance(part.get("text"), str):
            raise PydanticCustomError("unsupported", "not supported: only parts of type text are")
    # One line each, as in training (`data.sources.openai_messages`).
    return "\n".join(part["text"] for part in content)


def _drop_neutral_fields(
    values: Any, unsupported: dict[str, tuple[Any, ...]], ignored: tuple[str, ...] = ()
) -> Any:
    """Return a JSON object without nulls, ignored fields and neutral values.

    Raises PydanticCustomError for an unsupported field with any other value.
    """
    if not isinstance(values, dict):
        return values
    for name, neutral_values in unsupported.items():
        if _is_set(values.get(name)) and values[name] not in neutral_values:
            raise PydanticCustomError("unsupported", "not supported by this server", {"name": name})
    return {
        name: value
        for name, value in values.items()
        if value is not None and name not in (*unsupported, *ignored)
    }


def _is_set(value: Any) -> bool:
    # Compared by value: 0 and False count as set.
    return value is not None and value not in ("", [], {})


class _StrictModel(BaseModel):
    """A JSON object without unknown fields, whose values are not converted to another type."""

    model_config = ConfigDict(extra="forbid", strict=True)


class Message(_StrictModel):
    """One message of a conversation."""

    role: Literal["system", "developer", "user", "assistant"]
    content: Annotated[str, BeforeValidator(_join_text_parts)] = ""

    @model_validator(mode="before")
    @classmethod
    def _drop_unset_fields(cls, values: Any) -> Any:
        # A client that sends an answer back sends all fields of the message, most of them null.
        return _drop_neutral_fields(values, UNSUPPORTED_MESSAGE_FIELDS)


class Document(_StrictModel):
    """A reference text that the questions are about."""

    text: Annotated[str, AfterValidator(strip_blank_lines), Field(min_length=1)]


class StreamOptions(_StrictModel):
    """Options of a stream. `include_obfuscation` is accepted and has no effect."""

    include_usage: bool = False
    include_obfuscation: bool = False


class CompletionRequest(_StrictModel):
    """The body of a request.

    `documents`, `retrieve`, `top_k`, `repetition_penalty` and `no_repeat_ngram` are this server's
    additions to the protocol. Training has one reference at most, so there is one document at most.
    """

    model: str
    messages: list[Message] = Field(min_length=1)
    documents: list[Document] = Field([], max_length=1)
    retrieve: bool = False  # whether the server looks for a document in its index
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

    @field_validator("retrieve")
    @classmethod
    def _check_retrieve(cls, value: bool, info: ValidationInfo) -> bool:
        if value and info.data.get("documents"):
            raise PydanticCustomError("conflict", "give documents or let the server retrieve one")
        return value

    @model_validator(mode="before")
    @classmethod
    def _normalize_fields(cls, values: Any) -> Any:
        """Drop fields without an effect, and make a list of a single stop string."""
        values = _drop_neutral_fields(values, UNSUPPORTED_FIELDS, IGNORED_FIELDS)
        # The protocol allows a single stop string in place of a list.
        if isinstance(values, dict) and isinstance(values.get("stop"), str):
            values = {**values, "stop": [values["stop"]]}
        return values


class SearchQuery(BaseModel):
    """The parameters of a search for passages, which arrive as texts."""

    model_config = ConfigDict(extra="forbid")

    q: Annotated[str, AfterValidator(str.strip), Field(min_length=1)]
    limit: int = Field(DEFAULT_HITS, ge=1, le=MAX_HITS)


@dataclass(frozen=True)
class RequestConversation:
    """The messages of a request as the chat template takes them."""

    system: str
    turns: list[tuple[str, str]]  # earlier (question, answer) pairs
    question: str


def parse_request(body: bytes) -> CompletionRequest:
    """Parse the JSON body of a request.

    Raises ProtocolError (400) if it is not a JSON object, or for the first field that is wrong or
    not supported, with the path of that field.
    """
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


def parse_search(parameters: Mapping[str, str]) -> SearchQuery:
    """Parse the parameters of a search. Raises ProtocolError (400) for the first that is wrong."""
    try:
        return SearchQuery.model_validate(dict(parameters))
    except ValidationError as error:
        raise _validation_protocol_error(error) from None


def _validation_protocol_error(error: ValidationError) -> ProtocolError:
    """Return the first problem of a request as the protocol's error (400)."""
    problem = error.errors(include_url=False, include_input=False)[0]
    # ("messages", 0, "content") becomes messages[0].content.
    parts = [f"[{part}]" if isinstance(part, int) else f".{part}" for part in problem["loc"]]
    field_path = "".join(parts).lstrip(".")
    message = problem["msg"]
    if problem["type"] == "extra_forbidden":
        message = "unknown field"
        code = "unknown_parameter"
    elif problem["type"] == "unsupported":
        field_name = problem.get("ctx", {}).get("name")
        field_path = ".".join(filter(None, (field_path, field_name)))
        code = "unsupported_parameter"
    elif problem["type"] == "missing":
        code = "missing_required_parameter"
    else:
        code = "invalid_value"
    return ProtocolError(400, f"{field_path}: {message}", param=field_path, code=code)


def conversation_from_messages(messages: list[Message]) -> RequestConversation:
    """Return the conversation of the messages, in the form that training gives them.

    Consecutive messages of one role are joined, and the assistant may speak first. Raises
    ProtocolError if a message of the user is blank, if a system message stands after others, and if
    the last message is not the user's.
    """
    for index, message in enumerate(messages):
        if message.role == "user" and not message.content.strip():
            name = f"messages[{index}].content"
            raise ProtocolError(400, f"{name}: the question is empty", param=name)
    if messages[-1].role != "user":
        raise ProtocolError(
            400, "messages: the last message has to be the user's", param="messages"
        )
    try:
        system, merged = dialogue.split_system(
            dialogue.Message(SPEAKER_BY_ROLE[message.role], message.content) for message in messages
        )
    except SchemaError as error:
        raise ProtocolError(400, f"messages: {error}", param="messages") from None
    texts = [message.text for message in merged]
    if merged[0].speaker == "assistant":
        texts.insert(0, "")
    turns = list(zip(texts[:-1:2], texts[1::2], strict=True))
    return RequestConversation(system, turns, texts[-1])


def resolve_sampling(body: CompletionRequest, defaults: Sampling) -> Sampling:
    """Return the request's sampling settings, with `defaults` for those it does not set."""
    values = {
        field.name: getattr(body, field.name)
        for field in fields(Sampling)
        if getattr(body, field.name) is not None
    }
    return replace(defaults, **values)
