"""The chat template: the one object that training, evaluation, chat and export encode with.

The project's own template:

    <bos>资料：{reference}\\n\\n人类：{question}\\n\\n助手：{answer}<eos>\\n\\n人类：{question}\\n\\n助手：{answer}<eos>

The reference is a text that the questions are about. Without one, a conversation begins
`<bos>人类：`. A system text, an instruction to the assistant, stands in front of the first
question: `人类：{system}\\n{question}`. The text up to and including `助手：` is the prompt of an
answer. The loss is on the answers and their `<eos>` only.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from common.errors import UserError
from common.files import read_json, write_json
from model.chat_template.encoding import EncodedConversation, encode_conversations
from model.tokenizer.base import SPECIAL_TOKEN_MARK, Tokenizer

TEMPLATE_FILE = "template.json"
# Text around a system text in the first question, and around a passage in imported templates
# without a system turn.
SYSTEM_SUFFIX = "\n"
DEFAULT_REFERENCE_PREFIX = "资料："
DEFAULT_REFERENCE_SUFFIX = "\n\n"


@dataclass(frozen=True)
class Template:
    """The project's own template: the text around reference, questions and answers."""

    reference: str = "资料："
    human: str = "人类："
    assistant: str = "助手："
    separator: str = "\n\n"
    # Whether the model was trained to begin summaries with a lead-in such as 标题：.
    lead_ins: bool = False

    def user_prefix(self, reference: str = "", *, is_first: bool = True) -> str:
        """Return the text before a question, which for the first one includes the reference."""
        if not is_first:
            return self.separator + self.human
        if not reference:
            return self.human
        return self.reference + self.sanitize(reference) + self.separator + self.human

    @property
    def has_system_turn(self) -> bool:
        """Whether a system text has a turn of its own, instead of a place in the first question."""
        return False

    @property
    def assistant_prefix(self) -> str:
        """Return the text between a question and its answer."""
        return self.separator + self.assistant

    def encode_prompt(
        self,
        tokenizer: Tokenizer,
        turns: Sequence[tuple[str, str]],
        question: str,
        reference: str = "",
        system: str = "",
    ) -> list[int]:
        """Return the ids of the prompt: earlier (question, answer) `turns`, and a new question.

        `reference` is a text that the questions are about, `system` an instruction to the
        assistant; either may be empty.
        """
        # The last segment, the empty answer to `question`, is what the model will generate.
        segments = self.segments([*turns, (question, "")], reference, system)
        return self.encode_batch(tokenizer, [segments[:-1]])[0].ids

    def encode(
        self,
        tokenizer: Tokenizer,
        turns: Sequence[tuple[str, str]],
        reference: str = "",
        system: str = "",
    ) -> EncodedConversation:
        """Encode (question, answer) turns to ids, and locate each answer with its eos among them.

        `reference` and `system` are as in `encode_prompt`.
        """
        return self.encode_batch(tokenizer, [self.segments(turns, reference, system)])[0]

    def encode_batch(
        self,
        tokenizer: Tokenizer,
        conversations: Sequence[Sequence[str]],
        num_threads: int | None = None,
    ) -> list[EncodedConversation]:
        """Encode conversations, each given as its `segments`.

        `num_threads` of None means all cores.
        """
        return encode_conversations(tokenizer, conversations, self.bos_ids(tokenizer), num_threads)

    def segments(
        self, turns: Sequence[tuple[str, str]], reference: str = "", system: str = ""
    ) -> list[str]:
        """Return the segments of (question, answer) turns: prompts and answers in turn."""
        segments = []
        for index, (question, answer) in enumerate(turns):
            prefix = self.user_prefix(reference, is_first=index == 0)
            if index == 0:
                question = SYSTEM_SUFFIX.join(filter(None, (system, question)))
            segments.append(prefix + self.sanitize(question) + self.assistant_prefix)
            segments.append(self.render_answer(answer))
        return segments

    def sanitize(self, text: str) -> str:
        """Return a message without SPECIAL_TOKEN_MARK, so that it cannot form a special token."""
        return text.replace(SPECIAL_TOKEN_MARK, "")

    def render_answer(self, text: str, *, is_cut: bool = False) -> str:
        """Return an answer with the text that the template puts around it.

        An answer that is cut has no text after it.
        """
        return self.sanitize(text)

    def bos_ids(self, tokenizer: Tokenizer) -> list[int]:
        """Return the ids before the first segment."""
        return [tokenizer.bos_id]

    def save(self, folder: Path) -> None:
        """Write `template.json`."""
        write_json(folder / TEMPLATE_FILE, asdict(self))


