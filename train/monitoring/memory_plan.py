"""The memory of training, from arithmetic: what is allocated in each phase of a run, and the peak.

A phase is a list of tensors, each a term with the part of the breakdown that it belongs to. The
peak is the largest phase, not the sum of all parts: activations and gradients, for example, are
hardly there at the same time. Shapes: B rows, T positions of a row, L layers, D hidden size, F
intermediate size, H query heads, K key-value heads, d head_dim, V vocabulary.
"""

import math
from collections import Counter
from collections.abc import Iterable
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

import torch

from model.attention.attend import MIN_STRIPS_HEAD_DIM, MIN_STRIPS_LENGTH
from model.attention.packing import MAX_SCORES, STRIP
from model.bf16_loss import CHUNK_SIZE, can_fuse
from model.config import LlamaConfig
from model.lora_options import LoraOptions, Quantization
from model.loss import LossPath, loss_chunk_size
from model.nf4 import BLOCK_SIZE, SCALE_BLOCK_SIZE
from model.precision import Precision
from model.recomputation import TILE_POSITIONS
from train.optimizer import (
    MIN_8BIT_ELEMENTS,
    MIN_PAGED_ELEMENTS,
    MOMENT_BLOCK_SIZE,
    choose_dtype,
)
from train.options import GradientCheckpointing, OptimizerName

# 4 bits, an 8-bit scale for a block of weights and an fp32 scale for a block of scales.
NF4_BITS = 4 + 8 / BLOCK_SIZE + 32 / (BLOCK_SIZE * SCALE_BLOCK_SIZE)
# The driver's context of a GPU, and the workspaces of its libraries.
CUDA_CONTEXT_BYTES = 500_000_000
# bitsandbytes and what it imports, as measured.
BITSANDBYTES_BYTES = 125_000_000
# glibc takes tensors up to this size from its heap, which does not shrink; it maps larger ones, and
# returns them to the system when they are freed (M_MMAP_THRESHOLD_MAX).
HEAP_TENSOR_BYTES = 32 << 20
# Tensors are aligned to 64 bytes, and for an aligned one glibc 2.36 looks for a hole that is larger
# than the tensor. Holes left by tensors of the same size stay empty, and the heap grows by shares
# of the activations of a micro-batch, as measured (docs/memory.md): more if autocast converts them,
# if there is an adapter, or if gradients of earlier micro-batches lie between the holes.
HEAP_WASTE = 0.4
HEAP_WASTE_16_BIT = 0.65
HEAP_WASTE_ADAPTER = 0.62
HEAP_WASTE_SEVERAL_MICRO_BATCHES = 0.85
# The same for the gradients of the blocks, which under autocast are narrow first, up to a share of
# the activations whose holes they enter.
HEAP_WASTE_GRADIENTS = 0.8
MAX_HEAP_WASTE_GRADIENTS = 0.4
MAX_HEAP_WASTE_GRADIENTS_16_BIT = 1.1
# The same for what the forward pass of an adapter frees at once. An evaluation finds it returned.
HEAP_WASTE_ADAPTER_OUTPUTS = 0.75
# Positions of text that an evaluation scores together.
SCORED_TOKENS = 16 * 256
# With gradient checkpointing the tensors of a layer lie between those that are kept, in both
# passes: the heap wastes a share of the activations that there are without it.
HEAP_WASTE_CHECKPOINTING = 1.0
# In rows that go through tiles it is a multiple of what one layer saves of a tile, in all layers.
HEAP_WASTE_TILES = 1.5
# With quantized weights. Activations fill the holes of dequantized copies that are several times
# larger: then a share of all copies of a pass is wasted, and several of the largest one.
HEAP_WASTE_QUANTIZED = 0.85
HEAP_WASTE_QUANTIZED_16_BIT = 0.55
HEAP_WASTE_DEQUANTIZED = 0.7
HEAP_WASTE_LARGEST_COPIES = 6.5
MIN_RATIO_OF_WASTED_COPIES = 3
# What the heap wastes differs from run to run; this share of the peak is added.
HEAP_VARIATION = 0.03
# The longest prompt of a sample of text.
SAMPLE_TOKENS = 256
# Attention in strips pads examples to multiples of 32 tokens: about an eighth more at 128 tokens.
FILLED_SHARE = 9 / 8
EVALUATION_PHASES = ("scoring", "generation", "sampling")


