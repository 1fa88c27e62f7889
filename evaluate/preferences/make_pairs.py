"""Make preference pairs of a model's own answers, and write them in the explicit format.

A line has `prompt` (messages), `chosen` and `rejected` (texts) and their scores, as TRL and the
source `preferences` read it; and, where there are such, `passage` and `rejected_is_cut`.
"""

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from common.errors import UserError
from common.files import write_atomic
from common.machine import resolve_device
from data.kinds import find_kind
from data.sources import find_source
from evaluate.input_records import read_usable_records
from evaluate.kinds import find_evaluation
from evaluate.kinds.conversations import Question, extract_questions
from evaluate.load_model import load_checkpoint
from evaluate.metrics.proportion import Proportion
from evaluate.metrics.repetition import is_looping
from evaluate.partial_results import partial_path
from evaluate.preferences.choose import Pair, choose_pair
from evaluate.preferences.options import PreferencesOptions
from evaluate.preferences.sample import sample_answers


def make_pairs(options: PreferencesOptions) -> None:
    """Write the pairs to `options.out`; print their number, and why questions gave none.

    Raises UserError if the records have no questions, or if not one question gives a pair.
    """
    device = resolve_device(options.device)
    evaluation = find_evaluation(find_kind(find_source(options.source).kind))
    records = read_usable_records(options.source, options.input, evaluation.kind, options.limit)
    conversations = [evaluation.as_conversation(record) for record in records]
    questions = [
        question
        for conversation in conversations
        if conversation is not None
        for question in extract_questions(conversation)
    ]
    if not questions:
        raise UserError(f"--source {options.source}: its {evaluation.kind.name} have no questions")
    # Repeated questions would give the same samples again.
    questions = list(dict.fromkeys(questions))
    loaded = load_checkpoint(options.checkpoint, options, device)
    pairs: list[tuple[Question, Pair]] = []
    reasons: Counter[str] = Counter()
    all_samples = sample_answers(loaded, questions, options)
    for question, samples in zip(questions, all_samples, strict=True):
        if samples is not None:
            # The reference answer has no lead-in either: it would be all that the pair teaches.
            samples = [
                replace(sample, text=evaluation.strip_answer(loaded.template, sample.text))
                for sample in samples
            ]
        pair = choose_pair(
            samples,
            question.answer,
            chosen=options.chosen,
            measure=options.measure,
            least_difference=options.least_difference,
        )
        if isinstance(pair, str):
            reasons[pair] += 1
        else:
            pairs.append((question, pair))
    if not pairs:
        raise UserError(
            f"--input {' '.join(options.input)}: none of {len(questions):,} questions gives a pair "
            f"({_format_counts(reasons)}): draw more --samples at a higher --temperature, or "
            "compare them by another --measure"
        )
    generator = " ".join(f"{key} {value}" for key, value in loaded.provenance.items())
    write_atomic(options.out, "".join(_format_line(*pair, generator) for pair in pairs))
    partial_path(options.out).unlink(missing_ok=True)
    print("\n".join(_format_report(options, [pair for _, pair in pairs], reasons)))


def _format_line(question: Question, pair: Pair, generator: str) -> str:
    """Return a pair as a line of JSON."""
    messages = [("system", question.system)] if question.system else []
    for earlier_question, earlier_answer in question.history:
        messages += [("user", earlier_question), ("assistant", earlier_answer)]
    messages.append(("user", question.question))
    row: dict[str, Any] = {
        "prompt": [{"role": role, "content": text} for role, text in messages if text]
    }
    if question.passage:
        row["passage"] = question.passage
    row |= {
        "chosen": pair.chosen.text,
        "rejected": pair.rejected.text,
        "score_chosen": pair.chosen_score,
        "score_rejected": pair.rejected_score,
        "generator": generator,
    }
    if not pair.rejected.has_eos:
        row["rejected_is_cut"] = True
    return json.dumps(row, ensure_ascii=False) + "\n"


def _format_report(
    options: PreferencesOptions, pairs: Sequence[Pair], reasons: Counter[str]
) -> list[str]:
    """Return the counts, scores and lengths of the pairs as lines to print."""
    num_questions = len(pairs) + reasons.total()
    lines = [f"{options.out}: {len(pairs):,} pairs of {num_questions:,} questions"]
    if reasons:
        lines.append(f"  no pair: {_format_counts(reasons)}")
    chosen_score = sum(pair.chosen_score for pair in pairs) / len(pairs)
    rejected_score = sum(pair.rejected_score for pair in pairs) / len(pairs)
    lengths = [(len(pair.chosen.text), len(pair.rejected.text)) for pair in pairs]
    chosen_length = sum(chosen for chosen, _ in lengths) / len(pairs)
    rejected_length = sum(rejected for _, rejected in lengths) / len(pairs)
    num_longer = sum(chosen > rejected for chosen, rejected in lengths)
    num_looping = sum(is_looping(pair.rejected.text) for pair in pairs)
    num_cut = sum(not pair.rejected.has_eos for pair in pairs)
    lines += [
        f"  {options.measure}: chosen {chosen_score:.3f}, rejected {rejected_score:.3f}",
        f"  mean characters: chosen {chosen_length:.1f}, rejected {rejected_length:.1f}",
        f"  the longer one is chosen: {Proportion(num_longer, len(pairs))}",
        f"  rejected answers that loop {num_looping:,}, that did not end {num_cut:,}",
        f"train on them: make dpo DATA={options.out} BASE={options.checkpoint}",
    ]
    return lines


def _format_counts(reasons: Counter[str]) -> str:
    """Return the reasons with their counts, the most frequent one first."""
    return ", ".join(f"{count:,} {reason}" for reason, count in reasons.most_common())
