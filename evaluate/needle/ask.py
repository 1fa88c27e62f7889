"""Ask a checkpoint about a text: the likelihood of all its values, and greedy answers."""

import re
import unicodedata
from collections.abc import Sequence
from typing import Any

from evaluate.load_model import LoadedCheckpoint
from evaluate.metrics.continuation_tree import score_after_text
from evaluate.needle.cases import Case, trivial_places
from evaluate.needle.frames import Frame
from evaluate.needle.long_text import Question
from model.decode.generate import generate
from model.decode.prefix_cache import PrefixCache
from model.decode.sampling import Sampling

# A reply: the fields of the predictions file that do not depend on the length of the text.
Reply = dict[str, Any]
_GREEDY = Sampling(temperature=0.0)


def ask_by_likelihood(loaded: LoadedCheckpoint, frame: Frame, case: Case) -> list[Reply]:
    """Reply to the questions of a case with the most likely of all values of its text."""
    values = case.text.values
    requests = [
        frame.build_request(prompt, question, values)
        for prompt, question in zip(case.prompts, case.questions, strict=True)
    ]
    replies = []
    all_scores = score_after_text(loaded.model, requests)
    for number, (question, scores) in enumerate(zip(case.questions, all_scores, strict=True)):
        true_score = scores[question.place]
        others = scores[: question.place] + scores[question.place + 1 :]
        reply = _build_reply(case, number, values[scores.index(max(scores))])
        # The share of the other values that are less likely; half of those that are equally so.
        less_likely = sum(score < true_score for score in others)
        equal = sum(score == true_score for score in others)
        reply["less_likely"] = (less_likely + equal / 2) / max(len(others), 1)
        replies.append(reply)
    return replies


def ask_by_generation(
    loaded: LoadedCheckpoint,
    frame: Frame,
    case: Case,
    cache: PrefixCache,
    *,
    max_new_tokens: int,
) -> list[Reply]:
    """Reply to the questions of a case with greedy answers.

    The cache, of this model, needs room for `max_new_tokens` after the longest prompt. What the
    prompts begin with, the text, is processed once.
    """
    replies = []
    for number, (question, prompt) in enumerate(zip(case.questions, case.prompts, strict=True)):
        ids: list[int] = []
        for token_id in generate(
            loaded.model, prompt, _GREEDY, max_new_tokens=max_new_tokens, prefix_cache=cache
        ):
            ids.append(token_id)
            if frame.has_ended(loaded.tokenizer.decode(ids)):
                break
        answer = loaded.tokenizer.decode(ids)
        reply = _build_reply(case, number, find_value(answer, question, case.text.values))
        reply["prediction"] = answer
        replies.append(reply)
    return replies


def find_value(answer: str, question: Question, values: Sequence[str]) -> str | None:
    """Return the value that a generated answer gives first, or None if it gives none.

    Values that the question names do not count, and a number counts only as a whole.
    """
    # NFKC makes full-width digits ASCII.
    text = unicodedata.normalize("NFKC", answer)
    by_text = {
        unicodedata.normalize("NFKC", value): value
        for value in values
        if value not in question.text
    }
    longest_first = sorted(by_text, key=len, reverse=True)
    alternatives = "|".join(map(re.escape, longest_first))
    found = re.search(rf"(?<!\d)(?:{alternatives})(?!\d)", text)
    return by_text[found[0]] if found and by_text else None


def _build_reply(case: Case, number: int, choice: str | None) -> Reply:
    """Return the reply to question `number` of a case."""
    question = case.questions[number]
    return {
        "part": number,
        "question": question.text,
        "reference": question.value,
        "choice": choice,
        "right": choice == question.value,
        "place": question.place,
        "values": len(case.text.questions),
        "tokens": len(case.prompts[number]),
        "trivial": trivial_places(case.text, question),
    }
