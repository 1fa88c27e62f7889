"""Needles in a haystack: a few sentences with numbers, put into real text."""

import random
import re
from collections.abc import Iterable, Sequence
from itertools import islice

from common.errors import UserError
from evaluate.needle.long_text import CountTokens, LongText, Part, Question
from evaluate.needle.register import draw_facts
from evaluate.needle.wording import Wording
from model.tokenizer.base import Tokenizer

# Characters of text that haystacks are cut from.
MAX_CHARACTERS = 2_000_000
_SENTENCE = re.compile(r"[^。！？!?\n]{0,200}(?:[。！？!?\n]+|(?<=\.) |$)|[^。！？!?\n]{200}")


class Hay:
    """The sentences of some documents in their order, with their lengths in tokens."""

    def __init__(self, texts: Iterable[str], tokenizer: Tokenizer) -> None:
        """Read texts until there are `MAX_CHARACTERS` characters."""
        self.sentences: list[str] = []
        num_characters = 0
        for text in texts:
            text = text[: MAX_CHARACTERS - num_characters] + "\n"
            self.sentences += [match[0] for match in _SENTENCE.finditer(text) if match[0]]
            num_characters += len(text)
            if num_characters >= MAX_CHARACTERS:
                break
        self.num_tokens = [len(ids) for ids in tokenizer.encode_batch(self.sentences)]

    def cut(self, rng: random.Random, num_tokens: int) -> list[int]:
        """Return the numbers of consecutive sentences from a random one on.

        They have about `num_tokens` tokens at most. Raises UserError if all together have fewer.
        """
        total = sum(self.num_tokens)
        if total < num_tokens:
            raise UserError(
                f"--input: has {total:,} tokens of text, which a text of --lengths is cut from: "
                "give more files, or shorter --lengths"
            )
        start = rng.randrange(len(self.sentences))
        chosen: list[int] = []
        used = 0
        for offset in range(len(self.sentences)):
            # Behind the last sentence the first one follows.
            number = (start + offset) % len(self.sentences)
            used += self.num_tokens[number]
            if used > num_tokens:
                break
            chosen.append(number)
        return chosen


def draw_haystack(
    rng: random.Random,
    num_tokens: int,
    *,
    hay: Hay,
    wording: Wording,
    part: Part,
    digits: int,
    num_needles: int,
    num_depths: int,
    count_tokens: CountTokens,
) -> LongText:
    """Return a part of the hay with `num_needles` needles in it, at most `num_tokens` tokens.

    They are spread evenly over `num_depths` equal parts of the text, each at a random place between
    two sentences of its part.
    """
    facts = list(islice(draw_facts(rng, wording, part, digits), num_needles))
    starts = [wording.fact.format(entry=entry) for entry, _ in facts]
    needles = [
        wording.complete(start, value) + wording.value_prefix
        for start, (_, value) in zip(starts, facts, strict=True)
    ]
    places = sorted(
        (number * num_depths // num_needles + rng.random()) / num_depths
        for number in range(num_needles)
    )
    chosen = hay.cut(rng, num_tokens - sum(map(count_tokens, needles)))
    text, depths = _insert(hay, chosen, needles, places)
    questions = tuple(
        Question(place, wording.haystack_question.format(entry=entry), starts[place], value)
        for place, (entry, value) in enumerate(facts)
    )
    return LongText(text, (), text + "\n", questions, depths)


def _insert(
    hay: Hay, chosen: Sequence[int], needles: Sequence[str], places: Sequence[float]
) -> tuple[str, tuple[float, ...]]:
    """Return the chosen sentences with the needles at `places`, shares of their tokens, ascending.

    Also returns `places`: a needle stands at the end of the sentence that its place is in.
    """
    total = sum(hay.num_tokens[number] for number in chosen)
    pieces: list[str] = []
    seen = 0
    waiting = list(zip(places, needles, strict=True))
    for number in chosen:
        while waiting and waiting[0][0] * total < seen:
            pieces.append(waiting.pop(0)[1])
        pieces.append(hay.sentences[number])
        seen += hay.num_tokens[number]
    pieces += [needle for _, needle in waiting]
    return "".join(pieces), tuple(places)
