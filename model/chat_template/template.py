"""How a conversation is written as ids: one object for training, evaluation, chat and export.

    <bos>资料：{reference}\\n\\n人类：{question}\\n\\n助手：{answer}<eos>\\n\\n人类：{question}\\n\\n助手：{answer}<eos>

Without a reference a conversation begins `<bos>人类：`. What stands between two answers, up to and with `助手：`, is encoded
as one piece and each answer as a piece of its own, so that training and inference agree at the seam; an imported tokenizer
encodes all that stands between two special tokens at once, as whoever trained its model did. The loss is on the answers and
their `<eos>` and on nothing else.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from common.errors import UserError
from common.files import read_json, write_json
from model.tokenizer.base import SPECIAL_TOKEN_MARK, Span, Tokenizer

TEMPLATE_FILE = "template.json"


@dataclass(frozen=True)
class Template:
    """The words around the parts of a conversation."""

    reference: str = "资料："
    human: str = "人类："
    assistant: str = "助手："
    separator: str = "\n\n"
    lead_ins: bool = (
        False  # whether a summary may begin with one of data.batching.summary_prompts.LEAD_INS
    )

    def user_prefix(self, reference: str = "", *, is_first: bool = True) -> str:
        """What precedes a question: the reference if there is one, and the human's name."""
        if not is_first:
            return self.separator + self.human
        return (
            self.reference + self.sanitize(reference) + self.separator if reference else ""
        ) + self.human

    @property
    def assistant_prefix(self) -> str:
        """What stands between a question and its answer."""
        return self.separator + self.assistant

    def encode_prompt(
        self,
        tokenizer: Tokenizer,
        turns: Sequence[tuple[str, str]],
        question: str,
        reference: str = "",
    ) -> list[int]:
        """The ids after which the answer to `question` begins; `turns` are the (question, answer) pairs before it."""
        texts = self.segments([*turns, (question, "")], reference)[:-1]
        return self.encode_batch(tokenizer, [texts])[0][0]

    def encode(
        self, tokenizer: Tokenizer, turns: Sequence[tuple[str, str]], reference: str = ""
    ) -> tuple[list[int], list[Span]]:
        """The ids of whole (question, answer) turns, and the span of each answer with its `<eos>`."""
        return self.encode_batch(tokenizer, [self.segments(turns, reference)])[0]

    def encode_batch(
        self,
        tokenizer: Tokenizer,
        conversations: Sequence[Sequence[str]],
        num_threads: int | None = None,
    ) -> list[tuple[list[int], list[Span]]]:
        """What `encode` gives of each of several conversations, given as their `texts` (`Tokenizer.encode_conversations`)."""
        return tokenizer.encode_conversations(conversations, self.bos_ids(tokenizer), num_threads)

    def segments(self, turns: Sequence[tuple[str, str]], reference: str = "") -> list[str]:
        """The texts of a conversation: what precedes an answer, and the answer, in turns."""
        return [
            text
            for index, (question, answer) in enumerate(turns)
            for text in (
                self.user_prefix(reference, is_first=index == 0)
                + self.sanitize(question)
                + self.assistant_prefix,
                self.render_answer(answer),
            )
        ]

    def sanitize(self, text: str) -> str:
        """What somebody said, as it stands in `texts`: without MARK, which is for the words around it."""
        return text.replace(SPECIAL_TOKEN_MARK, "")

    def render_answer(self, text: str) -> str:
        """An answer as it stands in `texts`."""
        return self.sanitize(text)

    def bos_ids(self, tokenizer: Tokenizer) -> list[int]:
        """The ids before the first text."""
        return [tokenizer.bos_id]

    def save(self, folder: Path) -> None:
        """Write `template.json`."""
        write_json(folder / TEMPLATE_FILE, asdict(self))

    @classmethod
    def load(cls, folder: Path) -> "Template":
        """The template of a checkpoint folder; the default where it has none. UserError for a file that is no template."""
        if not (folder / TEMPLATE_FILE).is_file():
            return cls()
        return parse_template(read_json(folder / TEMPLATE_FILE), folder / TEMPLATE_FILE)


@dataclass(frozen=True)
class ImportedTemplate(Template):
    """The words of an imported model's own chat template (see `model.chat_template.from_jinja`).

    Special tokens in the words have MARK before them, which nothing that is said can hold. The tokenizer's eos ends an
    answer.
    """

    bare: str = ""  # before the first question, without a reference
    reference: str = ""  # before the reference
    human: str = ""  # between the reference and the question
    separator: str = ""  # between an answer's end and the next question
    assistant: str = ""  # between a question and its answer
    lead: str = ""  # what every answer begins with
    finish: str = ""  # between an answer and its eos
    begins: bool = True  # with bos
    strips: bool = False  # what is said loses the white space around it

    def user_prefix(self, reference: str = "", *, is_first: bool = True) -> str:
        """See `Template.opening`."""
        if not is_first:
            return self.separator
        return self.reference + self.sanitize(reference) + self.human if reference else self.bare

    @property
    def assistant_prefix(self) -> str:
        """See `Template.closing`."""
        return self.assistant

    def sanitize(self, text: str) -> str:
        """See `Template.said`."""
        return super().sanitize(text.strip() if self.strips else text)

    def render_answer(self, text: str) -> str:
        """See `Template.answered`."""
        return self.lead + super().render_answer(text) + self.finish

    def bos_ids(self, tokenizer: Tokenizer) -> list[int]:
        """See `Template.start`."""
        return [tokenizer.bos_id] if self.begins else []


def parse_template(fields: Any, path: Path) -> Template:
    """The template of these words, of the project's kind or an imported one. UserError, naming the file `path`, if there is
    none.
    """
    template_class = ImportedTemplate if isinstance(fields, dict) and "bare" in fields else Template
    expected = asdict(template_class())
    if not isinstance(fields, dict) or {k: type(v) for k, v in fields.items()} != {
        k: type(v) for k, v in expected.items()
    }:
        raise UserError(f"{path} is not a template: expected {', '.join(expected)}")
    try:
        "".join(word for word in fields.values() if isinstance(word, str)).encode()
    except UnicodeEncodeError:
        raise UserError(
            f"{path} is not a template: it holds half a character (a lone surrogate)"
        ) from None
    return template_class(**fields)


def template_for_tokenizer(tokenizer: Tokenizer) -> Template:
    """The template that conversations are encoded with for models of this tokenizer."""
    return (
        ImportedTemplate(**tokenizer.template_fields) if tokenizer.template_fields else Template()
    )
