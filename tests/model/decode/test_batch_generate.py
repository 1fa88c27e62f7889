"""Answers of batches are those of each prompt alone, and those of transformers."""

import random
from typing import Any

import pytest
import torch

from model.decode import batched_inference
from model.decode.batch_generate import DecodedAnswer, generate_batch
from model.decode.fast.model import FastModel
from model.decode.generate import generate
from model.decode.lm_head import LMHead
from model.decode.logits_processors import build_logits_processors
from model.decode.sampling import Sampling
from model.llama import Llama
from tests.helpers.random_llama import SHAPES, random_llama

# Stop ids likely enough that some answers end with them.
STOP_WEIGHT = 3.0


def random_prompts(
    count: int, shortest: int = 1, longest: int = 40, seed: int = 0
) -> list[list[int]]:
    """Return prompts of random lengths, each beginning with id 1."""
    draw = random.Random(seed)
    lengths = [draw.randint(shortest, longest) for _ in range(count)]
    return [[1, *(draw.randrange(3, 300) for _ in range(length - 1))] for length in lengths]


def build_transformers_model(model: Llama) -> Any:
    """Return the same weights in transformers."""
    from transformers import AutoModelForCausalLM
    from transformers import LlamaConfig as TheirConfig

    theirs: Any = AutoModelForCausalLM.from_config(TheirConfig(**model.config.to_hf())).eval()
    theirs.load_state_dict(model.state_dict())
    return theirs


