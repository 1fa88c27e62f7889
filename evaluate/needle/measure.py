"""Measure how often a checkpoint finds what stands in a text, by length and depth."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from common.machine import resolve_device
from evaluate.load_model import LoadedCheckpoint, load_checkpoint
from evaluate.longer_context import allow_positions, warn_of_untrained_length
from evaluate.needle.ask import Reply, ask_by_generation, ask_by_likelihood
from evaluate.needle.cases import Case
from evaluate.needle.figures import compute_figures
from evaluate.needle.format import format_figures
from evaluate.needle.options import NeedleOptions
from evaluate.needle.page import write_needle_page
from evaluate.needle.setup import Setup, check_lengths, resolve_setup
from evaluate.partial_results import PartialResults, partial_results
from evaluate.result import EvalResult, Row, report_result
from model.decode.prefix_cache import PrefixCache

# Texts that are measured between two writes of partial results.
_CHUNK_TEXTS = 4
_TITLES = {
    "likelihood": "likelihood: the value with the largest log-probability, of all in the text",
    "generation": "generation: the first value in a greedy answer",
}

# The replies to the questions of each text of a length.
Replies = list[list[Reply]]


def run_needle(options: NeedleOptions) -> None:
    """Ask a checkpoint about texts of each length by each method; report the result.

    Raises UserError if a length has too little room, or if the texts need more words than there
    are.
    """
    device = resolve_device(options.device)
    loaded = load_checkpoint(options.checkpoint, options, device)
    setup = resolve_setup(options, loaded, "test")
    check_lengths(setup)
    warn_of_untrained_length(loaded.model, max(setup.lengths))
    allow_positions(loaded.model, max(setup.lengths) + options.max_new_tokens)
    methods = ["likelihood", "generation"] if options.method == "both" else [options.method]
    results = partial_results(
        options.json_file or options.predictions, _depends_on(options, loaded, setup)
    )
    replies = {
        method: {
            length: _ask(results, options, loaded, setup, method, length)
            for length in setup.lengths
        }
        for method in methods
    }
    figures = {
        method: {length: compute_figures(of_length) for length, of_length in by_length.items()}
        for method, by_length in replies.items()
    }
    label = _label(options, setup)
    metrics = {
        "measured": label,
        "task": options.task,
        "language": options.language,
        "form": setup.form,
        "trained_context": loaded.model.trained_context,
        "lengths": list(setup.lengths),
        "depths": options.depths,
        **{
            method: {
                "convention": _TITLES[method],
                "by_length": {str(length): entry.to_json() for length, entry in by_length.items()},
            }
            for method, by_length in figures.items()
        },
    }
    lines = [label]
    for method, by_length in figures.items():
        lines += [_TITLES[method], *format_figures(by_length)]
    result = EvalResult(lines, metrics, loaded.provenance, _build_rows(replies), device)
    report_result(result, options.json_file, options.predictions)
    if options.page:
        write_needle_page(options.page, label, figures, loaded.model.trained_context)


def _build_rows(replies: Mapping[str, Mapping[int, Replies]]) -> list[Row]:
    """Return the lines of the predictions file; `replies` are by method and length."""
    return [
        {"method": method, "length": length, "text": number, **reply}
        for method, by_length in replies.items()
        for length, of_length in by_length.items()
        for number, of_text in enumerate(of_length)
        for reply in of_text
    ]


def _label(options: NeedleOptions, setup: Setup) -> str:
    """Return what is measured, in one line."""
    name = {"register": "numbers in a register", "topics": "topics of a conversation"}.get(
        options.task, f"{options.needles} numbers in {' '.join(options.input)}"
    )
    form = {"chat": "asked in the chat template", "plain": "asked by a text to continue"}
    return (
        f"{options.checkpoint}: {name} ({options.language}), {form[setup.form]}, "
        f"{options.count:,} texts of each length, each asked in {options.depths} places, seed "
        f"{options.seed}"
    )


def _depends_on(options: NeedleOptions, loaded: LoadedCheckpoint, setup: Setup) -> dict[str, Any]:
    """Return what the replies to a text depend on."""
    of_task = options.model_dump(
        mode="json",
        include={"task", "language", "depths", "seed", "needles", "source", "input"},
    )
    return {
        **loaded.identity,
        **of_task,
        "digits": setup.digits,
        "form": setup.form,
        "max_new_tokens": options.max_new_tokens,
    }


def _ask(
    results: PartialResults,
    options: NeedleOptions,
    loaded: LoadedCheckpoint,
    setup: Setup,
    method: str,
    length: int,
) -> Replies:
    """Return the replies to all texts of a length by a method."""
    ask: Callable[[Case], list[Reply]]
    if method == "likelihood":

        def ask(case: Case) -> list[Reply]:
            return ask_by_likelihood(loaded, setup.frame, case)

    else:
        cache = PrefixCache(loaded.model, length + options.max_new_tokens)

        def ask(case: Case) -> list[Reply]:
            return ask_by_generation(
                loaded, setup.frame, case, cache, max_new_tokens=options.max_new_tokens
            )

    def ask_chunk(numbers: Sequence[int]) -> Replies:
        return [ask(setup.build_case(length, number, setup.num_depths)) for number in numbers]

    return results.compute(
        f"{method}, {length:,} tokens",
        range(options.count),
        ask_chunk,
        unit="texts",
        chunk_size=_CHUNK_TEXTS,
    )
