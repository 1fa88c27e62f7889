"""The answers of a run's checkpoints; those of earlier calls are read from `results/watch.json`."""

import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from pydantic import TypeAdapter, ValidationError

from common.errors import UserError
from common.files import check_manifest, read_json
from common.run_layout import list_steps, step_folder
from evaluate.answers import generate_resumably
from evaluate.kinds.question_sets import QuestionSet
from evaluate.load_model import load_checkpoint
from evaluate.model_answer import ModelAnswer
from evaluate.partial_results import PartialResults
from evaluate.watch.options import WatchOptions
from model.checkpoint import locate


@dataclass(frozen=True)
class StepAnswers:
    """The answers of one checkpoint."""

    step: int
    sha256: str
    """That of the weights."""
    answers: list[list[ModelAnswer | None]]
    """The answer to each question of each set; None if the context has no room for one."""


def read_earlier_answers(
    path: Path, settings: dict[str, Any], question_sets: Sequence[QuestionSet]
) -> list[StepAnswers]:
    """Return the answers in the results file of an earlier call; none if there is no file.

    Also return none, and say so, if the file is of other questions or options than `settings`.
    Raises UserError if it is damaged.
    """
    if not path.is_file():
        return []
    advice = f"{path} is not a result of evaluate.watch, or damaged: delete it to measure again"
    contents = read_json(path)
    if not isinstance(contents, dict) or "settings" not in contents:
        raise UserError(advice)
    if contents["settings"] != settings:
        print(f"{path} has other questions or options: all checkpoints are asked again", flush=True)
        return []
    try:
        steps = TypeAdapter(list[StepAnswers]).validate_python(contents.get("steps"))
    except ValidationError:
        raise UserError(advice) from None
    sizes = [len(question_set.questions) for question_set in question_sets]
    if any([len(answers) for answers in entry.answers] != sizes for entry in steps):
        raise UserError(advice)
    return steps


def answer_steps(
    options: WatchOptions,
    question_sets: Sequence[QuestionSet],
    earlier: Sequence[StepAnswers],
    results: PartialResults,
    device: torch.device,
) -> list[StepAnswers]:
    """Return the answers of all checkpoints of the run, by step; ask those that are not known.

    `earlier` are answers of an earlier call. A checkpoint with the same weights is not asked again.
    Those of checkpoints that were deleted since are returned too. A checkpoint that is damaged, or
    that training deletes meanwhile, is left out with a message. Raises UserError if no checkpoint
    is left.
    """
    by_sha256 = {entry.sha256: entry for entry in earlier}
    by_step = {entry.step: entry for entry in earlier}
    for step in list_steps(options.run):
        folder = step_folder(options.run, step)
        try:
            sha256 = _read_weights_sha256(folder)
            if sha256 in by_sha256:
                by_step[step] = replace(by_sha256[sha256], step=step)
                continue
            loaded = load_checkpoint(folder, options, device)
        except (UserError, FileNotFoundError) as error:
            # A run in progress deletes old checkpoints.
            problem = str(error) if folder.exists() else f"{folder} was deleted meanwhile"
            print(f"warning: {problem}; left out", file=sys.stderr)
            continue
        answers = []
        for number, question_set in enumerate(question_sets, 1):
            generate = partial(
                question_set.generate,
                loaded,
                max_new_tokens=options.max_new_tokens,
                batch=options.batch,
            )
            # The digest tells the answers of these weights from those of other ones, if the step
            # was trained again.
            name = f"step {step:,}, set {number} ({sha256[:8]})"
            answers.append(
                generate_resumably(
                    results, name, question_set.questions, generate, batch=options.batch
                )
            )
        by_step[step] = StepAnswers(step, sha256, answers)
    if not by_step:
        raise UserError(
            f"{options.run} has no usable checkpoint: train it first, or name another run"
        )
    return [by_step[step] for step in sorted(by_step)]


def _read_weights_sha256(folder: Path) -> str:
    """Return the sha256 of a checkpoint's weights from its manifest, without reading the weights.

    Raises UserError if the manifest is damaged, or if a file is missing or has another size.
    """
    if problem := check_manifest(folder, verify_checksums=False):
        raise UserError(problem)
    return locate.weights_sha256(folder)
