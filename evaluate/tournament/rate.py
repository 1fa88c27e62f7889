"""Rate models from votes: Elo, Bradley–Terry, the bias towards the first answer, agreement."""

from collections import Counter
from collections.abc import Sequence
from itertools import combinations
from typing import Any

import numpy as np

from evaluate.metrics.proportion import Proportion
from evaluate.result import EvalResult, report_result
from evaluate.tournament.battles import (
    Battle,
    Comparison,
    combine_votes,
    model_names,
    read_battles,
)
from evaluate.tournament.bradley_terry import bradley_terry_interval, compute_bradley_terry
from evaluate.tournament.elo import compute_elo, elo_interval
from evaluate.tournament.games import NUM_RESAMPLES, Games, build_games
from evaluate.tournament.options import RateOptions

# Fewer questions (or comparisons) than this have an interval that is too narrow, or empty.
MIN_RESAMPLED = 10


def run_rate(options: RateOptions) -> None:
    """Rate the models in files of votes; report the result."""
    report_result(rate_models(options), options.json_file)


def rate_models(options: RateOptions) -> EvalResult:
    """Return the ratings of all models in the files of votes, with all other figures."""
    battles = read_battles(options.battles)
    comparisons = combine_votes(battles)
    names = model_names(battles)
    games = build_games(comparisons, names)
    questions = {str(battle.question_id) for battle in battles if battle.question_id is not None}
    judges = sorted({battle.judge for battle in battles})
    metrics = {
        "measured": " ".join(map(str, options.battles)),
        "votes": len(battles),
        "questions": len(questions),
        "comparisons": len(comparisons),
        "both_orders": sum(len(comparison.votes) == 2 for comparison in comparisons),
        "orders_disagree": sum(comparison.orders_disagree for comparison in comparisons),
        "judges": judges,
        "bootstrap_over": "questions" if len(questions) > 1 else "comparisons",
        "resampled": len(questions) if len(questions) > 1 else len(comparisons),
        "models": _rate(games, names, comparisons, options.seed),
        "first_place": {judge: _first_place_bias(battles, judge) for judge in judges},
        "pairs_in_unequal_orders": _count_unequal_pairs(battles),
        "agreement": [
            _measure_agreement(comparisons, *two_judges) for two_judges in combinations(judges, 2)
        ],
        "separate_groups": _count_groups(games.count_wins()),
        "method": (
            "Elo: K 32, start 1000, scale 400, base 10, in sequence; its 95 % range over "
            f"{NUM_RESAMPLES:,} shuffled orders. Bradley–Terry: ties as halves, one virtual tie "
            "shared by all pairs, 400 / ln 10 points for each unit of strength, mean 1000; "
            f"percentile bootstrap, {NUM_RESAMPLES:,} resamples. Seed {options.seed}"
        ),
    }
    if any(comparison.longer_model for comparison in comparisons):
        metrics["longer_answer"] = _longer_answer_wins(comparisons)
    return EvalResult(lines=_format_report(metrics), metrics=metrics, provenance={})


def _rate(
    games: Games, names: Sequence[str], comparisons: Sequence[Comparison], seed: int
) -> list[dict[str, Any]]:
    """Return the ratings of each model with their intervals, the best by Bradley–Terry first.

    `rank` has the best and the worst rank that the intervals allow: models whose whole interval is
    above that of the model, and below it, are surely better and worse.
    """
    bradley_terry = compute_bradley_terry(games)
    lows, highs = bradley_terry_interval(games, seed)
    elo = compute_elo(games)
    elo_lows, elo_highs = elo_interval(games, seed)
    results: Counter[tuple[str, str]] = Counter()
    for comparison in comparisons:
        winner = comparison.winning_model
        for name in comparison.models:
            result = "tied" if winner is None else "won" if winner == name else "lost"
            results[name, result] += 1
    ratings = [
        {
            "model": name,
            "rank": [1 + int((lows > highs[i]).sum()), len(names) - int((highs < lows[i]).sum())],
            "bradley_terry": _rating(bradley_terry[i], lows[i], highs[i]),
            "elo": _rating(elo[i], elo_lows[i], elo_highs[i]),
            **{result: results[name, result] for result in ("won", "tied", "lost")},
        }
        for i, name in enumerate(names)
    ]
    return sorted(ratings, key=lambda rating: -rating["bradley_terry"]["rating"])


