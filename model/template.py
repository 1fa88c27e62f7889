"""How a conversation is written as ids: one object for training, evaluation, chat and export.

    <bos>资料：{reference}\\n\\n人类：{question}\\n\\n助手：{answer}<eos>\\n\\n人类：{question}\\n\\n助手：{answer}<eos>

Without a reference a conversation begins `<bos>人类：`. What stands between two answers, up to and with `助手：`, is encoded
as one piece and each answer as a piece of its own, so that training and inference agree at the seam. The loss is on the
answers and their `<eos>` and on nothing else.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from common.errors import UserError
from common.files import read_json, write_json
from model.tokenizer import MARK, Tokenizer

FILE = "template.json"
# Start and stop of a stretch of ids.
Span = tuple[int, int]


@dataclass(frozen=True)
class Template:
    """The words around the parts of a conversation."""

    reference: str = "资料："
    human: str = "人类："
    assistant: str = "助手："
    separator: str = "\n\n"
    lead_ins: bool = False  # whether a summary may begin with one of data.phrasing.LEAD_INS

    def opening(self, reference: str = "", *, first: bool = True) -> str:
        """What precedes a question: the reference if there is one, and the human's name."""
        if not first:
            return self.separator + self.human
        return (self.reference + reference + self.separator if reference else "") + self.human

    @property
    def closing(self) -> str:
        """What stands between a question and its answer."""
        return self.separator + self.assistant

    def prompt(self, tokenizer: Tokenizer, turns: Sequence[tuple[str, str]], question: str, reference: str = "") -> list[int]:
        """The ids after which the answer to `question` begins; `turns` are the (question, answer) pairs before it."""
        ids, _ = self.encode(tokenizer, turns, reference)
        text = self.opening(reference, first=not turns) + self.said(question) + self.closing
        return ids + self.encode_texts(tokenizer, [text])[0]

    def encode(
        self, tokenizer: Tokenizer, turns: Sequence[tuple[str, str]], reference: str = ""
    ) -> tuple[list[int], list[Span]]:
        """The ids of whole (question, answer) turns, and the span of each answer with its `<eos>`."""
        return self.join(tokenizer, self.encode_texts(tokenizer, self.texts(turns, reference)))

    def texts(self, turns: Sequence[tuple[str, str]], reference: str = "") -> list[str]:
        """The texts that are encoded one by one: what precedes an answer, and the answer, in turns."""
        return [
            text for index, (question, answer) in enumerate(turns)
            for text in (self.opening(reference, first=index == 0) + self.said(question) + self.closing, self.said(answer))
        ]

    def said(self, text: str) -> str:
        """What somebody said, as it stands in `texts`."""
        return text

    def start(self, tokenizer: Tokenizer) -> list[int]:
        """The ids before the first text."""
        return [tokenizer.bos_id]

    def encode_texts(self, tokenizer: Tokenizer, texts: Sequence[str], threads: int | None = None) -> list[list[int]]:
        """The ids of each of `texts`, encoded on `threads` cores (see `Tokenizer.encode_batch`)."""
        return tokenizer.encode_batch(texts, threads)

    def join(self, tokenizer: Tokenizer, encoded: Sequence[list[int]]) -> tuple[list[int], list[Span]]:
        """`texts`, encoded, as the ids of one conversation and the span of each answer with its `<eos>`."""
        ids = self.start(tokenizer)
        spans = []
        for asked, answer in zip(encoded[::2], encoded[1::2], strict=True):
            ids += asked
            start = len(ids)
            ids += [*answer, tokenizer.eos_id]
            spans.append((start, len(ids)))
        return ids, spans

    def save(self, folder: Path) -> None:
        """Write `template.json`."""
        write_json(folder / FILE, asdict(self))

    @classmethod
    def load(cls, folder: Path) -> "Template":
        """The template of a checkpoint folder; the default where it has none. UserError for a file that is no template."""
        if not (folder / FILE).is_file():
            return cls()
        return template_from(read_json(folder / FILE), folder / FILE)


@dataclass(frozen=True)
class ImportedTemplate(Template):
    """The words of an imported model's own chat template (see `model.chat_template_import`).

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

    def opening(self, reference: str = "", *, first: bool = True) -> str:
        """See `Template.opening`."""
        if not first:
            return self.separator
        return self.reference + self.said(reference) + self.human if reference else self.bare

    @property
    def closing(self) -> str:
        """See `Template.closing`."""
        return self.assistant

    def texts(self, turns: Sequence[tuple[str, str]], reference: str = "") -> list[str]:
        """See `Template.texts`."""
        texts = super().texts(turns, reference)
        return [self.lead + text + self.finish if index % 2 else text for index, text in enumerate(texts)]

    def said(self, text: str) -> str:
        """See `Template.said`."""
        return (text.strip() if self.strips else text).replace(MARK, "")

    def start(self, tokenizer: Tokenizer) -> list[int]:
        """See `Template.start`."""
        return [tokenizer.bos_id] if self.begins else []

    def encode_texts(self, tokenizer: Tokenizer, texts: Sequence[str], threads: int | None = None) -> list[list[int]]:
        """See `Template.encode_texts`."""
        return [tokenizer.encode_marked(text) for text in texts]


def template_from(words: Any, name: Path) -> Template:
    """The template of these words, of the project's kind or an imported one. UserError, naming the file `name`, if there is
    none.
    """
    kind = ImportedTemplate if isinstance(words, dict) and "bare" in words else Template
    expected = asdict(kind())
    if not isinstance(words, dict) or {k: type(v) for k, v in words.items()} != {k: type(v) for k, v in expected.items()}:
        raise UserError(f"{name} is not a template: expected {', '.join(expected)}")
    try:
        "".join(word for word in words.values() if isinstance(word, str)).encode()
    except UnicodeEncodeError:
        raise UserError(f"{name} is not a template: it holds half a character (a lone surrogate)") from None
    return kind(**words)


def template_of(tokenizer: Tokenizer) -> Template:
    """The template that conversations are encoded with for models of this tokenizer."""
    return ImportedTemplate(**tokenizer.words) if tokenizer.words else Template()
