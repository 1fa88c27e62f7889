"""Export items as conversations to train on, and read which families such a file has.

A line is a record of the source `redgpt`, the one whose conversations have a reference, here the
rule: {"reference", "dialogue"}. Its other fields, which the source does not read, name the task and
the family. An item is two lines, with its two rules: without a rule there is no right answer to
teach.
"""

import json
from pathlib import Path

from common.errors import UserError
from common.files import write_atomic
from evaluate.predictions import read_predictions
from evaluate.rules.families import FAMILIES
from evaluate.rules.generate import draw_items
from evaluate.rules.item import RULE_FORMS, Form, Item
from evaluate.rules.options import RulesOptions

TASK = "evaluate.rules"


def export_items(options: RulesOptions, path: Path) -> None:
    """Write training items of all families that are not held out, and print what was written."""
    families = [family for family in options.families if family not in options.hold_out]
    lines = []
    for family in families:
        items = draw_items(family, options.count, options.difficulty, options.seed, "train")
        for number, item in enumerate(items):
            lines += [_format_line(options, item, number, form) for form in RULE_FORMS]
    write_atomic(path, "".join(lines))
    print(f"{path}: {len(lines):,} conversations of {', '.join(families)}")
    print(f"train on it:  python -m train.sft --data {path} --base RUN")
    print(f"then measure: python -m evaluate.rules --checkpoint RUN --trained_on {path}")


def _format_line(options: RulesOptions, item: Item, number: int, form: Form) -> str:
    """Return an item with one of its rules as a line of JSON."""
    row = {
        "reference": item.passage(form),
        "dialogue": f"Human: {item.question}\n\nAssistant: {item.answer(form)}",
        "id": f"{item.family}-{options.difficulty}-{options.seed}-{number}-{form}",
        "task": TASK,
        "category": item.family,
        "type": form,
        "difficulty": options.difficulty,
        "split": "train",
    }
    return json.dumps(row, ensure_ascii=False) + "\n"


def read_trained_families(path: Path) -> list[str]:
    """Return the families in a file that `export_items` wrote.

    Lines of other tasks are skipped: the file may have been mixed with others. Raises UserError if
    there is no line of this task, or one of an unknown family.
    """
    families: dict[str, None] = {}
    for row in read_predictions(path, ("reference", "dialogue")):
        if row.get("task") != TASK:
            continue
        family = row.get("category")
        if not isinstance(family, str) or family not in FAMILIES:
            raise UserError(
                f"--trained_on {path}: the family {family!r} is none of this version; export the "
                "file again"
            )
        families[family] = None
    if not families:
        raise UserError(
            f"--trained_on {path}: has no line with the task {TASK}; give a file that --export "
            "wrote"
        )
    return list(families)