def _rating(rating: float, low: float, high: float) -> dict[str, float]:
    return {"rating": float(rating), "low": float(low), "high": float(high)}


def _first_place_bias(battles: Sequence[Battle], judge: str) -> dict[str, float]:
    """Return the share of a judge's decided votes that the answer shown first won."""
    decided = [battle for battle in battles if battle.judge == judge and battle.winner != "tie"]
    return Proportion(sum(battle.winner == "model_a" for battle in decided), len(decided)).to_json()


def _count_unequal_pairs(battles: Sequence[Battle]) -> int:
    """Return the number of pairs of models of which one was shown first more often."""
    counts = Counter((battle.model_a, battle.model_b) for battle in battles)
    pairs = {tuple(sorted(pair)) for pair in counts}
    return sum(counts[first, second] != counts[second, first] for first, second in pairs)


def _longer_answer_wins(comparisons: Sequence[Comparison]) -> dict[str, float]:
    """Return the share of decided comparisons that the longer answer won."""
    decided = [
        comparison
        for comparison in comparisons
        if comparison.longer_model is not None and comparison.winning_model is not None
    ]
    count = sum(comparison.winning_model == comparison.longer_model for comparison in decided)
    return Proportion(count, len(decided)).to_json()


def _measure_agreement(
    comparisons: Sequence[Comparison], judge_1: str, judge_2: str
) -> dict[str, Any]:
    """Return how often two judges have the same verdict on a comparison, and Cohen's kappa (1960).

    A verdict is a win of the model whose name sorts first, a tie, or a win of the other one. Kappa
    is None if both judges always have the same one verdict, which leaves it undefined.
    """
    verdicts: dict[str, dict[tuple[str, ...], str]] = {judge_1: {}, judge_2: {}}
    for comparison in comparisons:
        vote = comparison.votes[0]
        if vote.judge not in verdicts or vote.question_id is None:
            continue
        first, second = sorted(comparison.models)
        verdict = {first: "first", second: "second"}.get(comparison.winning_model or "", "tie")
        verdicts[vote.judge][str(vote.question_id), first, second] = verdict
    shared = verdicts[judge_1].keys() & verdicts[judge_2].keys()
    counts = Counter((verdicts[judge_1][key], verdicts[judge_2][key]) for key in shared)
    equal = Proportion(sum(count for (a, b), count in counts.items() if a == b), len(shared))
    by_chance = sum(
        sum(count for (a, _), count in counts.items() if a == verdict)
        * sum(count for (_, b), count in counts.items() if b == verdict)
        for verdict in ("first", "tie", "second")
    ) / max(len(shared) ** 2, 1)
    kappa = None if by_chance == 1 or not shared else (equal.rate - by_chance) / (1 - by_chance)
    return {
        "judges": [judge_1, judge_2],
        "comparisons": len(shared),
        "equal": equal.to_json(),
        "by_chance": by_chance,
        "kappa": kappa,
    }


def _count_groups(wins: np.ndarray) -> int:
    """Return the number of groups of models that no chain of games joins."""
    is_joined = (wins + wins.T > 0) | np.eye(len(wins), dtype=bool)
    # Squared so often that chains of any length are found.
    for _ in range(len(wins).bit_length()):
        is_joined = is_joined @ is_joined
    return len(np.unique(is_joined, axis=0))


def _format_report(metrics: dict[str, Any]) -> list[str]:
    """Return the lines of the report: what was judged, the table of ratings, and what to doubt."""
    models = metrics["models"]
    questions = f"{metrics['questions']:,} questions, " if metrics["questions"] else ""
    lines = [f"{metrics['measured']}: {len(models)} models, {questions}{metrics['votes']:,} votes"]
    lines += _describe_comparisons(metrics)
    width = max(len(model["model"]) for model in models) + 2
    lines.append(
        f"{'rank':7}{'model':{width}}{'Bradley–Terry (95 %)':>24}{'Elo (95 % of orders)':>29}"
        f"{'won':>8}{'tied':>8}{'lost':>8}"
    )
    for model in models:
        best, worst = model["rank"]
        rank = f"{best}" if best == worst else f"{best}–{worst}"
        cells = []
        for kind, digits in (("bradley_terry", 0), ("elo", 2)):
            rating, low, high = model[kind].values()
            cells.append(f"{rating:.{digits}f} ({low:.0f} – {high:.0f})")
        lines.append(
            f"{rank:7}{model['model']:{width}}{cells[0]:>24}{cells[1]:>29}"
            f"{model['won']:8,}{model['tied']:8,}{model['lost']:8,}"
        )
    lines += _describe_doubts(metrics)
    lines += _describe_bias(metrics)
    for agreement in metrics["agreement"]:
        lines.append(_describe_agreement(agreement))
    return lines


