"""A person as the judge: two answers in the terminal, without the names of their models."""

import io
import sys

from evaluate.tournament.schedule import Showing

CHOICES = {"1": "model_a", "2": "model_b", "0": "tie"}
STOP = "q"
_PROMPT = f"better: 1 or 2; equally good: 0; stop: {STOP} > "
# A model can generate any character. Control characters must not reach the terminal, where they are
# commands.
_CONTROL_REPLACEMENTS = {
    code: "\ufffd" for code in (*range(0x20), *range(0x7F, 0xA0)) if chr(code) not in "\n\t"
}


class Person:
    """The person at the terminal, or lines on standard input."""

    def __init__(self, num_showings: int) -> None:
        self._num_showings = num_showings
        if isinstance(sys.stdin, io.TextIOWrapper):
            sys.stdin.reconfigure(errors="replace")

    def judge(self, number: int, showing: Showing) -> str | None:
        """Show two answers; return the winner as in a battle, or None to stop.

        The end of the input stops, too. `number` is that of the showing, from 1.
        """
        category = f" ({showing.question.category})" if showing.question.category else ""
        self._show(f"\n──── {number:,} of {self._num_showings:,}{category} ────")
        self._show(showing.question.text)
        self._show(f"\n── answer 1 ──\n{showing.answer_a or '(empty)'}")
        self._show(f"\n── answer 2 ──\n{showing.answer_b or '(empty)'}\n")
        while True:
            try:
                choice = input(_PROMPT).strip().lower()
            except EOFError:
                print()
                return None
            if choice == STOP:
                return None
            if choice in CHOICES:
                return CHOICES[choice]

    def _show(self, text: str) -> None:
        print(text.translate(_CONTROL_REPLACEMENTS))
