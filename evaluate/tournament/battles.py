"""Votes on pairs of answers: read and write their files, and combine the two orders of a pair."""

import json
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from common.errors import UserError
from common.files import write_atomic
from evaluate.predictions import excerpt
from evaluate.tournament.json_rows import (
    QuestionId,
    check_name,
    read_json_rows,
    read_question_id,
)

# Bounds for files that are not trusted: the time of the intervals grows with the number of battles,
# and the memory of the bootstrap with the square of the number of models.
MAX_BATTLES = 50_000
MAX_MODELS = 50
WINNERS = ("model_a", "model_b", "tie")
_EXPECTED_LINE = (
    '{"question_id": 1, "model_a": "…", "model_b": "…", "winner": "model_a", "model_b" or "tie"}'
)


@dataclass(frozen=True, slots=True)
class Battle:
    """The vote of a judge on two answers; that of `model_a` was shown first."""

    model_a: str
    model_b: str
    winner: str
    """One of WINNERS."""
    judge: str
    question_id: QuestionId | None = None
    num_characters: tuple[float, float] | None = None
    """The lengths of the two answers, if the file has them."""

    @property
    def winning_model(self) -> str | None:
        """Return the name of the model that won, or None for a tie."""
        return {"model_a": self.model_a, "model_b": self.model_b}.get(self.winner)


@dataclass(frozen=True, slots=True)
class Comparison:
    """The verdict of a judge on the answers of two models to a question."""

    votes: tuple[Battle, ...]
    """The votes that it is made of: one for each order that was judged."""

    @property
    def winning_model(self) -> str | None:
        """Return the model that all votes name, or None for a tie and for votes that differ."""
        winners = {vote.winning_model for vote in self.votes}
        return winners.pop() if len(winners) == 1 else None

    @property
    def orders_disagree(self) -> bool:
        """Return whether the votes on the two orders differ."""
        return len({vote.winning_model for vote in self.votes}) > 1

    @property
    def models(self) -> tuple[str, str]:
        """Return the two models, in the order of the first vote."""
        return self.votes[0].model_a, self.votes[0].model_b

    @property
    def longer_model(self) -> str | None:
        """Return the model with the longer answer; None if they are equal, or not known."""
        lengths = self.votes[0].num_characters
        if lengths is None or lengths[0] == lengths[1]:
            return None
        return self.models[int(lengths[1] > lengths[0])]


def read_battles(paths: Sequence[Path]) -> list[Battle]:
    """Return the votes of files, in sequence.

    A vote without a judge gets the name of its file as the judge. Raises UserError, with the place
    in the file, for a vote that is faulty, and for a vote that is there twice (the same judge,
    question and order). Also raises UserError for no votes, more than MAX_BATTLES or MAX_MODELS,
    and votes of which only some name their question.
    """
    battles: list[Battle] = []
    places: list[str] = []
    place_by_vote: dict[tuple[str, str, str, str], str] = {}
    for path in paths:
        for place, row in _iter_rows(path):
            battle = _parse_battle(row, place, default_judge=path.stem)
            if battle.question_id is not None:
                vote = (battle.judge, str(battle.question_id), battle.model_a, battle.model_b)
                first_place = place_by_vote.setdefault(vote, place)
                if first_place != place:
                    raise UserError(
                        f"{place}: the same judge, question and order as {first_place}; keep one"
                    )
            battles.append(battle)
            places.append(place)
            if len(battles) > MAX_BATTLES:
                raise UserError(
                    f"{place}: there are more than {MAX_BATTLES:,} battles; rate a part of them"
                )
    names = " ".join(map(str, paths))
    if not battles:
        raise UserError(f"{names}: there are no battles; a line is {_EXPECTED_LINE}")
    num_models = len(model_names(battles))
    if num_models > MAX_MODELS:
        raise UserError(f"{names}: there are {num_models} models; {MAX_MODELS} can be rated")
    unnamed = [
        place for battle, place in zip(battles, places, strict=True) if battle.question_id is None
    ]
    if 0 < len(unnamed) < len(battles):
        raise UserError(
            f"{unnamed[0]}: has no question_id, but other battles have one; give it to all or none"
        )
    return battles


def write_battles(path: Path, rows: Iterable[dict[str, Any]]) -> None:
    """Write votes as JSON lines, atomically."""
    write_atomic(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))


def model_names(battles: Sequence[Battle]) -> list[str]:
    """Return the names of all models, sorted."""
    return sorted({name for battle in battles for name in (battle.model_a, battle.model_b)})


def combine_votes(battles: Sequence[Battle]) -> list[Comparison]:
    """Return a comparison for each judge, question and pair of models, in sequence.

    Its place is that of its first vote. Without `question_id` every vote is a comparison.
    """
    groups: dict[tuple[object, ...], list[Battle]] = {}
    for index, battle in enumerate(battles):
        key: tuple[object, ...] = (index,)
        if battle.question_id is not None:
            pair = sorted((battle.model_a, battle.model_b))
            key = (battle.judge, str(battle.question_id), *pair)
        groups.setdefault(key, []).append(battle)
    return [Comparison(tuple(votes)) for votes in groups.values()]


def _iter_rows(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield the votes of a file of JSON lines, a JSON list, or `{"battles": [...]}`."""
    for place, row in read_json_rows(path):
        if not isinstance(row.get("battles"), list):
            yield place, row
            continue
        for number, element in enumerate(row["battles"], 1):
            place = f"{path} battle {number}"
            if not isinstance(element, dict):
                raise UserError(f"{place}: is no JSON object; a battle is {_EXPECTED_LINE}")
            yield place, element


def _parse_battle(row: dict[str, Any], place: str, default_judge: str) -> Battle:
    """Return the vote of a row. Raises UserError if it is faulty."""
    for field in ("model_a", "model_b"):
        if field not in row:
            raise UserError(f"{place}: has no {field!r}; a line is {_EXPECTED_LINE}")
    model_a, model_b = (check_name(row[field], place, field) for field in ("model_a", "model_b"))
    if model_a == model_b:
        raise UserError(f"{place}: {model_a} is compared with itself; a battle has two models")
    winner = row.get("winner")
    if winner is None:
        score_a, score_b = (_read_number(row, field, place) for field in ("score_a", "score_b"))
        winner = "tie" if score_a == score_b else "model_a" if score_a > score_b else "model_b"
    if winner not in WINNERS:
        raise UserError(
            f"{place}: the winner is {excerpt(repr(winner))}; it has to be model_a, model_b or tie"
        )
    num_characters = None
    if "characters_a" in row and "characters_b" in row:
        num_characters = (
            _read_number(row, "characters_a", place),
            _read_number(row, "characters_b", place),
        )
    judge = check_name(row.get("judge", default_judge), place, "judge")
    return Battle(model_a, model_b, winner, judge, read_question_id(row, place), num_characters)


def _read_number(row: dict[str, Any], field: str, place: str) -> float:
    """Return a number. Raises UserError unless it is there and finite."""
    value = row.get(field)
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        found = f"{field} is {excerpt(repr(value))}" if field in row else f"has no {field!r}"
        raise UserError(f"{place}: {found}; a line is {_EXPECTED_LINE}, or has two scores")
    return float(value)
