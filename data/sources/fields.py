"""The fields of conversation records: which are used, harmless or not supported, and loss marks.

A field that belongs to what is said and that no source can use, such as `tools`, costs the record:
without it the model would learn something else than what the record has. Such records are left out
and counted by field. Fields that no list has are reported, because some of them may belong to what
is said, too.
"""

import functools
import re
from dataclasses import dataclass
from typing import Any

from data.sources.base import SchemaError, SkipRecordError


def _names(text: str) -> frozenset[str]:
    """Return the names in a text that are separated by spaces."""
    return frozenset(text.split())


# The reason of records whose answers are all marked as not to be trained on.
NOTHING_TO_TRAIN = "no answer to train on"
# Fields of preference data: one of several answers is the worse one.
PREFERENCE_FIELDS = _names(
    "chosen rejected rejected_response rejected_responses rejected_messages kto_tag"
)
UNPAIRED_CURE = (
    "preference training compares two answers to one question: pair a good and a bad answer to the "
    "same question as {prompt, chosen, rejected}, or fine-tune on the good answers alone"
)
# Marks that tell by 0 or false that an answer is not trained on: OpenAI's fine-tuning and Mistral
# (weight), XTuner and ms-swift (loss, loss_scale), LLaMA-Factory (loss_weight), Axolotl (train,
# training). torchtune tells so by true (masked).
_INVERSE_MARK = "masked"
_VALUE_MARKS = _names(
    f"weight loss loss_scale loss_weight loss_mask train training trainable {_INVERSE_MARK}"
)
# Axolotl marks parts of an answer: a list of begin_offset, end_offset (included), train.
_DETAIL_MARK = "train_detail"
MESSAGE_MARKS = _VALUE_MARKS | {_DETAIL_MARK}

HARMLESS = _names(
    "id ids uuid idx index hash md5 key "
    "conversation_id dialog_id dialogue_id document_id doc_id prompt_id message_id session_id "
    "user_id sample_id "
    "source sources data_source data_sources dataset dataset_name origin from_dataset url urls "
    "link license copyright author title answer_from human_verified "
    "lang language langs languages langdetect "
    "category categories task tasks task_type task_name type types type_keyword kind topic topics "
    "domain domains subject tag tags label labels difficulty level quality score scores reward "
    "rating model model_name generator "
    "date time timestamp created created_at updated_at version split "
    "meta metadata extra extra_info info stats "
    "prompt"
)
UNSUPPORTED = PREFERENCE_FIELDS | _names(
    "reasoning_content reasoning reasoning_details reasoning_text thinking thinking_blocks "
    "thinking_content thinking_process thought thoughts think cot complex_cot chain_of_thought "
    "rationale scratchpad "
    "tools tool tool_call tool_calls tool_choice tool_call_id tool_response tool_responses "
    "tool_result tool_results tool_output tool_outputs functions function function_call "
    "function_calls function_response function_result api apis plugin plugins "
    "observation observations "
    "image images image_url image_urls image_path image_paths img video videos video_path audio "
    "audios audio_path media file files attachment attachments objects "
    "system system_prompt system_message history context contexts document documents knowledge "
    "passage passages reference references search_results evidence "
    "mask refusal"
)
MESSAGE_UNSUPPORTED = UNSUPPORTED | {"name", "annotations"}
# Types of the parts of a message that are not text.
UNSUPPORTED_CONTENT = UNSUPPORTED | _names(
    "input_image input_audio input_file input_video video_url audio_url "
    "tool_use server_tool_use redacted_thinking"
)
# Roles of messages that are neither a human's nor the assistant's.
UNSUPPORTED_ROLES = UNSUPPORTED | _names("ipython interpreter execution environment")
# Texts that stand for no value, in small letters and without white space.
_EMPTY_TEXTS = ("", "[]", "{}", "null", "none", "nan")
_CAMEL_CASE = re.compile("(?<=[a-z])(?=[A-Z])")


@dataclass(frozen=True)
class Fields:
    """The fields of a record, or of a message in it.

    `used` are those that the source reads, `harmless` those that are not part of what is said, and
    `unsupported` those that are; the first list that has a field counts. `message_list` is the
    field of the messages, which may have marks in lists beside them. `messages` are the fields of
    the objects in it.
    """

    used: frozenset[str]
    harmless: frozenset[str] = HARMLESS
    unsupported: frozenset[str] = UNSUPPORTED
    message_list: str = ""
    messages: "Fields | None" = None

    def check(self, row: dict[str, Any]) -> set[str]:
        """Return the fields of a record that no list has and whose value may be something said.

        Numbers are not; a truth value may be a mark. Raises SkipRecordError if the record or one of
        its messages has an unsupported field with a value, or if the record is marked as one not to
        train on, and SchemaError if such a mark cannot be read.
        """
        unlisted = self.check_object(row)
        marks = {name: row[name] for name in row if name in MESSAGE_MARKS}
        for name, mark in marks.items():
            # A list has the marks of the messages, which the source reads, or of parts of a text.
            is_list = isinstance(mark, list) and bool(mark)
            if is_list and (not self.message_list or name == _DETAIL_MARK):
                raise SkipRecordError(f"unsupported field {name}")
        marks = {name: mark for name, mark in marks.items() if not isinstance(mark, list)}
        if not has_loss(marks, "", "the record"):
            raise SkipRecordError(NOTHING_TO_TRAIN)
        messages = row.get(self.message_list)
        if self.messages is not None and isinstance(messages, list):
            for message in messages:
                if isinstance(message, dict):
                    unlisted |= self.messages.check_object(message)
        return unlisted

    def check_object(self, row: dict[str, Any]) -> set[str]:
        """Check the fields of one object, marks apart; see `check`."""
        unlisted = set()
        for name, value in row.items():
            if name in self.used or name in MESSAGE_MARKS:
                continue
            key = snake_case(name)
            # A label that is true or false tells whether the answer is a good one.
            is_label = isinstance(value, bool) and (key in PREFERENCE_FIELDS or key == "label")
            if is_label or (key in self.unsupported and _is_set(value)):
                raise SkipRecordError(f"unsupported field {name}")
            is_known = key in self.harmless or key in self.unsupported
            is_text = isinstance(value, (str, list, dict)) and _is_set(value)
            if not is_known and (is_text or isinstance(value, bool)):
                unlisted.add(name)
        return unlisted


