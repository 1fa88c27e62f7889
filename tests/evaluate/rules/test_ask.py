"""Likelihoods of candidates and the candidates in generated answers."""

from pathlib import Path

import pytest
import torch

from evaluate.load_model import LoadedCheckpoint
from evaluate.rules.ask import Probe, find_candidate, score_candidates
from evaluate.rules.generate import draw_items
from evaluate.rules.item import FORMS
from evaluate.rules.originals import ORIGINALS
from model.chat_template.template import Template
from model.tokenizer.base import Tokenizer
from tests.helpers.random_llama import random_llama

APPLES, TREES = ORIGINALS


def test_forms_differ_by_the_rule_alone() -> None:
    """Questions in other words for another form, which would be measured instead of the rule."""
    (item,) = draw_items("cipher", 1, 1, 0, "test")
    prompts = [Template().segments([(item.question, "")], item.passage(form))[0] for form in FORMS]
    assert prompts[0] == f"资料：{item.rule}\n\n{prompts[1]}"
    assert prompts[2] == f"资料：{item.contrary_rule}\n\n{prompts[1]}"


@torch.inference_mode()
def test_scores_are_those_of_the_answer_with_its_eos(tokenizer: Tokenizer, tmp_path: Path) -> None:
    """Scores without the end of the answer, for which 1 is more likely than 12 of necessity."""
    model = random_llama(vocab_size=tokenizer.vocab_size, max_position_embeddings=128)
    loaded = LoadedCheckpoint(tmp_path, model, tokenizer, {})
    probes = [Probe("苹果有几个？", rule, ("1", "12", "十二个")) for rule in ("", "每个算两个。")]
    too_long = Probe("苹果" * 100, "", ("1", "2"))
    *scores, missing = score_candidates(loaded, [*probes, too_long])
    assert missing is None
    for probe, option_scores in zip(probes, scores, strict=True):
        prompt = Template().encode_prompt(tokenizer, (), probe.question, probe.passage)
        expected = []
        for candidate in probe.candidates:
            answer = [*tokenizer.encode(candidate), tokenizer.eos_id]
            logits = model(torch.tensor([prompt + answer]))[0, len(prompt) - 1 : -1].double()
            chosen = logits.log_softmax(-1)[torch.arange(len(answer)), torch.tensor(answer)]
            expected.append(float(chosen.sum()))
        assert option_scores == pytest.approx(expected, rel=1e-4, abs=1e-4)


@pytest.mark.parametrize(
    ("answer", "candidate"),
    [
        ("1个", "1个"),
        ("吃了2个，消失2个，5-2-2=1，所以还剩1个。", "1个"),
        ("７", "7个"),
        ("还剩4个", None),
        ("-1", None),
        ("1.5个", None),
        ("12个", None),
        ("不知道", None),
        ("", None),
        ("9" * 6000, None),
    ],
)
def test_the_last_number_is_the_answer(answer: str, candidate: str | None) -> None:
    """Numbers of the calculation that count as the answer, and parts of longer numbers."""
    assert find_candidate(answer, APPLES) == candidate


@pytest.mark.parametrize(
    ("answer", "candidate"),
    [
        ("可能有8棵或6棵。", "8棵或6棵"),
        ("还有8棵。", "8棵"),
        ("不是8棵，是12棵", "12棵"),
        ("八棵", None),
    ],
)
def test_the_last_candidate_is_the_answer(answer: str, candidate: str | None) -> None:
    """A candidate that is a part of another one, and the first of several."""
    assert find_candidate(answer, TREES) == candidate


def test_full_width_commas_in_candidates_are_found() -> None:
    """Candidates of several orders, whose commas normalization changes in the answer alone."""
    (item,) = draw_items("opposite_day", 1, 2, 0, "test")
    assert "，" in item.right
    assert find_candidate(f"应该{item.right}。", item) == item.right
