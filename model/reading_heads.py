"""Reading heads: attention heads that find and copy from the start, and stay as they are.

To answer a question about a passage, a Llama must find the clause that the question shares words
with, go to its beginning and repeat it. The heads for that (induction heads, Olsson et al. 2022,
and lookups in the same manner) form from random weights only after many millions of tokens, so in
a run of a few minutes not at all. Here six heads begin with these tasks. Each kind of information
that they pass on has hidden dimensions of its own (`Subspaces`). The other weights begin random.

Heads find positions through the fast pairs of rotary dimensions, which tell neighbours apart, and
equal tokens through the slow pairs, which hardly depend on the distance. docs/training.md says what
these heads are good for, docs/log.md how the constants were chosen.
"""

from dataclasses import dataclass
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor

from common.errors import UserError
from model.config import PRESETS, READING_HEADS_PRESET, LlamaConfig
from model.llama import Attention, Llama, TransformerBlock, inverse_frequencies
from model.tokenizer import Tokenizer

# The heads, as (layer, key-value head); `init_reading_heads` says what each of them does.
READING_HEADS = ((0, 0), (0, 1), (1, 1), (2, 0), (3, 0), (3, 1))

# The tokens that end a clause, so that the next one begins.
BOUNDARIES = "。，！？；：“”\n"
# The token in front of an answer.
ANSWER_MARK = "："

# Frequencies of rotary pairs, in radians per token: the pairs in the first range tell a token from
# its neighbours, those in the second a clause from the next, which is about ten tokens away. Pairs
# below the last frequency hardly turn within a passage.
_NEIGHBOUR_FREQUENCIES = (0.3, 1.0)
_CLAUSE_FREQUENCIES = (0.02, 0.15)
_SLOW_FREQUENCY = 1 / 150
# The middle of a question is about this many tokens in front of its answer.
_QUESTION_DISTANCE = 8
# The share of the hidden dimensions that each of the three large subspaces takes.
_SUBSPACE_SHARE = 0.225

# Factors of the attention scores; the scores also grow with the length of the compared vectors.
_PREVIOUS_TOKEN_SCALE = 10.0  # at the previous token or the one before it
_QUESTION_SCALE = 1.0  # at the question, behind "："
_MATCH_SCALE = 10.0  # behind an equal token
_PAIR_SCALE = 1.5  # the same behind an equal pair of tokens, in addition
_CLAUSE_SCALE = 15.0  # in a clause with an equal first token, in addition
# The same at `<bos>`, to which a head attends that has nothing to do. Rows of pretraining that
# begin inside a document have none; there such a head attends to everything a little.
_SINK_SCALE = 4.0  # of (2, 0)
_IDLE_SCALE = 1.0  # of (3, 0)
_COLON_SINK_SCALE = 100.0  # of (3, 1), at "："
# Length of the part that the tokens in BOUNDARIES share, relative to the random part of each.
_BOUNDARY_SHARE = 2.0
# The number of dimensions for such parts, which tell nothing about the single token.
_NUM_SHARED = 2
# Factors of what the heads write.
_PREVIOUS_TOKEN_GAIN = 3.0
_CLAUSE_START_GAIN = 4.0
_LOOKUP_GAIN = 2.0
_ANSWER_GAIN = 30.0
_COPY_GAIN = 5.0
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
        self,
        pairs: Tensor,
        query: Tensor,
        key: Tensor,
        frequencies: Tensor,
        scale: float = 1.0,
        distance: int = 0,
    ) -> None:
        """Attend to keys `distance` tokens back by rotary `pairs`.

        The score of a key that is t tokens back is `scale` times the sum of cos(frequency * (t -
        `distance`)) over the pairs, times the products of the input with `query`[D] and `key`[D].
        """
        angles = distance * frequencies[pairs]
        query, key = scale**0.5 * query, scale**0.5 * key
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


