"""The tables of the figures: a block for each rule, a line for each family and group."""

from evaluate.predictions import excerpt
from evaluate.rules.ask import AskedItem
from evaluate.rules.figures import Figures
from evaluate.rules.item import FORMS, RULE_FORMS, Form
from evaluate.rules.originals import NAME as ORIGINALS_NAME

_TITLES: dict[Form, str] = {
    "with": "an invented rule",
    "without": "no rule",
    "against": "against common sense",
}


def format_figures(figures: dict[str, Figures], groups: dict[str, list[str]]) -> list[str]:
    """Return the tables; the families of a group stand above it.

    `figures` has those of all families and of the groups, by name.
    """
    lines = []
    for form in RULE_FORMS:
        columns = ("right", "the same without", "rule use, points", "common sense")
        lines.append(_format_header(form, *columns) + "  best trivial")
        for name in _row_names(groups):
            rule = figures[name].by_rule[form]
            label = _format_label(name, groups, rule.right.total)
            row = label + _format_cells(rule.right, rule.guessed, rule.use, rule.common)
            trivial, rate = rule.best_trivial
            lines.append(f"{row}  {100 * rate:.1f} % {trivial}")
        lines.append(_format_verdict(figures, groups, form))
    lines.append(_format_header("without", "common sense", "replies with a candidate"))
    for name in _row_names(groups):
        common, answered = figures[name].common_without, figures[name].answered
        lines.append(_format_label(name, groups, common.total) + _format_cells(common, answered))
    return lines


def _row_names(groups: dict[str, list[str]]) -> list[str]:
    """Return the families of each group, and the group after them."""
    return [name for group, members in groups.items() for name in (*members, group)]


def _format_header(form: Form, *columns: str) -> str:
    return f"{_TITLES[form]:21}{'items':>7}" + _format_cells(*columns)


def _format_label(name: str, groups: dict[str, list[str]], count: int) -> str:
    """Return the beginning of a line of a table. Families are indented, groups are not."""
    label = name if name in groups else f"  {name}"
    return f"{label:21}{count:7,}"


def _format_cells(*cells: object) -> str:
    return "".join(f"{cell!s:>25}" for cell in cells)


def _format_verdict(figures: dict[str, Figures], groups: dict[str, list[str]], form: Form) -> str:
    """Return a line that names the families whose rule is read, group by group."""
    parts = []
    for group, members in groups.items():
        read = [name for name in members if figures[name].by_rule[form].shows_reading]
        names = f" ({', '.join(read)})" if read else ""
        parts.append(f"{group} {len(read)} of {len(members)} families{names}")
    return (
        "rule use above 0 and right answers above the best trivial line, both beyond their "
        f"intervals: {'; '.join(parts)}"
    )


def format_originals(asked_by_method: dict[str, list[AskedItem]]) -> list[str]:
    """Return a line for each of the original items in each form, for each method."""
    lines = ["the two original items"]
    for method, asked in asked_by_method.items():
        for entry in asked:
            if entry.item.family != ORIGINALS_NAME:
                continue
            lines.append(f"{method}: {entry.item.question}")
            for form in FORMS:
                expected = "common sense" if form == "without" else "right"
                lines.append(
                    f"  {_TITLES[form]}: {excerpt(entry.replies[form].text)!r}, "
                    f"{expected}: {entry.item.answer(form)!r}"
                )
    return lines
