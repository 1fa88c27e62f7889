"""Small Llamas with random weights, in every architecture that the config can describe."""

from typing import Any

import torch

from model.config import LlamaConfig
from model.llama import Llama

# Changes to the default config of `random_llama`, by a name for test ids.
SHAPES: dict[str, dict[str, Any]] = {
    "multi-head": {"num_key_value_heads": 4},
    "grouped-query": {"num_key_value_heads": 2},
    "tied": {"num_key_value_heads": 1, "tie_word_embeddings": True},
    "wide heads": {"num_key_value_heads": 2, "head_dim": 24},
    "linear rope": {
        "num_key_value_heads": 1,
        "rope_scaling": {"rope_type": "linear", "factor": 4.0},
    },
    "llama3 rope": {
        "num_key_value_heads": 4,
        "rope_scaling": {
            "rope_type": "llama3",
            "factor": 8.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 32,
        },
    },
    "yarn rope": {
        "num_key_value_heads": 2,
        "rope_scaling": {
            "rope_type": "yarn",
            "factor": 4.0,
            "original_max_position_embeddings": 24,
        },
    },
    "several stop ids": {"num_key_value_heads": 2, "more_stop_ids": (7, 40)},
}


def random_llama(seed: int = 3, *, stop_weight: float = 1.0, **changes: Any) -> Llama:
    """Return a model in evaluation mode whose logits differ much from id to id.

    Norms are random too. The rows of the LM head that belong to stop ids are multiplied by
    `stop_weight`: above 1 some answers end early, with 0 none does. `changes` are config fields.
    """
    config_fields = {
        "vocab_size": 300,
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 96,
    }
    config = LlamaConfig(**{**config_fields, **changes})
    model = Llama(config).init_weights(seed)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.mul_(4.0)
            else:
                parameter.copy_(torch.rand(parameter.shape, generator=generator) + 0.5)
        model.lm_head.weight[list(config.stop_ids)] *= stop_weight
    return model.eval()


def random_prompts(lengths: list[int], seed: int = 0) -> list[list[int]]:
    """Return prompts of these lengths: id 1, then random ids from 3 to 299."""
    generator = torch.Generator().manual_seed(seed)
    return [
        [1, *torch.randint(3, 300, (length - 1,), generator=generator).tolist()]
        for length in lengths
    ]


def greedy_without_cache(model: Llama, prompt: list[int], max_new_tokens: int) -> list[int]:
    """Return the greedy answer by `Llama.forward` on the whole sequence for every id.

    No KV cache, no padding, no rearranged weights: the reference for everything in `model.decode`.
    """
    ids = list(prompt)
    with torch.no_grad():
        for _ in range(max_new_tokens):
            next_id = int(model(torch.tensor([ids]))[0, -1].argmax())
            if next_id in model.config.stop_ids:
                break
            ids.append(next_id)
    return ids[len(prompt) :]
