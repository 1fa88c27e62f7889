"""Judge pairs of answers: by a model behind an endpoint, or by a person in the terminal."""

import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from common.errors import UserError
from common.progress import progress_bar
from evaluate.tournament.battles import read_battles, write_battles
from evaluate.tournament.endpoint import Endpoint, RequestRefused
from evaluate.tournament.options import JudgeOptions
from evaluate.tournament.person import Person
from evaluate.tournament.prompts import build_prompt, parse_scores
from evaluate.tournament.questions import read_answers
from evaluate.tournament.replies import Replies, hash_request, open_replies
from evaluate.tournament.schedule import Showing, build_showings, draw_sequence

# An endpoint that refuses the first requests, this many, refuses all of them.
MAX_REFUSALS = 20
# Characters that are about one token each; of others, about four are one.
_CHINESE = re.compile("[\u3000-\u9fff\uf900-\uffef]")
_LATIN_PER_TOKEN = 4
Vote = dict[str, Any]


def run_judge(options: JudgeOptions) -> None:
    """Have all pairs of answers judged, and write the votes.

    Raises UserError if the models have no question in common, if the file of votes has those of
    another judge, or if the endpoint fails; the replies so far are kept.
    """
    questions, models = read_answers(options.answers)
    showings = build_showings(questions[: options.limit], models)
    if not showings:
        raise UserError("--answers: no question has the answers of two models")
    judge = options.judge or "person"
    _check_votes_of_judge(options.battles, judge)
    num_questions = len({showing.question.key for showing in showings})
    print(
        f"{len(models)} models, {num_questions:,} questions that at least two of them answered, "
        f"{len(showings) // 2:,} comparisons in both orders: {len(showings):,} votes"
    )
    replies_path = options.battles.with_name(options.battles.name + ".replies")
    if options.dry_run:
        _print_dry_run(showings, options, Replies(replies_path))
        return
    with open_replies(replies_path) as replies:
        if options.person:
            votes = _judge_by_person(draw_sequence(showings, options.seed), judge, replies)
        else:
            votes = _judge_by_endpoint(showings, options, replies)
        if votes:
            write_battles(options.battles, votes)
            print(f"{options.battles}: {len(votes):,} votes; rate the models with")
            print(f"  python -m evaluate.tournament rate --battles {options.battles}")


def _check_votes_of_judge(path: Path, judge: str) -> None:
    """Raise UserError if a file exists that is not one of votes by this judge alone."""
    if not path.is_file():
        return
    others = {battle.judge for battle in read_battles([path])} - {judge}
    if others:
        raise UserError(
            f"--battles {path} has the votes of {sorted(others)[0]}; name another file for those "
            f"of {judge} (rate reads several)"
        )


def _build_body(showing: Showing, options: JudgeOptions) -> dict[str, Any]:
    """Return the body of the request that asks for the scores of two answers."""
    prompt = build_prompt(
        showing.question.text, showing.question.category, showing.answer_a, showing.answer_b
    )
    body = {"model": options.judge, "messages": [{"role": "user", "content": prompt}]}
    for name in ("temperature", "max_tokens"):
        value = getattr(options, name)
        if value is not None:
            body[name] = value
    return body


def _judge_by_endpoint(
    showings: Sequence[Showing], options: JudgeOptions, replies: Replies
) -> list[Vote]:
    """Return the votes of a model behind an endpoint.

    If one of the two orders of a comparison has no scores, the vote on the other order is left out
    too, and the numbers are printed. Raises UserError if no comparison has scores in both orders.
    """
    scores = [
        None if reply is None else parse_scores(reply)
        for reply in _ask_endpoint(showings, options, replies)
    ]
    votes: list[Vote] = []
    # The two orders of a comparison are next to each other.
    for index in range(0, len(showings), 2):
        both = [
            _build_vote(showing, str(options.judge), *pair)
            for showing, pair in zip(
                showings[index : index + 2], scores[index : index + 2], strict=True
            )
            if pair is not None
        ]
        votes += both if len(both) == 2 else []
    num_comparisons = len(showings) // 2
    num_lost = num_comparisons - len(votes) // 2
    if num_lost:
        print(f"so {num_lost:,} of {num_comparisons:,} comparisons are left out")
    if not votes:
        raise UserError(
            f"no comparison has scores in both orders; {replies.path} has the replies: take "
            "another judge, or a larger --max_tokens"
        )
    return votes