@functools.lru_cache(maxsize=1024)
def snake_case(name: str) -> str:
    """Return a name as the lists above have it: `toolCalls` and `Tool-Calls` are `tool_calls`."""
    return _CAMEL_CASE.sub("_", name).replace("-", "_").lower()


def list_preference_fields(row: dict[str, Any]) -> list[str]:
    """Return the fields of a record that are preference data and have a value, sorted."""
    fields = PREFERENCE_FIELDS & row.keys()
    return sorted(name for name in fields if row[name] is False or _is_set(row[name]))


def is_unpaired(row: dict[str, Any]) -> bool:
    """Return whether a record has one answer and a label that says whether it is a good one."""
    has_label = isinstance(row.get("label"), bool) and "completion" in row
    return has_label or isinstance(row.get("kto_tag"), bool)


def _is_set(value: Any) -> bool:
    """Return whether anything in a value is set: not null, false or 0, and no empty text or list.

    Tables give every record all fields, down to `[{"name": null}]`.
    """
    # Without recursion: JSON may be nested as deep as Python's stack.
    pending = [value]
    while pending:
        value = pending.pop()
        if isinstance(value, list):
            pending += value
        elif isinstance(value, dict):
            pending += value.values()
        elif isinstance(value, str):
            text = value.strip()
            if len(text) > 9 or "".join(text.split()).lower() not in _EMPTY_TEXTS:
                return True
        elif value:
            return True
    return False


def split_marks(row: dict[str, Any], num_messages: int) -> list[dict[str, Any]]:
    """Return the loss marks of each message that a record has in lists beside its messages.

    Raises SkipRecordError if such a list does not have one mark for each message.
    """
    lists = {name: row[name] for name in row if name in _VALUE_MARKS}
    lists = {name: marks for name, marks in lists.items() if isinstance(marks, list)}
    for name, marks in lists.items():
        if len(marks) != num_messages:
            raise SkipRecordError(f"unsupported field {name}")
    return [{name: marks[index] for name, marks in lists.items()} for index in range(num_messages)]


def has_loss(marked: dict[str, Any], text: str, label: str) -> bool:
    """Return whether the answer `text` is trained on: unless a mark in `marked` says otherwise.

    `label` names the object in messages. Raises SchemaError for a mark that is not true, false, 0
    or 1, and SkipRecordError for one that is another number or for a part of the answer.
    """
    is_trained = True
    for name, value in marked.items():
        if value is None or value == [] or name not in MESSAGE_MARKS:
            continue
        if name == _DETAIL_MARK:
            is_trained &= _parse_detail(value, text, label)
        else:
            is_trained &= _parse_mark(value, name, label) != (name == _INVERSE_MARK)
    return is_trained


def _parse_mark(value: Any, name: str, label: str) -> bool:
    """Return a mark of true, false, 0 or 1; see `has_loss`."""
    if not isinstance(value, (bool, int, float)):
        raise SchemaError(f"{label} has {name!r} that is not true, false, 0 or 1")
    if value not in (0, 1):
        raise SkipRecordError(f"unsupported field {name}")
    return bool(value)


def _parse_detail(parts: Any, text: str, label: str) -> bool:
    """Return whether all of an answer is trained on (True) or nothing of it; see `has_loss`."""
    # What no part has is not trained on.
    is_trained = [False] * len(text)
    for part in parts if isinstance(parts, list) else [None]:
        part = part if isinstance(part, dict) else {}
        begin, end = part.get("begin_offset"), part.get("end_offset")
        if not isinstance(begin, int) or not isinstance(end, int) or begin < 0:
            raise SchemaError(f"{label} has {_DETAIL_MARK!r} that is not a list of parts")
        is_part_trained = _parse_mark(part.get("train"), _DETAIL_MARK, label)
        is_trained[begin : end + 1] = [is_part_trained] * len(is_trained[begin : end + 1])
    marks = {mark for mark, character in zip(is_trained, text, strict=True) if character.strip()}
    if len(marks) > 1:
        raise SkipRecordError(f"unsupported field {_DETAIL_MARK}")
    return True in marks
