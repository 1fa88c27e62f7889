"""Prompts and candidates are the ids of whole texts and conversations."""

import json
import random
from functools import partial
from pathlib import Path

import pytest

from data.kinds import documents
from data.records import Conversation, Document
from data.sources import SOURCES
from evaluate.load_model import LoadedCheckpoint
from evaluate.needle.frames import ChatFrame, Frame, PlainFrame
from evaluate.needle.long_text import DrawText
from evaluate.needle.register import draw_register
from evaluate.needle.topics import draw_topics
from evaluate.needle.wording import WORDINGS
from model.chat_template.template import Template
from model.tokenizer.base import Tokenizer
from tests.helpers.random_llama import random_llama


def _draw(tokenizer: Tokenizer, language: str, task: str) -> DrawText:
    def count_tokens(text: str) -> int:
        return len(tokenizer.encode(text))

    wording = WORDINGS[language]
    if task == "topics":
        return partial(draw_topics, wording=wording, part="test", count_tokens=count_tokens)
    return partial(draw_register, wording=wording, part="test", digits=3, count_tokens=count_tokens)


@pytest.mark.parametrize("task", ["register", "topics"])
@pytest.mark.parametrize("language", ["zh", "en"])
@pytest.mark.parametrize("frame_class", [PlainFrame, ChatFrame])
def test_requests_are_the_beginning_of_the_true_text(
    frame_class: type[Frame], language: str, task: str, loaded: LoadedCheckpoint
) -> None:
    """Prevents ids that training never sees, and values that are cut or have others' ids."""
    wording, tokenizer = WORDINGS[language], loaded.tokenizer
    frame = frame_class(loaded, wording)
    text = _draw(tokenizer, language, task)(random.Random(1), 600 if language == "zh" else 1500)
    assert len(text.values) == len(set(text.values)) >= 4
    prompts = frame.encode_prompts(text, text.questions)
    for question, prompt in zip(text.questions, prompts, strict=True):
        request = frame.build_request(prompt, question, text.values)
        # Each text with its answer, encoded at once.
        for value, option in zip(text.values, request.options, strict=True):
            answer = wording.complete(question.answer_start, value)
            if frame_class is PlainFrame:
                asked = f"{wording.question_mark}{question.text}{wording.answer_mark}"
                whole = documents.KIND.encode_prompt(tokenizer, text.plain + asked + answer)
            else:
                turns = [*text.turns, (question.text, answer)]
                whole = Template().encode(tokenizer, turns, text.passage).ids
            ids = request.prompt + option
            assert whole[: len(ids)] == ids
            assert value.endswith(tokenizer.decode(option).strip())
            assert len(whole) - len(ids) <= len(tokenizer.encode(wording.full_stop)) + 1


@pytest.mark.parametrize("frame_class", [PlainFrame, ChatFrame])
def test_merges_at_the_beginning_of_an_answer_are_followed(
    frame_class: type[Frame], merging_tokenizer: Tokenizer, tmp_path: Path
) -> None:
    """Prevents a prompt that ends within a piece of an imported tokenizer."""
    model = random_llama(vocab_size=merging_tokenizer.vocab_size)
    loaded = LoadedCheckpoint(tmp_path, model, merging_tokenizer, {})
    wording = WORDINGS["zh"]
    frame = frame_class(loaded, wording)
    text = _draw(merging_tokenizer, "zh", "register")(random.Random(1), 400)
    has_merged = False
    for question in text.questions:
        (prompt,) = frame.encode_prompts(text, [question])
        request = frame.build_request(prompt, question, text.values)
        has_merged |= request.prompt[: len(prompt)] != prompt
        for value, option in zip(text.values, request.options, strict=True):
            answer = wording.complete(question.answer_start, value)
            if frame_class is PlainFrame:
                asked = f"{wording.question_mark}{question.text}{wording.answer_mark}"
                whole = documents.KIND.encode_text(
                    merging_tokenizer, text.plain + asked + answer + "\n"
                )
            else:
                turns = [(question.text, answer)]
                whole = Template().encode(merging_tokenizer, turns, text.passage).ids
            ids = request.prompt + option
            assert whole[: len(ids)] == ids
    if frame_class is PlainFrame:
        assert has_merged  # otherwise this tests nothing


@pytest.mark.parametrize("task", ["register", "topics"])
@pytest.mark.parametrize("frame_class", [PlainFrame, ChatFrame])
def test_training_rows_begin_with_the_prompt(
    frame_class: type[Frame], task: str, loaded: LoadedCheckpoint
) -> None:
    """Prevents a model from being asked in another form than it was trained in."""
    frame = frame_class(loaded, WORDINGS["zh"])
    text = _draw(loaded.tokenizer, "zh", task)(random.Random(1), 400)
    questions = text.questions[1:3]
    row = frame.build_row(text, questions)
    (prompt,) = frame.encode_prompts(text, questions[:1])
    if frame_class is PlainFrame:
        ids = documents.KIND.encode_text(loaded.tokenizer, Document(row["text"]).text)
    else:
        source = "redgpt" if task == "register" else "openai"
        record = SOURCES[source].parse(json.dumps(row).encode())
        assert isinstance(record, Conversation)
        turns = [(turn.question, turn.answer) for turn in record.turns]
        assert len(turns) == len(text.turns) + 2
        ids = Template().encode(loaded.tokenizer, turns, record.reference).ids
    assert ids[: len(prompt)] == prompt
    assert len(ids) == frame.count_example_tokens(text, questions)
    assert questions[1].value in loaded.tokenizer.decode(ids[len(prompt) :])
