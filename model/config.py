"""Config of a Llama in the fields of Hugging Face's `config.json`, its sizes, and presets."""

from dataclasses import asdict, dataclass, fields, replace
from typing import Any

from common.errors import InsufficientMemoryError, UserError
from common.machine import total_memory_bytes
from model.rope_scaling import NUMBER_LIMIT, find_rope_problems, parse_rope_scaling

# Keys that a `config.json` must have. transformers would fill them with the values of Llama 2 7B.
_REQUIRED_KEYS = (
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
)
# The preset for whose shape reading heads are made, and the fields that may not differ from it.
READING_HEADS_PRESET = "babyllama-3m"
READING_HEADS_FIELDS = (
    "hidden_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "rope_theta",
)
_POSITIVE_FIELDS = (
    *_REQUIRED_KEYS,
    "num_key_value_heads",
    "max_position_embeddings",
    "rope_theta",
    "rms_norm_eps",
)
_MAX_STOP_IDS = 64  # real models have a few
_TYPE_NAMES = {int: "a whole number", float: "a number", bool: "true or false"}


@dataclass(frozen=True)
class LlamaConfig:
    """The hyperparameters of a Llama, with the names and meanings of transformers' `LlamaConfig`.

    `head_dim` 0 is replaced by hidden_size / num_attention_heads. `rope_scaling` holds `rope_type`
    and its parameters, see `model.rope_scaling`. In transformers `eos_token_id` may be a list. Here
    `eos_token_id` is its first id, which training puts after a text or an answer, and
    `more_stop_ids` are the others, at which generation stops, too.

    `reading_heads`, which transformers does not know, says that the model began with heads that
    find and copy, and that training leaves them as they are (`model/reading_heads.py`).

    Raises UserError, with a line for every problem, if no model can have these values.
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
    reading_heads: bool = False

    def __post_init__(self) -> None:
        if self.head_dim == 0 and self.num_attention_heads > 0:
            # The dataclass is frozen, so plain assignment would raise.
            object.__setattr__(self, "head_dim", self.hidden_size // self.num_attention_heads)
        if problems := self.find_problems():
            raise UserError("\n".join(f"model: {problem}" for problem in problems))

    def find_problems(self) -> list[str]:
        """Return a sentence for each reason why no model can have this config."""
        problems = []
        for name in _POSITIVE_FIELDS:
            value = getattr(self, name)
            if not 0 < value < NUMBER_LIMIT:
                problems.append(f"{name} must be positive and finite, not {value}")
        if problems:
            # The divisions below need positive numbers.
            return problems
        if self.hidden_size % self.num_attention_heads:
            problems.append(
                f"hidden_size {self.hidden_size} is not a multiple of num_attention_heads "
                f"{self.num_attention_heads}"
            )
        elif not 2 <= self.head_dim < NUMBER_LIMIT or self.head_dim % 2:
            problems.append(
                f"head_dim {self.head_dim} (hidden_size / num_attention_heads unless given) must "
                "be even for RoPE"
            )
        if self.num_attention_heads % self.num_key_value_heads:
            problems.append(
                f"num_attention_heads {self.num_attention_heads} is not a multiple of "
                f"num_key_value_heads {self.num_key_value_heads}"
            )
        shape = PRESETS[READING_HEADS_PRESET]
        has_other_shape = any(getattr(self, name) != shape[name] for name in READING_HEADS_FIELDS)
        # The heads find positions by the frequencies.
        if self.reading_heads and (has_other_shape or self.rope_scaling is not None):
            problems.append(
                f"reading_heads needs the {', '.join(READING_HEADS_FIELDS)} of "
                f"{READING_HEADS_PRESET}, and no rope_scaling"
            )
        has_huge_id = any(abs(token_id) >= 2**31 for token_id in self.stop_ids)
        if len(self.stop_ids) > _MAX_STOP_IDS or has_huge_id:
            problems.append(f"eos_token_id holds invalid ids, or more than {_MAX_STOP_IDS}")
        if self.rope_scaling is not None:
            problems += find_rope_problems(self.rope_scaling, self.rope_theta)
        return problems

    @property
    def stop_ids(self) -> tuple[int, ...]:
        """Return the ids that end generation, first the one that training puts after answers."""
        return self.eos_token_id, *self.more_stop_ids

    @property
    def num_matmul_parameters(self) -> int:
        """Return the number of weights in matmuls: all matrices except the embedding."""
        # q_proj and o_proj have as many rows or columns as query heads, k_proj and v_proj as
        # key-value heads.
        heads = self.num_attention_heads + self.num_key_value_heads
        attention = 2 * self.hidden_size * heads * self.head_dim
        feed_forward = 3 * self.hidden_size * self.intermediate_size
        head = self.hidden_size * self.vocab_size
        return self.num_hidden_layers * (attention + feed_forward) + head

    @property
    def num_parameters(self) -> int:
        """Return the number of all weights; a tied embedding and head count once."""
        embedding = 0 if self.tie_word_embeddings else self.hidden_size * self.vocab_size
        norms = (2 * self.num_hidden_layers + 1) * self.hidden_size
        return self.num_matmul_parameters + embedding + norms

    @property
    def num_tensors(self) -> int:
        """Return the number of tensors in a weights file, where a tied head is not stored."""
        per_layer = 9  # q, k, v, o, gate, up, down and two norms
        outside_layers = 3  # embedding, final norm, head
        return per_layer * self.num_hidden_layers + outside_layers - self.tie_word_embeddings

    def check_memory(self, label: str, weight_bytes: int | None = None) -> None:
        """Raise InsufficientMemoryError, beginning with `label`, if the weights do not fit.

        They are fp32 unless their number of bytes is given.
        """
        # The rotary table has 4 bytes per position and dimension of a head; 8 also cover the angles
        # that it is computed from.
        if weight_bytes is None:
            weight_bytes = 4 * self.num_parameters
        rotary_bytes = 8 * self.max_position_embeddings * self.head_dim
        needed = weight_bytes + rotary_bytes
        available = total_memory_bytes()
        if needed > available:
            raise InsufficientMemoryError(
                f"{label}: {self.num_hidden_layers:,} layers of {self.hidden_size:,} with "
                f"vocabulary {self.vocab_size:,} and context {self.max_position_embeddings:,} need "
                f"{needed / 1e9:,.0f} GB of memory, and this machine has {available / 1e9:,.0f}: "
                "use a smaller model"
            )

    def flops_per_token(self, sequence_length: float, *, include_head: bool = True) -> float:
        """Return the FLOPs of training on one token of a row of `sequence_length` tokens.

        `include_head=False` leaves out the head, for positions without loss.
        """
        weights = self.num_matmul_parameters
        if not include_head:
            weights -= self.hidden_size * self.vocab_size
        attention_width = self.num_hidden_layers * self.num_attention_heads * self.head_dim
        # 2 FLOPs per weight in the forward pass, and twice that in the backward pass. Attention
        # has two matmuls (scores, weighted values) over half of the row on average, as it is
        # causal: 2 * 2 * T / 2 FLOPs per dimension, times 3 with the backward pass.
        return 6 * weights + 6 * attention_width * sequence_length

    def to_hf(self) -> dict[str, Any]:
        """Return the contents of a Hugging Face `config.json`."""
        entries = asdict(self)
        # Written as transformers does: one field, which is a list only if there are several ids.
        if entries.pop("more_stop_ids"):
            entries["eos_token_id"] = list(self.stop_ids)
        # Other models have the entries that transformers knows, and no more.
        if not self.reading_heads:
            del entries["reading_heads"]
        return {
            "architectures": ["LlamaForCausalLM"],
            "model_type": "llama",
            "hidden_act": "silu",
            "attention_bias": False,
            "mlp_bias": False,
            "attention_dropout": 0.0,
            "torch_dtype": "float32",
            **entries,
        }

    @classmethod
    def from_hf(cls, values: dict[str, Any], file_name: str = "config.json") -> "LlamaConfig":
        """Return the config in the contents of a `config.json` of transformers 4 or 5.

        Raises UserError, with a line for every problem, if it is incomplete, invalid or describes
        an architecture other than a bias-free Llama. `file_name` is for these lines.
        """
        if not isinstance(values, dict):
            raise UserError(f"{file_name}: expected keys and values, got {type(values).__name__}")
        # Alone: the keys of another architecture have other names, and would all be missing.
        if (model_type := values.get("model_type")) != "llama":
            raise UserError(f"{file_name}: model_type is {model_type!r}; only llama is supported")
        # transformers treats null like a missing key.
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
        # All fields except rope_scaling and more_stop_ids are plain values, read by their type.
        field_types = {field.name: field.type for field in fields(cls) if field.type in _TYPE_NAMES}
        for key, field_type in field_types.items():
            if key in entries and not _has_json_type(entries[key], field_type):
                problems.append(
                    f"{key}: {entries[key]!r} is not valid; expected {_TYPE_NAMES[field_type]}"
                )
        if problems:
            raise UserError("\n".join(f"{file_name}: {problem}" for problem in problems))
        # transformers' defaults for these two keys differ from those of this class.
        arguments = {"num_key_value_heads": entries["num_attention_heads"], "rms_norm_eps": 1e-6}
        arguments |= {key: entries[key] for key in field_types if key in entries}
        try:
            return cls(
                **arguments,
                rope_scaling=parse_rope_scaling(rope, entries),
                more_stop_ids=tuple(more_stop_ids),
            )
        except UserError as error:
            # Name the file instead of the options group.
            raise UserError(str(error).replace("model: ", f"{file_name}: ")) from None


def _has_json_type(value: Any, expected_type: Any) -> bool:
    """Return whether a JSON value has a type: an int is valid as a float, a bool as neither."""
    # In Python bool is a subclass of int.
    if expected_type is bool or isinstance(value, bool):
        return expected_type is bool and isinstance(value, bool)
    return isinstance(value, int | expected_type)


def _are_json_ints(values: list[Any]) -> bool:
    """Return whether all values are integers, and none is a bool."""
    return all(_has_json_type(value, int) for value in values)


def _find_unsupported(values: dict[str, Any]) -> list[str]:
    """Return a sentence for each entry of a Llama's `config.json` that is not supported."""
    problems = []
    for key in ("attention_bias", "mlp_bias"):
        if values.get(key):
            problems.append(f"{key} is set; biases are not supported")
    if values.get("hidden_act", "silu") != "silu":
        problems.append(f"hidden_act is {values['hidden_act']!r}; only silu is supported")
    return problems


# The head dimension is 80 in the smallest preset, whose reading heads need many dimensions, 32 in
# the next, and 64, which attention kernels run fastest, in the larger two.
PRESETS: dict[str, dict[str, Any]] = {
    "babyllama-3m": {
        "hidden_size": 160,
        "intermediate_size": 448,
        "num_hidden_layers": 4,
        "num_attention_heads": 2,
        "num_key_value_heads": 2,
        "rope_theta": 500_000.0,
        "tie_word_embeddings": True,
        "reading_heads": True,
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
    """Return a preset with `changes` of fields.

    Raises UserError if the preset is unknown, or if no model can have the changed config.
    """
    if name not in PRESETS:
        raise UserError(
            f"--model.preset {name}: unknown preset; the presets are {', '.join(PRESETS)}"
        )
    return LlamaConfig(vocab_size=vocab_size, **{**PRESETS[name], **changes})


def with_tokenizer_ids(config: LlamaConfig, bos_token_id: int, eos_token_id: int) -> LlamaConfig:
    """Return a copy of a config with the BOS and EOS ids of a tokenizer."""
    return replace(config, bos_token_id=bos_token_id, eos_token_id=eos_token_id)