@dataclass(frozen=True)
class ImportedTemplate(Template):
    """An imported model's own chat template as text segments (see `chat_template.from_jinja`).

    Special tokens in these texts are preceded by SPECIAL_TOKEN_MARK. The tokenizer's eos ends an
    answer. The names of the fields are the keys of `template.json`.
    """

    # Text before the first question, if there is neither a reference nor a system turn.
    bare: str = ""
    # Text before the system turn's text, or before a reference in a template without such a turn.
    reference: str = ""
    # Text between that and the first question.
    human: str = ""
    # Text between an answer's eos and the next question.
    separator: str = ""
    # Text between a question and its answer.
    assistant: str = ""
    # Text between `assistant` and the answer, which is not part of the prompt.
    lead: str = ""
    # Text between an answer and its eos.
    finish: str = ""
    # Whether a conversation begins with bos.
    begins: bool = True
    # Whether white space around questions, answers, references and system texts is removed.
    strips: bool = False

    @property
    def has_system_turn(self) -> bool:
        """See `Template.has_system_turn`."""
        return self.reference != self.bare + DEFAULT_REFERENCE_PREFIX

    def segments(
        self, turns: Sequence[tuple[str, str]], reference: str = "", system: str = ""
    ) -> list[str]:
        """See `Template.segments`. A system turn holds the system text, then the reference."""
        if self.has_system_turn:
            reference = DEFAULT_REFERENCE_SUFFIX.join(filter(None, (system, reference)))
            system = ""
        return super().segments(turns, reference, system)

    def user_prefix(self, reference: str = "", *, is_first: bool = True) -> str:
        """See `Template.user_prefix`."""
        if not is_first:
            return self.separator
        return self.reference + self.sanitize(reference) + self.human if reference else self.bare

    @property
    def assistant_prefix(self) -> str:
        """See `Template.assistant_prefix`."""
        return self.assistant

    def sanitize(self, text: str) -> str:
        """See `Template.sanitize`."""
        return super().sanitize(text.strip() if self.strips else text)

    def render_answer(self, text: str, *, is_cut: bool = False) -> str:
        """See `Template.render_answer`."""
        return self.lead + super().render_answer(text) + ("" if is_cut else self.finish)

    def bos_ids(self, tokenizer: Tokenizer) -> list[int]:
        """See `Template.bos_ids`."""
        return [tokenizer.bos_id] if self.begins else []


def load_template(folder: Path) -> Template:
    """Load `template.json` of a checkpoint or tokenizer folder; without one, the default template.

    Raises UserError if the file is not a template.
    """
    file = folder / TEMPLATE_FILE
    if not file.is_file():
        return Template()
    fields = read_json(file)
    # Only imported templates have the field `bare`.
    is_imported = isinstance(fields, dict) and "bare" in fields
    template_class = ImportedTemplate if is_imported else Template
    expected = asdict(template_class())
    if not isinstance(fields, dict) or _types(fields) != _types(expected):
        raise UserError(f"{file} is not a chat template: expected {', '.join(expected)}")
    try:
        "".join(text for text in fields.values() if isinstance(text, str)).encode()
    except UnicodeEncodeError:
        raise UserError(
            f"{file} is not a chat template: it holds a lone surrogate (half a character)"
        ) from None
    return template_class(**fields)


def _types(fields: dict[str, Any]) -> dict[str, type]:
    return {key: type(value) for key, value in fields.items()}
