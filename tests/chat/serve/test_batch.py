"""Sequences decoded together give the answers that they give alone."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from chat import load_model
from chat.serve.sequence import OVERFLOW_MESSAGE, Failure, Finish
from chat.terminal.session import Session
from model.decode.generate import generate
from model.decode.inference_model import inference_model
from model.decode.lm_head import LMHead
from model.decode.prompt_lookup import PromptLookup
from model.decode.sampling import Sampling
from model.interop.hf_import import import_hf
from tests.chat.serve.conftest import (
    GREEDY,
    SAMPLED,
    TrackedRequest,
    generate_alone,
    make_prompts,
    new_scheduler,
    new_sequence,
    run_batch,
)
from tests.helpers import hf_checkpoints


@pytest.mark.slow
@pytest.mark.parametrize(
    "samplings",
    [[GREEDY], [SAMPLED], [GREEDY, GREEDY, SAMPLED]],
    ids=["greedy", "sampled", "mixed"],
)
def test_answers_in_changing_batch_match_single_answers(
    loaded_model: load_model.LoadedModel, samplings: list[Sampling]
) -> None:
    """Prevents an answer that depends on the other sequences, or on when they come and go."""
    tracked_requests = [
        TrackedRequest(prompt, 5 + 11 * n % 40, samplings[n % len(samplings)], seed=n)
        for n, prompt in enumerate(make_prompts(loaded_model.tokenizer, 14))
    ]
    scheduler = new_scheduler(loaded_model)
    scheduler.max_rows = 6
    waiting = list(tracked_requests)
    largest_batch = 0
    for step in range(200):
        if step % 3 == 0:
            for _ in range(min(len(waiting), 1 + step % 2)):
                scheduler.add(new_sequence(loaded_model, waiting.pop()))
        scheduler.step()
        largest_batch = max(largest_batch, len(scheduler.running))
        if not waiting and not scheduler.has_work:
            break
    assert largest_batch == 6
    for tracked in tracked_requests:
        text, finish = tracked.result()
        assert text == generate_alone(loaded_model, tracked.request)
        assert isinstance(finish, Finish) and finish.finish_reason in ("length", "eos")


@pytest.mark.slow
def test_logits_are_computed_only_if_a_sequence_needs_them(endless: Path) -> None:
    """Prevents unnecessary logits for greedy sequences, and penalties ignored for them."""
    loaded_model = load_model.load_chat_model(endless, torch.device("cpu"), "fp32")
    head = inference_model(loaded_model.model).head

    def answer(**penalty: float) -> str:
        """Return the answer of a sequence beside one without penalties."""
        tracked = TrackedRequest([1, 9], 50, **penalty)
        run_batch(loaded_model, TrackedRequest([1, 8], 5), tracked)
        return tracked.result()[0]

    without_penalty = answer()
    assert without_penalty == generate_alone(loaded_model, TrackedRequest([1, 9], 50).request)
    assert head._transposed_weight is None and head._argmax_filter is not None
    with_penalty = {answer(frequency_penalty=2.0), answer(presence_penalty=-2.0)}
    assert len({without_penalty, *with_penalty}) == 3
    assert head._transposed_weight is not None


@pytest.mark.slow
def test_answer_stops_at_context_length(loaded_model: load_model.LoadedModel) -> None:
    """Prevents positions that the model was never trained on."""
    tracked = TrackedRequest(make_prompts(loaded_model.tokenizer, 3)[2] * 4, 5000)
    run_batch(loaded_model, tracked)
    num_positions = loaded_model.context_length - len(tracked.request.prompt)
    expected_text = generate_alone(loaded_model, tracked.request)
    assert tracked.result() == (expected_text, Finish("context", num_positions))


def test_answer_stops_at_any_stop_id(
    loaded_model: load_model.LoadedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Prevents a Llama 3, whose turns end with <|eot_id|>, from going on after one."""
    prompt = make_prompts(loaded_model.tokenizer, 3)[2]
    ids = list(generate(loaded_model.model, prompt, GREEDY, max_new_tokens=20))
    stop_position = ids.index(ids[7])
    config = replace(loaded_model.model.config, more_stop_ids=(9999, ids[stop_position]))
    monkeypatch.setattr(loaded_model.model, "config", config)
    tracked = TrackedRequest(prompt, 20)
    run_batch(loaded_model, tracked)
    expected_text = loaded_model.tokenizer.decode(ids[:stop_position])
    assert tracked.result() == (expected_text, Finish("eos", stop_position))


