"""Evaluation during fine-tuning: loss on the answers of the dev splits, and generated answers."""

import sys
from dataclasses import dataclass

import numpy as np

from common.progress import progress_bar
from data.batching.examples import Examples
from data.batching.prompts import split_answers
from data.shards import ShardSet
from data.sources.base import LetterCase
from evaluate.kinds import find_evaluation
from evaluate.kinds.base import KindEvaluation
from evaluate.metrics.language_model import LMScore, score_examples
from evaluate.metrics.rouge import compute_rouge
from evaluate.metrics.rouge_table import CASE_LABELS
from model.chat_template.template import Template
from model.decode.batch_generate import generate_batch
from model.llama import Llama
from model.tokenizer.base import Tokenizer
from train.monitoring.metrics_log import VALIDATION_LOSS, MetricsLog, SelectionMetric
from train.options import SftOptions

# Number of answers of each set that are printed and logged after an evaluation.
NUM_PRINTED_ANSWERS = 2
# Length of the line that the terminal shows of an answer and its question.
MAX_PRINTED_CHARACTERS = 160


@dataclass(frozen=True)
class DevSet:
    """The dev split of a set, as examples that are the same at every evaluation."""

    name: str
    shards: ShardSet
    examples: Examples
    case: LetterCase
    """The letter case that ROUGE is counted in."""

    @property
    def num_fitting(self) -> int:
        """The number of examples that fit a row; the others have length 0."""
        return int((self.examples.lengths(epoch=0) > 0).sum())

    @property
    def evaluation(self) -> KindEvaluation:
        """The evaluation of the kind of records in the set."""
        return find_evaluation(self.shards.kind)


@dataclass(frozen=True)
class AnswerEvaluator:
    """Evaluates a fine-tuning run: loss on the answers of the dev sets, and generated answers.

    It implements `train.run.spec.Evaluator`.
    """

    options: SftOptions
    tokenizer: Tokenizer
    template: Template
    dev_sets: list[DevSet]

    @property
    def every(self) -> int:
        """Steps between evaluations."""
        return self.options.evaluation.every

    @property
    def patience(self) -> int:
        """Evaluations without a better score that end the run; 0: never."""
        return self.options.evaluation.patience

    @property
    def metric(self) -> SelectionMetric:
        """Return the metric that selects the best checkpoint.

        This is the metric of generated answers of the first set whose kind has one; without such a
        set, or if no answers are generated, it is the validation loss.
        """
        # `examples` is the number of answers to generate for each set.
        if self.options.evaluation.examples:
            for dev_set in self.dev_sets:
                evaluation = dev_set.evaluation
                if evaluation.selection_key is not None and dev_set.num_fitting:
                    return SelectionMetric(
                        evaluation.answers_metric, evaluation.selection_key, higher_is_better=True
                    )
        return VALIDATION_LOSS

    @property
    def has_data(self) -> bool:
        """Whether any dev example fits a row."""
        return any(dev_set.num_fitting for dev_set in self.dev_sets)

    def evaluate(self, model: Llama, step: int, log: MetricsLog) -> None:
        """Score the first dev answers of each set, then generate answers to dev examples."""
        scored = self.options.evaluation.scored
        self._score(model, max_examples=scored, kind="validation", step=step, log=log)
        if self.options.evaluation.examples:
            for dev_set in self.dev_sets:
                self._evaluate_answers(model, dev_set, step, log)

    def evaluate_all(self, model: Llama, step: int, log: MetricsLog) -> None:
        """Score all dev answers, unless `evaluate` has scored all of them."""
        scored = self.options.evaluation.scored
        if any(dev_set.num_fitting > scored for dev_set in self.dev_sets):
            self._score(model, max_examples=sys.maxsize, kind="final", step=step, log=log)

    def _score(
        self, model: Llama, max_examples: int, kind: str, step: int, log: MetricsLog
    ) -> None:
        """Score the first `max_examples` examples of each set; log and print the metrics.

        `kind` is that of the record in the log. Without any example nothing is logged.
        """
        total = LMScore()
        num_examples = sum(min(max_examples, dev_set.num_fitting) for dev_set in self.dev_sets)
        with progress_bar("evaluating", num_examples, "examples", delay=5) as bar:
            for dev_set in self.dev_sets:
                total += score_examples(
                    model,
                    dev_set.examples,
                    self.options.sequence_length,
                    self.tokenizer.characters_per_id,
                    limit=max_examples,
                    on_progress=bar.update,
                )
        if total.num_tokens == 0:
            return
        log.write(kind, step, **total.compute_metrics())
        print(f"step {step}  {kind}: {total.format_metrics()}", flush=True)

    def _evaluate_answers(self, model: Llama, dev_set: DevSet, step: int, log: MetricsLog) -> None:
        """Generate the last answers of the first examples; log and print how good they are."""
        evaluation = self.options.evaluation
        # Examples that do not fit a row have length 0.
        fitting_indices = np.flatnonzero(dev_set.examples.lengths(epoch=0))[: evaluation.examples]
        if not len(fitting_indices):
            return
        prompts = []
        references = []
        for index in fitting_indices:
            prompt, reference = _split_last_answer(dev_set.examples, int(index), self.tokenizer)
            prompts.append(prompt)
            references.append(reference)
        with progress_bar(f"answering {dev_set.name}", len(prompts), "answers", delay=5) as bar:
            decoded = generate_batch(
                model, prompts, max_new_tokens=evaluation.max_new_tokens, on_progress=bar.update
            )
        kind = dev_set.evaluation
        generated = [self.tokenizer.decode(answer.ids) for answer in decoded]
        # A lead-in such as 总结如下： must not count as a part of the title.
        answers = [kind.strip_answer(self.template, text) for text in generated]
        references = [kind.strip_answer(self.template, text) for text in references]
        pairs = list(zip(answers, references, strict=True))
        scores = [
            compute_rouge(answer, reference, case=dev_set.case) for answer, reference in pairs
        ]
        rouge = {
            f"rouge_{key}": float(np.mean([score[key].f for score in scores]))
            for key in ("1", "2", "l")
        }
        is_exact = [answer.strip() == reference.strip() for answer, reference in pairs]
        exact_match = float(np.mean(is_exact))
        eos_rate = float(np.mean([answer.reached_stop_id for answer in decoded]))
        log.write(
            kind.answers_metric,
            step,
            **rouge,
            exact=exact_match,
            stopped=eos_rate,
            examples=len(answers),
            case=dev_set.case,
            set=dev_set.name,
        )
        print(
            f"step {step}  {dev_set.name}, {len(answers)} dev answers: ROUGE-1 F (characters, "
            f"{CASE_LABELS[dev_set.case]}) {rouge['rouge_1']:.4f}  exact {exact_match:.1%}  "
            f"stopped by <eos> {eos_rate:.1%}",
            flush=True,
        )
        for prompt, answer in list(zip(prompts, answers, strict=True))[:NUM_PRINTED_ANSWERS]:
            question = self.tokenizer.decode(prompt)
            log.write("sample", step, prompt=question, text=answer)
            print(f"  …{question[-40:]!r} → {answer!r}"[:MAX_PRINTED_CHARACTERS], flush=True)


def _split_last_answer(
    examples: Examples, index: int, tokenizer: Tokenizer
) -> tuple[list[int], str]:
    """Return the ids before the last answer of an example, and the text of that answer."""
    example = examples.example(index, epoch=0)
    ids, _ = example
    start, stop = split_answers(example)[-1]
    return ids[:start].tolist(), tokenizer.decode(ids[start:stop].tolist())
