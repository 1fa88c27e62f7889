"""Run `python -m data.lengths`: measure, print, and write the files."""

from dataclasses import replace

import numpy as np

from common.files import write_atomic, write_json
from common.machine import collect_environment
from data.corpora.sample import SMALL_TOKENIZER
from data.kinds import find_kind
from data.lengths.batches import detect_input_source, read_source_batches
from data.lengths.options import LengthsOptions
from data.lengths.report import describe_survey, format_survey
from data.lengths.sets import SEED, load_common_tokenizer, new_survey, open_sets, survey_sets
from data.lengths.survey import Survey
from data.prepare.source_args import SourceGroup
from data.sources import find_source
from model.chat_template.template import load_template
from model.tokenizer import load_tokenizer
from model.tokenizer.base import Tokenizer


def run_survey(options: LengthsOptions) -> None:
    """Measure the data of the options; print the survey, and write its files."""
    survey, name, tokenizer = _survey_data(options) if options.data else _survey_input(options)
    recommendation = survey.recommend()
    print("\n".join(format_survey(survey, recommendation, name, tokenizer, options.batch_tokens)))
    if options.json_file:
        figures = describe_survey(survey, recommendation, name, tokenizer, options.batch_tokens)
        write_json(options.json_file, {**figures, "made": collect_environment()})
    if options.picture:
        # Imported here because matplotlib loads slowly.
        from data.lengths.picture import plot_lengths

        write_atomic(options.picture, plot_lengths(survey, recommendation.length))


def _survey_data(options: LengthsOptions) -> tuple[Survey, str, Tokenizer]:
    """Return the survey of `--data`, its name and the tokenizer."""
    assert options.data is not None
    sets, weights = open_sets(options.data, options.tokenizer)
    tokenizer, template = load_common_tokenizer(sets, options.tokenizer)
    return survey_sets(sets, weights, tokenizer, template), options.data, tokenizer


def _survey_input(options: LengthsOptions) -> tuple[Survey, str, Tokenizer]:
    """Return the survey of `--input`, its source and the tokenizer."""
    source = options.source or detect_input_source(options.input)
    group = SourceGroup(source, options.input)
    kind = find_kind(find_source(source).kind)
    folder = options.tokenizer or SMALL_TOKENIZER
    tokenizer = load_tokenizer(folder)
    # Training has no lead-ins by default.
    template = replace(load_template(folder), lead_ins=False)
    survey = new_survey(is_text=kind.is_text)
    example_lengths = kind.example_lengths(tokenizer, template, SEED)
    for batch in read_source_batches(group, tokenizer, template, options.limit):
        survey.add(batch, example_lengths, np.ones(len(batch.num_ids), np.int64))
    return survey, source, tokenizer