@pytest.mark.slow
@pytest.mark.parametrize("text", ["一座山", " 一座", "two words"])
def test_same_ids_are_the_same_text_in_server_and_chat(
    text: str, root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Prevents a space before answers in one of them, where a tokenizer begins texts with one."""
    backend = hf_checkpoints.legacy_llama2_tokenizer(root)
    hf_checkpoints.save_hf_checkpoint(tmp_path / "hf", backend, ("<s>\ufdd0", "</s>\ufdd0"))
    import_hf(tmp_path / "hf", tmp_path / "run")
    loaded_model = load_model.load_chat_model(tmp_path / "run", torch.device("cpu"), "fp32")
    tokenizer = loaded_model.tokenizer
    ids = tokenizer.encode(text)
    assert tokenizer.decode_bytes(ids).decode() == " " + text
    answers = iter([*ids, tokenizer.eos_id] * 3)
    monkeypatch.setattr(LMHead, "argmax", lambda *_: torch.tensor([next(answers)]))
    # One id at a time, as `answers` gives them.
    monkeypatch.setattr(PromptLookup, "draft", lambda *_: [])
    session = Session(loaded_model, GREEDY, max_new_tokens=40, seed=0)
    prompt = session.build_prompt("问")
    assert "".join(session.stream_answer(prompt)) == text
    for stop_strings in ([], ["<never>"]):
        tracked = TrackedRequest(prompt.ids, 40)
        tracked.request.stop_strings = stop_strings
        run_batch(loaded_model, tracked)
        assert tracked.result() == (text, Finish("eos", len(ids)))


def test_answer_stops_before_a_stop_string(loaded_model: load_model.LoadedModel) -> None:
    """Prevents an answer that goes on in the batch after its stop string."""
    tracked = TrackedRequest(make_prompts(loaded_model.tokenizer, 2)[1], 40)
    whole_text = generate_alone(loaded_model, tracked.request)
    stop_string = whole_text[12:15]
    tracked.request.stop_strings = ["不会有的", stop_string]
    run_batch(loaded_model, tracked)
    text, finish = tracked.result()
    assert text == whole_text[: whole_text.index(stop_string)]
    assert isinstance(finish, Finish)
    assert finish.finish_reason == "stop" and finish.num_tokens < 40


@pytest.mark.parametrize(
    ("logits", "expected_id"),
    # Id 5 was generated twice, 400 once, 401 never (but it is in the prompt): the penalties are
    # 2 * 0.5 + 0.25 = 1.25, 0.75 and 0.
    [((2.0, 1.45, 0.8), 401), ((2.06, 1.45, 0.8), 5), ((2.0, 1.56, 0.8), 400)],
)
def test_penalties_follow_openai_protocol(
    loaded_model: load_model.LoadedModel, logits: tuple[float, ...], expected_id: int
) -> None:
    """Prevents a penalty on the prompt, of the wrong sign, or that ignores the count."""
    tracked = TrackedRequest([1, 401, 401], 9, frequency_penalty=0.5, presence_penalty=0.25)
    sequence = new_sequence(loaded_model, tracked)
    for token_id in (5, 5, 400):
        one_hot = torch.full((10_000,), -9.0).index_fill(0, torch.tensor(token_id), 9.0)
        sequence.append(sequence.choose(one_hot))
    last_logits = torch.full((10_000,), -9.0)
    last_logits[[5, 400, 401]] = torch.tensor(logits)
    sequence.append(sequence.choose(last_logits))
    assert sequence.ids == [5, 5, 400, expected_id]


@pytest.mark.parametrize("sampling", [GREEDY, SAMPLED], ids=["greedy", "sampled"])
@torch.inference_mode()
def test_overflow_fails_only_its_sequence(
    loaded_model: load_model.LoadedModel, sampling: Sampling
) -> None:
    """Prevents nonsense from logits that are not finite, and one bad row that ends the others."""
    good = TrackedRequest([1, 9], 4, sampling)
    bad = TrackedRequest([1, 8], 4, sampling)
    scheduler = new_scheduler(loaded_model, good, bad)
    scheduler.step()
    assert scheduler._batch is not None
    scheduler._batch.cache.values[:, 1] = torch.inf
    while scheduler.has_work:
        scheduler.step()
    assert bad.result()[1] == Failure(500, OVERFLOW_MESSAGE)
    assert good.result() == (generate_alone(loaded_model, good.request), Finish("length", 4))
