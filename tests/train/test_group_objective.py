"""The loss of groups of answers: beside TRL's, beside NumPy, and however they are packed."""

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from data.batching.group_rows import Group, Sample, iter_batches
from evaluate.rewards.terms import build_rewards
from model.llama import Llama
from tests.helpers.random_llama import random_llama
from train.group_objective import GroupObjective, clipped_losses, estimate_divergences
from train.options import GroupOptions
from train.rollouts import measure_names

ROW_LENGTH = 64
MAX_NEW_TOKENS = 13
TERMS = build_rewards("exact")
NUM_MEASURES = len(measure_names(TERMS))


@pytest.fixture(scope="module")
def model() -> Llama:
    """A model whose probabilities differ much."""
    return random_llama()


@pytest.fixture(scope="module")
def groups(model: Llama) -> list[Group]:
    """Groups whose answers were drawn at other probabilities than the model's, some far away."""
    rng = np.random.default_rng(2)
    groups = []
    for prompt_length, lengths in ((7, (5, 9, 1)), (4, (13, 2, 3)), (9, (6, 6, 8))):
        prompt = rng.integers(97, size=prompt_length)
        samples = []
        for length in lengths:
            ids = rng.integers(97, size=length)
            log_probs = log_probs_alone(model, prompt, ids).detach().numpy()
            sample = Sample(ids, float(rng.normal()), rng.normal(size=NUM_MEASURES))
            sample.old_log_probs = log_probs + rng.normal(0, 0.3, length).astype(np.float32)
            sample.reference_log_probs = log_probs + rng.normal(0, 0.3, length).astype(np.float32)
            samples.append(sample)
        groups.append(Group(prompt, samples))
    return groups


def log_probs_alone(model: Llama, prompt: np.ndarray, answer: np.ndarray) -> Tensor:
    """Return the log-probabilities of the ids of an answer, from the logits of a conversation."""
    ids = torch.from_numpy(np.concatenate([prompt, answer]))
    log_probs = model(ids[None])[0, len(prompt) - 1 : -1].log_softmax(-1)
    return log_probs.gather(1, ids[len(prompt) :, None]).squeeze(1)


def build_objective(**options: Any) -> GroupObjective:
    """Return the objective with these options, which needs neither reference nor scores here."""
    nothing: Any = None
    group_options = GroupOptions(max_new_tokens=MAX_NEW_TOKENS, **options)
    return GroupObjective(group_options, TERMS, nothing, nothing)


def our_loss(
    model: Llama, objective: GroupObjective, groups: list[Group], rows: int
) -> tuple[Tensor, dict[str, float]]:
    """Return the loss of a step in micro-batches of `rows` rows, and its measures."""
    batches = [batch for batch, _ in iter_batches(groups, ROW_LENGTH, rows)]
    total = sum(objective.count(batch)[0] for batch in batches)
    sums = torch.zeros(len(objective.measure_names), dtype=torch.float64)
    losses = [objective.loss(model, batch, [float(total)], "chunked", sums) for batch in batches]
    means = dict(zip(objective.measure_names, (sums / total).tolist(), strict=True))
    return torch.stack(losses).sum(), means


def trl_loss(model: Llama, groups: list[Group], clip: float, kl: float) -> Tensor:
    """Return the loss of TRL's GRPO trainer with the constant divisor of Dr. GRPO."""
    trainer = pytest.importorskip("trl.trainer.grpo_trainer").GRPOTrainer
    rows = [(group.prompt, sample) for group in groups for sample in group.samples]
    shape = len(rows), max(len(sample.ids) for _, sample in rows)
    mask = torch.zeros(shape)
    padded = {name: torch.zeros(shape) for name in ("old_log_probs", "reference_log_probs")}
    for index, (_, sample) in enumerate(rows):
        mask[index, : len(sample.ids)] = 1
        for name, tensor in padded.items():
            tensor[index, : len(sample.ids)] = torch.from_numpy(getattr(sample, name))

    def log_probs_and_entropies(*_: Any, **__: Any) -> tuple[Tensor, Tensor, None]:
        answers = [log_probs_alone(model, prompt, sample.ids) for prompt, sample in rows]
        log_probs = torch.nn.utils.rnn.pad_sequence(answers, batch_first=True)
        return log_probs, torch.zeros(shape), None

    stub = SimpleNamespace(
        _get_per_token_logps_and_entropies=log_probs_and_entropies,
        aux_loss_enabled=False,
        top_entropy_quantile=1.0,
        off_policy_mask_threshold=None,
        importance_sampling_level="token",
        loss_type="dr_grpo",
        beta=kl,
        epsilon_low=clip,
        epsilon_high=clip,
        max_completion_length=MAX_NEW_TOKENS,
        use_vllm=False,
        use_adaptive_entropy=False,
        _entropy_bonus_enabled=False,
        model=SimpleNamespace(training=False),
        args=SimpleNamespace(delta=None, use_bias_correction_kl=False),
        accelerator=SimpleNamespace(reduce=lambda x, **_: x, gather=lambda x: x),
        _metrics={"eval": _AnyList()},
    )
    ids = torch.zeros(shape, dtype=torch.int64)
    inputs = {
        "prompt_ids": ids,
        "prompt_mask": ids,
        "completion_ids": ids,
        "completion_mask": mask,
        "advantages": torch.tensor([sample.advantage for _, sample in rows]),
        "old_per_token_logps": padded["old_log_probs"],
        "ref_per_token_logps": padded["reference_log_probs"],
    }
    loss: Tensor = trainer._compute_loss(stub, model, inputs)
    return loss


