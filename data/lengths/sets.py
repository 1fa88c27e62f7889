"""Survey prepared sets: one, or a mixture as `--data` names it, as an epoch of training has it."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from common.errors import UserError
from common.progress import progress_bar
from data.batching.shuffle import weighted_subset
from data.corpora.resolver import resolve_shard_set
from data.lengths.batches import read_set_batches
from data.lengths.survey import AnswerSurvey, Survey, TextSurvey
from data.mixture import REPLAY, parse_mixture
from data.prepare.pipeline import format_left_out
from data.shards import ShardSet, read_shard_format
from model.chat_template.template import Template, load_template
from model.tokenizer import load_tokenizer
from model.tokenizer.base import Tokenizer

# The seed of training by default, for the requests of summaries and the parts of sets.
SEED = 0
# Memory for a fraction of a set grows with its weight.
MAX_WEIGHT = 1000


def new_survey(*, is_text: bool) -> Survey:
    """Return an empty survey of text, or of records with answers."""
    return TextSurvey() if is_text else AnswerSurvey()


def open_sets(data: str, tokenizer: Path | None) -> tuple[list[ShardSet], tuple[float, ...]]:
    """Return the sets that `data` names, prepared if necessary, and their weights.

    Raw files are prepared with `tokenizer`. Print what the sets leave out. Raises UserError if a
    name is unknown, or if text is mixed with records that have answers.
    """
    names, weights = parse_mixture(data)
    if max(weights) > MAX_WEIGHT:
        raise UserError(f"--data {data}: a weight is above {MAX_WEIGHT:,}: lower it")
    if REPLAY in names:
        raise UserError(
            "--data replay: is the pretraining text of a base, which training cuts into whole "
            "rows of any length: leave it out"
        )
    sets = []
    for name in names:
        is_raw = Path(name).exists() and read_shard_format(Path(name)) is None
        # A set that is prepared with another tokenizer is encoded again while it is measured.
        shards = ShardSet.open(resolve_shard_set(name, tokenizer if is_raw else None))
        # Sets that were not written by `data.prepare` have no report.
        report = shards.manifest.get("report")
        for line in format_left_out(report, shards.folder) if report else []:
            print(line, flush=True)
        sets.append(shards)
    if len({shards.kind.is_text for shards in sets}) > 1:
        kinds = ", ".join(
            f"{name} {shards.kind.name}" for name, shards in zip(names, sets, strict=True)
        )
        raise UserError(
            f"--data {data}: text and records with answers are not trained on together ({kinds}): "
            "measure them separately"
        )
    return sets, weights


def load_common_tokenizer(
    sets: Sequence[ShardSet], tokenizer: Path | None
) -> tuple[Tokenizer, Template]:
    """Return the tokenizer and the chat template in `tokenizer`, by default those of the sets.

    Raises UserError if the sets have different ones.
    """
    folder = tokenizer or sets[0].folder
    loaded = load_tokenizer(folder)
    if tokenizer is None:
        for shards in sets[1:]:
            if shards.load_tokenizer().fingerprint != loaded.fingerprint:
                raise UserError(
                    f"{sets[0].folder} and {shards.folder} were prepared with different "
                    "tokenizers: name one with --tokenizer PATH"
                )
    # Training has no lead-ins by default.
    return loaded, replace(load_template(folder), lead_ins=False)


def survey_sets(
    sets: Sequence[ShardSet],
    weights: Sequence[float],
    tokenizer: Tokenizer,
    template: Template,
    *,
    with_characters: bool = True,
) -> Survey:
    """Return the survey of the first epoch of a mixture, of the training splits.

    Memory holds one batch of records; for a set whose weight is not a whole number, also how often
    the epoch has each of its records, 8 bytes a record. Raises UserError if there is no record.
    """
    survey = new_survey(is_text=sets[0].kind.is_text)
    splits = [shards.load_split("train") for shards in sets]
    with progress_bar("measuring", sum(map(len, splits)), "records", delay=5) as bar:
        for index, (shards, weight) in enumerate(zip(sets, weights, strict=True)):
            example_lengths = shards.example_lengths(splits[index], tokenizer, template, SEED)
            epoch_repeats = _count_repeats(len(splits[index]), weight, index)
            for batch in read_set_batches(
                shards, tokenizer, template, with_characters=with_characters
            ):
                stop = batch.first_record + len(batch.num_ids)
                survey.add(batch, example_lengths, epoch_repeats[batch.first_record : stop])
                bar.update(len(batch.num_ids))
    if not survey.num_records:
        raise UserError(
            f"{sets[0].folder}: an epoch has no record of it: raise the weights of the data"
        )
    return survey


def _count_repeats(num_records: int, weight: float, set_index: int) -> np.ndarray:
    """Return how often the first epoch has each record of a set of a mixture, int64[n]."""
    if float(weight).is_integer():
        # A view of a single number.
        return np.broadcast_to(np.int64(weight), num_records)
    subset = weighted_subset(num_records, weight, SEED, 0, set_index)
    return np.bincount(subset, minlength=num_records)


def print_recommendation(folder: Path) -> None:
    """Print the row length that suits the shard set in `folder`, as a line of its report.

    No text is read, because the lengths of all records are stored. Prints nothing for a set all of
    which is held out.
    """
    shards = ShardSet.open(folder)
    if len(shards.load_split("train")):
        tokenizer, template = load_common_tokenizer([shards], None)
        survey = survey_sets([shards], [1.0], tokenizer, template, with_characters=False)
        print(f"  recommended row length {survey.recommend()}")
