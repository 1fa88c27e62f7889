"""Answers decoded many at a time are those of each prompt alone, and those of transformers."""

import random
from typing import Any

import pytest
import torch

from model.config import LlamaConfig
from model.decode import batched_inference
from model.decode.batch_generate import DecodedAnswer, generate_batch
from model.decode.beam_search import BeamState, beam_search
from model.decode.fast.inference_model import InferenceModel
from model.decode.fast.lm_head import LMHead
from model.decode.generate import Sampling, generate
from model.decode.kv_cache import KVCache
from model.decode.logits_processors import (
    RepetitionPenalties,
    apply_repetition_penalty,
    banned_ngram_tokens,
)
from model.llama import Llama

SHAPES: dict[str, dict[str, Any]] = {
    "grouped": {"hidden_size": 48, "num_attention_heads": 4, "num_key_value_heads": 2},
    "plain": {
        "hidden_size": 64,
        "num_attention_heads": 4,
        "num_key_value_heads": 4,
        "tie_word_embeddings": True,
    },
    "scaled": {
        "hidden_size": 32,
        "num_attention_heads": 4,
        "num_key_value_heads": 1,
        "rope_scaling": {"rope_type": "linear", "factor": 4.0},
    },
    "several stops": {"more_stop_ids": (7, 40)},
}