class _AnyList(dict[str, list[Any]]):
    """Lists of metrics by name."""

    def __missing__(self, name: str) -> list[Any]:
        return self.setdefault(name, [])


def numpy_loss(groups: list[Group], log_probs: list[np.ndarray], clip: float, kl: float) -> float:
    """Return the loss, token by token, from the log-probabilities of all answers in order."""
    total, num_samples = 0.0, 0
    for sample, now in zip((s for g in groups for s in g.samples), log_probs, strict=True):
        num_samples += 1
        assert sample.old_log_probs is not None and sample.reference_log_probs is not None
        for new, old, reference in zip(
            now, sample.old_log_probs, sample.reference_log_probs, strict=True
        ):
            ratio = np.exp(float(new) - float(old))
            bounded = min(max(ratio, 1 - clip), 1 + clip)
            total -= min(ratio * sample.advantage, bounded * sample.advantage)
            log_ratio = float(reference) - float(new)
            total += kl * (np.exp(log_ratio) - 1 - log_ratio)
    return total / num_samples / MAX_NEW_TOKENS


def assert_equal(model: Llama, ours: Tensor, expected: Tensor) -> None:
    """Compare two losses, and their gradients by all weights."""
    torch.testing.assert_close(ours, expected, rtol=1e-5, atol=1e-7)
    parameters = list(model.parameters())
    gradients = [torch.autograd.grad(loss, parameters) for loss in (ours, expected)]
    for our_gradient, gradient in zip(*gradients, strict=True):
        assert (our_gradient - gradient).abs().max() <= 1e-5 * gradient.abs().max()


@pytest.mark.parametrize("kl", [0.0, 0.4])
def test_loss_and_gradients_are_those_of_trl(model: Llama, groups: list[Group], kl: float) -> None:
    """Catch another ratio, clipping or divisor than that of the method."""
    loss, _ = our_loss(model, build_objective(updates=2, kl=kl, clip=0.1), groups, rows=2)
    assert_equal(model, loss, trl_loss(model, groups, clip=0.1, kl=kl))


@pytest.mark.parametrize("rows", [1, 8])
def test_loss_is_that_of_numpy(model: Llama, groups: list[Group], rows: int) -> None:
    """Catch a wrong loss where TRL is not installed, and one that depends on the micro-batches."""
    log_probs = [
        log_probs_alone(model, group.prompt, sample.ids).detach().numpy()
        for group in groups
        for sample in group.samples
    ]
    objective = build_objective(updates=2, kl=0.4, clip=0.1)
    loss, measures = our_loss(model, objective, groups, rows)
    assert float(loss.detach()) == pytest.approx(numpy_loss(groups, log_probs, 0.1, 0.4), rel=1e-4)
    samples = [sample for group in groups for sample in group.samples]
    divergences = [
        np.mean(np.exp(sample.reference_log_probs - now) - 1 - (sample.reference_log_probs - now))
        for sample, now in zip(samples, log_probs, strict=True)
    ]
    assert measures["kl"] == pytest.approx(np.mean(divergences), rel=1e-3)
    assert measures["reward"] == pytest.approx(np.mean([s.measures[0] for s in samples]))
    assert 0.3 < measures["clipped"] < 0.7


def test_clipping_takes_the_gradient_only_from_moves_that_went_far_enough() -> None:
    """Catch a bound that also stops a probability from coming back."""
    log_probs = torch.tensor([0.5, -0.5, 0.5, -0.5, 0.05], requires_grad=True)
    advantages = torch.tensor([1.0, 1.0, -1.0, -1.0, 1.0])
    losses, is_clipped = clipped_losses(log_probs, torch.zeros(5), advantages, 0.2)
    (gradient,) = torch.autograd.grad(losses.sum(), log_probs)
    assert is_clipped.tolist() == [True, False, False, True, False]
    assert (gradient == 0).tolist() == is_clipped.tolist()
    torch.testing.assert_close(losses[:2].detach(), -torch.tensor([1.2, np.exp(-0.5)]).float())


def test_first_update_has_the_policy_gradient() -> None:
    """Catch a loss whose gradient vanishes because all ratios are 1."""
    log_probs = torch.tensor([-2.0, -1.0], requires_grad=True)
    losses, is_clipped = clipped_losses(log_probs, None, torch.tensor([3.0, -1.0]), 0.2)
    (gradient,) = torch.autograd.grad(losses.sum(), log_probs)
    assert gradient.tolist() == [-3.0, 1.0] and not is_clipped.any()


def test_divergence_is_zero_without_a_change_and_never_negative() -> None:
    """Catch an estimator with the models the wrong way round."""
    log_probs = torch.tensor([-1.0, -2.0, -0.5])
    assert estimate_divergences(log_probs, log_probs).tolist() == [0, 0, 0]
    # Drawn from p = (0.9, 0.1), with q = (0.5, 0.5): the expectation is the divergence.
    p, q = torch.tensor([0.9, 0.1]), torch.tensor([0.5, 0.5])
    expected = (p * (p / q).log()).sum()
    torch.testing.assert_close((p * estimate_divergences(p.log(), q.log())).sum(), expected)
