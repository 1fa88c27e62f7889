"""Infer the text segments of an imported model's Jinja chat template.

A chat template is an untrusted program. It runs at import only: in Jinja's sandbox, in a separate
process with little time and memory, on sample conversations. The text around the samples gives an
`ImportedTemplate`, which is then compared with the program on more conversations. A template that
is not equivalent to fixed segments (it changes texts or earlier turns, or depends on them) cannot
be used.
"""

import json
import re
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from model.chat_template.encoding import iter_segments
from model.chat_template.template import ImportedTemplate
from model.tokenizer.base import SPECIAL_TOKEN_MARK
from model.tokenizer.imported import ImportedTokenizer

# (role, text) pairs.
Conversation = Sequence[tuple[str, str]]
# Renders a conversation as the prompt for the next answer.
RenderPrompt = Callable[[Conversation], str]
# Texts that do not occur in each other or in the text of a template.
_SAMPLE_REFERENCE = "资料甲"
_SAMPLE_QUESTION = "问题乙"
_SAMPLE_ANSWER = "回答丙"
_SAMPLE_FOLLOW_UP = "问题丁"
# The project's own text around a reference, for templates without a system role.
_DEFAULT_REFERENCE_PREFIX = "资料："
_DEFAULT_REFERENCE_SUFFIX = "\n\n"
# White space around the texts, and message counts, of the conversations that are compared.
_WHITESPACE_PADS = ("", " \n ")
_MESSAGE_COUNTS = (1, 3, 5)
# Seconds for the whole process; it bounds its own processor time.
_TIMEOUT_SECONDS = 60


class UnsupportedTemplateError(Exception):
    """A chat template cannot be used; the message says why."""


def infer_template(source: str, tokenizer: ImportedTokenizer) -> tuple[ImportedTemplate, int]:
    """Return the segments of a Jinja chat template and the id that ends an answer.

    Raises UnsupportedTemplateError if it is not equivalent to fixed segments.
    """
    render = _build_renderer(source, tokenizer)
    names = sorted(tokenizer.special_tokens, key=len, reverse=True)
    special_token = re.compile("|".join(map(re.escape, names)))
    first_user_prefix, assistant_prefix = _split_around(
        render([("user", _SAMPLE_QUESTION)]), _SAMPLE_QUESTION
    )
    two_turns = render(
        [("user", _SAMPLE_QUESTION), ("assistant", _SAMPLE_ANSWER), ("user", _SAMPLE_FOLLOW_UP)]
    )
    answer_prefix, answer_tail = _split_around(
        _strip_affixes(
            two_turns,
            first_user_prefix + _SAMPLE_QUESTION + assistant_prefix,
            _SAMPLE_FOLLOW_UP + assistant_prefix,
        ),
        _SAMPLE_ANSWER,
    )
    eos_match = special_token.search(answer_tail)
    if eos_match is None:
        raise UnsupportedTemplateError("no special token ends an answer")
    reference_prefix, reference_suffix = _infer_reference_affixes(
        render, first_user_prefix, assistant_prefix
    )
    bos_text = next(
        text for text, index in tokenizer.special_tokens.items() if index == tokenizer.bos_id
    )
    has_bos = first_user_prefix.startswith(bos_text) and reference_prefix.startswith(bos_text)
    bos_length = len(bos_text) if has_bos else 0

    def mark(text: str) -> str:
        return special_token.sub(lambda match: SPECIAL_TOKEN_MARK + match[0], text)

    for strips in (False, True):
        template = ImportedTemplate(
            bare=mark(first_user_prefix[bos_length:]),
            reference=mark(reference_prefix[bos_length:]),
            human=mark(reference_suffix),
            assistant=mark(assistant_prefix),
            lead=mark(answer_prefix),
            finish=mark(answer_tail[: eos_match.start()]),
            separator=mark(answer_tail[eos_match.end() :]),
            begins=has_bos,
            strips=strips,
        )
        if _is_equivalent(template, render, bos_text if has_bos else "", eos_match[0]):
            return template, tokenizer.special_tokens[eos_match[0]]
    raise UnsupportedTemplateError("it changes messages or earlier turns")


