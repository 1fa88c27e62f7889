"""What the model that a run on rewards starts from does on dev questions.

Its greedy answers are scored, and answers are drawn from it whose log-probabilities tell later how
far the model has moved. They are computed once, before the first step, and stored in the run
directory: the base is not needed afterwards.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from common.errors import UserError
from common.files import read_checksummed_json, write_checksummed_json
from common.progress import progress_bar
from common.run_layout import START_SCORES_FILE
from data.batching.group_rows import Group, Sample
from data.batching.prompts import Prompt
from evaluate.model_answer import ModelAnswer
from evaluate.rewards.scorer import AnswerScorer
from evaluate.rewards.terms import sum_terms
from model.decode.batch_generate import generate_batch
from model.decode.sample_batch import derive_seed
from model.llama import Llama
from model.precision import Precision
from train.options import GrpoOptions
from train.rollouts import build_group, draw_answers, score_samples


@dataclass(frozen=True)
class DevSet:
    """The dev questions of a set."""

    name: str  # as in --data
    prompts: list[Prompt]


def answer_greedily(
    model: Llama, dev_set: DevSet, scorer: AnswerScorer, options: GrpoOptions
) -> tuple[list[ModelAnswer], np.ndarray]:
    """Return the greedy answers to dev questions, and their terms, fp64[answers, terms]."""
    prompts = dev_set.prompts
    with progress_bar(f"answering {dev_set.name}", len(prompts), "answers", delay=5) as bar:
        decoded = generate_batch(
            model,
            [prompt.ids.tolist() for prompt in prompts],
            max_new_tokens=options.grpo.max_new_tokens,
            on_progress=bar.update,
        )
    answers = [
        scorer.read(prompt, [answer])[0] for prompt, answer in zip(prompts, decoded, strict=True)
    ]
    terms = [
        scorer.score(prompt, [answer]) for prompt, answer in zip(prompts, answers, strict=True)
    ]
    return answers, np.concatenate(terms)


class StartScores:
    """The scores and samples of the initial model, by set."""

    def __init__(
        self,
        options: GrpoOptions,
        dev_sets: Sequence[DevSet],
        scorer: AnswerScorer,
        precision: Precision,
        identity: dict[str, Any],
    ) -> None:
        """Compute nothing yet. `identity` is what the scores depend on besides the options here."""
        self._options = options
        self._dev_sets = dev_sets
        self._scorer = scorer
        self._precision = precision
        self._identity = {
            **identity,
            "examples": options.evaluation.examples,
            "precision": precision,
        }
        self._rows = 1
        self._sets: list[dict[str, Any]] = []

    def load_or_compute(
        self, run: Path, load_initial_model: Callable[[], Llama], *, rows: int
    ) -> None:
        """Load what the run directory stores, or compute and store it.

        Log-probabilities are computed in batches of `rows` rows. Raises what `load_initial_model`
        raises.
        """
        self._rows = rows
        path = run / START_SCORES_FILE
        stored = _read(path) if path.exists() else {}
        if stored.get("identity") != self._identity:
            # It may be the model that is trained afterwards.
            model = load_initial_model().eval()
            sets = [self._measure(model, index) for index in range(len(self._dev_sets))]
            model.train()
            stored = {"identity": self._identity, "sets": sets}
            write_checksummed_json(path, stored)
        self._sets = stored["sets"]

    def rewards(self, set_index: int) -> np.ndarray:
        """Return the reward of the greedy answer to each dev question of a set, fp64[n]."""
        return np.array(self._sets[set_index]["rewards"], np.float64)

    def estimate_divergence(self, model: Llama, set_index: int) -> float:
        """Return an estimate of KL(initial model || model), in nats per token.

        It is on samples of the initial model: estimator k3 of Schulman (2020, "Approximating KL
        divergence").
        """
        log_ratios = []
        for sample, log_probs in score_samples(
            model,
            self._groups(set_index),
            self._options.sequence_length,
            self._rows,
            self._precision,
        ):
            assert sample.old_log_probs is not None
            log_ratios.append(log_probs.astype(np.float64) - sample.old_log_probs)
        all_ratios = np.concatenate(log_ratios)
        return float((np.exp(all_ratios) - all_ratios - 1).mean())

    def _measure(self, model: Llama, set_index: int) -> dict[str, Any]:
        """Return rewards, samples and their log-probabilities, as JSON."""
        dev_set = self._dev_sets[set_index]
        _, terms = answer_greedily(model, dev_set, self._scorer, self._options)
        seeds = [
            [derive_seed(self._options.seed, "start", set_index, index)]
            for index in range(len(dev_set.prompts))
        ]
        drawn = draw_answers(model, dev_set.prompts, seeds, self._options.grpo)
        groups = [
            build_group(self._scorer, prompt, answers)
            for prompt, answers in zip(dev_set.prompts, drawn, strict=True)
        ]
        for sample, log_probs in score_samples(
            model, groups, self._options.sequence_length, self._rows, self._precision
        ):
            sample.old_log_probs = log_probs
        samples = []
        for (sample,) in (group.samples for group in groups):
            assert sample.old_log_probs is not None
            log_probs = sample.old_log_probs.tolist()
            samples.append({"ids": sample.ids.tolist(), "log_probs": log_probs})
        return {"rewards": sum_terms(self._scorer.terms, terms).tolist(), "samples": samples}

    def _groups(self, set_index: int) -> list[Group]:
        """Return the stored samples of a set, a group for each dev question."""
        groups = []
        stored = self._sets[set_index]["samples"]
        for prompt, row in zip(self._dev_sets[set_index].prompts, stored, strict=True):
            sample = Sample(np.array(row["ids"], np.int64), 0.0, np.zeros(0))
            sample.old_log_probs = np.array(row["log_probs"], np.float32)
            groups.append(Group(prompt.ids, [sample]))
        return groups


def _read(path: Path) -> dict[str, Any]:
    """Return a stored file; an empty dict, with a warning, if it is damaged."""
    try:
        return read_checksummed_json(path)
    except UserError as error:
        print(f"warning: {error}; scoring the base again", flush=True)
        return {}
