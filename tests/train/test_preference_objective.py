"""The losses of preferences, beside TRL's, and what a log line tells about them."""

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from data.batching.preference_rows import PreferenceExample, collate_preferences
from model.llama import Llama
from tests.helpers.preferences import random_pairs
from tests.helpers.random_llama import random_llama
from train.options import DpoLossOptions
from train.preference_objective import PreferenceObjective, pair_losses, pair_margins
from train.reference import ReferenceLogProbs

PAIRS = random_pairs((7, 5, 9), (3, 2, 4), (6, 8, 1), (5, 12, 3))
ROW_LENGTH = 64


def build_objective(reference: np.ndarray | None = None, **options: Any) -> PreferenceObjective:
    """Return an objective with these sums of the reference, [n, 2]."""
    objective = PreferenceObjective(DpoLossOptions(**options).resolve(), ROW_LENGTH, [], [], {})
    if reference is not None:
        nothing = np.zeros(0)
        objective.reference = ReferenceLogProbs(reference, nothing, nothing)
    return objective


def our_loss(
    model: Llama, objective: PreferenceObjective, rows: list[list[PreferenceExample]]
) -> tuple[Tensor, list[float]]:
    """Return the loss of a step with a micro-batch for each row, and the sums of its measures."""
    batches = [collate_preferences([row], ROW_LENGTH) for row in rows]
    totals = [float(sum(counts)) for counts in zip(*map(objective.count, batches), strict=True)]
    sums = torch.zeros(len(objective.measure_names), dtype=torch.float64)
    losses = [objective.loss(model, batch, totals, "chunked", sums) for batch in batches]
    return torch.stack(losses).sum(), sums.tolist()


def padded_conversations(pairs: list[PreferenceExample]) -> tuple[Tensor, Tensor]:
    """Return ids and the mask of answers of all conversations, the chosen ones first, [2n, T]."""
    answers = [(pair.prompt, pair.chosen) for pair in pairs]
    answers += [(pair.prompt, pair.rejected) for pair in pairs]
    length = max(len(prompt) + len(answer) for prompt, answer in answers)
    ids = torch.zeros(len(answers), length, dtype=torch.int64)
    mask = torch.zeros_like(ids)
    for row, (prompt, answer) in enumerate(answers):
        stop = len(prompt) + len(answer)
        ids[row, :stop] = torch.from_numpy(np.concatenate([prompt, answer]))
        mask[row, len(prompt) : stop] = 1
    return ids, mask


def token_log_probs(model: Llama, ids: Tensor) -> Tensor:
    """Return the log-probability of every id after the first, from plain logits, [2n, T - 1]."""
    return model(ids)[:, :-1].log_softmax(-1).gather(2, ids[:, 1:, None]).squeeze(2)


def reference_sums() -> np.ndarray:
    """Return the sums of another model, fp32[n, 2]."""
    ids, mask = padded_conversations(PAIRS)
    with torch.no_grad():
        log_probs = token_log_probs(random_llama(seed=8), ids) * mask[:, 1:]
    return log_probs.sum(1).view(2, -1).T.numpy()


def assert_equal(model: Llama, ours: Tensor, expected: Tensor) -> None:
    """Compare two losses, and their gradients by all weights."""
    torch.testing.assert_close(ours, expected, rtol=1e-5, atol=0)
    parameters = list(model.parameters())
    gradients = [torch.autograd.grad(loss, parameters) for loss in (ours, expected)]
    for our_gradient, gradient in zip(*gradients, strict=True):
        assert (our_gradient - gradient).abs().max() <= 1e-5 * gradient.abs().max()


def trl_dpo_loss(model: Llama, types: list[str], weights: list[float], beta: float) -> Tensor:
    """Return the loss of TRL's DPO trainer; its forward pass is that of `token_log_probs`."""
    trainer = pytest.importorskip("trl.trainer.dpo_trainer").DPOTrainer
    ids, mask = padded_conversations(PAIRS)
    sums = torch.from_numpy(reference_sums())

    def forward(input_ids: Tensor, **_: Any) -> SimpleNamespace:
        log_probs = token_log_probs(model, input_ids) * mask[:, 1:]
        unused = {name: log_probs.detach() for name in ("entropy", "mean_logits", "is_top1")}
        unused["is_top1"] = unused["is_top1"] > 0
        return SimpleNamespace(log_probs=log_probs, **unused)

    stub = SimpleNamespace(
        model=SimpleNamespace(training=False),
        accelerator=SimpleNamespace(
            device=torch.device("cpu"), gather=lambda x: x, gather_for_metrics=lambda x: x
        ),
        aux_loss_enabled=False,
        ld_alpha=None,
        precompute_ref_logps=True,
        f_divergence_type="reverse_kl",
        loss_types=types,
        loss_weights=weights,
        beta=beta,
        use_weighting=False,
        _total_train_tokens=0,
        _metrics={"eval": _AnyList()},
    )
    inputs = {
        "input_ids": ids,
        "completion_mask": mask,
        "ref_chosen_logps": sums[:, 0],
        "ref_rejected_logps": sums[:, 1],
    }
    return trainer._compute_loss(stub, forward, inputs, return_outputs=False)


class _AnyList(dict[str, list[Any]]):
    """Lists of metrics by name."""

    def __missing__(self, name: str) -> list[Any]:
        return self.setdefault(name, [])