def _infer_reference_affixes(
    render: RenderPrompt, first_user_prefix: str, assistant_prefix: str
) -> tuple[str, str]:
    """Return the text before a reference, and between it and the question."""
    try:
        prompt = render([("system", _SAMPLE_REFERENCE), ("user", _SAMPLE_QUESTION)])
        before, rest = _split_around(prompt, _SAMPLE_REFERENCE)
        return before, _strip_affixes(rest, "", _SAMPLE_QUESTION + assistant_prefix)
    except UnsupportedTemplateError:
        # Without a system role the reference becomes part of the first question.
        return first_user_prefix + _DEFAULT_REFERENCE_PREFIX, _DEFAULT_REFERENCE_SUFFIX


def _is_equivalent(
    template: ImportedTemplate, render: RenderPrompt, bos_text: str, eos_text: str
) -> bool:
    """Compare the segments with what the template renders, also with padded texts."""
    for pad in _WHITESPACE_PADS:
        turns = _sample_turns(pad)
        for count in _MESSAGE_COUNTS:
            num_answers = count // 2
            segments = template.segments([*turns[:num_answers], (turns[num_answers][0], "")])
            text = bos_text
            for segment, is_answer in iter_segments(segments[:-1]):
                text += segment + (eos_text if is_answer else "")
            if text.replace(SPECIAL_TOKEN_MARK, "") != render(_to_messages(turns)[:count]):
                return False
    return True


def _split_around(text: str, separator: str) -> tuple[str, str]:
    if text.count(separator) != 1:
        raise UnsupportedTemplateError("it leaves out a message, or renders it twice")
    before, _, after = text.partition(separator)
    return before, after


def _strip_affixes(text: str, prefix: str, suffix: str) -> str:
    has_affixes = text.startswith(prefix) and text.endswith(suffix)
    if not has_affixes or len(text) < len(prefix) + len(suffix):
        raise UnsupportedTemplateError("a prompt is not a prefix of the conversation it begins")
    return text[len(prefix) : len(text) - len(suffix)]


def _build_renderer(source: str, tokenizer: ImportedTokenizer) -> RenderPrompt:
    """Render all sample conversations in one sandboxed process; return a look-up of the prompts.

    The look-up raises UnsupportedTemplateError if the template failed on a conversation.
    """
    variables = {
        name: value.get("content") if isinstance(value, dict) else value
        for name, value in tokenizer.tokenizer_config.items()
        if name.endswith("_token")
    }
    conversations = _sample_conversations()
    request = json.dumps({"source": source, "variables": variables, "conversations": conversations})
    try:
        process = subprocess.run(
            [sys.executable, "-m", "model.chat_template.jinja_sandbox"],
            input=request.encode(),
            timeout=_TIMEOUT_SECONDS,
            cwd=Path(__file__).parents[2],
            capture_output=True,
        )
    except subprocess.TimeoutExpired:
        raise UnsupportedTemplateError("it takes too long") from None
    if process.returncode:
        raise UnsupportedTemplateError("it takes too much time or memory")
    answers = zip(conversations, json.loads(process.stdout), strict=True)
    rendered = {json.dumps(conversation): answer for conversation, answer in answers}

    def render(conversation: Conversation) -> str:
        text, problem = rendered[json.dumps(conversation)]
        if text is None:
            raise UnsupportedTemplateError(problem)
        return str(text)

    return render


def _sample_conversations() -> list[Conversation]:
    """Return every conversation that `infer_template` renders."""
    conversations: list[Conversation] = [
        [("user", _SAMPLE_QUESTION)],
        [("user", _SAMPLE_QUESTION), ("assistant", _SAMPLE_ANSWER), ("user", _SAMPLE_FOLLOW_UP)],
        [("system", _SAMPLE_REFERENCE), ("user", _SAMPLE_QUESTION)],
    ]
    for pad in _WHITESPACE_PADS:
        messages = _to_messages(_sample_turns(pad))
        conversations += [messages[:count] for count in _MESSAGE_COUNTS]
    return conversations


def _sample_turns(pad: str) -> list[tuple[str, str]]:
    return [(f"{pad}aB问{n}{pad}", f"{pad}aB答{n}{pad}") for n in range(3)]


def _to_messages(turns: Sequence[tuple[str, str]]) -> list[tuple[str, str]]:
    messages = []
    for question, answer in turns:
        messages += [("user", question), ("assistant", answer)]
    return messages
