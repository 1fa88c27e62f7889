"""A register of numbers, a line each, after the lines test of LongChat."""

import random
from collections.abc import Iterator

from evaluate.needle.long_text import CountTokens, LongText, Part, Question, draw_new, find_part
from evaluate.needle.wording import Wording


def draw_register(
    rng: random.Random,
    num_tokens: int,
    *,
    wording: Wording,
    part: Part,
    digits: int,
    count_tokens: CountTokens,
) -> LongText:
    """Return a register of as many lines as `num_tokens` tokens have room for.

    Its names and numbers are all different. Raises UserError if there are too few of either.
    """
    lines: list[str] = []
    questions: list[Question] = []
    used = count_tokens(wording.register_header)
    for entry, value in draw_facts(rng, wording, part, digits):
        answer_start = wording.fact.format(entry=entry)
        line = wording.complete(answer_start, value) + "\n"
        used += count_tokens(line)
        if used > num_tokens:
            break
        question = wording.register_question.format(entry=entry)
        questions.append(Question(len(lines), question, answer_start, value))
        lines.append(line)
    text = wording.register_header + "".join(lines)
    depths = tuple(place / len(lines) for place in range(len(lines)))
    return LongText(text.rstrip("\n"), (), text, tuple(questions), depths)


def draw_facts(
    rng: random.Random, wording: Wording, part: Part, digits: int
) -> Iterator[tuple[str, str]]:
    """Yield entries and their numbers, all different. Raises UserError at the end of them."""
    names = wording.entries
    drawn: set[str] = set()

    def draw() -> str | None:
        name = rng.choice(names)
        value = str(rng.randrange(10 ** (digits - 1), 10**digits))
        fact = f"{name} {value}"
        is_new = name not in drawn and value not in drawn
        return fact if is_new and find_part(fact) == part else None

    while True:
        fact = draw_new(
            draw,
            f"--digits {digits}: a text needs more different numbers, or names for them, than "
            f"the {len(drawn) // 2:,} found: give more --digits, or a shorter text (--lengths; of "
            "a haystack --needles)",
        )
        name, value = fact.rsplit(" ", 1)
        drawn |= {name, value}
        yield name, value
