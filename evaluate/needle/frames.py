"""How a model is asked: in its chat template, or by a plain text that it continues."""

import abc
from collections.abc import Sequence
from typing import Any

from data.kinds import documents
from evaluate.load_model import LoadedCheckpoint
from evaluate.metrics.continuations import Continuations
from evaluate.needle.long_text import LongText, Question
from evaluate.needle.wording import Wording


class Frame(abc.ABC):
    """What stands around a text, a question and its answer."""

    def __init__(self, loaded: LoadedCheckpoint, wording: Wording) -> None:
        self._tokenizer = loaded.tokenizer
        self._template = loaded.template
        self._wording = wording

    @abc.abstractmethod
    def encode_prompts(
        self, text: LongText | None, questions: Sequence[Question]
    ) -> list[list[int]]:
        """Return the ids to be continued by an answer, for each question; None: without a text."""

    @abc.abstractmethod
    def encode_answered(self, question: Question, values: Sequence[str]) -> list[list[int]]:
        """Return the ids of a question without a text and its answer, once with each value."""

    @abc.abstractmethod
    def has_ended(self, answer: str) -> bool:
        """Return whether what a model wrote so far is all of its answer, also without an eos."""

    @abc.abstractmethod
    def build_row(self, text: LongText, questions: Sequence[Question]) -> dict[str, Any]:
        """Return a line of a file to train on: a text with questions and their true answers."""

    @abc.abstractmethod
    def count_example_tokens(self, text: LongText, questions: Sequence[Question]) -> int:
        """Return the length of the ids that training makes of `build_row`."""

    def count_answer_tokens(self, question: Question) -> int:
        """Return the length of the true answer, its end included."""
        (prompt,) = self.encode_prompts(None, [question])
        (answered,) = self.encode_answered(question, [question.value])
        return len(answered) - len(prompt)

    def build_request(
        self, prompt: list[int], question: Question, values: Sequence[str]
    ) -> Continuations:
        """Return a prompt with the ids of each value as its options.

        `prompt` is that of the question. What all answers begin with belongs to the prompt of the
        result. What they all end with is left out.
        """
        # Encoded without the text, which takes most of the time.
        (short_prompt,) = self.encode_prompts(None, [question])
        answered = self.encode_answered(question, values)
        shortest = min(map(len, answered))
        num_shared = _count_equal(answered, shortest - 1)
        num_last = _count_equal([ids[::-1] for ids in answered], shortest - num_shared - 1)
        prompt = prompt + answered[0][len(short_prompt) : num_shared]
        # An imported tokenizer may merge the end of the prompt with the beginning of an answer.
        num_merged = len(short_prompt) - num_shared
        if num_merged > 0:
            prompt = prompt[:-num_merged]
        return Continuations(prompt, [ids[num_shared : len(ids) - num_last] for ids in answered])


class PlainFrame(Frame):
    """A document that ends with a question and the beginning of its answer.

    So a model that was only pretrained can be asked: it has to continue with the value.
    """

    def encode_prompts(
        self, text: LongText | None, questions: Sequence[Question]
    ) -> list[list[int]]:
        """See `Frame`."""
        beginning = text.plain if text is not None else ""
        return self._encode([beginning + self._ask(question) for question in questions])

    def encode_answered(self, question: Question, values: Sequence[str]) -> list[list[int]]:
        """See `Frame`. The line end belongs to the answer."""
        ends = [self._wording.complete("", value) + "\n" for value in values]
        return self._encode([self._ask(question) + end for end in ends])

    def has_ended(self, answer: str) -> bool:
        """Return whether the line has ended."""
        return "\n" in answer

    def build_row(self, text: LongText, questions: Sequence[Question]) -> dict[str, Any]:
        """See `Frame`: a document, as the source `jsonl` reads it."""
        answers = [
            self._ask(question) + self._wording.complete("", question.value)
            for question in questions
        ]
        return {"text": text.plain + "\n".join(answers)}

    def count_example_tokens(self, text: LongText, questions: Sequence[Question]) -> int:
        """See `Frame`."""
        row = self.build_row(text, questions)
        return len(documents.KIND.encode_text(self._tokenizer, row["text"]))

    def _ask(self, question: Question) -> str:
        wording = self._wording
        return f"{wording.question_mark}{question.text}{wording.answer_mark}{question.answer_start}"

    def _encode(self, texts: Sequence[str]) -> list[list[int]]:
        return [documents.KIND.encode_prompt(self._tokenizer, text) for text in texts]


class ChatFrame(Frame):
    """The chat template: a passage is the reference of the question, a conversation comes before.

    The answer is a whole sentence.
    """

    def encode_prompts(
        self, text: LongText | None, questions: Sequence[Question]
    ) -> list[list[int]]:
        """See `Frame`."""
        turns = text.turns if text is not None else ()
        passage = text.passage if text is not None else ""
        segments = [
            self._template.segments([*turns, (question.text, "")], passage)[:-1]
            for question in questions
        ]
        return [encoded.ids for encoded in self._template.encode_batch(self._tokenizer, segments)]

    def encode_answered(self, question: Question, values: Sequence[str]) -> list[list[int]]:
        """See `Frame`. The eos belongs to the answer."""
        answers = [self._wording.complete(question.answer_start, value) for value in values]
        segments = [self._template.segments([(question.text, answer)]) for answer in answers]
        return [
            encoded.ids[: encoded.answer_spans[-1][1]]
            for encoded in self._template.encode_batch(self._tokenizer, segments)
        ]

    def build_row(self, text: LongText, questions: Sequence[Question]) -> dict[str, Any]:
        """See `Frame`: a passage as the source `redgpt` reads it, or a conversation as `openai`."""
        turns = self._example_turns(text, questions)
        if text.passage:
            dialogue = "\n\n".join(
                f"Human: {question}\n\nAssistant: {answer}" for question, answer in turns
            )
            return {"reference": text.passage, "dialogue": dialogue}
        messages = []
        for question, answer in turns:
            messages.append({"role": "user", "content": question})
            messages.append({"role": "assistant", "content": answer})
        return {"messages": messages}

    def count_example_tokens(self, text: LongText, questions: Sequence[Question]) -> int:
        """See `Frame`."""
        turns = self._example_turns(text, questions)
        return len(self._template.encode(self._tokenizer, turns, text.passage).ids)

    def _example_turns(
        self, text: LongText, questions: Sequence[Question]
    ) -> list[tuple[str, str]]:
        """Return the conversation with the questions and their true answers after it."""
        complete = self._wording.complete
        answered = [
            (question.text, complete(question.answer_start, question.value))
            for question in questions
        ]
        return [*text.turns, *answered]

    def has_ended(self, answer: str) -> bool:
        """Return False: the eos ends an answer."""
        return False


def _count_equal(sequences: Sequence[Sequence[int]], limit: int) -> int:
    """Return the number of ids, at most `limit`, that all sequences begin with."""
    for place in range(limit):
        if len({ids[place] for ids in sequences}) > 1:
            return place
    return limit
