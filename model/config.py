"""The shape of a Llama, in the words of Hugging Face's `config.json`, and what it costs."""

from dataclasses import asdict, dataclass, fields, replace
from typing import Any

from common.errors import InsufficientMemoryError, UserError
from common.machine import total_memory_bytes

# The scalings of rotary frequencies that are known, and the numbers that each needs.
ROPE_SCALINGS: dict[str, tuple[str, ...]] = {
    "linear": ("factor",),
    "llama3": ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings"),
}
# What a `config.json` cannot leave out: transformers would fill these in with the shape of Llama 2 7B.
_REQUIRED_KEYS = (
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
)
# About the largest number of fp32: nothing in a shape comes near, and JSON can write more than a float holds.
_MAX_NUMBER = 1e38
_MAX_STOP_IDS = 64  # models have a few
_MAX_ROPE_FACTOR = (
    10_000  # times; contexts of millions of positions are stretched a few hundred times
)
_TYPE_NAMES = {int: "a whole number", float: "a number", bool: "true or false"}


@dataclass(frozen=True)
class LlamaConfig:
    """A Llama's shape. Field names and meanings are those of transformers' `LlamaConfig`.

    `head_dim` 0 becomes hidden_size / num_attention_heads. `rope_scaling` holds `rope_type`, a key of ROPE_SCALINGS, and
    its numbers. transformers' `eos_token_id` may be a list: `eos_token_id` is its first, with which training ends a text or
    an answer, and `more_stop_ids` are the others, at which generation stops as well.
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
        """Everything that makes this shape impossible, a sentence each."""
        problems = [
            f"{name} must be positive and finite, not {getattr(self, name)}"
            for name in (
                "vocab_size",
                "hidden_size",
                "intermediate_size",
                "num_hidden_layers",
                "num_attention_heads",
                "num_key_value_heads",
                "max_position_embeddings",
                "rope_theta",
                "rms_norm_eps",
            )
            if not 0 < getattr(self, name) < _MAX_NUMBER
        ]
        if problems:
            return problems
        if self.hidden_size % self.num_attention_heads:
            problems.append(
                f"hidden_size {self.hidden_size} is not a multiple of num_attention_heads "
                f"{self.num_attention_heads}"
            )
        elif not 2 <= self.head_dim < _MAX_NUMBER or self.head_dim % 2:
            problems.append(
                f"head_dim {self.head_dim} (hidden_size / num_attention_heads unless given) must be even for RoPE"
            )
        if self.num_attention_heads % self.num_key_value_heads:
            problems.append(
                f"num_attention_heads {self.num_attention_heads} is not a multiple of num_key_value_heads "
                f"{self.num_key_value_heads}"
            )
        if len(self.stop_ids) > _MAX_STOP_IDS or any(abs(each) >= 2**31 for each in self.stop_ids):
            problems.append(f"eos_token_id names no ids, or more than {_MAX_STOP_IDS}")
        return problems + self._find_rope_problems()

    def _find_rope_problems(self) -> list[str]:
        if self.rope_scaling is None:
            return []
        rope_type = self.rope_scaling.get("rope_type")
        if rope_type not in ROPE_SCALINGS:
            return [f"rope_scaling {rope_type!r} is not known; {' and '.join(ROPE_SCALINGS)} are"]
        problems = [
            f"rope_scaling {rope_type}: {key} must be a number above 0, not {self.rope_scaling.get(key, 'missing')}"
            for key in ROPE_SCALINGS[rope_type]
            if not (
                _has_json_type(self.rope_scaling.get(key), float)
                and 0 < self.rope_scaling[key] < _MAX_NUMBER
            )
        ]
        if not problems and not 1 <= (factor := self.rope_scaling["factor"]) <= _MAX_ROPE_FACTOR:
            problems.append(
                f"rope_scaling {rope_type}: factor must be from 1 to {_MAX_ROPE_FACTOR:,}, not {factor}"
            )
        if (
            rope_type == "llama3"
            and not problems
            and self.rope_scaling["low_freq_factor"] >= self.rope_scaling["high_freq_factor"]
        ):
            problems.append("rope_scaling llama3: low_freq_factor must be below high_freq_factor")
        return problems

    @property
    def stop_ids(self) -> tuple[int, ...]:
        """The ids that end what the model says; the first is the one that it is trained with."""
        return self.eos_token_id, *self.more_stop_ids

    @property
    def num_matmul_parameters(self) -> int:
        """Weights that every token is multiplied with: all matrices but the embedding look-up."""
        heads = self.num_attention_heads + self.num_key_value_heads
        attention = 2 * self.hidden_size * heads * self.head_dim
        feed_forward = 3 * self.hidden_size * self.intermediate_size
        return (
            self.num_hidden_layers * (attention + feed_forward) + self.hidden_size * self.vocab_size
        )

    @property
    def num_parameters(self) -> int:
        """All trainable numbers."""
        embedding = 0 if self.tie_word_embeddings else self.hidden_size * self.vocab_size
        norms = (2 * self.num_hidden_layers + 1) * self.hidden_size
        return self.num_matmul_parameters + embedding + norms

    def check_memory(self, file_name: str) -> None:
        """MemoryShortage, which begins with `file_name`, for a shape whose weights alone are more than the machine's memory."""
        # fp32 weights; cosines and sines of every position and, while they are computed, their angles.
        needed, available_bytes = (
            4 * self.num_parameters + 8 * self.max_position_embeddings * self.head_dim,
            total_memory_bytes(),
        )
        if needed > available_bytes:
            raise InsufficientMemoryError(
                f"{file_name}: {self.num_hidden_layers:,} layers of {self.hidden_size:,} with vocabulary {self.vocab_size:,} and "
                f"context {self.max_position_embeddings:,} need {needed / 1e9:,.0f} GB of memory, and this machine has "
                f"{available_bytes / 1e9:,.0f}: use a smaller model"
            )

    def flops_per_token(self, sequence_length: float, *, include_head: bool = True) -> float:
        """Floating point operations to train on one token in a row of `sequence_length`: forward, and twice that backward.

        Two per weight and direction, plus causal attention (half of the square); `head=False` leaves out the
        vocabulary matmul, for positions without loss.
        """
        weights = self.num_matmul_parameters - (
            0 if include_head else self.hidden_size * self.vocab_size
        )
        return (
            6 * weights
            + 6
            * self.num_hidden_layers
            * self.num_attention_heads
            * self.head_dim
            * sequence_length
        )

    def to_hf(self) -> dict[str, Any]:
        """The contents of a Hugging Face `config.json`."""
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

        UserError, a line for every problem, if it describes another architecture than a bias-free Llama or no whole one.
        """
        if not isinstance(values, dict):
            raise UserError(f"{file_name}: expected keys and values, found {type(values).__name__}")
        problems = _find_unsupported(values)
        # Null means the same to transformers as a key that is not there.
        entries = {key: value for key, value in values.items() if value is not None}
        problems += [f"{key} is missing" for key in _REQUIRED_KEYS if key not in entries]
        rope = entries.get("rope_parameters", entries.get("rope_scaling", {}))
        if not isinstance(rope, dict):
            problems.append(
                f"rope_parameters or rope_scaling: {rope!r} is not valid; expected keys and values"
            )
            rope = {}
        entries["rope_theta"] = rope.get("rope_theta", entries.get("rope_theta", cls.rope_theta))
        eos_value = entries.get("eos_token_id")
        if (
            isinstance(eos_value, list)
            and eos_value
            and all(_has_json_type(each, int) for each in eos_value)
        ):
            entries["eos_token_id"] = eos_value[0]
        types = {field.name: field.type for field in fields(cls) if field.type in _TYPE_NAMES}
        problems += [
            f"{key}: {entries[key]!r} is not valid; expected {_TYPE_NAMES[kind]}"
            for key, kind in types.items()
            if key in entries and not _has_json_type(entries[key], kind)
        ]
        if problems:
            raise UserError("\n".join(f"{file_name}: {problem}" for problem in problems))
        # Two keys that may be left out mean something else to transformers than they do here.
        shape = {"num_key_value_heads": entries["num_attention_heads"], "rms_norm_eps": 1e-6}
        shape |= {key: entries[key] for key in types if key in entries}
        try:
            return cls(
                **shape,
                rope_scaling=_parse_rope_scaling(rope),
                more_stop_ids=tuple(eos_value[1:] if isinstance(eos_value, list) else ()),
            )
        except UserError as error:
            raise UserError(str(error).replace("model: ", f"{file_name}: ")) from None


def _has_json_type(value: Any, expected_type: type) -> bool:
    """Whether a JSON value has a type: whole numbers are numbers too, and true is neither."""
    return (
        isinstance(value, bool)
        if expected_type is bool
        else isinstance(value, int | expected_type) and not isinstance(value, bool)
    )


def _find_unsupported(values: dict[str, Any]) -> list[str]:
    """What in a `config.json` is of another architecture."""
    if values.get("model_type") != "llama":
        return [f"model_type is {values.get('model_type')!r}; only llama is supported"]
    found = [
        f"{key} is set; biases are not supported"
        for key in ("attention_bias", "mlp_bias")
        if values.get(key)
    ]
    if values.get("hidden_act", "silu") != "silu":
        found.append(f"hidden_act is {values['hidden_act']!r}; only silu is supported")
    return found


def _parse_rope_scaling(rope: dict[str, Any]) -> dict[str, Any] | None:
    """transformers' rotary parameters without what is no scaling: the base, and the type under its older name."""
    kind = str(rope.get("rope_type", rope.get("type", "default")))
    if kind == "default":
        return None
    return {
        "rope_type": kind,
        **{key: rope[key] for key in ROPE_SCALINGS.get(kind, ()) if key in rope},
    }


# Heads of 32 at 43M are the reference's; the larger two use heads of 64, the width that attention kernels like best.
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
    """A named shape for a vocabulary, with single fields changed. UserError for an unknown name."""
    if name not in PRESETS:
        raise UserError(
            f"--model.preset {name}: there is no such preset; choose one of {', '.join(PRESETS)}"
        )
    return LlamaConfig(vocab_size=vocab_size, **{**PRESETS[name], **changes})


def with_tokenizer_ids(config: LlamaConfig, bos_token_id: int, eos_token_id: int) -> LlamaConfig:
    """The same shape with the ids of a tokenizer's sentence marks."""
    return replace(config, bos_token_id=bos_token_id, eos_token_id=eos_token_id)
