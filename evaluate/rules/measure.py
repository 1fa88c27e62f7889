"""Measure a checkpoint on items with invented rules, and report rule use family by family."""

from collections.abc import Sequence
from typing import Any

from common.errors import UserError
from common.machine import resolve_device
from evaluate.load_model import load_checkpoint
from evaluate.partial_results import partial_results
from evaluate.result import EvalResult, Row, report_result
from evaluate.rules.ask import CONVENTION, AskedItem, ask_by_generation, ask_by_likelihood
from evaluate.rules.export import read_trained_families
from evaluate.rules.figures import Figures, compute_figures
from evaluate.rules.format import format_figures, format_originals
from evaluate.rules.generate import draw_items
from evaluate.rules.item import FORMS, Item
from evaluate.rules.options import RulesOptions
from evaluate.rules.originals import ORIGINALS


def run_rules(options: RulesOptions) -> None:
    """Ask a checkpoint all items in all forms; report the result."""
    report_result(evaluate_rules(options), options.json_file, options.predictions)


def evaluate_rules(options: RulesOptions) -> EvalResult:
    """Ask a checkpoint all items in all forms, by the methods of the options.

    Raises UserError if a family has no item that fits the model's context.
    """
    assert options.checkpoint is not None  # the options have either this or --export
    trained = read_trained_families(options.trained_on) if options.trained_on else None
    groups = group_families(options.families, trained)
    device = resolve_device(options.device)
    loaded = load_checkpoint(options.checkpoint, options, device)
    items_by_family = {
        family: draw_items(family, options.count, options.difficulty, options.seed, "test")
        for family in options.families
    }
    asked_by_method: dict[str, list[AskedItem]] = {}
    depends_on = {**loaded.identity, "max_new_tokens": options.max_new_tokens}
    results = partial_results(options.json_file or options.predictions, depends_on)
    if options.method != "generation":
        asked_by_method["likelihood"] = ask_by_likelihood(
            results, loaded, _all_items(items_by_family, options.count)
        )
    if options.method != "likelihood":
        asked_by_method["generation"] = ask_by_generation(
            results,
            loaded,
            _all_items(items_by_family, options.generation_count),
            max_new_tokens=options.max_new_tokens,
            batch=options.batch,
        )
    label = f"{options.checkpoint}, difficulty {options.difficulty}, seed {options.seed}"
    lines = [f"{label}: rules that are not known, in {len(options.families)} families"]
    different = {
        family: len({item.values for item in items}) for family, items in items_by_family.items()
    }
    repeating = [
        f"{family} {count}" for family, count in different.items() if count < options.count
    ]
    if repeating:
        lines.append(
            f"different values in the questions of {options.count} items, the others are the same "
            f"in other words or under other rules: {', '.join(repeating)}"
        )
    metrics: dict[str, Any] = {"measured": label, "different_values": different}
    titles = {
        "likelihood": f"likelihood: the candidate with the largest {CONVENTION}",
        "generation": f"generation: greedy, at most {options.max_new_tokens} tokens",
    }
    for method, asked in asked_by_method.items():
        figures = _compute_all(asked, options.families, groups)
        lines += [titles[method], *format_figures(figures, groups)]
        metrics[method] = {
            "convention": titles[method],
            **{name.replace(" ", "_"): entry.to_json() for name, entry in figures.items()},
        }
    if trained is not None:
        metrics["trained_on"] = {"file": str(options.trained_on), "families": trained}
    lines += format_originals(asked_by_method)
    rows = [
        _build_row(method, entry) for method, asked in asked_by_method.items() for entry in asked
    ]
    return EvalResult(lines, metrics, loaded.provenance, rows, device)


def group_families(families: Sequence[str], trained: Sequence[str] | None) -> dict[str, list[str]]:
    """Return the families that are reported together, by the name of the group.

    `trained` are the families that the model was trained on, None if that is not known. A group
    without families is left out.
    """
    if trained is None:
        return {"all": list(families)}
    groups = {
        "held in": [family for family in families if family in trained],
        "held out": [family for family in families if family not in trained],
    }
    return {name: members for name, members in groups.items() if members}


def _all_items(items_by_family: dict[str, list[Item]], count: int) -> list[Item]:
    """Return the originals, and the first `count` items of each family."""
    return [*ORIGINALS, *(item for items in items_by_family.values() for item in items[:count])]


def _compute_all(
    asked: Sequence[AskedItem], families: Sequence[str], groups: dict[str, list[str]]
) -> dict[str, Figures]:
    """Return the figures of each group of families, then those of each family.

    Raises UserError for a family without items in `asked`.
    """
    by_family = {}
    for family in families:
        of_family = [entry for entry in asked if entry.item.family == family]
        if not of_family:
            raise UserError(
                f"--families {family}: no item fits the model's context; choose a lower "
                "--difficulty or other families"
            )
        by_family[family] = compute_figures(of_family)
    by_group = {
        group: compute_figures([entry for entry in asked if entry.item.family in members])
        for group, members in groups.items()
    }
    return by_group | by_family


def _build_row(method: str, entry: AskedItem) -> Row:
    """Return the line of an item in the predictions file."""
    item = entry.item
    return {
        "method": method,
        "family": item.family,
        "question": item.question,
        "candidates": list(item.candidates),
        "common_sense": item.common,
        "forms": {
            form: {
                "rule": item.passage(form),
                "reference": item.answer(form),
                "prediction": entry.replies[form].text,
                "choice": entry.replies[form].choice,
            }
            for form in FORMS
        },
    }
