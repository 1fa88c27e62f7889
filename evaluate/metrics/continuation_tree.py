"""Log-likelihoods of many continuations after prompts that begin with one long text.

The text is processed once, and its keys and values are kept. After it come the rest of a prompt and
a tree of its continuations, in which equal beginnings are processed once: of a thousand numbers of
three digits that is a hundred positions. Unlike in `evaluate.metrics.continuations`, the keys and
values are never copied, so that the memory is that of one sequence however long it is.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from evaluate.metrics.continuations import Continuations, log_probabilities
from model.decode.kv_cache import KVCache
from model.llama import Llama

# Positions of a tree that are processed together.
_MAX_NODES = 512


@dataclass(slots=True)
class _Tree:
    """The ids that are processed after a prompt, each with its parent; -1 is the prompt itself."""

    ids: list[int] = field(default_factory=list)
    parents: list[int] = field(default_factory=list)
    depths: list[int] = field(default_factory=list)
    numbers: dict[tuple[int, int], int] = field(default_factory=dict)
    predictors: list[list[int]] = field(default_factory=list)
    """The number of the node that predicts each id of an option, for each option."""

    def add(self, option: Sequence[int]) -> None:
        """Add an option. Its last id is predicted, and needs no node of its own."""
        predictors = [-1]
        for depth, token_id in enumerate(option[:-1]):
            key = (predictors[-1], token_id)
            if key not in self.numbers:
                self.numbers[key] = len(self.ids)
                self.ids.append(token_id)
                self.parents.append(predictors[-1])
                self.depths.append(depth)
            predictors.append(self.numbers[key])
        self.predictors.append(predictors)

    def ancestors(self) -> Tensor:
        """Return which nodes each may attend to, bool[N, N]: itself, its parent, and so on."""
        matrix = torch.eye(len(self.ids), dtype=torch.bool)
        for number, parent in enumerate(self.parents):
            if parent >= 0:
                matrix[number] |= matrix[parent]
        return matrix


@torch.inference_mode()
def score_after_text(model: Llama, requests: Sequence[Continuations]) -> list[list[float]]:
    """Return the log-probability in nats of each option after its prompt, in order.

    What all prompts begin with is processed once. The positions are at most
    `max_position_embeddings`.
    """
    prompts = [request.prompt for request in requests]
    num_shared = _count_shared(prompts)
    weight = model.model.norm.weight
    longest_rest = max(map(len, prompts)) - num_shared
    longest_option = max(len(option) for request in requests for option in request.options)
    capacity = num_shared + longest_rest + max(_MAX_NODES, longest_option)
    cache = model.new_cache(1, capacity)
    if num_shared:
        shared = torch.tensor([prompts[0][:num_shared]], device=weight.device)
        model.model(shared, None, None, cache)
    cache.length = num_shared
    return [_score_request(model, request, cache) for request in requests]


def _count_shared(prompts: Sequence[list[int]]) -> int:
    """Return the length of the common beginning, without the last id of the shortest prompt."""
    limit = min(map(len, prompts)) - 1
    first, last = min(prompts), max(prompts)
    # What the first and the last in order have in common, all between them have, too.
    return next((place for place in range(limit) if first[place] != last[place]), limit)


def _score_request(model: Llama, request: Continuations, cache: KVCache) -> list[float]:
    """Return the scores of the options of one request, whose first ids are in the cache."""
    scores = [0.0] * len(request.options)
    # In the order of their ids, options with equal beginnings are neighbors.
    order = sorted(range(len(request.options)), key=lambda index: request.options[index])
    tree = _Tree()
    batch: list[int] = []
    for index in order:
        if batch and len(tree.ids) + len(request.options[index]) > _MAX_NODES:
            _score_tree(model, request, cache, tree, batch, scores)
            tree, batch = _Tree(), []
        tree.add(request.options[index])
        batch.append(index)
    _score_tree(model, request, cache, tree, batch, scores)
    return scores


def _score_tree(
    model: Llama,
    request: Continuations,
    cache: KVCache,
    tree: _Tree,
    batch: Sequence[int],
    scores: list[float],
) -> None:
    """Write the scores of the options in `batch`, those of the tree, into `scores`."""
    device = cache.storage.device
    rest = request.prompt[cache.length :]
    num_rest, num_new = len(rest), len(rest) + len(tree.ids)
    positions = [*range(cache.length, len(request.prompt))]
    positions += [len(request.prompt) + depth for depth in tree.depths]
    mask = torch.ones(num_new, cache.length + num_new, dtype=torch.bool)
    mask[:, cache.length :].tril_()
    mask[num_rest:, cache.length + num_rest :] = tree.ancestors()
    hidden = model.model(
        torch.tensor([[*rest, *tree.ids]], device=device),
        torch.tensor(positions, device=device),
        mask[None, None].to(device),
        cache,
    )[0]
    # Node -1 is the last position of the prompt.
    predictors = [num_rest + node for nodes in tree.predictors for node in nodes]
    targets = [token_id for index in batch for token_id in request.options[index]]
    token_scores = log_probabilities(
        model,
        hidden,
        torch.tensor(predictors, device=device),
        torch.tensor(targets, device=device),
    )
    parts = token_scores.double().split([len(request.options[index]) for index in batch])
    for index, part in zip(batch, parts, strict=True):
        scores[index] = float(part.sum())
