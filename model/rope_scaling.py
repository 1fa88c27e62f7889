"""Scaling of rotary frequencies to longer contexts: the values of `rope_scaling`.

The values are those of transformers, by the same names. `linear` divides all frequencies by a
factor (Chen et al. 2023, arXiv:2306.15595); `llama3` (Llama 3.1) and `yarn` (Peng et al. 2023,
arXiv:2309.00071) only those of long wavelengths, and `yarn` also raises the attention scores.
`model.llama.inverse_frequencies` computes the frequencies. Imports no PyTorch.
"""

import math
from typing import Any, Literal, NamedTuple

# How to extend a context: by a scaling, or by more positions alone.
ExtensionType = Literal["none", "linear", "llama3", "yarn"]
# The supported types, and the numbers that each needs.
ROPE_SCALINGS: dict[str, tuple[str, ...]] = {
    "linear": ("factor",),
    "llama3": ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings"),
    "yarn": ("factor", "original_max_position_embeddings"),
}
# Numbers of `yarn` that may be left out.
_YARN_NUMBERS = ("attention_factor", "beta_fast", "beta_slow", "mscale", "mscale_all_dim")
# Turns within the original context: pairs of dimensions with more than the first keep their
# frequency, those with fewer than the second get it divided by the factor.
BETA_FAST = 32.0
BETA_SLOW = 1.0
# The same bounds of `llama3`, as in Llama 3.1.
_LLAMA3_BOUNDS = {"low_freq_factor": 1.0, "high_freq_factor": 4.0}
MAX_FACTOR = 10_000  # even contexts of millions of positions need a few hundred only
# Below the largest fp32 number, 3.4e38; JSON can hold larger ones.
NUMBER_LIMIT = 1e38


class ContextExtension(NamedTuple):
    """How to extend a model that is not trained further, and to how many tokens."""

    type: ExtensionType
    context: int


def make_rope_scaling(rope_type: str, factor: float, original_length: int) -> dict[str, Any]:
    """Return the `rope_scaling` that extends a context of `original_length` tokens by a factor."""
    scaling: dict[str, Any] = {"rope_type": rope_type, "factor": float(factor)}
    if rope_type == "llama3":
        scaling |= _LLAMA3_BOUNDS
    if "original_max_position_embeddings" in ROPE_SCALINGS[rope_type]:
        scaling["original_max_position_embeddings"] = original_length
    return scaling


def unscaled_length(scaling: dict[str, Any] | None, *, context: int, trained_length: int) -> int:
    """Return the length in tokens that a model was trained with before its frequencies were scaled.

    `context` is the number of its positions, of which the last training may have used fewer.
    """
    if scaling is None:
        return trained_length
    original = scaling.get("original_max_position_embeddings", context / scaling["factor"])
    return max(1, round(original))


def attention_factor(scaling: dict[str, Any] | None) -> float:
    """Return the factor of cosines and sines, 1 except with `yarn`; scores grow by its square.

    It is `attention_factor` or, without one, 0.1 ln(factor) + 1; `mscale` and `mscale_all_dim`
    together replace that by a quotient, as DeepSeek's models use it.
    """
    if scaling is None or scaling["rope_type"] != "yarn":
        return 1.0
    if "attention_factor" in scaling:
        return float(scaling["attention_factor"])
    if "mscale" in scaling and "mscale_all_dim" in scaling:
        numerator = _mscale(scaling["factor"], scaling["mscale"])
        return numerator / _mscale(scaling["factor"], scaling["mscale_all_dim"])
    return _mscale(scaling["factor"])


def _mscale(factor: float, weight: float = 1.0) -> float:
    """Return YaRN's temperature of the scores for a factor of the context."""
    return 0.1 * weight * math.log(factor) + 1.0 if factor > 1 else 1.0


def parse_rope_scaling(rope: dict[str, Any], config: dict[str, Any]) -> dict[str, Any] | None:
    """Return the `rope_scaling` in transformers' rotary parameters `rope`, None for none.

    `config` is the whole `config.json`: like transformers, it says the original length if `rope`
    does not. Missing and wrong values are left to `find_rope_problems`.
    """
    rope_type = str(rope.get("rope_type", rope.get("type", "default")))  # `type` in older files
    if rope_type == "default":
        return None
    names = ROPE_SCALINGS.get(rope_type, ())
    scaling = {"rope_type": rope_type, **{key: rope[key] for key in names if key in rope}}
    if "original_max_position_embeddings" in names:
        # transformers prefers the entry outside of the rotary parameters.
        original = config.get("original_max_position_embeddings")
        if original is not None:
            scaling["original_max_position_embeddings"] = original
        elif scaling.get("original_max_position_embeddings") is None:
            scaling["original_max_position_embeddings"] = config.get(
                "max_position_embeddings", 2048
            )
    if rope_type == "yarn":
        # transformers takes its defaults in place of null and 0, except for this key's 0.
        zero_counts = {"attention_factor"}
        for key in _YARN_NUMBERS:
            value = rope.get(key)
            if value or (key in zero_counts and value is not None):
                scaling[key] = value
        if "truncate" in rope:
            scaling["truncate"] = rope["truncate"]
    return scaling


def find_rope_problems(scaling: dict[str, Any], rope_theta: float) -> list[str]:
    """Return a sentence for each invalid entry of a `rope_scaling`."""
    rope_type = scaling.get("rope_type")
    if rope_type not in ROPE_SCALINGS:
        *first, last = ROPE_SCALINGS
        return [f"rope_scaling {rope_type!r} is not supported; {', '.join(first)} and {last} are"]
    label = f"rope_scaling {rope_type}"
    given = [key for key in _YARN_NUMBERS if key in scaling]
    problems = []
    for key in (*ROPE_SCALINGS[rope_type], *given):
        value = scaling.get(key, "missing")
        is_number = isinstance(value, int | float) and not isinstance(value, bool)
        if not (is_number and 0 < value < NUMBER_LIMIT):
            problems.append(f"{label}: {key} must be a number above 0, not {value}")
    if not isinstance(scaling.get("truncate", True), bool):
        problems.append(f"{label}: truncate must be true or false, not {scaling['truncate']}")
    if problems:
        return problems
    factor = scaling["factor"]
    if not 1 <= factor <= MAX_FACTOR:
        problems.append(f"{label}: factor must be from 1 to {MAX_FACTOR:,}, not {factor}")
    elif rope_type == "llama3" and scaling["low_freq_factor"] >= scaling["high_freq_factor"]:
        problems.append(f"{label}: low_freq_factor must be below high_freq_factor")
    elif rope_type == "yarn":
        if scaling.get("beta_slow", BETA_SLOW) >= scaling.get("beta_fast", BETA_FAST):
            problems.append(f"{label}: beta_slow must be below beta_fast")
        if rope_theta <= 1:
            problems.append(f"{label}: rope_theta must be above 1, not {rope_theta}")
    return problems
