"""The tables of the figures: a block for each rule, a line for each family and group."""

from evaluate.predictions import excerpt
from evaluate.rules.ask import AskedItem
from evaluate.rules.figures import Figures
from evaluate.rules.item import FORMS, RULE_FORMS, Form
from evaluate.rules.originals import NAME as ORIGINALS_NAME

_TITLES: dict[Form, str] = {
    "with": "an invented rule",
    "against": "a rule against common sense",
    "without": "without a rule",
}
_COLUMNS = ("right", "so without the rule", "rule use, points", "common sense")


def format_figures(figures: dict[str, Figures], groups: dict[str, list[str]]) -> list[str]:
    """Return the tables; the families of a group stand above it.

    `figures` has those of all families and of the groups, by name.
    """
    names = [name for group, members in groups.items() for name in (*members, group)]
    lines = []
    for form in RULE_FORMS:
        header = "".join(f"{column:>24}" for column in _COLUMNS)
        lines.append(f"{_TITLES[form]:28}{'n':>6}{header}  best trivial")
        for name in names:
            rule = figures[name].by_rule[form]
            cells = (rule.right, rule.guessed, rule.use, rule.common)
            row = "".join(f"{cell!s:>24}" for cell in cells)
            trivial, rate = rule.best_trivial
            lines.append(
                f"{_label(name, groups):28}{rule.right.total:6,}{row}  {100 * rate:.1f} % {trivial}"
            )
        lines.append(_format_verdict(figures, groups, form))
    lines.append(f"{_TITLES['without']:28}{'n':>6}{_COLUMNS[-1]:>24}")
    for name in names:
        common = figures[name].common_without
        lines.append(f"{_label(name, groups):28}{common.total:6,}{common!s:>24}")
    return lines


def _label(name: str, groups: dict[str, list[str]]) -> str:
    """Return the name of a family indented, and that of a group as it is."""
    return name if name in groups else f"  {name}"


def _format_verdict(figures: dict[str, Figures], groups: dict[str, list[str]], form: Form) -> str:
    """Return a line that names the families whose rule is used beyond doubt, group by group."""
    parts = []
    for group, members in groups.items():
        used = [name for name in members if figures[name].by_rule[form].use.interval[0] > 0]
        names = f" ({', '.join(used)})" if used else ""
        parts.append(f"{group}, {len(used)} of {len(members)} families{names}")
    return f"rule use is above 0 beyond its interval: {'; '.join(parts)}"


def format_originals(asked_by_method: dict[str, list[AskedItem]]) -> list[str]:
    """Return a line for each of the original items in each form, for each method."""
    lines = ["the two original items"]
    for method, asked in asked_by_method.items():
        for entry in asked:
            if entry.item.family != ORIGINALS_NAME:
                continue
            lines.append(f"{method}: {entry.item.question}")
            for form in FORMS:
                reply = entry.replies[form]
                lines.append(
                    f"  {_TITLES[form]:28}{excerpt(reply.text)!r}, "
                    f"{'common sense' if form == 'without' else 'right'}: {entry.item.answer(form)}"
                )
    return lines