def trl_cpo_loss(
    model: Llama, loss_type: str, beta: float, gamma: float, smoothing: float
) -> Tensor:
    """Return the loss of TRL's CPO trainer, which has SimPO and the sigmoid with smoothing.

    The sigmoid of CPO has no reference, which is subtracted here.
    """
    trainer = pytest.importorskip("trl.experimental.cpo.cpo_trainer").CPOTrainer
    ids, mask = padded_conversations(PAIRS)
    log_probs = trainer.get_batch_logps(
        model(ids), ids.masked_fill(mask == 0, -100), average_log_prob=loss_type == "simpo"
    )
    chosen, rejected = log_probs.view(2, -1)
    if loss_type == "sigmoid":
        reference = torch.from_numpy(reference_sums())
        chosen, rejected = chosen - reference[:, 0], rejected - reference[:, 1]
    stub = SimpleNamespace(
        alpha=0.0,
        beta=beta,
        simpo_gamma=gamma,
        loss_type=loss_type,
        label_smoothing=smoothing,
        accelerator=SimpleNamespace(device=torch.device("cpu")),
    )
    return trainer.cpo_loss(stub, chosen, rejected)[0].mean()


@pytest.mark.slow
@pytest.mark.parametrize(("beta", "nll"), [(0.1, 0.0), (0.5, 0.0), (0.1, 1.0), (2.0, 0.3)])
def test_sigmoid_loss_and_gradients_are_those_of_trl(beta: float, nll: float) -> None:
    """Prevents a loss of our own: of sums in place of means, or another weight of the NLL."""
    model = random_llama()
    types, weights = ["sigmoid"], [1.0]
    if nll:
        types, weights = [*types, "sft"], [*weights, nll]
    expected = trl_dpo_loss(model, types, weights, beta)
    objective = build_objective(reference_sums(), beta=beta, nll=nll)
    ours, _ = our_loss(model, objective, [PAIRS[:2], PAIRS[2:]])
    assert_equal(model, ours, expected)


@pytest.mark.slow
@pytest.mark.parametrize("smoothing", [0.0, 0.2])
@pytest.mark.parametrize("loss", ["sigmoid", "simpo"])
def test_simpo_and_smoothed_sigmoid_are_those_of_trl(loss: str, smoothing: float) -> None:
    """Prevents smoothing on the wrong side, and a gamma that beta multiplies."""
    model = random_llama()
    beta, gamma = 0.7, 0.4 if loss == "simpo" else 0.0
    expected = trl_cpo_loss(model, loss, beta, gamma, smoothing)
    objective = build_objective(
        reference_sums() if loss == "sigmoid" else None,
        loss=loss,
        beta=beta,
        gamma=gamma,
        label_smoothing=smoothing,
    )
    ours, _ = our_loss(model, objective, [PAIRS])
    assert_equal(model, ours, expected)


def test_losses_by_hand() -> None:
    """Prevents a wrong sign where TRL is not installed."""
    sums, lengths = torch.tensor([[-4.0, -6.0]]), torch.tensor([[2, 4]])
    reference = torch.tensor([[-5.0, -4.0]])
    sigmoid = DpoLossOptions(beta=0.5, label_smoothing=0.1).resolve()
    margins = pair_margins(sigmoid, sums, lengths, reference)
    # 0.5 * ((-4 + 5) - (-6 + 4))
    assert margins.tolist() == [1.5]
    expected = 0.9 * np.log1p(np.exp(-1.5)) + 0.1 * np.log1p(np.exp(1.5))
    assert pair_losses(sigmoid, margins).item() == pytest.approx(expected, rel=1e-6)
    simpo = DpoLossOptions(loss="simpo", beta=2.0, gamma=0.5).resolve()
    margins = pair_margins(simpo, sums, lengths, None)
    # 2 * (-4 / 2 + 6 / 4)
    assert margins.tolist() == [-1.0]
    assert pair_losses(simpo, margins).item() == pytest.approx(np.log1p(np.exp(1.5)), rel=1e-6)


def test_micro_batches_add_up_to_the_step() -> None:
    """Prevents a mean of means over rows with different numbers of pairs and of ids."""
    model = random_llama()
    objective = build_objective(reference_sums(), nll=0.5)
    whole, whole_sums = our_loss(model, objective, [PAIRS])
    parts, sums = our_loss(model, objective, [PAIRS[:1], PAIRS[1:]])
    assert_equal(model, parts, whole)
    assert sums == pytest.approx(whole_sums, rel=1e-5)
    measures = dict(zip(objective.measure_names, sums, strict=True))
    assert measures["chosen_tokens"] == sum(len(pair.chosen) for pair in PAIRS)
    assert measures["rejected_tokens"] == sum(len(pair.rejected) for pair in PAIRS)
    assert measures["chosen_log_prob"] < 0 and 0 <= measures["reward_accuracy"] <= 4


def test_auto_options_depend_on_the_loss() -> None:
    """Prevents SimPO with the beta of DPO, with which it stands still."""
    assert DpoLossOptions().resolve().beta == 0.1 and DpoLossOptions().resolve().gamma == 0
    simpo = DpoLossOptions(loss="simpo", beta=4).resolve()
    assert (simpo.beta, simpo.gamma) == (4, 2)
    assert DpoLossOptions(loss="simpo", gamma=0.1).resolve().gamma == 0.1
