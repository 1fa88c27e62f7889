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
from model.tokenizer.base import MARK
from model.tokenizer.imported import ImportedTokenizer

Render = Callable[..., str]
# Texts that no template's own words hold, and that stand in no other.
_REFERENCE, _FIRST, _ANSWER, _SECOND = "资料甲", "问题乙", "回答丙", "问题丁"
# White space put around what is said, and messages in the conversations that the words are checked on.
_PADS, _COUNTS = ("", " \n "), (1, 3, 5)
# Seconds to wait for all of it; the process bounds its own processor time.
_PATIENCE = 60


class Unusable(Exception):
    """Why a chat template cannot be used."""


def words_of(source: str, tokenizer: ImportedTokenizer) -> tuple[ImportedTemplate, int]:
    """The words of a Jinja chat template and the id that ends an answer. Unusable where it is no matter of words."""
    render = _renderer(source, tokenizer)
    special = re.compile("|".join(map(re.escape, sorted(tokenizer.specials, key=len, reverse=True))))
    bare, closing = _around(render([("user", _FIRST)]), _FIRST)
    long = render([("user", _FIRST), ("assistant", _ANSWER), ("user", _SECOND)])
    lead, tail = _around(_between(long, bare + _FIRST + closing, _SECOND + closing), _ANSWER)
    end = special.search(tail)
    if end is None:
        raise Unusable("no special token ends an answer")
    before, between = _with_reference(render, bare, closing)
    start = next(text for text, index in tokenizer.specials.items() if index == tokenizer.bos_id)
    begins = bare.startswith(start) and before.startswith(start)
    skipped = len(start) if begins else 0

    def marked(word: str) -> str:
        return special.sub(lambda found: MARK + found[0], word)

    for strips in (False, True):
        template = ImportedTemplate(
            bare=marked(bare[skipped:]), reference=marked(before[skipped:]), human=marked(between), assistant=marked(closing),
            lead=marked(lead), finish=marked(tail[: end.start()]), separator=marked(tail[end.end() :]),
            begins=begins, strips=strips)
        if _renders(template, render, start if begins else "", end[0]):
            return template, tokenizer.specials[end[0]]
    raise Unusable("it changes what is said, or earlier turns, in ways that words cannot")


def _with_reference(render: Render, bare: str, closing: str) -> tuple[str, str]:
    """What stands before a reference, and between it and the question."""
    try:
        said = render([("system", _REFERENCE), ("user", _FIRST)])
        before, rest = _around(said, _REFERENCE)
        return before, _between(rest, "", _FIRST + closing)
    except Unusable:
        # Without a role for it, the reference is a part of the question, in the project's own words.
        default = "资料：", "\n\n"
        return bare + default[0], default[1]


def _renders(template: ImportedTemplate, render: Render, start: str, end: str) -> bool:
    """Whether the words give what the template gives, also with white space around what is said."""
    for pad in _PADS:
        turns, said = _turns(pad), _said(_turns(pad))
        for count in _COUNTS:
            texts = template.texts([*turns[: count // 2], (turns[count // 2][0], "")])[:-1]
            mine = "".join(text + (end if index % 2 else "") for index, text in enumerate(texts))
            if start + mine.replace(MARK, "") != render(said[:count]):
                return False
    return True


def _around(text: str, part: str) -> tuple[str, str]:
    if text.count(part) != 1:
        raise Unusable("it leaves out what is said, or says it twice")
    before, _, after = text.partition(part)
    return before, after


def _between(text: str, before: str, after: str) -> str:
    if not (text.startswith(before) and text.endswith(after) and len(text) >= len(before) + len(after)):
        raise Unusable("a prompt is not the beginning of the conversation that goes on from it")
    return text[len(before) : len(text) - len(after)]


def _renderer(source: str, tokenizer: ImportedTokenizer) -> Render:
    """A function of (role, text) pairs: the prompt for the answer to the last of them.

    All that is ever asked is rendered here, in one process that may take neither much time nor much memory.
    """
    known = {name: value.get("content") if isinstance(value, dict) else value
             for name, value in tokenizer.config.items() if name.endswith("_token")}
    asked = [[("user", _FIRST)], [("user", _FIRST), ("assistant", _ANSWER), ("user", _SECOND)],
             [("system", _REFERENCE), ("user", _FIRST)],
             *(_said(_turns(pad))[:count] for pad in _PADS for count in _COUNTS)]
    request = json.dumps({"source": source, "known": known, "conversations": asked})
    try:
        done = subprocess.run([sys.executable, "-m", "model.chat_template.jinja_sandbox"], input=request.encode(), timeout=_PATIENCE,
                              cwd=Path(__file__).parents[2], capture_output=True)
    except subprocess.TimeoutExpired:
        raise Unusable("it takes too long") from None
    if done.returncode:
        raise Unusable("it takes too much time or memory")
    rendered = {json.dumps(said): answer for said, answer in zip(asked, json.loads(done.stdout), strict=True)}

    def render(said: Sequence[tuple[str, str]]) -> str:
        text, problem = rendered[json.dumps(said)]
        if text is None:
            raise Unusable(problem)
        return str(text)

    return render


def _turns(pad: str) -> list[tuple[str, str]]:
    return [(f"{pad}aB问{n}{pad}", f"{pad}aB答{n}{pad}") for n in range(3)]


def _said(turns: Sequence[tuple[str, str]]) -> list[tuple[str, str]]:
    return [(role, text) for turn in turns for role, text in zip(("user", "assistant"), turn, strict=True)]