def _ask_endpoint(
    showings: Sequence[Showing], options: JudgeOptions, replies: Replies
) -> list[str | None]:
    """Return the reply to every showing, None if the endpoint refuses it; ask for those missing.

    Prints how many have no scores. Raises UserError if the endpoint fails, or refuses everything.
    """
    assert options.endpoint is not None and options.judge is not None
    key = os.environ.get(options.key_variable, "").strip()
    if not re.fullmatch("[!-~]*", key):
        raise UserError(
            f"{options.key_variable} is no key: a key has only visible ASCII characters"
        )
    endpoint = Endpoint(options.endpoint, key, options.key_variable, options.timeout)
    texts: list[str | None] = []
    refusals: list[str] = []
    with progress_bar("judging", len(showings), "votes") as bar:
        for showing in showings:
            body = _build_body(showing, options)
            request_key = hash_request([options.endpoint, body])
            text = replies.get(request_key)
            if text is None:
                try:
                    text = endpoint.ask(body)
                    replies.add(request_key, text, **_describe(showing, options.judge))
                except RequestRefused as refusal:
                    refusals.append(str(refusal))
            texts.append(text)
            if len(refusals) == len(texts) == MAX_REFUSALS:
                break
            bar.update()
    if len(refusals) == len(texts):
        raise UserError(f"{options.endpoint} refuses every request: {refusals[0]}")
    num_unreadable = sum(text is not None and parse_scores(text) is None for text in texts)
    if num_unreadable:
        print(f"left out, no two scores on the first line: {num_unreadable:,} replies")
    if refusals:
        print(f"left out, refused by the endpoint: {len(refusals):,} requests ({refusals[0]})")
    return texts


def _build_vote(showing: Showing, judge: str, score_a: float, score_b: float) -> Vote:
    """Return the vote of a judge that gives scores."""
    winner = "tie" if score_a == score_b else "model_a" if score_a > score_b else "model_b"
    return {
        **_describe(showing, judge),
        "winner": winner,
        "score_a": score_a,
        "score_b": score_b,
        **_lengths(showing),
    }


def _judge_by_person(showings: Sequence[Showing], judge: str, replies: Replies) -> list[Vote]:
    """Let a person judge every showing that has no vote yet; return the votes so far."""
    person = Person(len(showings))
    votes: list[Vote] = []
    is_stopped = False
    for number, showing in enumerate(showings, 1):
        request_key = hash_request(
            [judge, showing.question.text, showing.answer_a, showing.answer_b]
        )
        winner = replies.get(request_key)
        if winner is None and not is_stopped:
            winner = person.judge(number, showing)
            is_stopped = winner is None
            if winner is not None:
                replies.add(request_key, winner, **_describe(showing, judge))
        if winner is not None:
            votes.append({**_describe(showing, judge), "winner": winner, **_lengths(showing)})
    if is_stopped:
        print(f"{len(votes):,} of {len(showings):,} votes; run the same command again to go on")
    return votes


def _describe(showing: Showing, judge: str) -> dict[str, Any]:
    return {
        "question_id": showing.question.question_id,
        "category": showing.question.category,
        "model_a": showing.model_a,
        "model_b": showing.model_b,
        "judge": judge,
    }


def _lengths(showing: Showing) -> dict[str, int]:
    return {"characters_a": len(showing.answer_a), "characters_b": len(showing.answer_b)}


def _print_dry_run(showings: Sequence[Showing], options: JudgeOptions, replies: Replies) -> None:
    """Print the first request that would be sent, how many there are, and about how many tokens."""
    bodies = [_build_body(showing, options) for showing in showings]
    by_key = {hash_request([options.endpoint, body]): body for body in bodies}
    missing = [body for key, body in by_key.items() if replies.get(key) is None]
    prompts = [body["messages"][0]["content"] for body in missing]
    if prompts:
        print(f"the first request, to {options.endpoint} as {options.judge}:\n\n{prompts[0]}\n")
    prompt_tokens = sum(map(estimate_tokens, prompts))
    reply_tokens = "no limit of tokens in"
    if options.max_tokens is not None:
        reply_tokens = f"at most {options.max_tokens * len(missing):,} tokens in"
    print(
        f"{len(missing):,} requests ({len(by_key) - len(missing):,} were answered before), about "
        f"{prompt_tokens:,} tokens in the prompts, {reply_tokens} the replies; nothing was sent"
    )


def estimate_tokens(text: str) -> int:
    """Return about how many tokens a text has for a large model: tokenizers differ by a third."""
    num_chinese = len(_CHINESE.findall(text))
    return num_chinese + (len(text) - num_chinese + _LATIN_PER_TOKEN - 1) // _LATIN_PER_TOKEN
