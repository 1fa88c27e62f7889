"""What is measured during fine-tuning: the loss on the dev split's answers, and the answers themselves."""

import sys
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from common.progress import progress
from data.batching.examples import Examples
from data.batching.summary_prompts import strip_lead_in
from data.shards import ShardSet
from evaluate.scores.lm import Score, score_examples
from evaluate.scores.rouge import rouge
from model.decode.batch_generate import decode
from model.llama import Llama
from model.chat_template.template import Template
from model.tokenizer.base import Tokenizer
from train.metrics_log import MetricsLog
from train.options import SftOptions

# Answers shown after each evaluation.
SHOWN = 2


@dataclass(frozen=True)
class DevSet:
    """The dev split of one set: its shards, and the same as examples with the canonical request."""

    name: str
    shards: ShardSet
    examples: Examples

    @property
    def fitting(self) -> int:
        """Examples that fit a row."""
        return int((self.examples.lengths(0) > 0).sum())


def evaluate(
    options: SftOptions, model: Llama, tokenizer: Tokenizer, template: Template, dev: list[DevSet], step: int,
    log: MetricsLog, final: Callable[[], bool],
) -> None:
    """Score the first dev answers of each set, always the same; answer the first records and compare; at the end score all.

    `final` is asked last: whether patience ends the run depends on what was measured before.
    """
    scored = options.evaluation.scored
    _score(options, model, tokenizer, dev, scored, "validation", step, log)
    for each in dev if options.evaluation.examples else ():
        _answer(options, model, tokenizer, template, each, step, log)
    if final() and any(each.fitting > scored for each in dev):
        _score(options, model, tokenizer, dev, sys.maxsize, "final", step, log)


def _score(
    options: SftOptions, model: Llama, tokenizer: Tokenizer, dev: list[DevSet], limit: int, kind: str, step: int,
    log: MetricsLog,
) -> None:
    """Score the answers of the first `limit` examples of each set; write and print the measures. Nothing if there are none."""
    total = Score(0.0, 0, 0, 0)
    with progress("evaluating", sum(min(limit, each.fitting) for each in dev), "examples", delay=5) as bar:
        for each in dev:
            total += score_examples(model, each.examples, options.sequence_length, tokenizer.characters_per_id, limit=limit,
                                    on_progress=bar.update)
    if total.tokens:
        measures = total.measures()
        log.write(kind, step, **measures)
        print(f"step {step}  {kind}: loss {measures['loss']:.4f}  perplexity {measures['perplexity']:.2f}  "
              f"accuracy {measures['accuracy']:.1%}  ({measures['tokens']:,} answer tokens)", flush=True)


def _answer(
    options: SftOptions, model: Llama, tokenizer: Tokenizer, template: Template, dev: DevSet, step: int, log: MetricsLog
) -> None:
    fitting = np.flatnonzero(dev.examples.lengths(0))[: options.evaluation.examples]
    if not len(fitting):
        return
    prompts, references = zip(*(_last_answer(dev.examples, int(index), tokenizer) for index in fitting), strict=True)
    with progress(f"answering {dev.name}", len(prompts), "answers", delay=5) as bar:
        decoded = decode(model, prompts, max_new_tokens=options.evaluation.max_new_tokens, on_progress=bar.update)
    answers = [tokenizer.decode(each.ids) for each in decoded]
    if template.lead_ins and dev.shards.kind == "summaries":
        answers = [strip_lead_in(answer) for answer in answers]
        references = tuple(strip_lead_in(reference) for reference in references)
    scores = [rouge(answer, reference) for answer, reference in zip(answers, references, strict=True)]
    exact = float(np.mean([a.strip() == r.strip() for a, r in zip(answers, references, strict=True)]))
    stopped = float(np.mean([each.stopped for each in decoded]))
    values = {f"rouge_{key}": float(np.mean([score[key].f for score in scores])) for key in ("1", "2", "l")}
    # The score that picks the best checkpoint is that of the summaries.
    kind = "rouge" if dev.shards.kind == "summaries" else "answers"
    log.write(kind, step, **values, exact=exact, stopped=stopped, examples=len(answers), set=dev.name)
    print(f"step {step}  {dev.name}, {len(answers)} dev answers: ROUGE-1 F (characters) {values['rouge_1']:.4f}  "
          f"exact {exact:.1%}  stopped by <eos> {stopped:.1%}", flush=True)
    for prompt, answer in list(zip(prompts, answers, strict=True))[:SHOWN]:
        asked = tokenizer.decode(prompt)
        log.write("sample", step, prompt=asked, text=answer)
        print(f"  …{asked[-40:]!r} → {answer!r}"[:160], flush=True)


def _last_answer(examples: Examples, index: int, tokenizer: Tokenizer) -> tuple[list[int], str]:
    """The ids before an example's last answer, and that answer."""
    ids, scored = examples.example(index, 0)
    # Behind the last target without a loss the last answer begins.
    start = int(np.flatnonzero(~scored)[-1]) + 2
    return ids[:start].tolist(), tokenizer.decode(ids[start:].tolist())