@dataclass(frozen=True)
class Workload:
    """Everything that the memory of training on one device depends on."""

    config: LlamaConfig
    length: int  # tokens of a row
    micro_rows: int  # rows of a micro-batch
    micro_batches: int = 1  # of a step: from 2 on, gradients wait while the next one is computed
    targets: int | None = None  # positions with a loss of a micro-batch; None: all
    is_packed: bool = False  # several examples in a row
    precision: Precision = "fp32"
    loss_path: LossPath = "chunked"
    optimizer: OptimizerName = "muon"
    lora: LoraOptions | None = None  # None: all weights train
    quantization: Quantization | None = None  # of the linear layers below an adapter
    checkpointing: GradientCheckpointing = "none"  # what is kept of each layer
    offloads: bool = False  # it waits in the memory of the host
    scored_tokens: int = SCORED_TOKENS  # positions that an evaluation scores together
    answer_rows: int = 1  # prompts that an evaluation answers together
    sampled_rows: int = 0  # answers that are drawn together, to train on them
    samples: int = 1  # of them to each prompt
    new_tokens: int = 100  # ids of the longest answer
    has_base: bool = False  # weights are read from a checkpoint
    has_reference: bool = False  # a second model, which does not train
    device: Literal["cpu", "cuda"] = "cpu"
    is_compiled: bool = False

    @property
    def tokens(self) -> int:
        """Tokens of a micro-batch."""
        return self.micro_rows * self.length

    @property
    def num_targets(self) -> int:
        """Positions of a micro-batch that have a loss."""
        return self.tokens if self.targets is None else self.targets

    @property
    def is_tiled(self) -> bool:
        """Whether training computes the feed-forward networks of a row in several tiles."""
        return self.checkpointing != "none" and self.length > TILE_POSITIONS

    @property
    def kept_layers(self) -> int:
        """Layers whose kept tensors are in the memory of the device at a time.

        If they wait on the host, those of the layer that computes are there, and of its neighbor.
        """
        layers = self.config.num_hidden_layers
        is_elsewhere = self.offloads and self.device == "cuda"
        return min(layers, 2) if is_elsewhere else layers

    @property
    def compute_bytes(self) -> int:
        """Bytes of a number in matmuls."""
        return 4 if self.precision == "fp32" else 2

    @property
    def is_narrow(self) -> bool:
        """Whether activations are bf16 from the embedding on (`model.narrow_weights`)."""
        return self.device == "cpu" and self.precision == "bf16" and not self.is_compiled

    @property
    def stream_bytes(self) -> int:
        """Bytes of a number of the residual stream."""
        return 2 if self.is_narrow else self.weight_bytes

    @property
    def weight_bytes(self) -> int:
        """Bytes of a number of the embedding, the head and the norms.

        Weights are fp32. Beside quantized layers they are in the number format of matmuls.
        """
        return 4 if self.quantization is None else self.compute_bytes

    @property
    def uses_bitsandbytes(self) -> bool:
        """Whether a weight or a moment is quantized."""
        return self.quantization is not None or self.optimizer not in ("muon", "adamw")

    @property
    def adapter_bytes(self) -> int:
        """Bytes of a number of the adapter."""
        return 2 if self.lora is not None and self.lora.dtype == "bf16" else 4

    def to_json(self) -> dict[str, Any]:
        """Return the fields as JSON."""
        lora = None if self.lora is None else self.lora.model_dump(mode="json")
        return {**asdict(self), "lora": lora}


@dataclass(frozen=True)
class Tensors:
    """Some tensors of one size, and the part of the breakdown that they belong to."""

    part: str
    num_bytes: float  # of one tensor
    count: int = 1

    @property
    def total(self) -> float:
        """Bytes of all of them."""
        return self.num_bytes * self.count


@dataclass(frozen=True)
class MemoryPlan:
    """The bytes of each part in each phase of a run."""

    phases: dict[str, dict[str, int]]

    @property
    def peak_phase(self) -> str:
        """The phase that needs most."""
        return max(self.phases, key=lambda name: sum(self.phases[name].values()))

    @property
    def breakdown(self) -> dict[str, int]:
        """The bytes of each part at the peak."""
        return self.phases[self.peak_phase]

    @property
    def peak_bytes(self) -> int:
        """The bytes of the whole process on a CPU, and of the card on a GPU."""
        return sum(self.breakdown.values())

    @property
    def tensor_bytes(self) -> int:
        """The bytes of the tensors at the peak: what PyTorch reports as allocated on a GPU."""
        return self.peak_bytes - self.breakdown["process"]


def plan_memory(workload: Workload, process_bytes: int = 0) -> MemoryPlan:
    """Return the memory of a workload.

    On a CPU the interpreter and its libraries but bitsandbytes need `process_bytes`
    (`train.monitoring.run_memory`); on a GPU the context takes their place.
    """
    if workload.uses_bitsandbytes:
        process_bytes += BITSANDBYTES_BYTES
    phases = {
        "loading": _loading(workload),
        "loss": _loss(workload),
        "backward of the last layer": _backward_start(workload),
        "backward of the first layer": _backward_end(workload),
        "update": _update(workload),
        "scoring": _scoring(workload),
        "generation": _generation(workload),
    }
    if workload.sampled_rows:
        phases["sampling"] = _sampling(workload)
    if workload.device == "cuda":
        process = {"process": CUDA_CONTEXT_BYTES}
        return MemoryPlan({name: process | _sum_parts(phase) for name, phase in phases.items()})
    # A heap that one phase has filled stays as large for the others; loading comes before them.
    heap_bytes = {name: _heap_bytes(phase) for name, phase in phases.items()}
    largest_heap = max(heap_bytes.values())
    waste, adapter_waste = _heap_waste(workload), _adapter_heap_waste(workload)
    parts = {}
    for name, phase in phases.items():
        kept = 0 if name == "loading" else largest_heap - heap_bytes[name] + waste
        if name not in ("loading", *EVALUATION_PHASES):
            kept += adapter_waste
        tensors = _sum_parts(phase)
        kept += HEAP_VARIATION * (process_bytes + sum(tensors.values()) + kept)
        parts[name] = {"process": process_bytes, **tensors, "allocator": round(kept)}
    return MemoryPlan(parts)


def _sum_parts(phase: Iterable[Tensors]) -> dict[str, int]:
    """Return the bytes of each part."""
    sums: Counter[str] = Counter()
    for tensors in phase:
        sums[tensors.part] += round(tensors.total)
    return dict(sums)


