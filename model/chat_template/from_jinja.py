"""Infer the text segments of an imported model's Jinja chat template.

A chat template is an untrusted program. It runs only when a model is imported: in Jinja's sandbox,
in a separate process with little time and memory, on sample conversations. The text that it puts
around the samples gives an `ImportedTemplate`, which is then compared with the program on more
conversations. A template that is not equivalent to fixed texts around messages (because it changes
messages or earlier turns, or depends on them) cannot be used.
"""

import json
import re
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from model.chat_template.encoding import iter_segments
from model.chat_template.template import (
    DEFAULT_REFERENCE_PREFIX,
    DEFAULT_REFERENCE_SUFFIX,
    ImportedTemplate,
)
from model.tokenizer.base import SPECIAL_TOKEN_MARK
from model.tokenizer.imported import ImportedTokenizer

# (role, text) pairs.
Conversation = Sequence[tuple[str, str]]
# Renders a conversation as the prompt for the next answer.
RenderPrompt = Callable[[Conversation], str]
# Sample messages, which do not occur in each other or in the text of a template.
_SAMPLE_REFERENCE = "资料甲"
_SAMPLE_QUESTION = "问题乙"
_SAMPLE_ANSWER = "回答丙"
_SAMPLE_FOLLOW_UP = "问题丁"
# The conversations that are compared have these system texts and this white space around their
# messages (some templates strip it), and these numbers of messages. There are no line ends in the
# white space: messages come here without blank lines around them, which our own Jinja removes.
_SYSTEMS_AND_PADS = (("", ""), ("", " \t"), (_SAMPLE_REFERENCE, ""))
_MESSAGE_COUNTS = (1, 3, 5)
# Wall-clock limit of the sandboxed process, which limits its own CPU time.
_TIMEOUT_SECONDS = 60
_MAX_CPU_SECONDS = 5  # of the sandboxed process


class UnsupportedTemplateError(Exception):
    """A chat template cannot be used; the message says why."""


def infer_template(source: str, tokenizer: ImportedTokenizer) -> tuple[ImportedTemplate, int]:
    """Return a Jinja chat template as an `ImportedTemplate`, and the id that ends an answer.

    Raises UnsupportedTemplateError if it is not equivalent to fixed texts around messages.
    """
    render = _build_renderer(source, tokenizer)
    # Longest first, because a regex takes the first alternative that matches.
    names = sorted(tokenizer.special_tokens, key=len, reverse=True)
    special_token = re.compile("|".join(map(re.escape, names)))
    # A conversation of one question is: first_user_prefix, question, assistant_prefix.
    first_user_prefix, assistant_prefix = _split_around(
        render([("user", _SAMPLE_QUESTION)]), _SAMPLE_QUESTION
    )
    # With an answer and a second question, what follows the first prompt is: answer_prefix, answer,
    # answer_tail (eos and the text before a question), question, assistant_prefix.
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
        """Put SPECIAL_TOKEN_MARK before each special token."""
        return special_token.sub(lambda match: SPECIAL_TOKEN_MARK + match[0], text)

    # The samples had no white space around them; the comparison shows whether it is stripped.
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
    """Return the text before a reference, and the text between it and the question.

    The template renders a reference as the system message, and a system text in the same way.
    """
    try:
        prompt = render([("system", _SAMPLE_REFERENCE), ("user", _SAMPLE_QUESTION)])
        before, rest = _split_around(prompt, _SAMPLE_REFERENCE)
        return before, _strip_affixes(rest, prefix="", suffix=_SAMPLE_QUESTION + assistant_prefix)
    except UnsupportedTemplateError:
        # Without a system role the reference becomes part of the first question, as in the
        # project's own template; `has_system_turn` recognizes the prefix.
        return first_user_prefix + DEFAULT_REFERENCE_PREFIX, DEFAULT_REFERENCE_SUFFIX