def random_model(seed: int = 4, **shape: Any) -> Llama:
    """Random weights large enough that logits differ, and an `<eos>` likely enough that some answers end."""
    config = LlamaConfig(
        **{
            "vocab_size": 300,
            "intermediate_size": 96,
            "num_hidden_layers": 2,
            "max_position_embeddings": 96,
            **SHAPES["grouped"],
            **shape,
        }
    )
    model = Llama(config).init_weights(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(4.0)
        model.lm_head.weight[list(config.stop_ids)] *= 1.5
    return model.eval()


@pytest.fixture(scope="module")
def model() -> Llama:
    return random_model()


def peer(model: Llama) -> Any:
    """The same weights in transformers."""
    from transformers import AutoModelForCausalLM
    from transformers import LlamaConfig as TheirConfig

    theirs: Any = AutoModelForCausalLM.from_config(TheirConfig(**model.config.to_hf())).eval()
    theirs.load_state_dict(model.state_dict())
    return theirs


def prompts(count: int, shortest: int = 1, longest: int = 40, seed: int = 0) -> list[list[int]]:
    draw = random.Random(seed)
    return [
        [1, *(draw.randrange(3, 300) for _ in range(draw.randint(shortest, longest) - 1))]
        for _ in range(count)
    ]


def reference(
    theirs: Any,
    prompt: list[int],
    limit: int,
    *,
    beams: int = 1,
    repetition_penalty: float = 1.0,
    no_repeat_ngram: int = 0,
    length_penalty: float = 1.0,
) -> DecodedAnswer:
    """What transformers answers, its own penalties shown only the answer: it would count the prompt as well."""
    from transformers import NoRepeatNGramLogitsProcessor, RepetitionPenaltyLogitsProcessor

    rules: list[Any] = []
    if repetition_penalty != 1.0:
        rules.append(RepetitionPenaltyLogitsProcessor(repetition_penalty))
    if no_repeat_ngram:
        rules.append(NoRepeatNGramLogitsProcessor(no_repeat_ngram))

    def penalise(ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        for rule in rules:
            scores = rule(ids[:, len(prompt) :], scores)
        return scores

    ids = theirs.generate(
        torch.tensor([prompt]),
        max_new_tokens=limit,
        do_sample=False,
        pad_token_id=0,
        num_beams=beams,
        length_penalty=length_penalty,
        logits_processor=[penalise],
    )[0, len(prompt) :].tolist()
    stops = (
        theirs.config.eos_token_id
        if isinstance(theirs.config.eos_token_id, list)
        else [theirs.config.eos_token_id]
    )
    end = next((place for place, index in enumerate(ids) if index in stops), None)
    return DecodedAnswer(ids[:end], end is not None)


def varied(answers: list[DecodedAnswer]) -> bool:
    """The answers have several lengths and some end by `<eos>`: that others agree with them is worth something."""
    return len({len(answer.ids) for answer in answers}) > 2 and any(
        answer.reached_stop_id for answer in answers
    )


CASES: list[tuple[str, dict[str, Any]]] = [
    *((shape, {"beams": beams}) for shape in SHAPES for beams in (1, 3)),
    ("grouped", {"beams": 4, "length_penalty": 0.3}),
    ("plain", {"beams": 2, "length_penalty": 1.2}),
    *(("grouped", {"beams": beams, "repetition_penalty": 1.3}) for beams in (1, 3)),
    *(("grouped", {"beams": beams, "no_repeat_ngram": n}) for beams in (1, 3) for n in (1, 2)),
]


@pytest.mark.slow
@pytest.mark.parametrize(("shape", "options"), CASES, ids=str)
def test_decode_matches_transformers(shape: str, options: dict[str, Any]) -> None:
    """Padding that is looked at, positions that count it, a beam's cache that is another's, another rule of scoring."""
    model, asked = random_model(**SHAPES[shape]), prompts(14)
    theirs = peer(model)
    expected = [reference(theirs, prompt, 24, **options) for prompt in asked]
    assert len({len(answer.ids) for answer in expected}) > 1
    assert generate_batch(model, asked, max_new_tokens=24, batch_size=5, **options) == expected
    if len(options) > 1:
        assert (
            generate_batch(model, asked, max_new_tokens=24, num_beams=options["beams"]) != expected
        )


@pytest.mark.slow
@pytest.mark.parametrize("beams", [1, 3])
@pytest.mark.parametrize(
    "penalties", [{}, {"repetition_penalty": 1.2, "no_repeat_ngram": 2}], ids=["free", "penalised"]
)
def test_decode_is_independent_of_batch(
    model: Llama, monkeypatch: pytest.MonkeyPatch, beams: int, penalties: dict[str, Any]
) -> None:
    """A score that depends on which other articles were in the batch, on its size, or on when the host looks."""
    asked = prompts(24, longest=70, seed=1)
    alone = [
        generate_batch(model, [prompt], max_new_tokens=26, num_beams=beams, **penalties)[0]
        for prompt in asked
    ]
    assert varied(alone)
    for batch, steps in ((5, 1), (64, 1), (24, 8)):
        monkeypatch.setattr(batched_inference, "host_sync_interval", lambda _, steps=steps: steps)
        seen: list[int] = []
        assert (
            generate_batch(
                model,
                asked,
                max_new_tokens=26,
                num_beams=beams,
                batch_size=batch,
                on_progress=seen.append,
                **penalties,
            )
            == alone
        )
        assert sum(seen) == 24 and max(seen) <= batch


@pytest.mark.parametrize("stops", [(), (7, 40)])
def test_greedy_decode_matches_generate(stops: tuple[int, ...]) -> None:
    """Two decoders of one project that disagree: the chat would show other answers than the evaluation scored."""
    model, asked = random_model(more_stop_ids=stops), prompts(12, seed=2)
    single = [list(generate(model, p, Sampling(temperature=0.0), max_new_tokens=30)) for p in asked]
    assert [answer.ids for answer in generate_batch(model, asked, max_new_tokens=30)] == single


@pytest.mark.parametrize("beams", [1, 3])
def test_decode_stops_at_context_length(beams: int) -> None:
    """Positions past the model's last one: each row has its own end, whatever the others have."""
    model = random_model(max_position_embeddings=64)
    with torch.no_grad():
        model.lm_head.weight[2] = 0.0  # its logit is 0 among large ones: never said
    # So few of them are over early that they wait in the batch while the others go on.
    asked = [[1] * length for length in (64, 63, 60, *range(10, 20))]
    answers = generate_batch(model, asked, max_new_tokens=20, num_beams=beams)
    assert [len(answer.ids) for answer in answers] == [0, 1, 4] + [20] * 10 and not any(
        answer.stopped for answer in answers
    )
    assert answers == [
        generate_batch(model, [prompt], max_new_tokens=20, num_beams=beams)[0] for prompt in asked
    ]
    assert (
        generate_batch(model, asked, max_new_tokens=0, num_beams=beams)
        == [DecodedAnswer([], False)] * 13
    )


@pytest.mark.parametrize("prompt", [[], [1] * 97])
def test_empty_or_too_long_prompts_raise(prompt: list[int]) -> None:
    """A crash inside attention, far from its cause."""
    with pytest.raises(ValueError, match="prompt 1 has"):
        generate_batch(random_model(), [[1], prompt], max_new_tokens=3)


@pytest.fixture
def read(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many ids each call of the model reads."""
    counts: list[int] = []
    plain = InferenceModel.forward

    def counted(self: InferenceModel, ids: torch.Tensor, *rest: Any) -> torch.Tensor:
        counts.append(ids.numel())
        return plain(self, ids, *rest)

    monkeypatch.setattr(InferenceModel, "forward", counted)
    return counts


@pytest.mark.parametrize("beams", [1, 3])
def test_finished_rows_are_compacted(read: list[int], beams: int) -> None:
    """Work on finished answers: one long answer would keep the whole batch busy."""
    asked = prompts(32, shortest=20, longest=20)
    answers = generate_batch(
        random_model(), asked, max_new_tokens=60, num_beams=beams, batch_size=32
    )
    assert read[0] == 32 * 20 and read[1] == 32 * beams
    needed = beams * sum(len(answer.ids) + answer.stopped for answer in answers)
    assert varied(answers) and sum(read[1:]) < needed * 1.6 < beams * 32 * max(
        len(answer.ids) for answer in answers
    )


@pytest.mark.parametrize("beams", [1, 3])
def test_rows_at_context_length_are_compacted(read: list[int], beams: int) -> None:
    """Work on prompts that left no room, for as long as the others answer."""
    model = random_model()
    with torch.no_grad():
        model.lm_head.weight[2] = 0.0
    generate_batch(model, [[1] * 95] * 12 + [[1] * 20] * 4, max_new_tokens=20, num_beams=beams)
    assert read == [16 * 95, *[4 * beams] * 19]


def test_finished_beams_do_not_change() -> None:
    """A prompt that is over waits in its batch: an answer it finds there would not be found alone."""
    state = BeamState([5], 1, [2], torch.device("cpu"))
    state.advance(0, torch.tensor([[-1.5, -9.0, -1.0]]), 1.0)
    assert not state.open and state.finished_scores.tolist() == [[-1.0]]
    # Twice as long, 0 2 would score (-1.5 - 0.01) / 2.
    state.advance(1, torch.tensor([[-5.0, -9.0, -0.01]]), 1.0)
    assert state.finished_scores.tolist() == [[-1.0]] and state.finished[0, 0, 0] == 2


def test_every_position_attends_to_at_least_one_key(monkeypatch: pytest.MonkeyPatch) -> None:
    """A softmax over nothing: NaN on some devices, which the values of all rows then catch from the padding."""
    masks: list[torch.Tensor] = []
    plain = InferenceModel.forward

    def looking(
        self: InferenceModel, ids: torch.Tensor, cache: KVCache, positions: Any, mask: torch.Tensor
    ) -> torch.Tensor:
        masks.append(mask)
        return plain(self, ids, cache, positions, mask)

    monkeypatch.setattr(InferenceModel, "forward", looking)
    generate_batch(random_model(), prompts(8), max_new_tokens=5)
    assert (
        masks[0].shape[2] == masks[0].shape[3] > 1
        and not masks[0].all()
        and all(mask.any(-1).all() for mask in masks)
    )


@pytest.mark.parametrize("name", ["logits", "likeliest"])
def test_prefill_computes_logits_of_last_position_only(
    monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """Logits of every prompt position: most of the work at this vocabulary."""
    rows: list[int] = []
    plain = getattr(LMHead, name)

    def counted(self: LMHead, hidden: torch.Tensor) -> torch.Tensor:
        rows.append(len(hidden))
        return plain(self, hidden)

    monkeypatch.setattr(LMHead, name, counted)
    generate_batch(
        random_model(),
        prompts(8),
        max_new_tokens=5,
        repetition_penalty=1.0 if name == "likeliest" else 1.1,
    )
    assert rows[0] == 8 and max(rows) == 8


def test_kv_cache_rows_can_be_selected_and_reordered() -> None:
    """A beam that goes on with another's keys, or a copy that overwrites what it is still to read."""
    config = random_model().config
    cache = KVCache(config, 4, 6, torch.device("cpu"), torch.float32)
    cache.keys.copy_(torch.randn(cache.keys.shape))
    cache.values.copy_(torch.randn(cache.values.shape))
    cache.length = 5
    keys, values = cache.keys.clone(), cache.values.clone()
    cache.select_rows(torch.tensor([1, 0, 1, 3]), 2)
    assert torch.equal(cache.keys[:, :, :, :2], keys[:, :, :, :2])
    assert torch.equal(cache.keys[:, :, :, 2:5], keys[:, [1, 0, 1, 3], :, 2:5])
    assert torch.equal(cache.values[:, :, :, 2:5], values[:, [1, 0, 1, 3], :, 2:5])
    before = cache.keys.clone()
    cache.select_rows(torch.tensor([3, 2]))
    assert cache.batch_size == 2 and torch.equal(cache.keys[:, :2, :, :5], before[:, [3, 2], :, :5])
    new = torch.randn(2, config.num_key_value_heads, 1, config.head_dim)
    seen, _ = cache.layer(1).append(new, new)
    assert (
        seen.shape[:1] == (2,)
        and torch.equal(seen[:, :, 5:], new)
        and torch.equal(seen[:, :, :5], before[1, [3, 2], :, :5])
    )


def test_beam_search_scores_higher_than_greedy(model: Llama) -> None:
    """A beam search that is greedy search in disguise."""
    asked = prompts(12, seed=3)

    def score(prompt: list[int], answer: DecodedAnswer) -> float:
        ids = [*answer.ids, *([2] if answer.reached_stop_id else [])]
        with torch.no_grad():
            logits = model(torch.tensor([prompt + ids]))[0, len(prompt) - 1 : -1].log_softmax(-1)
        return float(logits.gather(1, torch.tensor(ids)[:, None]).mean())

    greedy, wide = (
        generate_batch(model, asked, max_new_tokens=12, num_beams=beams) for beams in (1, 4)
    )
    gains = [score(p, b) - score(p, a) for p, a, b in zip(asked, greedy, wide, strict=True)]
    assert sum(gains) / len(gains) > 0.05 and sum(gain > 1e-4 for gain in gains) >= 4


def test_one_beam_is_greedy_search(model: Llama) -> None:
    """Another rule for the same thing: a single beam ends with the first `<eos>` it says."""
    asked, limits = prompts(6, seed=5), [20] * 6
    with torch.inference_mode():
        said = beam_search(model, asked, limits, 1, 1.0, RepetitionPenalties()).tolist()
    for row, answer in zip(said, generate_batch(model, asked, max_new_tokens=20), strict=True):
        assert row[: len(answer.ids)] == answer.ids and (
            not answer.stopped or row[len(answer.ids)] == 2
        )


def test_penalties_match_hand_computed_values() -> None:
    """Dividing a negative logit raises it; an n-gram seen across the end of the text; n larger than the text."""
    logits, seen = torch.tensor([[2.0, -2.0, 3.0]]), torch.tensor([[True, True, False]])
    assert apply_repetition_penalty(logits, seen, 2.0).tolist() == [[1.0, -4.0, 3.0]]
    assert apply_repetition_penalty(logits, seen, 1.0) is logits
    assert banned_ngram_tokens([[5, 6, 7, 5, 6], [5, 6, 5, 7, 5], [5]], 3) == [[7], [], []]
    assert banned_ngram_tokens([[5, 6, 5, 7, 5]], 2) == [[6, 7]]
    assert banned_ngram_tokens([[5, 6], []], 1) == [[5, 6], []]
    assert banned_ngram_tokens([[5, 5, 5]], 0) == [[]]