def _heap_bytes(phase: Iterable[Tensors]) -> float:
    """Return the bytes of the tensors that glibc takes from its heap."""
    return sum(t.total for t in phase if t.num_bytes <= HEAP_TENSOR_BYTES)


def _heap_waste(workload: Workload) -> float:
    """Return the bytes of glibc's heap that hold nothing after a step."""
    share, largest = HEAP_WASTE, MAX_HEAP_WASTE_GRADIENTS
    narrow = 0
    if workload.compute_bytes < 4:
        share, largest = HEAP_WASTE_16_BIT, MAX_HEAP_WASTE_GRADIENTS_16_BIT
        narrow = workload.compute_bytes
    if workload.lora is not None:
        share = HEAP_WASTE_ADAPTER
    if workload.micro_batches > 1:
        share = HEAP_WASTE_SEVERAL_MICRO_BATCHES
    if workload.quantization is not None:
        is_narrow = workload.compute_bytes < 4
        share = HEAP_WASTE_QUANTIZED_16_BIT if is_narrow else HEAP_WASTE_QUANTIZED
    if workload.checkpointing != "none":
        share = HEAP_WASTE_CHECKPOINTING
    activations = _heap_bytes(_activations(replace(workload, checkpointing="none")))
    if workload.is_tiled:
        share = HEAP_WASTE_TILES
        layer = _layer_activations(replace(workload, checkpointing="layers"))
        activations = workload.config.num_hidden_layers * _heap_bytes(layer)
    waste = share * activations
    if workload.quantization is not None:
        waste += _dequantized_heap_waste(workload)
    if workload.lora is None and workload.checkpointing == "none":
        weights = workload.config.num_hidden_layers * sum(_linear_sizes(workload.config))
        gradients = (4 + narrow) * weights
        waste += min(HEAP_WASTE_GRADIENTS * gradients, largest * activations)
    return waste


def _dequantized_heap_waste(workload: Workload) -> float:
    """Return the bytes of the heap that dequantized weights waste in addition."""
    config = workload.config
    sizes = [size * workload.compute_bytes for size in _linear_sizes(config)]
    copies = [size for size in sizes if size <= HEAP_TENSOR_BYTES]
    largest = max(copies, default=0)
    width = max(config.intermediate_size, config.hidden_size)
    if largest < MIN_RATIO_OF_WASTED_COPIES * workload.tokens * width * workload.compute_bytes:
        return 0.0
    all_copies = config.num_hidden_layers * sum(copies)
    return HEAP_WASTE_DEQUANTIZED * all_copies + HEAP_WASTE_LARGEST_COPIES * largest


def _adapter_heap_waste(workload: Workload) -> float:
    """Return the bytes of the heap that the forward pass of an adapter wastes in addition."""
    # Tiles enter the holes that earlier tiles have left.
    if workload.lora is None or workload.quantization is not None or workload.is_tiled:
        return 0.0
    config = workload.config
    # Its output, a multiple of it and the output of the frozen layer, before they are added.
    outputs = sum(linear_shapes(config)[target][0] for target in workload.lora.targets)
    freed = 3 * outputs * workload.tokens * workload.compute_bytes * config.num_hidden_layers
    return HEAP_WASTE_ADAPTER_OUTPUTS * freed


# The parts of the model, which do not depend on the phase.


def linear_shapes(config: LlamaConfig) -> dict[str, tuple[int, int]]:
    """Return (outputs, inputs) of the linear layers of a transformer block, by name."""
    hidden, width = config.hidden_size, config.intermediate_size
    query = config.num_attention_heads * config.head_dim
    key = config.num_key_value_heads * config.head_dim
    return {
        "q_proj": (query, hidden),
        "k_proj": (key, hidden),
        "v_proj": (key, hidden),
        "o_proj": (hidden, query),
        "gate_proj": (width, hidden),
        "up_proj": (width, hidden),
        "down_proj": (hidden, width),
    }


def _linear_sizes(config: LlamaConfig) -> list[int]:
    """Return the number of weights of each linear layer of a block."""
    return [outputs * inputs for outputs, inputs in linear_shapes(config).values()]


def _adapter_sizes(workload: Workload) -> list[int]:
    """Return the number of weights of each low-rank matrix of a block."""
    if workload.lora is None:
        return []
    shapes = linear_shapes(workload.config)
    sizes = [shapes[target] for target in workload.lora.targets]
    return [workload.lora.rank * features for shape in sizes for features in shape]


def count_adapter_parameters(workload: Workload) -> int:
    """Return the number of weights of the adapter."""
    return workload.config.num_hidden_layers * sum(_adapter_sizes(workload))


def _tables(config: LlamaConfig) -> int:
    """Return how many matrices of V * D there are: embedding and head, or one for both."""
    return 1 if config.tie_word_embeddings else 2


def _parameters(workload: Workload) -> list[Tensors]:
    config = workload.config
    layers, table = config.num_hidden_layers, config.vocab_size * config.hidden_size
    bits = 32 if workload.quantization is None else NF4_BITS
    norms = (2 * layers + 1) * config.hidden_size
    part = "parameters"
    return [
        *(Tensors(part, size * bits / 8, layers) for size in _linear_sizes(config)),
        Tensors(part, table * workload.weight_bytes, _tables(config)),
        Tensors(part, norms * workload.weight_bytes),
        # Cosines and sines of all positions, fp32[2, positions, d / 2].
        Tensors(part, 4 * config.max_position_embeddings * config.head_dim),
        *(
            Tensors("adapter", size * workload.adapter_bytes, layers)
            for size in _adapter_sizes(workload)
        ),
    ]


