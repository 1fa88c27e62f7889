"""What is measured during fine-tuning: the loss on the dev split's answers, and the answers themselves."""

import sys
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from common.progress import progress_bar
from data.batching.examples import Examples
from data.batching.summary_prompts import strip_lead_in
from data.shards import ShardSet
from evaluate.scores.lm import LMScore, score_examples
from evaluate.scores.rouge_metric import compute_rouge
from model.chat_template.template import Template
from model.decode.batch_generate import generate_batch
from model.llama import Llama
from model.tokenizer.base import Tokenizer
from train.metrics_log import MetricsLog
from train.options import SftOptions

# Answers shown after each evaluation.
NUM_PRINTED_ANSWERS = 2


@dataclass(frozen=True)
class DevSet:
    """The dev split of one set: its shards, and the same as examples with the canonical request."""

    name: str
    shards: ShardSet
    examples: Examples

    @property
    def num_fitting(self) -> int:
        """Examples that fit a row."""
        return int((self.examples.lengths(0) > 0).sum())


def evaluate(
    options: SftOptions,
    model: Llama,
    tokenizer: Tokenizer,
    template: Template,
    dev_sets: list[DevSet],
    step: int,
    log: MetricsLog,
    is_final_evaluation: Callable[[], bool],
) -> None:
    """Score the first dev answers of each set, always the same; answer the first records and compare; at the end score all.

    `is_final_evaluation` is asked last: whether patience ends the run depends on what was measured before.
    """
    scored = options.evaluation.scored
    _score_answers(options, model, tokenizer, dev_sets, scored, "validation", step, log)
    for each in dev_sets if options.evaluation.examples else ():
        _evaluate_answers(options, model, tokenizer, template, each, step, log)
    if is_final_evaluation() and any(each.num_fitting > scored for each in dev_sets):
        _score_answers(options, model, tokenizer, dev_sets, sys.maxsize, "final", step, log)


def _score_answers(
    options: SftOptions,
    model: Llama,
    tokenizer: Tokenizer,
    dev_sets: list[DevSet],
    max_examples: int,
    kind: str,
    step: int,
    log: MetricsLog,
) -> None:
    """Score the answers of the first `max_examples` examples of each set; write and print the measures. Nothing if there are none."""
    total = LMScore(0.0, 0, 0, 0)
    with progress_bar(
        "evaluating",
        sum(min(max_examples, each.num_fitting) for each in dev_sets),
        "examples",
        delay=5,
    ) as bar:
        for each in dev_sets:
            total += score_examples(
                model,
                each.examples,
                options.sequence_length,
                tokenizer.characters_per_id,
                limit=max_examples,
                on_progress=bar.update,
            )
    if total.num_tokens:
        measures = total.compute_metrics()
        log.write(kind, step, **measures)
        print(
            f"step {step}  {kind}: loss {measures['loss']:.4f}  perplexity {measures['perplexity']:.2f}  "
            f"accuracy {measures['accuracy']:.1%}  ({measures['tokens']:,} answer tokens)",
            flush=True,
        )


def _evaluate_answers(
    options: SftOptions,
    model: Llama,
    tokenizer: Tokenizer,
    template: Template,
    dev_set: DevSet,
    step: int,
    log: MetricsLog,
) -> None:
    fitting = np.flatnonzero(dev_set.examples.lengths(0))[: options.evaluation.examples]
    if not len(fitting):
        return
    prompts, references = zip(
        *(_split_last_answer(dev_set.examples, int(index), tokenizer) for index in fitting),
        strict=True,
    )
    with progress_bar(f"answering {dev_set.name}", len(prompts), "answers", delay=5) as bar:
        decoded = generate_batch(
            model, prompts, max_new_tokens=options.evaluation.max_new_tokens, on_progress=bar.update
        )
    answers = [tokenizer.decode(each.ids) for each in decoded]
    if template.lead_ins and dev_set.shards.kind == "summaries":
        answers = [strip_lead_in(answer) for answer in answers]
        references = tuple(strip_lead_in(reference) for reference in references)
    scores = [
        compute_rouge(answer, reference)
        for answer, reference in zip(answers, references, strict=True)
    ]
    exact_match = float(
        np.mean([a.strip() == r.strip() for a, r in zip(answers, references, strict=True)])
    )
    eos_rate = float(np.mean([each.reached_stop_id for each in decoded]))
    values = {
        f"rouge_{key}": float(np.mean([score[key].f for score in scores]))
        for key in ("1", "2", "l")
    }
    # The score that picks the best checkpoint is that of the summaries.
    kind = "rouge" if dev_set.shards.kind == "summaries" else "answers"
    log.write(
        kind,
        step,
        **values,
        exact=exact_match,
        stopped=eos_rate,
        examples=len(answers),
        set=dev_set.name,
    )
    print(
        f"step {step}  {dev_set.name}, {len(answers)} dev answers: ROUGE-1 F (characters) {values['rouge_1']:.4f}  "
        f"exact {exact_match:.1%}  stopped by <eos> {eos_rate:.1%}",
        flush=True,
    )
    for prompt, answer in list(zip(prompts, answers, strict=True))[:NUM_PRINTED_ANSWERS]:
        asked = tokenizer.decode(prompt)
        log.write("sample", step, prompt=asked, text=answer)
        print(f"  …{asked[-40:]!r} → {answer!r}"[:160], flush=True)


def _split_last_answer(
    examples: Examples, index: int, tokenizer: Tokenizer
) -> tuple[list[int], str]:
    """The ids before an example's last answer, and that answer."""
    ids, scored = examples.example(index, 0)
    # Behind the last target without a loss the last answer begins.
    start = int(np.flatnonzero(~scored)[-1]) + 2
    return ids[:start].tolist(), tokenizer.decode(ids[start:].tolist())