def _is_equivalent(
    template: ImportedTemplate, render: RenderPrompt, bos_text: str, eos_text: str
) -> bool:
    """Return whether `template` gives the prompts that the Jinja template renders.

    Conversations of several lengths are compared, with and without white space around messages,
    and with a system message if the template has a place for it.
    """
    for system, pad in _SYSTEMS_AND_PADS:
        if system and not template.has_system_turn:
            continue
        turns = _sample_turns(pad)
        for count in _MESSAGE_COUNTS:
            # The last message is a question, so there are `count // 2` answers before it.
            num_answers = count // 2
            segments = template.segments(
                [*turns[:num_answers], (turns[num_answers][0], "")], system=system
            )
            text = bos_text
            for segment, is_answer in iter_segments(segments[:-1]):
                text += segment + (eos_text if is_answer else "")
            rendered = render(_system_messages(system) + _to_messages(turns)[:count])
            # The mark is a part of the names of special tokens in exports of this project.
            if text.replace(SPECIAL_TOKEN_MARK, "") != rendered.replace(SPECIAL_TOKEN_MARK, ""):
                return False
    return True


def _split_around(rendered: str, message: str) -> tuple[str, str]:
    """Return the text before and after a message.

    Raises UnsupportedTemplateError if it does not occur exactly once.
    """
    if rendered.count(message) != 1:
        raise UnsupportedTemplateError("it leaves out a message, or renders it twice")
    before, _, after = rendered.partition(message)
    return before, after


def _strip_affixes(text: str, prefix: str, suffix: str) -> str:
    """Return `text` without a prefix and a suffix. Raises UnsupportedTemplateError without them."""
    has_affixes = text.startswith(prefix) and text.endswith(suffix)
    if not has_affixes or len(text) < len(prefix) + len(suffix):
        raise UnsupportedTemplateError("a prompt is not a prefix of the conversation it begins")
    return text[len(prefix) : len(text) - len(suffix)]


def _build_renderer(source: str, tokenizer: ImportedTokenizer) -> RenderPrompt:
    """Render all sample conversations in one sandboxed process, and return a look-up function.

    The returned function raises UnsupportedTemplateError if the template failed on its
    conversation; `_build_renderer` itself raises it if the process failed.
    """
    # Templates use variables such as bos_token; transformers takes them from this file, too.
    variables = {
        name: value.get("content") if isinstance(value, dict) else value
        for name, value in tokenizer.tokenizer_config.items()
        if name.endswith("_token")
    }
    conversations = _sample_conversations()
    request = json.dumps(
        {
            "source": source,
            "variables": variables,
            "conversations": conversations,
            "max_cpu_seconds": _MAX_CPU_SECONDS,
        }
    )
    try:
        process = subprocess.run(
            [sys.executable, "-m", "model.chat_template.jinja_sandbox"],
            input=request.encode(),
            timeout=_TIMEOUT_SECONDS,
            cwd=Path(__file__).parents[2],  # where `python -m` finds the package
            capture_output=True,
        )
    except subprocess.TimeoutExpired:
        raise UnsupportedTemplateError("it takes too long") from None
    # The output reports errors of the template, so the process fails only at one of its limits.
    if process.returncode:
        raise UnsupportedTemplateError("it takes too much time or memory")
    results = zip(conversations, json.loads(process.stdout), strict=True)
    # Keyed by JSON, because lists cannot be keys.
    result_by_conversation = {json.dumps(conversation): result for conversation, result in results}

    def render(conversation: Conversation) -> str:
        """Return the prompt of a sample conversation, or raise UnsupportedTemplateError."""
        text, problem = result_by_conversation[json.dumps(conversation)]
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
    for system, pad in _SYSTEMS_AND_PADS:
        messages = _to_messages(_sample_turns(pad))
        conversations += [_system_messages(system) + messages[:count] for count in _MESSAGE_COUNTS]
    return conversations


def _sample_turns(pad: str) -> list[tuple[str, str]]:
    """Return three (question, answer) turns with `pad` around every message."""
    # Letters of both cases: a template that changes the case is not supported.
    return [(f"{pad}aB问{n}{pad}", f"{pad}aB答{n}{pad}") for n in range(3)]


def _system_messages(system: str) -> list[tuple[str, str]]:
    """Return a system text as a list of one message, or of none if it is empty."""
    return [("system", system)] if system else []


def _to_messages(turns: Sequence[tuple[str, str]]) -> list[tuple[str, str]]:
    """Return (question, answer) turns as (role, text) messages."""
    messages = []
    for question, answer in turns:
        messages += [("user", question), ("assistant", answer)]
    return messages