def _trainable(workload: Workload) -> list[tuple[str, int, int]]:
    """Return the weights that train: what they are, the numbers of one tensor, and how many."""
    config = workload.config
    layers = config.num_hidden_layers
    if workload.lora is not None:
        return [("adapter", size, layers) for size in _adapter_sizes(workload)]
    table = config.vocab_size * config.hidden_size
    return [
        *(("matrix", size, layers) for size in _linear_sizes(config)),
        ("embedding", table, 1),
        ("matrix of the head", table, _tables(config) - 1),
        ("vector", config.hidden_size, 2 * layers + 1),
    ]


def _gradients(workload: Workload) -> list[Tensors]:
    """Return the gradients, which have the number format of their weights."""
    num_bytes = workload.adapter_bytes
    return [
        Tensors("gradients", size * num_bytes, count) for _, size, count in _trainable(workload)
    ]


def _optimizer_state(workload: Workload) -> list[Tensors]:
    config, part = workload.config, "optimizer state"
    state: list[Tensors] = []
    for name, size, count in _trainable(workload):
        # Muon has one moment, AdamW two.
        moments = 1 if workload.optimizer == "muon" and name == "matrix" else 2
        state.append(Tensors(part, size * _moment_bytes(workload, name, size), moments * count))
    if config.reading_heads and workload.lora is None:
        # Copies of the weights that stay as they are, and their masks of one byte (`FixedWeights`).
        state += [
            Tensors(part, 5 * size, config.num_hidden_layers) for size in _linear_sizes(config)[:4]
        ]
        state.append(Tensors(part, 5 * config.vocab_size * config.hidden_size))
    return state


def _moment_bytes(workload: Workload, name: str, size: int) -> float:
    """Return the bytes of a number of the moments of a tensor (`train.optimizer.AdamW8bit`)."""
    if workload.optimizer in ("muon", "adamw"):
        # Those of PyTorch have the number format of the weight.
        return workload.adapter_bytes
    if name in ("embedding", "vector") or size < MIN_8BIT_ELEMENTS:
        return 4
    is_paged = workload.optimizer == "paged_adamw8bit" and workload.device == "cuda"
    if is_paged and size >= MIN_PAGED_ELEMENTS:
        return 0  # they move to the host
    return 1 + 4 / MOMENT_BLOCK_SIZE


def _resident(workload: Workload) -> list[Tensors]:
    """Return what is there in all phases after the first step."""
    terms = _parameters(workload) + _optimizer_state(workload)
    if _has_narrow_copies(workload):
        table = workload.config.vocab_size * workload.config.hidden_size
        terms.append(Tensors("narrow weights", 2 * table))
    if _computes_strips(workload):
        terms.append(Tensors("temporaries", _strip_bytes(workload)))
    if workload.has_reference:
        terms += [
            replace(tensors, part="reference")
            for tensors in _parameters(replace(workload, lora=None))
        ]
    return terms


def _has_narrow_copies(workload: Workload) -> bool:
    """Return whether the weights of linear layers have copies in bf16 for the whole run.

    Those of the blocks are among what a forward pass saves (`_saved_by_weights`); without it they
    are there all the same (`_narrow_blocks`).
    """
    return workload.is_narrow and workload.compute_bytes < workload.weight_bytes


def _narrow_blocks(workload: Workload, num_layers: int) -> list[Tensors]:
    """Return the copies in bf16 of the weights of some blocks."""
    if not _has_narrow_copies(workload):
        return []
    sizes = _linear_sizes(workload.config)
    return [Tensors("narrow weights", 2 * size, num_layers) for size in sizes]


def _computes_strips(workload: Workload) -> bool:
    """Return whether attention is computed in strips (`model.attention.attend`)."""
    is_large = (
        workload.length >= MIN_STRIPS_LENGTH and workload.config.head_dim >= MIN_STRIPS_HEAD_DIM
    )
    is_eager_cpu = workload.device == "cpu" and not workload.is_compiled
    return is_eager_cpu and (workload.is_packed or is_large)


