"""Rollouts: which answers are drawn, what they are worth, and what is in a row."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from common.errors import UserError
from common.run_layout import ROLLOUTS_DIR, step_folder
from data.batching.group_rows import Group, Sample
from data.batching.prompts import Prompt
from evaluate.kinds.conversations import EVALUATION
from evaluate.rewards.scorer import AnswerScorer
from evaluate.rewards.terms import build_rewards
from model.chat_template.template import Template
from model.decode.batch_generate import DecodedAnswer
from model.tokenizer.base import Tokenizer
from train.rollout_file import load_groups, save_groups
from train.rollouts import build_group, measure_names

EOS_ID = 2


def build(tokenizer: Tokenizer, answers: Sequence[tuple[str, bool]], rewards: str) -> Group:
    """Return the group of answers, each with whether it ended, to a question whose answer is 好."""
    scorer = AnswerScorer(tokenizer, Template(), [EVALUATION], build_rewards(rewards))
    true_answer = np.array([*tokenizer.encode("好"), EOS_ID])
    prompt = Prompt(0, np.array(tokenizer.encode("问")), true_answer)
    drawn = [
        DecodedAnswer(tokenizer.encode(text), has_eos, EOS_ID if has_eos else None)
        for text, has_eos in answers
    ]
    return build_group(scorer, prompt, drawn)


def test_advantage_is_the_reward_less_the_mean_of_the_group(tokenizer: Tokenizer) -> None:
    """Catch advantages among other prompts, or divided by a standard deviation."""
    answers = [("好", True), ("坏", True), ("坏", False), ("好", False)]
    group = build(tokenizer, answers, "exact:2,truncated:0.5")
    assert [sample.advantage for sample in group.samples] == [1.25, -0.75, -1.25, 0.75]
    names = measure_names(build_rewards("exact:2,truncated:0.5"))
    measures = [dict(zip(names, sample.measures, strict=True)) for sample in group.samples]
    assert [row["reward"] for row in measures] == [2, 0, -0.5, 1.5]
    assert [row["reward_exact"] for row in measures] == [1, 0, 0, 1]
    assert [row["stopped"] for row in measures] == [1, 1, 0, 0]
    assert {row["no_gradient"] for row in measures} == {0}
    assert {row["reward_std"] for row in measures} == {np.std([2, 0, -0.5, 1.5])}


def test_truncated_answers_learn_no_end(tokenizer: Tokenizer) -> None:
    """Catch an <eos> that the model did not write, and is taught to write in mid-sentence."""
    whole, cut = build(tokenizer, [("好", True), ("好", False)], "truncated").samples
    assert whole.ids[-1] == EOS_ID and EOS_ID not in cut.ids
    assert whole.advantage > 0 > cut.advantage


def test_equal_rewards_have_no_gradient(tokenizer: Tokenizer) -> None:
    """Catch advantages of 1e-17, which an optimizer makes steps of full size from."""
    group = build(tokenizer, [("坏", True)] * 7, "rouge:0.1,exact:0.7")
    assert not group.has_gradient
    assert [sample.advantage for sample in group.samples] == [0.0] * 7


def groups_of(number: int) -> list[Group]:
    """Return two groups whose values tell them from others."""
    samples = [
        Sample(
            np.arange(length, dtype=np.int64) + number,
            float(number),
            np.full(2, number, np.float64),
            old_log_probs=np.full(length, -number, np.float32),
        )
        for length in (3, 1, 4)
    ]
    return [Group(np.arange(5), samples[:1]), Group(np.arange(2), samples[1:])]


def test_stored_answers_are_those_that_were_saved(tmp_path: Path) -> None:
    """Catch a run that learns from other numbers after it was resumed."""
    groups = groups_of(7)
    save_groups(tmp_path, 4, 3, groups)
    loaded = load_groups(tmp_path, 4, [group.prompt for group in groups])
    assert [len(group.samples) for group in loaded] == [1, 2]
    for group, expected in zip(loaded, groups, strict=True):
        for sample, expected_sample in zip(group.samples, expected.samples, strict=True):
            assert sample.advantage == expected_sample.advantage
            assert sample.reference_log_probs is None
            for name in ("ids", "measures", "old_log_probs"):
                value, expected_value = getattr(sample, name), getattr(expected_sample, name)
                np.testing.assert_array_equal(value, expected_value)
                assert value.dtype == expected_value.dtype


def test_answers_are_kept_while_a_checkpoint_needs_them(tmp_path: Path) -> None:
    """Catch a disk full of answers, and a checkpoint that cannot go on."""
    # With three updates: step 4 is within round 1, step 6 begins round 2.
    for step in (4, 6):
        step_folder(tmp_path, step).mkdir(parents=True)
    for round_index in range(4):
        save_groups(tmp_path, round_index, 3, groups_of(round_index))
    names = sorted(path.name for path in (tmp_path / ROLLOUTS_DIR).iterdir())
    assert names == ["round-000001", "round-000003"]


def test_damaged_answers_are_refused(tmp_path: Path) -> None:
    """Catch training on rotten numbers."""
    save_groups(tmp_path, 0, 2, groups_of(1))
    (path,) = (tmp_path / ROLLOUTS_DIR).glob("*/*.safetensors")
    content = bytearray(path.read_bytes())
    content[-3] ^= 1
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"is damaged .*: the run cannot go on between two updates"):
        load_groups(tmp_path, 0, [])
