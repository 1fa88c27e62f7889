"""Initialization with attention heads that already find and copy.

To answer a question about a passage, a Llama must find the clause that the question shares words
with, go to its beginning and repeat it. The heads for that (induction heads, Olsson et al. 2022, and
lookups in the same manner) form from random weights only after many millions of tokens, so in a run
of a few minutes not at all. Here six heads begin with these tasks, in subspaces of the residual
stream that are orthogonal to each other. Everything else is random, and all weights are trained.

Heads find positions through the fast pairs of rotary dimensions, which tell neighbours apart, and
equal tokens through the slow pairs, which hardly depend on the distance. docs/training.md says what
it is good for, docs/log.md how its constants were chosen.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from common.errors import UserError
from model.config import LlamaConfig
from model.llama import Attention, Llama, inverse_frequencies
from model.tokenizer import Tokenizer

# The tokens that end a clause, so that the next one begins.
BOUNDARIES = "。，！？；：“”\n"
# The token in front of an answer.
ANSWER_MARK = "："

# The heads of the circuit, as (layer, key-value head).
HEADS = ((0, 0), (0, 1), (1, 1), (2, 0), (3, 0), (3, 1))

# Frequencies in radians per token. Neighbours differ by one token, neighbouring clauses by about
# ten; pairs below the last one hardly turn within a passage.
_NEIGHBOUR_FREQUENCIES = (0.3, 1.0)
_CLAUSE_FREQUENCIES = (0.02, 0.15)
_SLOW_FREQUENCY = 1 / 150
# Distance in tokens, of the middle of a question from the start of its answer.
_QUESTION_DISTANCE = 8
# Share of hidden_size that each of three subspaces takes.
_SUBSPACE_SHARE = 0.225

# Scales of attention logits.
_PREVIOUS_TOKEN_SCALE = 10.0
_QUESTION_SCALE = 1.0
_IDLE_SCALE = 1.0
_SINK_SCALE = 4.0
_BOUNDARY_SHARE = 2.0
_MATCH_SCALE = 10.0
_PAIR_SCALE = 1.5
# Factors of what a head reads, relative to the elements of an embedding.
_PREVIOUS_TOKEN_GAIN = 3.0
_CLAUSE_START_GAIN = 4.0
_LOOKUP_GAIN = 2.0
_ANSWER_GAIN = 30.0
_COPY_GAIN = 3.0
# What remains of the random queries and keys of these heads, and of all output projections.
_NOISE = 0.1


@dataclass(frozen=True)
class Head:
    """The rows (of `o`: columns) of one head in the projections of its layer; views."""

    q: Tensor  # [d, D]
    k: Tensor  # [d, D]
    v: Tensor  # [d, D]
    o: Tensor  # [D, d]

    def attend(
        self, pairs: Tensor, query: Tensor, key: Tensor, frequencies: Tensor, distance: int = 0
    ) -> None:
        """Add to the score, for each rotary pair, cos(its frequency * (distance - `distance`)).

        The sum is multiplied by the products of the input with `query`[D] and with `key`[D].
        """
        angles = distance * frequencies[pairs]
        self.q[pairs] += query
        # Dimension i is paired with i + d / 2, see `apply_rotary`.
        self.k[pairs] += torch.outer(angles.cos(), key)
        self.k[pairs + len(self.k) // 2] += torch.outer(angles.sin(), key)

    def match(self, dims: Tensor, query: Tensor, key: Tensor, scale: float) -> None:
        """Add the product of the input in the subspace `query`[R, D] and that in `key`[R, D]."""
        self.q[dims] = scale**0.5 * query
        self.k[dims] = scale**0.5 * key

    def move(self, source: Tensor, target: Tensor, gain: float) -> None:
        """Copy from the subspace with the rows `source`[R, D] to that of `target`[R, D]."""
        self.v[: len(source)] = source
        self.o[:, : len(target)] = gain * target.shape[1] ** -0.5 * target.T


@torch.no_grad()
def init_reading_heads(model: Llama, tokenizer: Tokenizer, seed: int) -> Llama:
    """Overwrite the embedding and six heads of a model with random weights; return the model.

    An embedding is a constant vector, the same for all tokens, plus the token's random vector, both
    of norm 1; tokens that end a clause share a part of theirs. An untied LM head begins with the
    tokens' vectors. Layer by layer (layer, head):

    - (0, 0) and (0, 1) write the token one and two positions back, into subspaces of their own;
    - (1, 1) writes the first token of the clause;
    - (2, 0) attends to the position behind an equal token, best one behind an equal pair, and
      writes the first token of the clause there;
    - (3, 0) predicts, behind a clause, what (2, 0) found at the tokens of the question;
    - (3, 1) attends like (2, 0), and predicts the token there.

    Raises UserError if the shape of the model is too small.
    """
    config = model.config
    _check_shape(config)
    hidden_size = config.hidden_size
    generator = torch.Generator().manual_seed(seed)
    # The rows are orthonormal.
    basis = torch.linalg.qr(torch.randn(hidden_size, hidden_size, generator=generator))[0].T
    frequencies = inverse_frequencies(config)
    slow = torch.nonzero(frequencies < _SLOW_FREQUENCY).flatten()
    matching_dims = torch.cat([slow, slow + config.head_dim // 2])
    rank = min(int(_SUBSPACE_SHARE * hidden_size), 2 * len(matching_dims) // 3)
    pair_rank = min(rank // 2, len(matching_dims) - rank)
    constant, previous, pair, clause_start, found, identity = basis.split(
        [1, rank, pair_rank, rank, rank, hidden_size - 1 - 3 * rank - pair_rank]
    )
    constant = constant[0]
    token = identity[:rank]
    # The part that clause ends share, and where (0, 0) writes it behind a clause end.
    boundary, behind_boundary = token[0], previous[0]

    vectors = torch.randn(config.vocab_size, len(identity), generator=generator) @ identity
    vectors = F.normalize(vectors, dim=1)
    ends = [tokenizer.encode(text)[-1] for text in BOUNDARIES]
    colon = tokenizer.encode(ANSWER_MARK)[-1]
    marks = token[1]
    vectors[colon] += _BOUNDARY_SHARE * marks
    vectors[ends] = F.normalize(vectors[ends] + _BOUNDARY_SHARE * boundary, dim=1)
    # The first token has no part in the space of tokens: to attend to it is to write nothing.
    first = vectors[tokenizer.bos_id] = identity[rank]
    model.lm_head.weight.copy_(vectors)
    model.model.embed_tokens.weight.copy_(vectors + constant)

    # What the random weights write would be louder than the circuit.
    for layer in model.model.layers:
        layer.self_attn.o_proj.weight *= _NOISE
        layer.mlp.down_proj.weight *= _NOISE
    layers = [layer.self_attn for layer in model.model.layers]
    neighbour = _pairs_between(frequencies, *_NEIGHBOUR_FREQUENCIES)
    clause = _pairs_between(frequencies, *_CLAUSE_FREQUENCIES)

    # The norm before the first layer gives the constant part of its input a length of sqrt(D / 2).
    scale = (_PREVIOUS_TOKEN_SCALE * config.head_dim**0.5 * 2 / hidden_size) ** 0.5
    for distance, target in ((1, previous), (2, pair)):
        head = _head(layers[0], distance - 1)
        head.attend(neighbour, scale * constant, scale * constant, frequencies, distance)
        head.move(token[: len(target)], target, _PREVIOUS_TOKEN_GAIN)

    head = _head(layers[1], 1)
    head.attend(clause, constant, behind_boundary, frequencies)
    head.move(token, clause_start, _CLAUSE_START_GAIN)

    lookup = _head(layers[2], 0)
    lookup.move(clause_start, found, _LOOKUP_GAIN)
    # Tokens that occur nowhere else attend to the first position.
    scale = _SINK_SCALE**0.5
    lookup.match(matching_dims[:1], scale * constant[None], scale * first[None], 1.0)
    copy = _head(layers[3], 1)
    copy.move(identity, identity, _COPY_GAIN)
    for head in (lookup, copy):
        # Clause ends have too much in common to be found by it.
        head.match(matching_dims[2:rank], token[2:], previous[2:], _MATCH_SCALE)
        head.match(matching_dims[rank:], previous[:pair_rank], pair, _PAIR_SCALE)

    head = _head(layers[3], 0)
    scale = _QUESTION_SCALE**0.5
    head.attend(clause, scale * marks, scale * constant, frequencies, _QUESTION_DISTANCE)
    scale = _IDLE_SCALE**0.5
    head.match(slow[-1:], scale * constant[None], scale * first[None], 1.0)
    head.move(found, token, _ANSWER_GAIN)
    return model


def _check_shape(config: LlamaConfig) -> None:
    """Raise UserError if the heads of the circuit do not fit into a model."""
    if config.num_hidden_layers < 4 or config.num_key_value_heads < 2 or config.head_dim < 32:
        raise UserError(
            "--model.reading_init needs at least 4 layers, 2 key-value heads and a head dimension "
            "of 32"
        )


def _pairs_between(frequencies: Tensor, low: float, high: float) -> Tensor:
    """Return the indices of the rotary pairs with frequencies above `low` and up to `high`."""
    return torch.nonzero((frequencies > low) & (frequencies <= high)).flatten()


def _head(attention: Attention, index: int) -> Head:
    """Return the weights of a head of the circuit; scale down its queries and keys."""
    query, key = _query_and_key_rows(attention, index)
    attention.q_proj.weight[query] *= _NOISE
    attention.k_proj.weight[key] *= _NOISE
    return Head(
        attention.q_proj.weight[query],
        attention.k_proj.weight[key],
        attention.v_proj.weight[key],
        attention.o_proj.weight[:, query],
    )


def _query_and_key_rows(attention: Attention, index: int) -> tuple[slice, slice]:
    """Return the rows of the first query head of a key-value group, and those of its keys."""
    size, group = attention.head_dim, attention.q_proj.out_features // attention.k_proj.out_features
    query, key = (slice(i * size, (i + 1) * size) for i in (index * group, index))
    return query, key


def reading_head_masks(model: Llama) -> dict[Tensor, Tensor]:
    """Return, for each weight with a part in a reading head, the mask of that part."""
    masks: dict[Tensor, Tensor] = {}
    for layer, index in HEADS:
        attention = model.model.layers[layer].self_attn
        query, key = _query_and_key_rows(attention, index)
        projections = (attention.q_proj, attention.k_proj, attention.v_proj)
        for projection, rows in zip(projections, (query, key, key), strict=True):
            weight = projection.weight
            masks.setdefault(weight, torch.zeros(weight.shape, dtype=torch.bool))[rows] = True
        weight = attention.o_proj.weight
        masks.setdefault(weight, torch.zeros(weight.shape, dtype=torch.bool))[:, query] = True
    return masks
