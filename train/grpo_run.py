"""Learning from rewards: resolve the options into the `RunSpec` of a run, and train it."""

import hashlib
import json
import math
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from common.errors import UserError
from data.batching.prompts import PromptExamples, PromptPlan
from data.mixture import REPLAY, parse_mixture
from data.shards import ShardSet
from evaluate.kinds import find_evaluation
from evaluate.rewards.scorer import AnswerScorer
from evaluate.rewards.terms import build_rewards
from model.chat_template.template import Template
from model.precision import Precision, resolve_precision
from model.tokenizer.base import Tokenizer
from train import distributed
from train.cli import default_run_folder
from train.group_objective import GroupObjective
from train.grpo_eval import RewardEvaluator
from train.options import GrpoOptions
from train.reference_model import ReferenceModel
from train.rollouts import RolloutLoader
from train.run.mixture import MixtureSet, check_same_template, open_mixture, open_named_set
from train.run.spec import RunSpec, TrainingPlan
from train.run.start import resolve_device_for_training, run_training, start
from train.run.tuned_base import resolve_tuned_base
from train.start_scores import DevSet, StartScores


@dataclass(frozen=True)
class PromptData:
    """The questions of one or more sets. It implements `train.run.spec.TrainingData`.

    `prompt_sets` are those of the sets, in the same order.
    """

    options: GrpoOptions
    sets: tuple[MixtureSet, ...]
    prompt_sets: Sequence[PromptExamples]
    folder: Path  # the run directory
    scorer: AnswerScorer
    reference: ReferenceModel
    precision: Precision

    def plan(self, folder: Path) -> TrainingPlan:
        """Return the batches and the length of the run; the order of the questions is in `folder`.

        The tokens of the run are estimated as if the answers were as long as the true ones.
        """
        options, group_options = self.options, self.options.grpo
        sets = [mixture_set.fingerprint for mixture_set in self.sets]
        depends_on = [sets, self.scorer.template.__dict__]
        plan = PromptPlan(
            self.prompt_sets,
            tuple(mixture_set.weight for mixture_set in self.sets),
            seed=options.seed,
            length=max_example_length(options),
            folder=folder,
            identity=hashlib.sha256(json.dumps(depends_on).encode()).hexdigest(),
        )
        num_prompts = plan.num_rows(epoch=0)
        max_steps = options.max_steps or 0
        if options.epochs is not None and not max_steps:
            num_rounds = math.ceil(options.epochs * num_prompts / group_options.prompts)
            max_steps = max(1, num_rounds) * group_options.updates
        epochs = max_steps / group_options.updates * group_options.prompts / num_prompts
        batches = RolloutLoader(
            plan, options, self.folder, self.scorer, self.reference, self.precision
        )
        lengths = np.concatenate([prompts.lengths(epoch=0) for prompts in self.prompt_sets])
        description = (
            f"{options.data}: {num_prompts:,} questions an epoch, {int((lengths == 0).sum()):,} "
            f"too long and left out; {max_steps:,} steps ({epochs:.2f} epochs)"
        )
        num_tokens = max_steps * batches.typical_batch().num_tokens
        return TrainingPlan(batches, max_steps, epochs, num_tokens, description)


def learn_from_rewards(options: GrpoOptions) -> int:
    """Train a new run, or resume the run in its directory; return the exit code."""
    spec = resolve_run(options)
    run_argument = shlex.quote(f"RUN={spec.folder}")
    return run_training(
        start(spec),
        hint="Is it better than its base, or only better at its rewards? python -m evaluate.report "
        f"{shlex.quote(str(spec.folder))} --before {shlex.quote(str(spec.base.folder))}; "
        f"talk to it: make chat {run_argument}",
    )


def max_example_length(options: GrpoOptions) -> int:
    """Return the positions that a question with its true answer may have.

    Any answer then fits a row with the question.
    """
    return options.sequence_length - options.grpo.max_new_tokens


