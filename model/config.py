"""The shape of a Llama, in the words of Hugging Face's `config.json`, and what it costs."""

from dataclasses import asdict, dataclass, fields, replace
from typing import Any

from common.errors import UserError


@dataclass(frozen=True)
class LlamaConfig:
    """A Llama's shape. Field names and meanings are those of transformers' `LlamaConfig`."""

    vocab_size: int
    hidden_size: int = 256
    intermediate_size: int = 768
    num_hidden_layers: int = 12
    num_attention_heads: int = 8
    num_key_value_heads: int = 8
    max_position_embeddings: int = 2048
    rms_norm_eps: float = 1e-5
    rope_theta: float = 10000.0
    rope_scaling: dict[str, Any] | None = None
    tie_word_embeddings: bool = False
    initializer_range: float = 0.02
    bos_token_id: int = 1
    eos_token_id: int = 2

    def __post_init__(self) -> None:
        if problems := self.problems():
            raise UserError("\n".join(f"model: {problem}" for problem in problems))

    def problems(self) -> list[str]:
        """Everything that makes this shape impossible, a sentence each."""
        found = [
            f"{name} must be positive, not {getattr(self, name)}"
            for name in ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads",
                         "num_key_value_heads", "max_position_embeddings")
            if getattr(self, name) < 1
        ]
        if found:
            return found
        if self.hidden_size % self.num_attention_heads:
            found.append(f"hidden_size {self.hidden_size} is not a multiple of num_attention_heads "
                         f"{self.num_attention_heads}")
        elif self.head_dim % 2:
            found.append(f"the head dimension {self.head_dim} (hidden_size / num_attention_heads) must be even for RoPE")
        if self.num_attention_heads % self.num_key_value_heads:
            found.append(f"num_attention_heads {self.num_attention_heads} is not a multiple of num_key_value_heads "
                         f"{self.num_key_value_heads}")
        if self.rope_scaling is not None and self.rope_scaling.get("rope_type") not in ("linear", "llama3"):
            found.append(f"rope_scaling {self.rope_scaling.get('rope_type')!r} is not known; linear and llama3 are")
        return found

    @property
    def head_dim(self) -> int:
        """Width of one attention head."""
        return self.hidden_size // self.num_attention_heads

    @property
    def matmul_parameters(self) -> int:
        """Weights that every token is multiplied with: all matrices but the embedding look-up."""
        key_value = self.hidden_size * self.num_key_value_heads * self.head_dim
        attention = 2 * self.hidden_size**2 + 2 * key_value
        feed_forward = 3 * self.hidden_size * self.intermediate_size
        return self.num_hidden_layers * (attention + feed_forward) + self.hidden_size * self.vocab_size

    @property
    def parameters(self) -> int:
        """All trainable numbers."""
        embedding = 0 if self.tie_word_embeddings else self.hidden_size * self.vocab_size
        norms = (2 * self.num_hidden_layers + 1) * self.hidden_size
        return self.matmul_parameters + embedding + norms

    def flops_per_token(self, length: int, *, head: bool = True) -> float:
        """Floating point operations to train on one token in a row of `length`: forward, and twice that backward.

        Two per weight and direction, plus causal attention (half of the square); `head=False` leaves out the
        vocabulary matmul, for positions without loss.
        """
        weights = self.matmul_parameters - (0 if head else self.hidden_size * self.vocab_size)
        return 6 * weights + 6 * self.num_hidden_layers * self.hidden_size * length

    def to_hf(self) -> dict[str, Any]:
        """The contents of a Hugging Face `config.json`."""
        return {
            "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_act": "silu", "attention_bias": False,
            "mlp_bias": False, "attention_dropout": 0.0, "head_dim": self.head_dim, "torch_dtype": "float32",
            **asdict(self),
        }

    @classmethod
    def from_hf(cls, values: dict[str, Any], name: str = "config.json") -> "LlamaConfig":
        """Read a `config.json`; UserError if it describes another architecture than a bias-free Llama."""
        if values.get("model_type") != "llama":
            raise UserError(f"{name}: model_type is {values.get('model_type')!r}; only llama is supported")
        if values.get("attention_bias") or values.get("mlp_bias") or values.get("hidden_act", "silu") != "silu":
            raise UserError(f"{name}: biases and activations other than silu are not supported")
        known = {field.name for field in fields(cls)}
        return cls(**{key: value for key, value in values.items() if key in known})


# Heads of 32 at 43M are the reference's; the larger two use heads of 64, the width that attention kernels like best.
PRESETS: dict[str, dict[str, Any]] = {
    "babyllama-3m": {
        "hidden_size": 160, "intermediate_size": 448, "num_hidden_layers": 4, "num_attention_heads": 5,
        "num_key_value_heads": 5, "tie_word_embeddings": True,
    },
    "babyllama-43m": {
        "hidden_size": 256, "intermediate_size": 768, "num_hidden_layers": 12, "num_attention_heads": 8,
        "num_key_value_heads": 8,
    },
    "babyllama-92m": {
        "hidden_size": 512, "intermediate_size": 1408, "num_hidden_layers": 8, "num_attention_heads": 8,
        "num_key_value_heads": 8,
    },
    "babyllama-218m": {
        "hidden_size": 768, "intermediate_size": 2176, "num_hidden_layers": 16, "num_attention_heads": 12,
        "num_key_value_heads": 12,
    },
}


def preset(name: str, vocab_size: int, **changes: Any) -> LlamaConfig:
    """A named shape for a vocabulary, with single fields changed. UserError for an unknown name."""
    if name not in PRESETS:
        raise UserError(f"--model.preset {name}: there is no such preset; choose one of {', '.join(PRESETS)}")
    return LlamaConfig(vocab_size=vocab_size, **{**PRESETS[name], **changes})


def with_tokenizer(config: LlamaConfig, bos_token_id: int, eos_token_id: int) -> LlamaConfig:
    """The same shape with the ids of a tokenizer's sentence marks."""
    return replace(config, bos_token_id=bos_token_id, eos_token_id=eos_token_id)
