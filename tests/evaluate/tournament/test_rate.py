"""Ratings and what to doubt about them: bias, agreement, ranks that overlap."""

import json
import random
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from evaluate.metrics.proportion import Proportion
from evaluate.tournament import __main__ as tournament
from evaluate.tournament.options import RateOptions
from evaluate.tournament.rate import rate_models

WriteLines = Callable[..., Path]


def vote(
    question: int | None, first: str, second: str, winner: str, judge: str = "j"
) -> dict[str, Any]:
    names = {first: "model_a", second: "model_b", "tie": "tie"}
    row = {"model_a": first, "model_b": second, "winner": names[winner], "judge": judge}
    return row if question is None else {"question_id": question, **row}


def rate(*paths: Path) -> tuple[dict[str, Any], str]:
    result = rate_models(RateOptions(battles=tuple(paths)))
    return result.metrics, "\n".join(result.lines)


@pytest.mark.slow
def test_real_record_says_what_its_table_hides(shared: Path) -> None:
    """A second place that looks secure; a bias that is not seen; figures that the file lacks."""
    path = shared / "data/eval/battles_excerpt.json"
    battles = json.loads(path.read_text(encoding="utf-8"))["battles"]
    figures, printed = rate(path)
    assert (figures["votes"], figures["comparisons"]) == (len(battles), len(battles))
    assert figures["both_orders"] == 0 and figures["bootstrap_over"] == "comparisons"
    decided = [battle for battle in battles if battle["score_a"] != battle["score_b"]]
    first_wins = sum(battle["score_a"] > battle["score_b"] for battle in decided)
    expected = Proportion(first_wins, len(decided)).to_json()
    assert figures["first_place"] == {"battles_excerpt": expected}
    models = {model["model"]: model for model in figures["models"]}
    assert figures["models"][0]["model"] == "chatgpt"
    for model in models.values():
        for kind in ("elo", "bradley_terry"):
            assert model[kind]["low"] < model[kind]["rating"] < model[kind]["high"]
        best, worst = model["rank"]
        assert best <= worst
    assert np.mean([m["bradley_terry"]["rating"] for m in models.values()]) == pytest.approx(1000)
    assert "not certain: that belle is better than anima" in printed
    assert "pairs one model was shown first more often" in printed


@pytest.mark.slow
def test_overlap_decides_ranks(write_lines: WriteLines) -> None:
    """Ranks that are given as certain, and certain ones that are doubted."""
    generator = random.Random(0)
    rows = []
    for question in range(60):
        for first, second in (("top", "x"), ("top", "y"), ("x", "y")):
            winner = "top" if first == "top" else generator.choice(("x", "y"))
            rows.append(vote(question, first, second, winner))
            rows.append(vote(question, second, first, winner))
    figures, printed = rate(write_lines("v.jsonl", *rows))
    ranks = {model["model"]: model["rank"] for model in figures["models"]}
    assert ranks == {"top": [1, 1], "x": [2, 3], "y": [2, 3]}
    assert printed.count("not certain: that") == 1 and "better than top" not in printed
    assert "top won every comparison: only the virtual tie" in printed
    assert "no bias beyond the interval" in printed
    assert "one model was shown first" not in printed


@pytest.mark.slow
def test_first_place_bias_is_that_of_decided_votes(write_lines: WriteLines) -> None:
    """Ties that count as votes for one place, or a bias that is hidden by combined verdicts."""
    rows = []
    for question in range(30):
        rows.append(vote(question, "x", "y", "tie" if question < 10 else "x"))
        rows.append(vote(question, "y", "x", "y" if question < 28 else "x"))
    figures, printed = rate(write_lines("v.jsonl", *rows))
    expected = Proportion(48, 50)
    assert figures["first_place"]["j"] == expected.to_json()
    assert f"first answer won {expected}" in printed
    assert "the judge prefers it" in printed
    flipped = [vote(number, "x", "y", "y") for number in range(9)]
    assert "the judge prefers the second" in rate(write_lines("w.jsonl", *flipped))[1]


