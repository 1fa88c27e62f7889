"""A conversation about one topic after the other, after the topics test of LongChat.

The question there is for the first topic; here also for the one that came after another, so that
the answer can stand anywhere in the text.
"""

import random

from evaluate.needle.long_text import CountTokens, LongText, Part, Question, draw_new, find_part
from evaluate.needle.wording import Wording

# Exchanges about a topic, besides the one that begins with it.
_MAX_EXCHANGES = 3


def draw_topics(
    rng: random.Random,
    num_tokens: int,
    *,
    wording: Wording,
    part: Part,
    count_tokens: CountTokens,
) -> LongText:
    """Return a conversation about as many topics as `num_tokens` tokens have room for.

    Its topics are all different. Raises UserError if there are too few of them.
    """
    topics = wording.topics
    drawn: list[str] = []
    turns: list[tuple[str, str]] = []
    used = 0

    def draw() -> str | None:
        topic = rng.choice(topics)
        pair = f"{drawn[-1] if drawn else ''} {topic}"
        return topic if topic not in drawn and find_part(pair) == part else None

    while True:
        topic = draw_new(
            draw, "--lengths: the longest text has more topics than there are: give shorter ones"
        )
        # The first of the openings is the one that can begin a conversation.
        opening = rng.choice(wording.openings) if drawn else wording.openings[0]
        exchanges = rng.sample(wording.exchanges, rng.randint(0, _MAX_EXCHANGES))
        new_turns = [(opening.format(topic=topic), rng.choice(wording.welcomes)), *exchanges]
        used += count_tokens(wording.render_turns(new_turns))
        if used > num_tokens:
            break
        drawn.append(topic)
        turns += new_turns
    questions = [
        _ask(wording, place, drawn[place - 1] if place else "", topic)
        for place, topic in enumerate(drawn)
    ]
    depths = tuple(place / len(drawn) for place in range(len(drawn)))
    return LongText("", tuple(turns), wording.render_turns(turns), tuple(questions), depths)


def _ask(wording: Wording, place: int, previous: str, topic: str) -> Question:
    """Return the question for a topic; `previous` is empty for the first one."""
    if not previous:
        return Question(place, wording.first_question, wording.first_answer, topic)
    question = wording.next_question.format(previous=previous)
    return Question(place, question, wording.next_answer.format(previous=previous), topic)