def transformers_answer(
    theirs: Any,
    prompt: list[int],
    max_new_tokens: int,
    *,
    num_beams: int = 1,
    length_penalty: float = 1.0,
    repetition_penalty: float = 1.0,
    no_repeat_ngram: int = 0,
    novelty_penalty: float = 0.0,
) -> DecodedAnswer:
    """Return transformers' answer, with its own penalties applied to the answer alone.

    It has no penalty for ids that the prompt does not have; that is added here.
    """
    from transformers import NoRepeatNGramLogitsProcessor, RepetitionPenaltyLogitsProcessor

    processors: list[Any] = []
    if repetition_penalty != 1.0:
        processors.append(RepetitionPenaltyLogitsProcessor(repetition_penalty))
    if no_repeat_ngram:
        processors.append(NoRepeatNGramLogitsProcessor(no_repeat_ngram))

    eos = theirs.config.eos_token_id
    stop_ids = eos if isinstance(eos, list) else [eos]
    is_new = torch.tensor(
        [token_id not in {*prompt, *stop_ids} for token_id in range(theirs.config.vocab_size)]
    )

    def process_without_prompt(ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        for processor in processors:
            scores = processor(ids[:, len(prompt) :], scores)
        return scores - novelty_penalty * is_new

    output = theirs.generate(
        torch.tensor([prompt]),
        max_new_tokens=max_new_tokens,
        do_sample=False,
        pad_token_id=0,
        num_beams=num_beams,
        length_penalty=length_penalty,
        logits_processor=[process_without_prompt],
    )
    ids = output[0, len(prompt) :].tolist()
    end = next((place for place, token_id in enumerate(ids) if token_id in stop_ids), None)
    return DecodedAnswer(ids[:end], end is not None)


def are_varied(answers: list[DecodedAnswer]) -> bool:
    """Return whether lengths differ and some answers end with a stop id, as a test needs."""
    lengths = {len(answer.ids) for answer in answers}
    return len(lengths) > 2 and any(answer.reached_stop_id for answer in answers)


SEARCHES: list[tuple[str, dict[str, Any]]] = [
    *(
        (shape, {"num_beams": num_beams})
        for shape in ("grouped-query", "tied", "linear rope", "yarn rope", "several stop ids")
        for num_beams in (1, 3)
    ),
    ("grouped-query", {"num_beams": 4, "length_penalty": 0.3}),
    ("tied", {"num_beams": 2, "length_penalty": 1.2}),
    *(
        ("grouped-query", {"num_beams": num_beams, **penalty})
        for num_beams in (1, 3)
        for penalty in (
            {"repetition_penalty": 1.3},
            {"no_repeat_ngram": 1},
            {"no_repeat_ngram": 2},
            {"novelty_penalty": 1.5},
        )
    ),
]


@pytest.mark.slow
@pytest.mark.parametrize(("shape", "options"), SEARCHES, ids=str)
def test_answers_match_transformers(shape: str, options: dict[str, Any]) -> None:
    """Prevents visible padding, positions that count it, another beam's cache, other scores."""
    model, prompts = (
        random_llama(stop_weight=STOP_WEIGHT, **SHAPES[shape]),
        random_prompts(5, seed=9),
    )
    theirs = build_transformers_model(model)
    expected = [transformers_answer(theirs, prompt, 24, **options) for prompt in prompts]
    assert len({len(answer.ids) for answer in expected}) > 1
    search = {
        key: value
        for key, value in options.items()
        if key in ("num_beams", "length_penalty", "novelty_penalty")
    }
    penalties = {key: value for key, value in options.items() if key not in search}
    processors = build_logits_processors(**penalties)
    ours = generate_batch(
        model, prompts, max_new_tokens=24, batch_size=3, processors=processors, **search
    )
    assert ours == expected
    if len(options) > 1:
        num_beams = options["num_beams"]
        plain = generate_batch(model, prompts, max_new_tokens=24, num_beams=num_beams)
        assert plain != expected, "the option changes nothing here"


@pytest.mark.slow
@pytest.mark.parametrize("num_beams", [1, 3])
@pytest.mark.parametrize(
    ("penalties", "novelty_penalty"),
    [({}, 0.0), ({"repetition_penalty": 1.2, "no_repeat_ngram": 2}, 0.0), ({}, 1.5)],
    ids=["none", "penalties", "novelty"],
)
def test_answers_are_independent_of_the_batch(
    monkeypatch: pytest.MonkeyPatch,
    num_beams: int,
    penalties: dict[str, Any],
    novelty_penalty: float,
) -> None:
    """Prevents scores that depend on the other articles, the batch size, or the host's syncs."""
    model, prompts = random_llama(stop_weight=STOP_WEIGHT), random_prompts(24, longest=70, seed=1)
    options: dict[str, Any] = {
        "max_new_tokens": 26,
        "num_beams": num_beams,
        "processors": build_logits_processors(**penalties),
        "novelty_penalty": novelty_penalty,
    }
    alone = [generate_batch(model, [prompt], **options)[0] for prompt in prompts]
    assert are_varied(alone)
    for batch_size, interval in ((5, 1), (64, 1), (24, 8)):
        monkeypatch.setattr(
            batched_inference, "host_sync_interval", lambda _, interval=interval: interval
        )
        progress: list[int] = []
        answers = generate_batch(
            model, prompts, batch_size=batch_size, on_progress=progress.append, **options
        )
        assert answers == alone
        assert sum(progress) == 24 and max(progress) <= batch_size


@pytest.mark.parametrize("stop_ids", [(), (7, 40)])
def test_greedy_answers_match_generate(stop_ids: tuple[int, ...]) -> None:
    """Prevents a chat that shows other answers than the evaluation scored."""
    model = random_llama(stop_weight=STOP_WEIGHT, more_stop_ids=stop_ids)
    prompts = random_prompts(12, seed=2)
    greedy = Sampling(temperature=0.0)
    single = [list(generate(model, ids, greedy, max_new_tokens=30)) for ids in prompts]
    assert [answer.ids for answer in generate_batch(model, prompts, max_new_tokens=30)] == single


@pytest.mark.slow
@pytest.mark.parametrize("num_beams", [1, 3])
def test_answers_end_at_the_context_length(num_beams: int) -> None:
    """Prevents positions past the model's last one: every row has its own end."""
    model = random_llama(max_position_embeddings=64, stop_weight=0.0)
    # Rows that are finished early and too few to be dropped, so they wait in the batch.
    prompts = [[1] * length for length in (64, 63, 60, *range(10, 20))]
    options: dict[str, Any] = {"max_new_tokens": 20, "num_beams": num_beams}
    answers = generate_batch(model, prompts, **options)
    assert [len(answer.ids) for answer in answers] == [0, 1, 4] + [20] * 10
    assert not any(answer.reached_stop_id for answer in answers)
    assert answers == [generate_batch(model, [prompt], **options)[0] for prompt in prompts]
    no_answers = generate_batch(model, prompts, max_new_tokens=0, num_beams=num_beams)
    assert no_answers == [DecodedAnswer([], False)] * 13


@pytest.mark.parametrize("prompt", [[], [1] * 97])
def test_empty_or_too_long_prompts_raise(prompt: list[int]) -> None:
    """Prevents a crash inside attention, far from its cause."""
    with pytest.raises(ValueError, match="prompt 1 has"):
        generate_batch(random_llama(), [[1], prompt], max_new_tokens=3)


@pytest.fixture
def processed_ids(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Record how many ids each call of the model processes."""
    counts: list[int] = []
    prefill, decode_step = FastModel.prefill, FastModel.decode_step

    def count_prefill(self: FastModel, ids: torch.Tensor, *args: Any) -> torch.Tensor:
        counts.append(ids.numel())
        return prefill(self, ids, *args)

    def count_decode_step(self: FastModel, ids: torch.Tensor, *args: Any) -> torch.Tensor:
        counts.append(ids.numel())
        return decode_step(self, ids, *args)

    monkeypatch.setattr(FastModel, "prefill", count_prefill)
    monkeypatch.setattr(FastModel, "decode_step", count_decode_step)
    return counts


@pytest.mark.slow
@pytest.mark.parametrize("num_beams", [1, 3])
def test_finished_rows_are_dropped(processed_ids: list[int], num_beams: int) -> None:
    """Prevents one long answer that occupies the whole batch."""
    prompts = random_prompts(32, shortest=20, longest=20)
    answers = generate_batch(
        random_llama(stop_weight=STOP_WEIGHT),
        prompts,
        max_new_tokens=60,
        num_beams=num_beams,
        batch_size=32,
    )
    assert processed_ids[0] == 32 * 20
    assert are_varied(answers)
    needed = num_beams * sum(len(answer.ids) + answer.reached_stop_id for answer in answers)
    without_dropping = num_beams * 32 * max(len(answer.ids) for answer in answers)
    assert sum(processed_ids[1:]) < needed * 1.6 < without_dropping
    if num_beams == 1:
        # The first id of an answer comes from its prompt.
        assert sum(processed_ids[1:]) == needed - 32


@pytest.mark.parametrize("num_beams", [1, 3])
def test_rows_at_the_context_length_are_dropped(processed_ids: list[int], num_beams: int) -> None:
    """Prevents work on prompts that left no room for an answer."""
    model = random_llama(stop_weight=0.0)
    prompts = [[1] * length for length in [95] * 12 + [20] * 4]
    generate_batch(model, prompts, max_new_tokens=20, num_beams=num_beams)
    assert processed_ids == [16 * 95, *[4 * num_beams] * 19]


@pytest.mark.parametrize("name", ["logits", "argmax"])
def test_prefill_computes_logits_of_the_last_position_only(
    monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """Prevents logits of every prompt position: most of the work with a large vocabulary."""
    rows: list[int] = []
    original = getattr(LMHead, name)

    def count(self: LMHead, hidden: torch.Tensor) -> torch.Tensor:
        rows.append(len(hidden))
        return original(self, hidden)

    monkeypatch.setattr(LMHead, name, count)
    penalty = 1.0 if name == "argmax" else 1.1
    processors = build_logits_processors(repetition_penalty=penalty)
    generate_batch(random_llama(), random_prompts(8), max_new_tokens=5, processors=processors)
    assert rows[0] == 8 and max(rows) == 8
