"""Ask a checkpoint items: the likelihood of their candidates, and greedy answers.

The rule is the reference of the chat template: `资料：{rule}` before the question in the project's
own template, the place that its fine-tuned models read from; an imported template has its own place
for it. The candidates are not shown.
"""

import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass

from evaluate.answers import answer_resumably
from evaluate.kinds.conversations import Question
from evaluate.load_model import LoadedCheckpoint
from evaluate.metrics.continuations import Continuations, score_continuations
from evaluate.partial_results import PartialResults
from evaluate.rules.item import FORMS, Form, Item

# What the candidates are compared by, see `score_candidates`.
CONVENTION = "sum of the log-probabilities of the answer and its <eos>"
_CHUNK_PROBES = 256
# With a minus or a fraction it is another number.
_NUMBER = re.compile(r"(?:(?<!\d)-)?\d+(?:\.\d+)?")


@dataclass(frozen=True, slots=True)
class Reply:
    """The reply of a model to an item in one form."""

    choice: str | None
    """A candidate of the item, or None if the text has none of them."""
    text: str


@dataclass(frozen=True, slots=True)
class AskedItem:
    """An item with the replies to its forms."""

    item: Item
    replies: dict[Form, Reply]


@dataclass(frozen=True, slots=True)
class Probe:
    """An item in one form, for the likelihood of its candidates."""

    question: str
    passage: str
    candidates: tuple[str, ...]


def ask_by_likelihood(
    results: PartialResults, loaded: LoadedCheckpoint, items: Sequence[Item]
) -> list[AskedItem]:
    """Reply to items in all forms with the most likely of their candidates.

    Items that do not fit the context in some form are left out.
    """
    probes = [
        Probe(item.question, item.passage(form), item.candidates)
        for item in items
        for form in FORMS
    ]
    all_scores = results.compute(
        "likelihood",
        probes,
        lambda chunk: score_candidates(loaded, chunk),
        chunk_size=_CHUNK_PROBES,
    )
    replies: list[Reply | None] = []
    for probe, scores in zip(probes, all_scores, strict=True):
        if scores is None:
            replies.append(None)
        else:
            choice = probe.candidates[scores.index(max(scores))]
            replies.append(Reply(choice, choice))
    return _join_forms(items, replies)


def ask_by_generation(
    results: PartialResults,
    loaded: LoadedCheckpoint,
    items: Sequence[Item],
    *,
    max_new_tokens: int,
    batch: int,
) -> list[AskedItem]:
    """Reply to items in all forms with greedy answers; see `answer_resumably`.

    Items that leave no room for an answer in some form are left out.
    """
    questions = [
        Question((), item.question, item.answer(form), item.passage(form))
        for item in items
        for form in FORMS
    ]
    answers = answer_resumably(
        results, "generation", loaded, questions, max_new_tokens=max_new_tokens, batch=batch
    )
    items_of_answers = [item for item in items for _ in FORMS]
    replies = [
        Reply(find_candidate(answer.text, item), answer.text) if answer is not None else None
        for answer, item in zip(answers, items_of_answers, strict=True)
    ]
    return _join_forms(items, replies)


def _join_forms(items: Sequence[Item], replies: Sequence[Reply | None]) -> list[AskedItem]:
    """Return the items with the replies to their forms, one after the other in `replies`.

    An item without one of its replies is left out.
    """
    asked = []
    for index, item in enumerate(items):
        of_item = replies[index * len(FORMS) : (index + 1) * len(FORMS)]
        by_form = {
            form: reply for form, reply in zip(FORMS, of_item, strict=True) if reply is not None
        }
        if len(by_form) == len(FORMS):
            asked.append(AskedItem(item, by_form))
    return asked


def score_candidates(loaded: LoadedCheckpoint, probes: Sequence[Probe]) -> list[list[float] | None]:
    """Return the log-probability in nats of each candidate; None for a probe that does not fit.

    It is the sum over the tokens of the candidate and the `<eos>` after them, and so belongs to the
    probability that the model gives exactly this answer. The candidates of an item differ little in
    length, and a sum needs no unit of length to divide by.
    """
    requests = [_build_request(loaded, probe) for probe in probes]
    context = loaded.model.trained_context
    fitting = [index for index, request in enumerate(requests) if request.num_tokens <= context]
    scores = score_continuations(loaded.model, [requests[index] for index in fitting])
    scores_by_index = dict(zip(fitting, scores, strict=True))
    return [scores_by_index.get(index) for index in range(len(requests))]


def _build_request(loaded: LoadedCheckpoint, probe: Probe) -> Continuations:
    """Return the ids of the prompt, and of each candidate with its `<eos>`."""
    template, tokenizer = loaded.template, loaded.tokenizer
    prompt = template.encode_prompt(tokenizer, (), probe.question, probe.passage)
    segments = [
        template.segments([(probe.question, candidate)], probe.passage)
        for candidate in probe.candidates
    ]
    conversations = [
        ids[: spans[-1][1]] for ids, spans in template.encode_batch(tokenizer, segments)
    ]
    # An imported tokenizer may merge the end of the prompt with the beginning of a candidate: the
    # prompt is what all of them have in common.
    num_shared = 0
    for ids in zip(prompt, *conversations, strict=False):
        if len(set(ids)) > 1:
            break
        num_shared += 1
    return Continuations(prompt[:num_shared], [ids[num_shared:] for ids in conversations])


def find_candidate(answer: str, item: Item) -> str | None:
    """Return the candidate that a generated answer gives, or None if it gives none.

    For numbers it is the one with the last number in the answer, otherwise the one that occurs last
    in it; of two that begin at the same place, the longer one.
    """
    # NFKC makes full-width digits ASCII, and full-width commas too, in the candidates as well.
    text = unicodedata.normalize("NFKC", answer)
    if item.is_number:
        numbers = _NUMBER.findall(text)
        by_number = {_NUMBER.findall(candidate)[0]: candidate for candidate in item.candidates}
        return by_number.get(numbers[-1]) if numbers else None
    by_text = {unicodedata.normalize("NFKC", candidate): candidate for candidate in item.candidates}
    longest_first = sorted(by_text, key=len, reverse=True)
    found = re.findall("|".join(map(re.escape, longest_first)), text)
    return by_text[found[-1]] if found else None