def resolve_run(options: GrpoOptions) -> RunSpec:
    """Resolve the options into the `RunSpec` of a run.

    Raises UserError if the options do not fit the base, the data, or each other.
    """
    if distributed.world_size() > 1:
        raise UserError(
            "train.grpo draws its answers in one process: start it without torchrun (python -m "
            "train.grpo)"
        )
    device = resolve_device_for_training(options)
    uses_lora = options.adapter == "lora"
    terms = build_rewards(options.grpo.rewards)
    folder = options.run or default_run_folder("grpo", options.data)
    base = resolve_tuned_base(options.base, folder, options.sequence_length)
    tokenizer, template = base.tokenizer, base.template
    changes: dict[str, object] = {
        "base": base.folder,
        "optimizer": options.optimizer.resolve(
            num_parameters=base.model_config.num_parameters, uses_lora=uses_lora
        ),
    }
    options = options.model_copy(update=changes)
    sets = _open_sets(options.data, base.tokenizer_path, template)
    prompt_sets = [
        _build_prompts(options, mixture_set, index, "train", tokenizer, template)
        for index, mixture_set in enumerate(sets)
    ]
    if not any(prompts.lengths(epoch=0).any() for prompts in prompt_sets):
        raise UserError(
            f"--data {options.data}: no question fits a row of {options.sequence_length} tokens "
            f"with an answer of {options.grpo.max_new_tokens}: raise --sequence_length, or lower "
            "--grpo.max_new_tokens"
        )
    kinds = [find_evaluation(mixture_set.shards.kind) for mixture_set in sets]
    scorer = AnswerScorer(tokenizer, template, kinds, terms)
    precision = resolve_precision(
        device,
        options.precision,
        trained=base.model_config,
        is_quantized=options.quantization is not None,
    )
    reference = ReferenceModel(has_adapter=uses_lora)
    dev_sets = _build_dev_sets(options, sets, tokenizer, template)
    # What the answers depend on, and their scores.
    group_fingerprint = {
        **options.grpo.model_dump(mode="json", exclude={"batch"}),
        "functions": [term.fingerprint for term in terms],
    }
    start_scores = StartScores(
        options,
        dev_sets,
        scorer,
        precision,
        {
            "data": [mixture_set.fingerprint for mixture_set in sets],
            "base": base.checkpoint.fingerprint,
            "template": template.__dict__,
            "seed": options.seed,
            "sequence_length": options.sequence_length,
            "grpo": group_fingerprint,
        },
    )
    return RunSpec(
        command="grpo",
        options=options,
        folder=folder,
        device=device,
        base=base.checkpoint,
        tokenizer=tokenizer,
        template=template,
        model_config=base.model_config,
        model_name=str(base.folder),
        lora=options.lora if uses_lora else None,
        data=PromptData(options, sets, prompt_sets, folder, scorer, reference, precision),
        objective=GroupObjective(options.grpo, terms, reference, start_scores),
        evaluator=RewardEvaluator(options, tokenizer, scorer, dev_sets, start_scores),
        command_fingerprints={
            "template": template.__dict__,
            "epochs": options.epochs,
            "max_steps": options.max_steps,
            "adapter": options.adapter_fingerprint,
            "grpo": group_fingerprint,
        },
        quantize=options.quantization,
    )


def _open_sets(data: str, tokenizer: Path, template: Template) -> tuple[MixtureSet, ...]:
    """Open the shard sets of --data; prepare those that are not prepared yet with `tokenizer`.

    Raises UserError if one of them is text; `ShardSet.examples` refuses pairs later.
    """
    names, _weights = parse_mixture(data)
    if REPLAY in names:
        raise UserError(
            "--data replay: is text, and has no questions: leave it out; against forgetting, "
            "--grpo.kl holds on to the base"
        )

    def open_set(_index: int, name: str) -> ShardSet:
        shards = open_named_set(name, tokenizer)
        if shards.kind.is_text:
            raise UserError(
                f"--data {name}: holds {shards.kind.name}, not questions with one true answer: "
                "train on it with make pretrain (python -m train.pretrain)"
            )
        return shards

    sets = open_mixture(data, open_set)
    for mixture_set in sets:
        check_same_template(mixture_set, tokenizer, template)
    return sets


def _build_prompts(
    options: GrpoOptions,
    mixture_set: MixtureSet,
    set_index: int,
    split: str,
    tokenizer: Tokenizer,
    template: Template,
) -> PromptExamples:
    """Return the questions of a split; those of training are drawn with the seed of the run."""
    # Without a seed nothing is drawn at random: all summaries get the same request.
    seed = options.seed if split == "train" else None
    examples = mixture_set.shards.examples(
        mixture_set.shards.load_split(split),
        max_example_length(options),
        tokenizer,
        template,
        seed,
    )
    return PromptExamples(examples, set_index, seed)


def _build_dev_sets(
    options: GrpoOptions, sets: tuple[MixtureSet, ...], tokenizer: Tokenizer, template: Template
) -> list[DevSet]:
    """Return the first questions of the validation split of each set that has any."""
    dev_sets = []
    for index, mixture_set in enumerate(sets):
        prompts = _build_prompts(options, mixture_set, index, "validation", tokenizer, template)
        # Examples that do not fit a row have length 0.
        fitting = np.flatnonzero(prompts.lengths(epoch=0))[: options.evaluation.examples]
        if len(fitting):
            chosen = [prompts.example(int(number), epoch=0) for number in fitting]
            dev_sets.append(DevSet(mixture_set.name, chosen))
    return dev_sets
