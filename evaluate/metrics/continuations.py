"""Log-likelihoods of several continuations of a prompt, such as the options of a question.

The options of a prompt are scored in one forward pass, as branches of a tree: each attends to the
prompt and to itself, and counts its positions from the end of the prompt. Of a single token the
probability is read from the hidden state of the prompt, and nothing is added to the row. What many
prompts begin with, such as the solved examples in front of every question, is processed once and
kept in a KV cache.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from model.decode.kv_cache import KVCache
from model.llama import Llama

# Positions of a forward pass, padding included.
BATCH_TOKENS = 4096
# Positions whose logits are computed together: with 65,000 ids, 67 MB in fp32.
_HEAD_ROWS = 256
# Prompts that share a prefix are scored with a cache of it if that saves this many ids.
_MIN_SAVED_IDS = 64


@dataclass(frozen=True, slots=True)
class Continuations:
    """A prompt of at least one id, and its continuations, of at least one id each."""

    prompt: list[int]
    options: list[list[int]]

    @property
    def num_tokens(self) -> int:
        """Return the length of the prompt with the longest option."""
        return len(self.prompt) + max(map(len, self.options))


@torch.inference_mode()
def score_continuations(
    model: Llama, requests: Sequence[Continuations], *, batch_tokens: int = BATCH_TOKENS
) -> list[list[float]]:
    """Return the log-probability in nats of each option after its prompt, in order.

    A forward pass has about `batch_tokens` positions. Raises ValueError if a prompt with an option
    exceeds the model's context.
    """
    context = model.config.max_position_embeddings
    for index, request in enumerate(requests):
        # The last id of an option is predicted, and not read.
        if request.num_tokens - 1 > context:
            raise ValueError(
                f"request {index} has {request.num_tokens} ids, more than {context + 1}"
            )
    scores: list[list[float]] = [[] for _ in requests]
    for group, num_shared in _group_by_prefix([request.prompt for request in requests]):
        shared_cache = _prefill(model, requests[group[0]].prompt[:num_shared])
        for batch in _batches(requests, group, num_shared, batch_tokens):
            batch_scores = _score_batch(
                model, [requests[index] for index in batch], num_shared, shared_cache
            )
            for index, option_scores in zip(batch, batch_scores, strict=True):
                scores[index] = option_scores
    return scores


def _group_by_prefix(prompts: Sequence[list[int]]) -> list[tuple[list[int], int]]:
    """Return groups of indices of prompts, each with the number of ids that its prompts share.

    At least one id of each prompt is not shared, because the hidden state of its last id is needed.
    Prompts that share too little to be worth a cache are one group that shares nothing.
    """
    # In the order of their ids, prompts that share a prefix are neighbors.
    order = sorted(range(len(prompts)), key=lambda index: prompts[index])
    common = [
        _common_length(prompts[first], prompts[second])
        for first, second in zip(order, order[1:], strict=False)
    ]
    groups = [([index], len(prompts[index]) - 1) for index in order[:1]]
    for place, index in enumerate(order[1:]):
        group, num_shared = groups[-1]
        with_next = common[place + 1] if place + 1 < len(common) else 0
        # Not if most of a prefix would be lost, that of the group or that with the next prompt.
        shared_in_group = num_shared if len(group) > 1 else 0
        if common[place] >= max(shared_in_group, with_next) / 2:
            group.append(index)
            groups[-1] = (group, min(num_shared, common[place]))
        else:
            groups.append(([index], len(prompts[index]) - 1))
    alone: list[int] = []
    sharing = []
    for group, num_shared in groups:
        if (len(group) - 1) * num_shared >= _MIN_SAVED_IDS:
            sharing.append((group, num_shared))
        else:
            alone += group
    return sharing + ([(alone, 0)] if alone else [])


def _common_length(first: list[int], second: list[int]) -> int:
    """Return the length of the common prefix that is shorter than both lists."""
    limit = min(len(first), len(second)) - 1
    return next((place for place in range(limit) if first[place] != second[place]), limit)


def _prefill(model: Llama, ids: list[int]) -> KVCache | None:
    """Return a cache of one row with these ids; None without ids."""
    if not ids:
        return None
    cache = model.new_cache(1, len(ids))
    device = cache.storage.device
    model.model(torch.tensor([ids], device=device), None, None, cache)
    cache.length = len(ids)
    return cache


def _batches(
    requests: Sequence[Continuations], group: list[int], num_shared: int, batch_tokens: int
) -> list[list[int]]:
    """Return the indices of a group in batches of rows of about the same length."""
    batches: list[list[int]] = []
    longest = 0
    # Longest first, so that memory runs out in the first batch, if at all.
    for index in sorted(group, key=lambda index: -_row_length(requests[index], num_shared)):
        length = _row_length(requests[index], num_shared)
        if batches and (len(batches[-1]) + 1) * longest <= batch_tokens:
            batches[-1].append(index)
        else:
            batches.append([index])
            longest = length
    return batches


def _row_length(request: Continuations, num_shared: int) -> int:
    return len(request.prompt) - num_shared + sum(len(option) - 1 for option in request.options)


def _score_batch(
    model: Llama, requests: Sequence[Continuations], num_shared: int, shared: KVCache | None
) -> list[list[float]]:
    """Return the scores of the options of some requests, whose first ids are in `shared`."""
    device = model.model.norm.weight.device
    num_rows, length = len(requests), max(_row_length(item, num_shared) for item in requests)
    ids = torch.zeros(num_rows, length, dtype=torch.int64)
    positions = torch.zeros(num_rows, length, dtype=torch.int64)
    # The branch of a position: 0 for the prompt, 1, 2 … for the options, -1 for padding.
    branches = torch.full((num_rows, length), -1)
    # For each id of each option: the flattened index of the position that predicts it.
    predictors: list[int] = []
    targets: list[int] = []
    for row, request in enumerate(requests):
        prompt = request.prompt[num_shared:]
        ids[row, : len(prompt)] = torch.tensor(prompt)
        positions[row, : len(prompt)] = torch.arange(num_shared, len(request.prompt))
        branches[row, : len(prompt)] = 0
        stop = len(prompt)
        for branch, option in enumerate(request.options, 1):
            start, stop = stop, stop + len(option) - 1
            if stop > start:
                ids[row, start:stop] = torch.tensor(option[:-1])
                first_position = len(request.prompt)
                positions[row, start:stop] = torch.arange(
                    first_position, first_position + stop - start
                )
                branches[row, start:stop] = branch
            predictors += [
                row * length + column for column in (len(prompt) - 1, *range(start, stop))
            ]
            targets += option
    cache = None
    # In a narrower cache all keys and values are rounded, not only those that are shared.
    if shared is not None or model.kv_cache_dtype is not None:
        cache = model.new_cache(num_rows, num_shared + length)
    if shared is not None:
        assert cache is not None
        cache.keys[:, :, :, :num_shared] = shared.keys
        cache.values[:, :, :, :num_shared] = shared.values
        cache.length = num_shared
    mask = _attention_mask(branches, num_shared).to(device)
    hidden = model.model(ids.to(device), positions.to(device), mask, cache).flatten(0, 1)
    token_scores = log_probabilities(
        model, hidden, torch.tensor(predictors, device=device), torch.tensor(targets, device=device)
    )
    option_lengths = [len(option) for request in requests for option in request.options]
    # In float64, so that the sum does not depend on the number of options.
    sums = iter([float(part.double().sum()) for part in token_scores.split(option_lengths)])
    return [[next(sums) for _ in request.options] for request in requests]


def _attention_mask(branches: Tensor, num_shared: int) -> Tensor:
    """Return which positions each may attend to, bool[R, 1, T, num_shared + T].

    `branches`[R, T] are 0 for the prompt, 1, 2 … for the options, -1 for padding. Padding attends
    to the prompt, so that no position attends to nothing.
    """
    num_rows, length = branches.shape
    is_earlier = torch.ones(length, length, dtype=torch.bool).tril()
    is_same_branch = branches[:, :, None] == branches[:, None, :]
    may_attend = is_earlier & (is_same_branch | (branches == 0)[:, None, :])
    to_shared = torch.ones(num_rows, length, num_shared, dtype=torch.bool)
    return torch.cat([to_shared, may_attend], dim=2)[:, None]


def log_probabilities(model: Llama, hidden: Tensor, predictors: Tensor, targets: Tensor) -> Tensor:
    """Return the log-probability of each target[N] by the hidden state hidden[predictors], fp32[N].

    The logits of a position that predicts several targets are computed once.
    """
    rows, row_of_target = predictors.unique(return_inverse=True)
    scores = torch.zeros(len(targets), device=hidden.device)
    for start in range(0, len(rows), _HEAD_ROWS):
        logits = model.lm_head(hidden[rows[start : start + _HEAD_ROWS]]).float()
        is_here = (row_of_target >= start) & (row_of_target < start + _HEAD_ROWS)
        local_rows = row_of_target[is_here] - start
        chosen = logits[local_rows, targets[is_here]]
        scores[is_here] = chosen - logits.logsumexp(-1)[local_rows]
    return scores
