"""The shape of a Llama in the fields of Hugging Face's `config.json`, its size, and its presets."""

from dataclasses import asdict, dataclass, fields, replace
from typing import Any

from common.errors import InsufficientMemoryError, UserError
from common.machine import total_memory_bytes

# The supported scalings of rotary frequencies, and the numbers that each needs.
ROPE_SCALINGS: dict[str, tuple[str, ...]] = {
    "linear": ("factor",),
    "llama3": ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings"),
}
# Keys that a `config.json` must have: transformers' defaults for them are those of Llama 2 7B.
_REQUIRED_KEYS = (
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
)
_POSITIVE_FIELDS = (
    *_REQUIRED_KEYS,
    "num_key_value_heads",
    "max_position_embeddings",
    "rope_theta",
    "rms_norm_eps",
)
# About the largest fp32 number; JSON can hold larger ones.
_MAX_NUMBER = 1e38
_MAX_STOP_IDS = 64  # real models have a few
_MAX_ROPE_FACTOR = 10_000  # contexts of millions of positions are stretched a few hundred times
_TYPE_NAMES = {int: "a whole number", float: "a number", bool: "true or false"}


@dataclass(frozen=True)
class LlamaConfig:
    """A Llama's shape. Field names and meanings are those of transformers' `LlamaConfig`.

    `head_dim` 0 becomes hidden_size / num_attention_heads. `rope_scaling` holds `rope_type`, a key
    of ROPE_SCALINGS, and its numbers. transformers' `eos_token_id` may be a list: `eos_token_id`
    is its first id, which training puts behind a text or an answer; generation also stops at the
    others, `more_stop_ids`. Raises UserError, a line for every problem, if the shape is impossible.
    """

    vocab_size: int
    hidden_size: int = 256
    intermediate_size: int = 768
    num_hidden_layers: int = 12
    num_attention_heads: int = 8
    num_key_value_heads: int = 8
    head_dim: int = 0
    max_position_embeddings: int = 2048
    rms_norm_eps: float = 1e-5
    rope_theta: float = 10000.0
    rope_scaling: dict[str, Any] | None = None
    tie_word_embeddings: bool = False
    initializer_range: float = 0.02
    bos_token_id: int = 1
    eos_token_id: int = 2
    more_stop_ids: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        if self.head_dim == 0 and self.num_attention_heads > 0:
            object.__setattr__(self, "head_dim", self.hidden_size // self.num_attention_heads)
        if problems := self.find_problems():
            raise UserError("\n".join(f"model: {problem}" for problem in problems))

    def find_problems(self) -> list[str]:
        """Return everything that makes this shape impossible, a sentence each."""
        problems = []
        for name in _POSITIVE_FIELDS:
            value = getattr(self, name)
            if not 0 < value < _MAX_NUMBER:
                problems.append(f"{name} must be positive and finite, not {value}")
        if problems:
            return problems
        if self.hidden_size % self.num_attention_heads:
            problems.append(
                f"hidden_size {self.hidden_size} is not a multiple of num_attention_heads "
                f"{self.num_attention_heads}"
            )
        elif not 2 <= self.head_dim < _MAX_NUMBER or self.head_dim % 2:
            problems.append(
                f"head_dim {self.head_dim} (hidden_size / num_attention_heads unless given) must "
                "be even for RoPE"
            )
        if self.num_attention_heads % self.num_key_value_heads:
            problems.append(
                f"num_attention_heads {self.num_attention_heads} is not a multiple of "
                f"num_key_value_heads {self.num_key_value_heads}"
            )
        if len(self.stop_ids) > _MAX_STOP_IDS or any(abs(id_) >= 2**31 for id_ in self.stop_ids):
            problems.append(f"eos_token_id holds invalid ids, or more than {_MAX_STOP_IDS}")
        return problems + self._find_rope_problems()

    def _find_rope_problems(self) -> list[str]:
        scaling = self.rope_scaling
        if scaling is None:
            return []
        rope_type = scaling.get("rope_type")
        if rope_type not in ROPE_SCALINGS:
            supported = " and ".join(ROPE_SCALINGS)
            return [f"rope_scaling {rope_type!r} is not supported; {supported} are"]
        label = f"rope_scaling {rope_type}"
        problems = []
        for key in ROPE_SCALINGS[rope_type]:
            value = scaling.get(key, "missing")
            if not (_has_json_type(value, float) and 0 < value < _MAX_NUMBER):
                problems.append(f"{label}: {key} must be a number above 0, not {value}")
        if problems:
            return problems
        factor = scaling["factor"]
        if not 1 <= factor <= _MAX_ROPE_FACTOR:
            problems.append(f"{label}: factor must be from 1 to {_MAX_ROPE_FACTOR:,}, not {factor}")
        elif rope_type == "llama3" and scaling["low_freq_factor"] >= scaling["high_freq_factor"]:
            problems.append(f"{label}: low_freq_factor must be below high_freq_factor")
        return problems

    @property
    def stop_ids(self) -> tuple[int, ...]:
        """The ids that end generation; the first is the one that training puts there."""
        return self.eos_token_id, *self.more_stop_ids

    @property
    def num_matmul_parameters(self) -> int:
        """Weights that every token is multiplied with: all matrices but the embedding."""
        heads = self.num_attention_heads + self.num_key_value_heads
        attention = 2 * self.hidden_size * heads * self.head_dim
        feed_forward = 3 * self.hidden_size * self.intermediate_size
        head = self.hidden_size * self.vocab_size
        return self.num_hidden_layers * (attention + feed_forward) + head

    @property
    def num_parameters(self) -> int:
        """All weights."""
        embedding = 0 if self.tie_word_embeddings else self.hidden_size * self.vocab_size
        norms = (2 * self.num_hidden_layers + 1) * self.hidden_size
        return self.num_matmul_parameters + embedding + norms

    @property
    def num_tensors(self) -> int:
        """Tensors in a file of weights; a tied head is not stored."""
        per_layer = 9  # q, k, v, o, gate, up, down and two norms
        outside_layers = 3  # embedding, final norm, head
        return per_layer * self.num_hidden_layers + outside_layers - self.tie_word_embeddings

    def check_memory(self, label: str) -> None:
        """Raise InsufficientMemoryError, beginning with `label`, if the weights do not fit."""
        # fp32 weights; the rotary angles of every position with their cosines and sines.
        needed = 4 * self.num_parameters + 8 * self.max_position_embeddings * self.head_dim
        available = total_memory_bytes()
        if needed > available:
            raise InsufficientMemoryError(
                f"{label}: {self.num_hidden_layers:,} layers of {self.hidden_size:,} with "
                f"vocabulary {self.vocab_size:,} and context {self.max_position_embeddings:,} need "
                f"{needed / 1e9:,.0f} GB of memory, and this machine has {available / 1e9:,.0f}: "
                "use a smaller model"
            )

    def flops_per_token(self, sequence_length: float, *, include_head: bool = True) -> float:
        """Return the floating point operations to train on one token of a `sequence_length` row.

        Two per weight in the forward pass and twice that backward, plus causal attention (half of
        the square). `include_head=False` leaves out the head, for positions without loss.
        """
        weights = self.num_matmul_parameters
        if not include_head:
            weights -= self.hidden_size * self.vocab_size
        attention_width = self.num_hidden_layers * self.num_attention_heads * self.head_dim
        return 6 * weights + 6 * attention_width * sequence_length

    def to_hf(self) -> dict[str, Any]:
        """Return the contents of a Hugging Face `config.json`."""
        shape = asdict(self)
        if shape.pop("more_stop_ids"):
            shape["eos_token_id"] = list(self.stop_ids)
        return {
            "architectures": ["LlamaForCausalLM"],
            "model_type": "llama",
            "hidden_act": "silu",
            "attention_bias": False,
            "mlp_bias": False,
            "attention_dropout": 0.0,
            "torch_dtype": "float32",
            **shape,
        }

    @classmethod
    def from_hf(cls, values: dict[str, Any], file_name: str = "config.json") -> "LlamaConfig":
        """Read a `config.json` of transformers 4 or 5.

        Raises UserError, a line for every problem, if it is incomplete or describes another
        architecture than a bias-free Llama.
        """
        if not isinstance(values, dict):
            raise UserError(f"{file_name}: expected keys and values, got {type(values).__name__}")
        # To transformers a null is the same as a missing key.
        entries = {key: value for key, value in values.items() if value is not None}
        problems = _find_unsupported(values)
        problems += [f"{key} is missing" for key in _REQUIRED_KEYS if key not in entries]
        # transformers 5 writes rope_parameters, with rope_theta inside.
        rope = entries.get("rope_parameters", entries.get("rope_scaling", {}))
        if not isinstance(rope, dict):
            problems.append(
                f"rope_parameters or rope_scaling: {rope!r} is not valid; expected keys and values"
            )
            rope = {}
        entries["rope_theta"] = rope.get("rope_theta", entries.get("rope_theta", cls.rope_theta))
        more_stop_ids: list[int] = []
        stop_ids = entries.get("eos_token_id")
        if isinstance(stop_ids, list) and stop_ids and _are_json_ints(stop_ids):
            entries["eos_token_id"], *more_stop_ids = stop_ids
        # Every field but rope_scaling and more_stop_ids is a plain value.
        types = {field.name: field.type for field in fields(cls) if field.type in _TYPE_NAMES}
        for key, type_ in types.items():
            if key in entries and not _has_json_type(entries[key], type_):
                problems.append(
                    f"{key}: {entries[key]!r} is not valid; expected {_TYPE_NAMES[type_]}"
                )
        if problems:
            raise UserError("\n".join(f"{file_name}: {problem}" for problem in problems))
        # transformers' defaults for these two keys differ from those of this class.
        shape = {"num_key_value_heads": entries["num_attention_heads"], "rms_norm_eps": 1e-6}
        shape |= {key: entries[key] for key in types if key in entries}
        try:
            return cls(
                **shape,
                rope_scaling=_parse_rope_scaling(rope),
                more_stop_ids=tuple(more_stop_ids),
            )
        except UserError as error:
            raise UserError(str(error).replace("model: ", f"{file_name}: ")) from None


def _has_json_type(value: Any, expected_type: Any) -> bool:
    """Return whether a JSON value has a type; an int is a float too, a bool is neither."""
    if expected_type is bool or isinstance(value, bool):
        return expected_type is bool and isinstance(value, bool)
    return isinstance(value, int | expected_type)


def _are_json_ints(values: list[Any]) -> bool:
    return all(_has_json_type(value, int) for value in values)


def _find_unsupported(values: dict[str, Any]) -> list[str]:
    """Return what in a `config.json` belongs to another architecture, a sentence each."""
    if values.get("model_type") != "llama":
        return [f"model_type is {values.get('model_type')!r}; only llama is supported"]
    problems = []
    for key in ("attention_bias", "mlp_bias"):
        if values.get(key):
            problems.append(f"{key} is set; biases are not supported")
    if values.get("hidden_act", "silu") != "silu":
        problems.append(f"hidden_act is {values['hidden_act']!r}; only silu is supported")
    return problems


def _parse_rope_scaling(rope: dict[str, Any]) -> dict[str, Any] | None:
    """Return the scaling in transformers' rotary parameters, or None if there is none."""
    rope_type = str(rope.get("rope_type", rope.get("type", "default")))  # `type` in older files
    if rope_type == "default":
        return None
    numbers = {key: rope[key] for key in ROPE_SCALINGS.get(rope_type, ()) if key in rope}
    return {"rope_type": rope_type, **numbers}


# Head widths: 32 at 43M, the reference shape; 64 in the larger two, which attention kernels run
# fastest.
PRESETS: dict[str, dict[str, Any]] = {
    "babyllama-3m": {
        "hidden_size": 160,
        "intermediate_size": 448,
        "num_hidden_layers": 4,
        "num_attention_heads": 5,
        "num_key_value_heads": 5,
        "tie_word_embeddings": True,
    },
    "babyllama-43m": {
        "hidden_size": 256,
        "intermediate_size": 768,
        "num_hidden_layers": 12,
        "num_attention_heads": 8,
        "num_key_value_heads": 8,
    },
    "babyllama-92m": {
        "hidden_size": 512,
        "intermediate_size": 1408,
        "num_hidden_layers": 8,
        "num_attention_heads": 8,
        "num_key_value_heads": 8,
    },
    "babyllama-218m": {
        "hidden_size": 768,
        "intermediate_size": 2176,
        "num_hidden_layers": 16,
        "num_attention_heads": 12,
        "num_key_value_heads": 12,
    },
}


def config_from_preset(name: str, vocab_size: int, **changes: Any) -> LlamaConfig:
    """Return a preset's shape with single fields changed. Raises UserError for an unknown name."""
    if name not in PRESETS:
        raise UserError(
            f"--model.preset {name}: there is no such preset; choose one of {', '.join(PRESETS)}"
        )
    return LlamaConfig(vocab_size=vocab_size, **{**PRESETS[name], **changes})


def with_tokenizer_ids(config: LlamaConfig, bos_token_id: int, eos_token_id: int) -> LlamaConfig:
    """Return the same shape with the bos and eos ids of a tokenizer."""
    return replace(config, bos_token_id=bos_token_id, eos_token_id=eos_token_id)
