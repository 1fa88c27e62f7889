"""The fields of conversation records: which are used, harmless or not supported, and loss marks.

A field that belongs to what is said and that no source can use, such as `tools`, costs the record:
without it the model would learn something else than what the record has. Such records are left out
and counted by field. Fields that no list has are reported, because some of them may belong to what
is said, too.
"""

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
# Marks that tell by 0 or false that an answer is not trained on: OpenAI's fine-tuning and Mistral
# (weight), XTuner and ms-swift (loss), LLaMA-Factory (loss_weight), Axolotl (train, training).
# torchtune tells so by true (masked).
_INVERSE_MARK = "masked"
_VALUE_MARKS = _names(f"weight loss loss_weight loss_mask train training trainable {_INVERSE_MARK}")
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
    "thinking_content thought thoughts think cot chain_of_thought rationale scratchpad "
    "tools tool tool_call tool_calls tool_choice tool_call_id tool_response tool_responses "
    "tool_result tool_results function functions function_call function_calls api apis plugins "
    "observation observations "
    "image images image_url image_urls img video videos audio audios media file files attachment "
    "attachments objects "
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
UNSUPPORTED_ROLES = _names(
    "tool tool_call tool_calls tool_response tool_result tool_results function function_call "
    "function_response observation ipython environment"
)
# Texts that stand for no value.
_EMPTY_TEXTS = ("", "[]", "{}", "null", "None")


@dataclass(frozen=True)
class Fields:
    """The fields of a record, or of a message in it.

    `used` are those that the source reads, `harmless` those that are not part of what is said, and
    `unsupported` those that are; the first list that has a field counts. `messages` are the fields
    of the objects in the list `message_list`.
    """

    used: frozenset[str]
    harmless: frozenset[str] = HARMLESS
    unsupported: frozenset[str] = UNSUPPORTED
    message_list: str = ""
    messages: "Fields | None" = None

    def check(self, row: dict[str, Any]) -> set[str]:
        """Return the fields of a record that no list has and whose value may be something said.

        Numbers and truth values are not. Raises SkipRecordError if the record or one of its
        messages has an unsupported field with a value, or if the record is marked as one not to
        train on, and SchemaError if such a mark cannot be read.
        """
        unlisted = self._check_object(row)
        # A list has the marks of the messages, which the source reads.
        marks = {name: row[name] for name in row if name in _VALUE_MARKS}
        if self.messages is not None:
            marks = {name: mark for name, mark in marks.items() if not isinstance(mark, list)}
        if not has_loss(marks, "", "the record"):
            raise SkipRecordError(NOTHING_TO_TRAIN)
        messages = row.get(self.message_list)
        if self.messages is not None and isinstance(messages, list):
            for message in messages:
                if isinstance(message, dict):
                    unlisted |= self.messages._check_object(message)
        return unlisted

    def _check_object(self, row: dict[str, Any]) -> set[str]:
        """Check one object; see `check`."""
        unlisted = set()
        for name, value in row.items():
            if name in self.used or name in MESSAGE_MARKS or not _is_set(name, value):
                continue
            # A label that is true or false tells whether the answer is a good one.
            if name in self.unsupported or (name == "label" and isinstance(value, bool)):
                raise SkipRecordError(f"unsupported field {name}")
            if name not in self.harmless and isinstance(value, (str, list, dict)):
                unlisted.add(name)
        return unlisted


def _is_set(name: str, value: Any) -> bool:
    """Return whether a field has a value: not null and, unless it may be a label, not empty."""
    if isinstance(value, bool) and (name in PREFERENCE_FIELDS or name == "label"):
        return True
    return value.strip() not in _EMPTY_TEXTS if isinstance(value, str) else bool(value)


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
