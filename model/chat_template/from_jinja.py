"""An imported model's own chat template as words around the parts of a conversation.

A chat template is a program of strangers. It is run at import and never again: in Jinja's sandbox, in a process of its own
with little time and memory, on conversations made up for it. What it puts around them are the words; where words cannot say
what it does (it looks into the texts, changes earlier turns, has none for a role), it cannot be used.
"""

import json
import re
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from model.chat_template.template import ImportedTemplate
from model.tokenizer.base import SPECIAL_TOKEN_MARK
from model.tokenizer.imported import ImportedTokenizer

RenderPrompt = Callable[..., str]
# Texts that no template's own words hold, and that stand in no other.
_SAMPLE_REFERENCE, _SAMPLE_QUESTION, _SAMPLE_ANSWER, _SAMPLE_FOLLOW_UP = (
    "资料甲",
    "问题乙",
    "回答丙",
    "问题丁",
)
# White space put around what is said, and messages in the conversations that the words are checked on.
_WHITESPACE_PADS, _MESSAGE_COUNTS = ("", " \n "), (1, 3, 5)
# Seconds to wait for all of it; the process bounds its own processor time.
_TIMEOUT_SECONDS = 60


class UnsupportedTemplateError(Exception):
    """Why a chat template cannot be used."""


def infer_template(source: str, tokenizer: ImportedTokenizer) -> tuple[ImportedTemplate, int]:
    """The words of a Jinja chat template and the id that ends an answer. Unusable where it is no matter of words."""
    render = _build_renderer(source, tokenizer)
    special_token_regex = re.compile(
        "|".join(map(re.escape, sorted(tokenizer.special_tokens, key=len, reverse=True)))
    )
    first_user_prefix, assistant_prefix = _split_around(
        render([("user", _SAMPLE_QUESTION)]), _SAMPLE_QUESTION
    )
    long = render(
        [("user", _SAMPLE_QUESTION), ("assistant", _SAMPLE_ANSWER), ("user", _SAMPLE_FOLLOW_UP)]
    )
    answer_prefix, answer_tail = _split_around(
        _strip_affixes(
            long,
            first_user_prefix + _SAMPLE_QUESTION + assistant_prefix,
            _SAMPLE_FOLLOW_UP + assistant_prefix,
        ),
        _SAMPLE_ANSWER,
    )
    eos_match = special_token_regex.search(answer_tail)
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

    def marked(word: str) -> str:
        return special_token_regex.sub(lambda found: SPECIAL_TOKEN_MARK + found[0], word)

    for strips in (False, True):
        template = ImportedTemplate(
            bare=marked(first_user_prefix[bos_length:]),
            reference=marked(reference_prefix[bos_length:]),
            human=marked(reference_suffix),
            assistant=marked(assistant_prefix),
            lead=marked(answer_prefix),
            finish=marked(answer_tail[: eos_match.start()]),
            separator=marked(answer_tail[eos_match.end() :]),
            begins=has_bos,
            strips=strips,
        )
        if _is_equivalent(template, render, bos_text if has_bos else "", eos_match[0]):
            return template, tokenizer.special_tokens[eos_match[0]]
    raise UnsupportedTemplateError(
        "it changes what is said, or earlier turns, in ways that words cannot"
    )


def _infer_reference_affixes(
    render: RenderPrompt, first_user_prefix: str, assistant_prefix: str
) -> tuple[str, str]:
    """What stands before a reference, and between it and the question."""
    try:
        said = render([("system", _SAMPLE_REFERENCE), ("user", _SAMPLE_QUESTION)])
        before, rest = _split_around(said, _SAMPLE_REFERENCE)
        return before, _strip_affixes(rest, "", _SAMPLE_QUESTION + assistant_prefix)
    except UnsupportedTemplateError:
        # Without a role for it, the reference is a part of the question, in the project's own words.
        default = "资料：", "\n\n"
        return first_user_prefix + default[0], default[1]


def _is_equivalent(
    template: ImportedTemplate, render: RenderPrompt, bos_text: str, eos_text: str
) -> bool:
    """Whether the words give what the template gives, also with white space around what is said."""
    for pad in _WHITESPACE_PADS:
        turns, said = _sample_turns(pad), _to_messages(_sample_turns(pad))
        for count in _MESSAGE_COUNTS:
            texts = template.segments([*turns[: count // 2], (turns[count // 2][0], "")])[:-1]
            mine = "".join(
                text + (eos_text if index % 2 else "") for index, text in enumerate(texts)
            )
            if bos_text + mine.replace(SPECIAL_TOKEN_MARK, "") != render(said[:count]):
                return False
    return True


def _split_around(text: str, separator: str) -> tuple[str, str]:
    if text.count(separator) != 1:
        raise UnsupportedTemplateError("it leaves out what is said, or says it twice")
    before, _, after = text.partition(separator)
    return before, after


def _strip_affixes(text: str, prefix: str, suffix: str) -> str:
    if not (
        text.startswith(prefix) and text.endswith(suffix) and len(text) >= len(prefix) + len(suffix)
    ):
        raise UnsupportedTemplateError(
            "a prompt is not the beginning of the conversation that goes on from it"
        )
    return text[len(prefix) : len(text) - len(suffix)]


def _build_renderer(source: str, tokenizer: ImportedTokenizer) -> RenderPrompt:
    """A function of (role, text) pairs: the prompt for the answer to the last of them.

    All that is ever asked is rendered here, in one process that may take neither much time nor much memory.
    """
    special_tokens = {
        name: value.get("content") if isinstance(value, dict) else value
        for name, value in tokenizer.tokenizer_config.items()
        if name.endswith("_token")
    }
    conversations = [
        [("user", _SAMPLE_QUESTION)],
        [("user", _SAMPLE_QUESTION), ("assistant", _SAMPLE_ANSWER), ("user", _SAMPLE_FOLLOW_UP)],
        [("system", _SAMPLE_REFERENCE), ("user", _SAMPLE_QUESTION)],
        *(
            _to_messages(_sample_turns(pad))[:count]
            for pad in _WHITESPACE_PADS
            for count in _MESSAGE_COUNTS
        ),
    ]
    request = json.dumps(
        {"source": source, "known": special_tokens, "conversations": conversations}
    )
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
    rendered = {
        json.dumps(said): answer
        for said, answer in zip(conversations, json.loads(process.stdout), strict=True)
    }

    def render(said: Sequence[tuple[str, str]]) -> str:
        text, problem = rendered[json.dumps(said)]
        if text is None:
            raise UnsupportedTemplateError(problem)
        return str(text)

    return render


def _sample_turns(pad: str) -> list[tuple[str, str]]:
    return [(f"{pad}aB问{n}{pad}", f"{pad}aB答{n}{pad}") for n in range(3)]


def _to_messages(turns: Sequence[tuple[str, str]]) -> list[tuple[str, str]]:
    return [
        (role, text)
        for turn in turns
        for role, text in zip(("user", "assistant"), turn, strict=True)
    ]
