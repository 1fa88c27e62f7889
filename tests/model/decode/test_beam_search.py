"""Beam search. Its equality with transformers is tested in test_batch_generate.py."""

import torch

from model.decode.batch_generate import DecodedAnswer, generate_batch
from model.decode.beam_search import BeamState, beam_search
from tests.helpers.random_llama import random_llama, random_prompts

STOP_WEIGHT = 3.0


def test_finished_beams_do_not_change() -> None:
    """Prevents an answer that a prompt gets only because it waits in its batch."""
    state = BeamState([5], 1, [2], torch.device("cpu"))
    state.advance(0, torch.tensor([[-1.5, -9.0, -1.0]]), 1.0)
    assert not state.is_active and state.finished_scores.tolist() == [[-1.0]]
    # With twice the length, ids 0 and 2 would score (-1.5 - 0.01) / 2.
    state.advance(1, torch.tensor([[-5.0, -9.0, -0.01]]), 1.0)
    assert state.finished_scores.tolist() == [[-1.0]] and state.finished[0, 0, 0] == 2


def test_beam_search_scores_higher_than_greedy() -> None:
    """Prevents a beam search that is greedy search in disguise."""
    model = random_llama(stop_weight=STOP_WEIGHT)
    prompts = random_prompts([5, 9, 30, 12, 1, 22, 40, 3, 17, 8, 26, 14])

    def score(prompt: list[int], answer: DecodedAnswer) -> float:
        ids = [*answer.ids, *([2] if answer.reached_stop_id else [])]
        with torch.no_grad():
            logits = model(torch.tensor([prompt + ids]))[0, len(prompt) - 1 : -1].log_softmax(-1)
        return float(logits.gather(1, torch.tensor(ids)[:, None]).mean())

    greedy = generate_batch(model, prompts, max_new_tokens=12)
    beams = generate_batch(model, prompts, max_new_tokens=12, num_beams=4)
    gains = [
        score(prompt, wide) - score(prompt, narrow)
        for prompt, narrow, wide in zip(prompts, greedy, beams, strict=True)
    ]
    assert sum(gains) / len(gains) > 0.05 and sum(gain > 1e-4 for gain in gains) >= 4


def test_one_beam_is_greedy_search() -> None:
    """Prevents another rule for the end: a single beam ends with its first stop id."""
    model = random_llama(stop_weight=STOP_WEIGHT)
    prompts = random_prompts([5, 9, 30, 12, 1, 22])
    with torch.inference_mode():
        generated, has_answer = beam_search(
            model, prompts, [20] * 6, num_beams=1, length_penalty=1.0, processors=()
        )
    assert has_answer.all()
    answers = generate_batch(model, prompts, max_new_tokens=20)
    for row, answer in zip(generated.tolist(), answers, strict=True):
        assert row[: len(answer.ids)] == answer.ids
        assert not answer.reached_stop_id or row[len(answer.ids)] == 2


def test_output_that_is_not_finite_is_no_answer() -> None:
    """Prevents an overflow that counts as an answer which the model ended by itself."""
    model = random_llama(stop_weight=STOP_WEIGHT)
    prompts = random_prompts([5, 9, 12])
    expected = generate_batch(model, prompts, max_new_tokens=8, num_beams=3)
    used_ids = {token_id for prompt in prompts for token_id in prompt}
    used_ids.update(*(answer.ids for answer in expected))
    bad_id = next(token_id for token_id in range(3, 99) if token_id not in used_ids)
    with torch.no_grad():
        model.model.embed_tokens.weight[bad_id] = torch.nan
    prompts[1][4] = bad_id
    answers = generate_batch(model, prompts, max_new_tokens=8, num_beams=3)
    assert answers == [expected[0], DecodedAnswer([], reached_stop_id=False), expected[2]]
    # What was finished before stays the answer.
    state = BeamState([5], 2, [2], torch.device("cpu"))
    state.advance(0, torch.tensor([[-1.5, -9.0, -1.0]]).repeat(2, 1), 1.0)
    assert state.is_active and state.finished_scores.tolist() == [[-1.0, -torch.inf]]
    state.advance(1, torch.tensor([[-1.5, -9.0, torch.nan]]).repeat(2, 1), 1.0)
    assert not state.is_active and state.finished_scores.tolist() == [[-1.0, -torch.inf]]