@dataclass(frozen=True)
class Subspaces:
    """Disjoint sets of hidden dimensions: R of the D dimensions are unit rows [R, D]."""

    constant: Tensor  # [D]; all tokens have the same there
    sink: Tensor  # [D]; only `<bos>` has something there
    identity: Tensor  # which token it is
    previous: Tensor  # the token before
    pair: Tensor  # the one before that
    clause_start: Tensor  # the first token of the clause
    found: Tensor  # the first token of a clause that has the same words

    @classmethod
    def of(cls, config: LlamaConfig) -> "Subspaces":
        """Divide the hidden dimensions of a model."""
        size = config.hidden_size
        # `identity` gets the rest.
        rank = min(int(_SUBSPACE_SHARE * size), 2 * len(_comparing_dims(config)) // 3)
        sizes = [2, size - 2 - 3 * rank - rank // 2, rank, rank // 2, rank, rank]
        (constant, sink), *others = torch.eye(size).split(sizes)
        return cls(constant, sink, *others)

    @property
    def token(self) -> Tensor:
        """The part of `identity` that the subspaces of other tokens have room for."""
        return self.identity[: len(self.previous)]

    @property
    def embedded(self) -> slice:
        """The dimensions that hold the embedding: the others are written by heads."""
        return slice(0, 2 + len(self.identity))


@torch.no_grad()
def init_reading_heads(model: Llama, tokenizer: Tokenizer, seed: int) -> Llama:
    """Give a model with random weights its reading heads and their embedding; return the model.

    An embedding is a constant vector, the same for all tokens, plus the token's vector, both of
    norm 1. The token's vector is random; those of tokens that end a clause have a large part in
    common, and that of "：" has one more part of its own. An untied LM head begins with the tokens'
    vectors. The heads, as (layer, key-value head):

    - (0, 0) and (0, 1) write the token one and two positions back, into subspaces of their own;
    - (1, 1) writes the first token of the clause;
    - (2, 0) attends to the position behind an equal token, best one behind an equal pair, and
      writes the first token of the clause there;
    - (3, 0) predicts, behind "：", what (2, 0) found most at the tokens of the question;
    - (3, 1) attends like (2, 0), prefers clauses with the same first token, and predicts the token
      there.

    All output projections become smaller. In a model whose feed-forward networks are wider than
    those of the preset, only the circuit writes into its own dimensions before the last layer, see
    `reading_head_masks`. `seed` chooses the tokens' vectors. Raises UserError if
    the tokenizer splits one of the characters that the heads know, such as "。".
    """
    config = model.config
    generator = torch.Generator().manual_seed(seed)
    spaces = Subspaces.of(config)
    constant, sink, identity, token = spaces.constant, spaces.sink, spaces.identity, spaces.token
    previous, pair, clause_start = spaces.previous, spaces.pair, spaces.clause_start
    # What tokens that end a clause have in common, where (0, 0) writes it, and what "：" alone has.
    boundary, behind_boundary, mark = token[0], previous[0], token[1]

    vectors = torch.randn(config.vocab_size, len(identity) - _NUM_SHARED, generator=generator)
    vectors = F.normalize(vectors @ identity[_NUM_SHARED:], dim=1)
    ends = [_encode_single(tokenizer, text) for text in BOUNDARIES]
    colon = _encode_single(tokenizer, ANSWER_MARK)
    vectors[colon] = F.normalize(vectors[colon] + mark, dim=0)
    vectors[ends] = F.normalize(vectors[ends] + _BOUNDARY_SHARE * boundary, dim=1)
    # No head copies what `<bos>` has: to attend to it is to write nothing.
    vectors[tokenizer.bos_id] = sink
    model.lm_head.weight.copy_(vectors)
    model.model.embed_tokens.weight.copy_(vectors + constant)

    # What the random weights write would be louder than the circuit.
    blocks = [cast(TransformerBlock, block) for block in model.model.layers]
    for block in blocks:
        block.self_attn.o_proj.weight *= _NOISE
        block.mlp.down_proj.weight *= _NOISE
    for weight, mask in _foreign_writes(model).items():
        weight[mask] = 0
    layers = [block.self_attn for block in blocks]
    frequencies = inverse_frequencies(config)
    neighbour_pairs = _pairs_between(frequencies, *_NEIGHBOUR_FREQUENCIES)
    clause_pairs = _pairs_between(frequencies, *_CLAUSE_FREQUENCIES)

    # The norm before the first layer gives the constant part of its input a length of sqrt(D / 2).
    scale = _PREVIOUS_TOKEN_SCALE * config.head_dim**0.5 * 2 / config.hidden_size
    for distance, target in ((1, previous), (2, pair)):
        head = _head(layers[0], distance - 1)
        head.attend(neighbour_pairs, constant, constant, frequencies, scale, distance)
        head.move(token[: len(target)], target, _PREVIOUS_TOKEN_GAIN)

    head = _head(layers[1], 1)
    # Of several clause ends in a row, such as “？” and a line end, the last one counts.
    head.attend(clause_pairs, constant, behind_boundary - boundary, frequencies)
    head.move(token, clause_start, _CLAUSE_START_GAIN)

    dims = _comparing_dims(config)
    lookup = _head(layers[2], 0)
    lookup.match(dims[:1], constant[None], sink[None], _SINK_SCALE)
    lookup.move(clause_start, spaces.found, _LOOKUP_GAIN)
    copy = _head(layers[3], 1)
    # Behind "：" the clause is to be chosen, not an earlier "：" to be continued.
    copy.match(dims[:1], mark[None], sink[None], _COLON_SINK_SCALE)
    copy.move(identity, identity, _COPY_GAIN)
    num_tokens, num_pairs = 5 * len(dims) // 12, len(dims) // 6
    for head, sizes in (
        (lookup, (len(token), len(dims) - len(token), 0)),
        (copy, (num_tokens, num_pairs, len(dims) - num_tokens - num_pairs)),
    ):
        token_dims, pair_dims, clause_dims = dims.split(sizes)
        # The parts that clause ends have in common would find all of them.
        own = slice(_NUM_SHARED, len(token_dims))
        head.match(token_dims[own], token[own], previous[own], _MATCH_SCALE)
        size = len(pair_dims)
        head.match(pair_dims, previous[:size], pair[:size], _PAIR_SCALE)
        own = slice(_NUM_SHARED, _NUM_SHARED + len(clause_dims))
        head.match(clause_dims, clause_start[own], clause_start[own], _CLAUSE_SCALE)

    vote = _head(layers[3], 0)
    vote.attend(clause_pairs, mark, constant, frequencies, _QUESTION_SCALE, _QUESTION_DISTANCE)
    # The slowest pair: nothing else is compared here, and `<bos>` may be far away.
    last_pair = len(dims) // 2 - 1
    vote.match(dims[last_pair : last_pair + 1], constant[None], sink[None], _IDLE_SCALE)
    vote.move(spaces.found, token, _ANSWER_GAIN)
    return model


def reading_head_masks(model: Llama) -> dict[Tensor, Tensor]:
    """Return the masks of the weights that make up the circuit, by weight.

    These are the weights of the reading heads, and the dimensions of the embedding that they read;
    in a model with wider feed-forward networks than the preset also those that would write into the
    circuit, which are 0.
    """
    masks = _foreign_writes(model)

    def mask_of(weight: Tensor) -> Tensor:
        return masks.setdefault(weight, torch.zeros(weight.shape, dtype=torch.bool))

    for weight in (model.model.embed_tokens.weight, model.lm_head.weight):
        mask_of(weight)[:, Subspaces.of(model.config).embedded] = True
    for layer, index in READING_HEADS:
        attention = cast(TransformerBlock, model.model.layers[layer]).self_attn
        query, key = _query_and_key_rows(attention, index)
        mask_of(attention.q_proj.weight)[query] = True
        mask_of(attention.k_proj.weight)[key] = True
        mask_of(attention.v_proj.weight)[key] = True
        mask_of(attention.o_proj.weight)[:, query] = True
    return masks


def _foreign_writes(model: Llama) -> dict[Tensor, Tensor]:
    """Return masks of the weights by which others would write what the circuit reads, by weight.

    They are those of the feed-forward networks and the other heads, before the last layer of the
    circuit, for dimensions that are not the embedding's. Wide networks write so loudly that the
    circuit is lost; those of the preset do not, and need these dimensions (docs/log.md): then there
    are none.
    """
    preset_size = PRESETS[READING_HEADS_PRESET]["intermediate_size"]
    if model.config.intermediate_size <= preset_size:
        return {}
    embedded = Subspaces.of(model.config).embedded
    last_layer = max(layer for layer, _ in READING_HEADS)
    masks = {}
    for number in range(last_layer):
        block = cast(TransformerBlock, model.model.layers[number])
        for weight in (block.self_attn.o_proj.weight, block.mlp.down_proj.weight):
            masks[weight] = torch.zeros(weight.shape, dtype=torch.bool)
            masks[weight][embedded.stop :] = True
        for layer, index in READING_HEADS:
            if layer == number:
                query, _ = _query_and_key_rows(block.self_attn, index)
                masks[block.self_attn.o_proj.weight][:, query] = False
    return masks


def _comparing_dims(config: LlamaConfig) -> Tensor:
    """Return the dimensions of a head in which vectors are compared, whatever their distance."""
    slow_pairs = torch.nonzero(inverse_frequencies(config) < _SLOW_FREQUENCY).flatten()
    return torch.cat([slow_pairs, slow_pairs + config.head_dim // 2])


def _encode_single(tokenizer: Tokenizer, text: str) -> int:
    """Return the id of a text that is one token; raise UserError if it is not."""
    ids = tokenizer.encode(text)
    if len(ids) != 1:
        raise UserError(
            f"reading heads need a tokenizer with {text!r} as one token: --model.reading_heads "
            "false trains without them"
        )
    return ids[0]


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