def _strip_bytes(workload: Workload) -> int:
    """Return the buffers of attention in strips (`model.attention`), for segments as long as rows.

    They have scores and their gradients, and queries, keys, values and the like of some heads.
    """
    config, length = workload.config, workload.length
    strip = min(STRIP, length) * length
    max_scores = MAX_SCORES * torch.get_num_threads()
    heads = min(workload.micro_rows * config.num_attention_heads, max_scores // strip)
    heads = max(heads, config.num_attention_heads // config.num_key_value_heads)
    return 4 * heads * (2 * strip + 7 * length * config.head_dim)


def _waiting_gradients(workload: Workload) -> list[Tensors]:
    """Return the gradients of the earlier micro-batches of a step."""
    return _gradients(workload) if workload.micro_batches > 1 else []


# Activations: what autograd saves for the backward pass.


def saved_tensors(workload: Workload) -> dict[str, float]:
    """Return the bytes that autograd saves in one transformer block, by what they are.

    On a CPU and in compiled code, norms, rotary embedding and SwiGLU save their inputs only
    (`model.autograd_ops`). The plain formulas, which an eager GPU runs, save some results as well.
    """
    return _attention_saved(workload) | _feed_forward_saved(workload, workload.tokens)


def _attention_saved(workload: Workload) -> dict[str, float]:
    """Return what the norm before attention, and attention, save."""
    config, n, e = workload.config, workload.tokens, workload.compute_bytes
    query = n * config.num_attention_heads * config.head_dim
    key = n * config.num_key_value_heads * config.head_dim
    names = ("q_proj", "k_proj", "v_proj")
    inputs = _saved_inputs(workload, names, n * config.hidden_size)
    return {
        "norm of attention": _saved_by_norm(workload, n),
        "inputs of q, k, v": inputs,
        "q, k, v": (query + 2 * key) * e,
        "attention": query * e + n * config.num_attention_heads * 4,
        "input of o": _saved_inputs(workload, ("o_proj",), query, is_kept=True),
        **_saved_by_weights(workload, (*names, "o_proj"), n, "attention"),
    }


def _feed_forward_saved(workload: Workload, n: int) -> dict[str, float]:
    """Return what the second norm and the feed-forward network save of `n` positions."""
    config = workload.config
    width = n * config.intermediate_size
    is_plain = workload.device == "cuda" and not workload.is_compiled
    names = ("gate_proj", "up_proj")
    return {
        "norm of feed-forward": _saved_by_norm(workload, n),
        "inputs of gate, up": _saved_inputs(workload, names, n * config.hidden_size),
        "gate, up": (2 + is_plain) * width * workload.compute_bytes,
        "input of down": _saved_inputs(workload, ("down_proj",), width),
        **_saved_by_weights(workload, (*names, "down_proj"), n, "feed-forward"),
    }


def _saved_by_norm(workload: Workload, n: int) -> float:
    """Return the bytes of the input, and of its inverse root mean square in fp32."""
    hidden = n * workload.config.hidden_size * (2 if workload.is_narrow else 4)
    is_plain = workload.device == "cuda" and not workload.is_compiled
    # The gradient of the scale needs their quotient.
    return hidden * (2 if is_plain and workload.lora is None else 1) + n * 4


def _saved_inputs(
    workload: Workload, names: tuple[str, ...], size: int, *, is_kept: bool = False
) -> float:
    """Return the bytes of the inputs of some layers that read the same vector of `size` numbers.

    A layer saves its input if it trains or has an adapter. `is_kept`: others save it anyway.
    """
    lora, e = workload.lora, workload.compute_bytes
    saving = [name for name in names if lora is None or name in lora.targets]
    if lora is not None and lora.dropout > 0:
        # The input after dropout, and the mask of what is kept.
        return len(saving) * size * (e + 1)
    if is_kept or not saving:
        return 0.0
    # Under autocast every layer converts the input for itself, unless it has that type already.
    return size * e * (len(saving) if e < workload.stream_bytes else 1)


def _saved_by_weights(
    workload: Workload, names: tuple[str, ...], n: int, place: str
) -> dict[str, float]:
    """Return the bytes of the low-rank vectors of some layers, and of their converted weights."""
    lora, e = workload.lora, workload.compute_bytes
    shapes = linear_shapes(workload.config)
    converted = 0.0
    if e < workload.weight_bytes:
        converted += 2 * sum(shapes[name][0] * shapes[name][1] for name in names)
    targets = [name for name in names if lora is not None and name in lora.targets]
    rank = 0 if lora is None else lora.rank
    if e < workload.adapter_bytes:
        converted += 2 * rank * sum(sum(shapes[name]) for name in targets)
    return {
        f"low rank of {place}": n * rank * e * len(targets),
        f"converted weights of {place}": converted,
    }


def _layer_activations(workload: Workload) -> list[Tensors]:
    """Return the saved tensors of one block, which may be computed a second time."""
    config, n = workload.config, workload.tokens
    query = config.num_attention_heads * config.head_dim
    narrow = n * max(config.hidden_size, query) * workload.compute_bytes
    wide = n * config.intermediate_size * workload.compute_bytes
    saved = saved_tensors(workload)
    if workload.is_tiled:
        # The rest is in the temporaries of the tiles, which are gone when attention follows.
        saved = _attention_saved(workload)
        if workload.is_narrow or workload.weight_bytes == 4:
            # The input is kept anyway.
            saved["norm of attention"] -= n * config.hidden_size * workload.stream_bytes
    if workload.checkpointing == "attention":
        del saved["attention"]  # it is among what is kept
    terms = []
    for name, num_bytes in saved.items():
        # Some are several tensors, the size of which matters for the heap alone.
        size = wide if name in ("gate, up", "input of down") else narrow
        count = max(1, round(num_bytes / size))
        terms.append(Tensors("activations", num_bytes / count, count))
    return terms


def _repeat(terms: list[Tensors], times: int) -> list[Tensors]:
    return [Tensors(term.part, term.num_bytes, term.count * times) for term in terms]


def kept_tensors(workload: Workload) -> list[float]:
    """Return the bytes of what gradient checkpointing keeps of a layer, besides weights."""
    config, n = workload.config, workload.tokens
    kept: list[float] = [n * config.hidden_size * workload.stream_bytes]
    if workload.checkpointing == "attention":
        heads = n * config.num_attention_heads
        kept += [heads * config.head_dim * workload.compute_bytes, heads * 4]
    return kept


def count_host_bytes(workload: Workload) -> int:
    """Return the memory of the host that activations take beside a GPU."""
    if workload.checkpointing == "none" or not workload.offloads:
        return 0
    # PyTorch's allocator of page-locked memory rounds up to powers of two.
    sizes = [1 << (math.ceil(num_bytes) - 1).bit_length() for num_bytes in kept_tensors(workload)]
    return workload.config.num_hidden_layers * sum(sizes)


def _activations(workload: Workload, *, has_last_norm: bool = True) -> list[Tensors]:
    """Return what is saved for the backward pass when the forward pass is done.

    Without the tensors of the last norm it is what is there after the norm's backward pass.
    """
    config, n = workload.config, workload.tokens
    layers = config.num_hidden_layers
    vector = n * config.hidden_size * workload.stream_bytes
    if workload.checkpointing == "none":
        saved = _repeat(_layer_activations(workload), layers)
    else:
        saved = [
            Tensors("activations", size, workload.kept_layers) for size in kept_tensors(workload)
        ]
        saved += _narrow_blocks(workload, layers - 1)
    return [
        *saved,
        # Its input and output.
        *([Tensors("activations", vector, 2)] if has_last_norm else []),
        # Cosines and sines, ids and positions.
        Tensors("activations", n * (4 * config.head_dim + 4 * 8)),
    ]


def _dequantized(workload: Workload) -> list[Tensors]:
    """Return the weight of a quantized layer while it computes, and its scales before and after."""
    if workload.quantization is None:
        return []
    size = max(_linear_sizes(workload.config))
    part = "temporaries"
    return [
        Tensors(part, size * workload.compute_bytes),
        Tensors(part, 4 * size / BLOCK_SIZE, 2),
    ]


# Phases.


def _loading(workload: Workload) -> list[Tensors]:
    """Weights are drawn, or read from a file that is mapped into memory."""
    config = workload.config
    terms = _parameters(workload)
    if workload.quantization is not None:
        return [*terms, *_quantizing(workload)]
    if workload.has_base and workload.device == "cpu":
        return [*terms, Tensors("file", sum(tensors.total for tensors in terms))]
    # Normal numbers in fp32, and their multiple.
    largest = max(*_linear_sizes(config), config.vocab_size * config.hidden_size)
    return [*terms, Tensors("temporaries", 4 * largest, 0 if workload.has_base else 2)]


def _quantizing(workload: Workload) -> list[Tensors]:
    """Return the temporaries of quantizing the largest matrix, which is read from its file alone.

    On a CPU they are those of bitsandbytes' formula in PyTorch: weights, their quotients and the
    numbers of the quantiles, with 4 bytes each, and the latter in a byte and packed.
    """
    size = max(_linear_sizes(workload.config))
    part = "temporaries"
    terms = [Tensors(part, 4 * size, 2)]
    if workload.device == "cpu":
        terms += [Tensors("file", 4 * size), Tensors(part, 4 * size), Tensors(part, 2 * size)]
    return terms


def _loss(workload: Workload) -> list[Tensors]:
    """All activations are there, and the logits of a chunk or of all positions."""
    return [
        *_resident(workload),
        *_waiting_gradients(workload),
        *_activations(workload),
        *_logits(workload),
    ]


def _logits(workload: Workload) -> list[Tensors]:
    """Return the tensors of the loss at its peak, gradients of the head and the states included."""
    config = workload.config
    n, e = workload.num_targets, workload.compute_bytes
    hidden = n * config.hidden_size * workload.stream_bytes
    table = config.vocab_size * config.hidden_size
    is_trained = workload.lora is None
    part = "logits and loss"
    terms = [Tensors(part, hidden)]
    if n < workload.tokens:
        terms.append(Tensors(part, hidden))  # the states of the positions with a loss
    if e < workload.weight_bytes:
        terms.append(Tensors(part, table * e))
    if workload.loss_path == "full":
        # Log-probabilities, their gradient and that of the logits in fp32; or later the gradient of
        # the logits, also in the narrow type, beside that of the head.
        logits = n * config.vocab_size
        narrow = e if e < 4 else 0
        head = table * (4 + narrow) * is_trained
        if 12 * logits >= (4 + narrow) * logits + head:
            terms.append(Tensors(part, 4 * logits, 3))
        else:
            terms += [Tensors(part, (4 + narrow) * logits), Tensors(part, head)]
        return terms
    is_fused = workload.is_narrow and can_fuse(torch.device("cpu"), torch.bfloat16)
    if is_fused and workload.loss_path == "chunked":
        # The transposed head; E of a chunk (`model.bf16_loss`), which only the gradient of the head
        # needs; and states and their gradients in fp32.
        rows = min(n, CHUNK_SIZE)
        tiles = rows * config.vocab_size * e
        terms.append(Tensors(part, table * e))
        terms.append(Tensors(part, (table * 4 + tiles) * is_trained))
        return [*terms, Tensors(part, rows * config.hidden_size * 4, 5)]
    chunk_rows = min(n, loss_chunk_size(torch.device(workload.device)))
    chunk = chunk_rows * config.vocab_size
    terms.append(Tensors(part, table * 4 * is_trained))
    if workload.loss_path == "torch":
        # Logits and log-probabilities of a chunk.
        return [*terms, Tensors(part, chunk * 4, 2)]
    terms.append(Tensors(part, chunk * e))
    if e < 4:
        # In fp32: log-probabilities, on a CPU beside a copy of the logits; later the gradient of
        # the head of this chunk.
        terms.append(Tensors(part, chunk_rows * config.hidden_size * e, 2))
        copies = 2 if workload.device == "cpu" else 1
        product = table * (2 if workload.device == "cpu" else 4) * is_trained
        terms.append(Tensors(part, max(chunk * 4 * copies, product)))
    return terms


def _layer_gradients(workload: Workload) -> list[Tensors]:
    """Return the temporaries of the backward pass of one block, beyond what it frees."""
    if workload.is_tiled:
        return max(_tile(workload), _attention_gradients(workload), key=_total)
    config, n, e = workload.config, workload.tokens, workload.compute_bytes
    hidden, width = n * config.hidden_size, n * config.intermediate_size
    saves_product = workload.lora is None or "down_proj" in workload.lora.targets
    # Gradients of gate, up and their product; the product itself is freed.
    num_bytes = (2 if saves_product else 3) * width * e
    if workload.checkpointing == "none":
        # The tensors of the last norm are freed; two gradients of the residual stream are there.
        num_bytes -= hidden * workload.stream_bytes
    if e < workload.stream_bytes:
        num_bytes += 2 * hidden * e
    if workload.stream_bytes < 4:
        # Those of a norm, which is computed in fp32, may be larger.
        num_bytes = max(num_bytes, (3 if workload.is_narrow else 4) * hidden * 4)
    weight = max(_linear_sizes(config)) if workload.lora is None else max(_adapter_sizes(workload))
    weight *= 4 + (e if e < 4 else 0)
    part = "temporaries"
    return [Tensors(part, max(0, num_bytes) / 3, 3), Tensors(part, weight)]


def _total(terms: Iterable[Tensors]) -> float:
    return sum(tensors.total for tensors in terms)


def _tile(workload: Workload) -> list[Tensors]:
    """Return what is there while the last tile of a feed-forward network has its backward pass."""
    config, e = workload.config, workload.compute_bytes
    tokens = workload.micro_rows * TILE_POSITIONS
    saves_product = workload.lora is None or "down_proj" in workload.lora.targets
    part = "temporaries"
    sizes = _linear_sizes(config)[4:] if workload.lora is None else _adapter_sizes(workload)
    return [
        *(Tensors(part, size) for size in _feed_forward_saved(workload, tokens).values()),
        # Gradients of gate, up and their product.
        Tensors(part, tokens * config.intermediate_size * e, 2 if saves_product else 3),
        # The result of a tile, and the gradients before and after its norm.
        Tensors(part, tokens * config.hidden_size * workload.weight_bytes, 3),
        # The input of all tiles, and the gradients of their output and of the input.
        Tensors(part, workload.tokens * config.hidden_size * workload.weight_bytes, 3),
        # Gradients of the weights: of this tile, and the sum of the others.
        Tensors(part, 4 * sum(sizes), 2),
    ]


def _attention_gradients(workload: Workload) -> list[Tensors]:
    """Return the temporaries of the backward pass of attention."""
    config, n, e = workload.config, workload.tokens, workload.compute_bytes
    query = n * config.num_attention_heads * config.head_dim
    key = n * config.num_key_value_heads * config.head_dim
    part = "temporaries"
    terms = [
        # Of the residual stream, of the output, of q, k and v, and of what one of them was
        # before it was rotated.
        Tensors(part, n * config.hidden_size * workload.weight_bytes),
        Tensors(part, query * e, 3),
        Tensors(part, key * e, 2),
    ]
    if _computes_strips(workload):
        # Gradients in the order of strips, padded and in fp32, before they are put in place.
        terms.append(Tensors(part, query * FILLED_SHARE * 4))
        terms.append(Tensors(part, key * FILLED_SHARE * 4, 2))
    if workload.device == "cuda":
        # The kernels add up the gradient of q in fp32, and those of k and v for every query head.
        terms.append(Tensors(part, query * 4))
        if key < query:
            terms.append(Tensors(part, query * e, 2))
    return terms


def _head_gradients(workload: Workload) -> list[Tensors]:
    """Return the gradients that the loss has left for the backward pass."""
    config = workload.config
    num_bytes = workload.num_targets * config.hidden_size * workload.stream_bytes
    terms = [Tensors("temporaries", num_bytes)]
    if workload.lora is None:
        terms.append(Tensors("gradients", config.vocab_size * config.hidden_size * 4))
    return terms


def _backward_start(workload: Workload) -> list[Tensors]:
    """Almost all activations are there, and the temporaries of the last block."""
    is_kept = workload.checkpointing == "none"
    return [
        *_resident(workload),
        *_waiting_gradients(workload),
        # A block is computed again after the backward pass of the last norm.
        *_activations(workload, has_last_norm=is_kept),
        *([] if is_kept else _layer_activations(workload)),
        *_dequantized(workload),
        *([] if workload.is_tiled else _head_gradients(workload)),
        *_layer_gradients(workload),
    ]


def _backward_end(workload: Workload) -> list[Tensors]:
    """All gradients are there, and the activations and temporaries of the first block."""
    config = workload.config
    table = config.vocab_size * config.hidden_size * 4
    # The gradient of the embedding is a tensor of its own before it is added to the sum. A tied
    # head's gradient waits for it.
    copies = (workload.micro_batches > 1) + config.tie_word_embeddings
    return [
        *_resident(workload),
        *_gradients(workload),
        *([] if workload.lora else [Tensors("gradients", table, copies)]),
        *_narrow_blocks(workload, config.num_hidden_layers - 1),
        *_layer_activations(workload),
        *_dequantized(workload),
        *_layer_gradients(workload),
    ]


def _update(workload: Workload) -> list[Tensors]:
    """Gradients are clipped, and the optimizers compute the steps."""
    terms = _resident(workload) + _gradients(workload)
    terms += _narrow_blocks(workload, workload.config.num_hidden_layers)
    if workload.device == "cpu" and workload.optimizer not in ("muon", "adamw"):
        # bitsandbytes dequantizes the moments of one matrix on a CPU, and computes in fp32.
        largest = max(size for name, size, _ in _trainable(workload) if name != "embedding")
        terms.append(Tensors("temporaries", 4 * largest, 6))
    if workload.optimizer == "muon" and workload.lora is None:
        # Of one matrix: the update in fp32, and before and after an iteration in the dtype of the
        # iteration; and three products of the smaller side.
        dtype = choose_dtype(torch.device(workload.device))
        shapes = linear_shapes(workload.config).values()
        rows, columns = max(shapes, key=lambda shape: shape[0] * shape[1])
        terms.append(Tensors("temporaries", rows * columns * (4 + 2 * dtype.itemsize)))
        terms.append(Tensors("temporaries", min(rows, columns) ** 2 * dtype.itemsize, 3))
    return terms


def _scoring(workload: Workload) -> list[Tensors]:
    """Return the phase of an evaluation that scores text, without gradients."""
    config, tokens = workload.config, workload.scored_tokens
    rows = max(1, tokens // workload.length)
    # Text is scored in short windows.
    tile = min(tokens, rows * TILE_POSITIONS)
    chunk = min(tokens, loss_chunk_size(torch.device(workload.device))) * config.vocab_size
    part = "logits and loss"
    return [
        *_resident(workload),
        *_narrow_blocks(workload, config.num_hidden_layers),
        *_forward_temporaries(workload, tokens, tile),
        # Logits, and log-probabilities in fp32, for which narrower logits are converted first.
        Tensors(part, chunk * workload.weight_bytes),
        Tensors(part, chunk * 4, 1 if workload.weight_bytes == 4 else 2),
    ]


def _forward_temporaries(workload: Workload, tokens: int, tile: int) -> list[Tensors]:
    """Return the temporaries of a forward pass without gradients.

    `tile` positions go through a feed-forward network together.
    """
    config, num_bytes = workload.config, workload.weight_bytes
    query = tokens * config.num_attention_heads * config.head_dim
    # q, k and v, and with short rows the output is no larger than what a feed-forward network has.
    wide = max(query, tile * config.intermediate_size)
    part = "temporaries"
    return [
        Tensors(part, num_bytes * tokens * config.hidden_size, 2),
        Tensors(part, num_bytes * wide, 3 if tile == tokens else 4),
        *_dequantized(workload),
    ]


def _generation(workload: Workload) -> list[Tensors]:
    """Return the phase of an evaluation that answers prompts."""
    rows = workload.answer_rows
    length = workload.length if workload.is_packed else min(workload.length, SAMPLE_TOKENS)
    return [
        *_resident(workload),
        *_narrow_blocks(workload, workload.config.num_hidden_layers),
        *_decoding(workload, rows, length + workload.new_tokens),
        *_prefill(workload, rows, length),
    ]


def _sampling(workload: Workload) -> list[Tensors]:
    """Return the phase that draws answers to train on, each to a prompt that fits a row with it."""
    rows = workload.sampled_rows
    # Logits, and their absolute values.
    logits = Tensors("logits and loss", rows * workload.config.vocab_size * 4, 2)
    return [
        *_resident(workload),
        *_narrow_blocks(workload, workload.config.num_hidden_layers),
        *_decoding(workload, rows, workload.length),
        *_prefill(
            workload, math.ceil(rows / workload.samples), workload.length - workload.new_tokens
        ),
        logits,
    ]


def _decoding(workload: Workload, rows: int, positions: int) -> list[Tensors]:
    """Return the KV cache and the fused copies of the weights (`model.decode.fast`)."""
    config, lora = workload.config, workload.lora
    layers, hidden, num_bytes = config.num_hidden_layers, config.hidden_size, workload.weight_bytes
    capacity = min(positions, config.max_position_embeddings)
    keys = config.num_key_value_heads * config.head_dim
    terms = [Tensors("KV cache", layers * 2 * rows * capacity * keys * num_bytes)]
    part = "decoding copies"
    groups: list[tuple[str, ...]] = [("q_proj", "k_proj", "v_proj"), ("gate_proj", "up_proj")]
    if workload.device == "cpu" and num_bytes == 4:
        groups += [("o_proj",), ("down_proj",)]
    for group in groups:
        # Layers that are quantized or have an adapter are not fused.
        is_plain = lora is None or not set(group) & set(lora.targets)
        if is_plain and workload.quantization is None:
            outputs = sum(linear_shapes(config)[name][0] for name in group)
            terms.append(Tensors(part, outputs * hidden * num_bytes, layers))
    # Complex rotations of all positions, and on a CPU in fp32 the transposed head.
    terms.append(Tensors(part, 4 * config.max_position_embeddings * config.head_dim))
    if workload.device == "cpu" and num_bytes == 4:
        terms.append(Tensors(part, config.vocab_size * hidden * num_bytes))
    return terms


def _prefill(workload: Workload, prompts: int, length: int) -> list[Tensors]:
    """Return the temporaries of prompts of some length."""
    return _forward_temporaries(workload, prompts * length, prompts * length)
