"""Evaluation during pretraining: loss on the validation splits, and samples of text."""

import sys
from dataclasses import dataclass

from common.progress import progress_bar
from data.kinds import documents
from data.sequences import Sequences
from evaluate.metrics.language_model import LMScore, iter_split, score_blocks
from model.decode.generate import generate
from model.decode.sampling import PRETRAINING_SAMPLING
from model.llama import Llama
from model.tokenizer.base import Tokenizer
from train.monitoring.metrics_log import VALIDATION_LOSS, MetricsLog, SelectionMetric
from train.options import PretrainOptions

# Length of the line that the terminal shows of a sample.
MAX_PRINTED_CHARACTERS = 160


@dataclass(frozen=True)
class TextEvaluator:
    """Evaluates a pretraining run: validation loss, and samples of text.

    It implements `train.run.spec.Evaluator`.
    """

    options: PretrainOptions
    tokenizer: Tokenizer
    splits: list[Sequences]

    @property
    def every(self) -> int:
        """Steps between evaluations."""
        return self.options.evaluation.every

    @property
    def patience(self) -> int:
        """Return 0: pretraining has no early stopping."""
        return 0

    @property
    def metric(self) -> SelectionMetric:
        """The metric that selects the best checkpoint: the validation loss."""
        return VALIDATION_LOSS

    @property
    def has_data(self) -> bool:
        """Whether any validation split has two tokens, the fewest that can be scored."""
        return any(split.num_tokens > 1 for split in self.splits)

    def evaluate(self, model: Llama, step: int, log: MetricsLog) -> None:
        """Score the first tokens of the splits, then generate a sample for each prompt."""
        self._score(model, max_tokens=self._tokens_per_split, kind="validation", step=step, log=log)
        evaluation = self.options.evaluation
        prompts = evaluation.prompts if evaluation.sample_tokens else ()
        for prompt in prompts:
            ids = documents.KIND.encode_prompt(self.tokenizer, prompt)
            new_ids = generate(
                model,
                ids,
                PRETRAINING_SAMPLING,
                max_new_tokens=evaluation.sample_tokens,
                seed=self.options.seed,
            )
            text = self.tokenizer.decode(list(new_ids))
            log.write("sample", step, prompt=prompt, text=text)
            print(f"  {prompt}|{text!r}"[:MAX_PRINTED_CHARACTERS], flush=True)

    def evaluate_all(self, model: Llama, step: int, log: MetricsLog) -> None:
        """Score all tokens of the splits, unless `evaluate` has scored all of them."""
        if any(split.num_tokens > self._tokens_per_split for split in self.splits):
            self._score(model, max_tokens=sys.maxsize, kind="final", step=step, log=log)

    @property
    def _tokens_per_split(self) -> int:
        """The number of tokens that `evaluate` scores of each split."""
        # A token is scored given the token before it, so scoring needs two.
        return max(2, self.options.evaluation.tokens // len(self.splits))

    def _score(self, model: Llama, max_tokens: int, kind: str, step: int, log: MetricsLog) -> None:
        """Score the first `max_tokens` tokens of each split; log and print the metrics.

        `kind` is that of the record in the log. If no split has two tokens, nothing is logged.
        """
        total = LMScore()
        limits = [min(max_tokens, split.num_tokens) for split in self.splits]
        with progress_bar("evaluating", sum(limits), "tokens", delay=5) as bar:
            for split, limit in zip(self.splits, limits, strict=True):
                total += score_blocks(
                    model,
                    iter_split(split),
                    self.tokenizer.characters_per_id,
                    limit=limit,
                    on_progress=bar.update,
                )
        if total.num_tokens == 0:
            return
        log.write(kind, step, **total.compute_metrics())
        print(f"step {step}  {kind}: {total.format_metrics()}", flush=True)