def _describe_comparisons(metrics: dict[str, Any]) -> list[str]:
    """Return lines about how the votes make comparisons, and what the intervals are over."""
    num_single = metrics["comparisons"] - metrics["both_orders"]
    lines = []
    if metrics["both_orders"]:
        lines.append(
            f"{metrics['both_orders']:,} comparisons in both orders: a win needs both to agree, "
            f"else it is a tie (the orders of {metrics['orders_disagree']:,} disagree)"
        )
    if num_single:
        lines.append(f"{num_single:,} comparisons in one order only, which count as voted")
    if len(metrics["judges"]) > 1:
        lines.append(f"the judges count alike: {', '.join(metrics['judges'])}")
    lines.append(
        f"intervals: Bradley–Terry over {metrics['bootstrap_over']}, Elo over the order of the "
        "comparisons; models that are all alike have 1000"
    )
    return lines


def _describe_doubts(metrics: dict[str, Any]) -> list[str]:
    """Return lines about ranks that are not certain, and ratings that are not determined."""
    lines = []
    if metrics["resampled"] < MIN_RESAMPLED:
        lines.append(
            f"not certain: any rank. The intervals are over {metrics['resampled']} "
            f"{metrics['bootstrap_over']}, and fewer than {MIN_RESAMPLED} show no doubt"
        )
    for better, worse in zip(metrics["models"], metrics["models"][1:], strict=False):
        if better["bradley_terry"]["low"] <= worse["bradley_terry"]["high"]:
            lines.append(
                f"not certain: that {better['model']} is better than {worse['model']} (their "
                "intervals overlap)"
            )
    for model in metrics["models"]:
        for never, always in (("lost", "won"), ("won", "lost")):
            if model[never] == model["tied"] == 0:
                lines.append(
                    f"{model['model']} {always} every comparison: only the virtual tie keeps its "
                    "Bradley–Terry rating finite"
                )
    if metrics["separate_groups"] > 1:
        lines.append(
            f"not comparable: no chain of comparisons joins {metrics['separate_groups']} groups of "
            "models; between them only the virtual tie decides"
        )
    return lines


def _describe_bias(metrics: dict[str, Any]) -> list[str]:
    """Return lines about what wins apart from the better answer: the first and the longer one."""
    lines = []
    for judge, bias in metrics["first_place"].items():
        verdict = "no bias beyond the interval"
        if bias["low"] > 0.5:
            verdict = "the judge prefers it"
        elif bias["high"] < 0.5:
            verdict = "the judge prefers the second"
        lines.append(
            f"first answer won {_format_share(bias)} of the decided votes of {judge}; 50 % without "
            f"a bias: {verdict}"
        )
    if metrics["pairs_in_unequal_orders"]:
        lines.append(
            f"of {metrics['pairs_in_unequal_orders']:,} pairs one model was shown first more often "
            "than the other, so that this share also depends on which models those are"
        )
    if "longer_answer" in metrics:
        lines.append(
            f"longer answer won {_format_share(metrics['longer_answer'])} of the decided "
            "comparisons; a judge that only looks at length: 100 %"
        )
    return lines


def _describe_agreement(agreement: dict[str, Any]) -> str:
    """Return a line about how far two judges agree."""
    judges = " and ".join(agreement["judges"])
    if not agreement["comparisons"]:
        return f"{judges} have no question and pair of models in common: no agreement is measured"
    kappa = agreement["kappa"]
    kappa_text = "is undefined: they have one verdict only" if kappa is None else f"{kappa:.2f}"
    return (
        f"{judges} have equal verdicts on {_format_share(agreement['equal'])} of "
        f"{agreement['comparisons']:,} comparisons, {100 * agreement['by_chance']:.1f} % by "
        f"chance; Cohen's kappa {kappa_text}"
    )


def _format_share(share: dict[str, float]) -> str:
    """Return a share such as `60.6 % (53.9 – 66.9)`."""
    return f"{100 * share['rate']:.1f} % ({100 * share['low']:.1f} – {100 * share['high']:.1f})"