@pytest.mark.slow
def test_agreement_of_judges_is_cohens_kappa(write_lines: WriteLines) -> None:
    """Agreement by chance that is not subtracted, or verdicts of different comparisons compared."""
    generator = random.Random(3)
    verdicts: dict[str, list[str]] = {"one": [], "two": []}
    files = {"one": [], "two": []}  # type: ignore[var-annotated]
    for question in range(200):
        truth = generator.choice(("x", "x", "y", "tie"))
        for judge in ("one", "two"):
            verdict = truth if generator.random() < 0.6 else generator.choice(("x", "y", "tie"))
            verdicts[judge].append(verdict)
            # The judges see the two models in different orders.
            pair = ("x", "y") if judge == "one" else ("y", "x")
            files[judge].append(vote(question, *pair, verdict, judge))
    files["two"].append(vote(999, "x", "y", "x", "two"))
    figures, printed = rate(*(write_lines(f"{name}.jsonl", *rows) for name, rows in files.items()))
    (agreement,) = figures["agreement"]
    equal = np.mean([a == b for a, b in zip(verdicts["one"], verdicts["two"], strict=True)])
    shares = {judge: Counter(verdicts[judge]) for judge in verdicts}
    chance = sum(shares["one"][v] * shares["two"][v] for v in ("x", "y", "tie")) / 200**2
    assert agreement["comparisons"] == 200
    assert agreement["equal"]["rate"] == pytest.approx(equal)
    assert agreement["kappa"] == pytest.approx((equal - chance) / (1 - chance))
    assert "one and two have equal verdicts on" in printed
    assert "the judges count alike: one, two" in printed


@pytest.mark.slow
def test_agreement_that_is_undefined_is_said(write_lines: WriteLines) -> None:
    """A division by zero where two judges always say the same, or judged nothing in common."""
    same = write_lines(
        "s.jsonl", *(vote(n, "x", "y", "x", judge) for n in range(3) for judge in ("one", "two"))
    )
    figures, printed = rate(same)
    assert figures["agreement"][0]["kappa"] is None and "kappa is undefined" in printed
    apart = write_lines("a.jsonl", vote(1, "x", "y", "x", "one"), vote(2, "x", "y", "x", "two"))
    assert "no agreement is measured" in rate(apart)[1]
    unnamed = write_lines(
        "u.jsonl", vote(None, "x", "y", "x", "one"), vote(None, "x", "y", "x", "two")
    )
    assert "no agreement is measured" in rate(unnamed)[1]


@pytest.mark.slow
def test_groups_that_never_met_are_named(write_lines: WriteLines) -> None:
    """Ratings of models compared that nothing compares."""
    rows = [vote(n, *pair, pair[n % 2]) for n in range(6) for pair in (("a", "b"), ("c", "d"))]
    figures, printed = rate(write_lines("v.jsonl", *rows))
    assert figures["separate_groups"] == 2 and "no chain of comparisons joins 2 groups" in printed
    chain = [
        vote(n, *pair, pair[n % 2])
        for n in range(6)
        for pair in (("a", "b"), ("b", "c"), ("c", "d"), ("d", "e"), ("e", "f"))
    ]
    assert rate(write_lines("w.jsonl", *chain))[0]["separate_groups"] == 1


@pytest.mark.slow
def test_single_battle_is_rated(write_lines: WriteLines) -> None:
    """A crash on the smallest file."""
    figures, printed = rate(write_lines("v.jsonl", vote(None, "x", "y", "y")))
    winner, loser = figures["models"]
    assert (winner["model"], winner["elo"]["rating"]) == ("y", 1016)
    assert (loser["model"], loser["elo"]["rating"]) == ("x", 984)
    assert "y won every comparison" in printed and "x lost every comparison" in printed
    ties = write_lines("t.jsonl", vote(1, "x", "y", "tie"), vote(1, "y", "x", "tie"))
    figures, _ = rate(ties)
    assert figures["first_place"]["j"]["questions"] == 0
    assert [model["elo"]["rating"] for model in figures["models"]] == [1000, 1000]


@pytest.mark.slow
def test_results_file_has_the_printed_figures(
    run_command: Callable[..., None],
    write_lines: WriteLines,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Figures that only the terminal has, or that depend on the call."""
    rows = [vote(n, *pair, pair[n % 3 == 0]) for n in range(9) for pair in (("x", "y"), ("y", "z"))]
    path, out = write_lines("v.jsonl", *rows), tmp_path / "out.json"
    written = []
    for seed in (0, 0, 1):
        run_command(tournament, "rate", "--battles", path, "--json", out, "--seed", seed)
        written.append(json.loads(out.read_text(encoding="utf-8"))["models"])
    assert written[0] == written[1] != written[2]
    printed = capsys.readouterr().out
    for model in written[0]:
        assert f"{model['elo']['rating']:.2f} (" in printed
        assert f"{model['bradley_terry']['rating']:.0f} (" in printed
