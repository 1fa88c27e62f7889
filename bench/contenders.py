"""Training steps of the contenders, with the same config, weights, ids and optimizer settings.

A contender is a function from a `TrainTask` to a step, `step(inputs, targets) -> loss` with
int64[B, T] for both, that does forward, backward and update. Each is written in the usual way of
its library. Peers are imported inside their function, so that a process loads no other contender.
"""

import functools
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from model.config import LlamaConfig

LEARNING_RATE, BETAS, EPSILON, WEIGHT_DECAY = 3e-4, (0.9, 0.95), 1e-8, 0.1

TrainStep = Callable[[Any, Any], float]
# fp32; products in bf16 with weights in fp32; everything in bf16, weights and moments included.
Arithmetic = Literal["fp32", "mixed", "bf16"]


@dataclass(frozen=True)
class TrainTask:
    """What every contender trains: a model with given initial weights, on rows of `length` tokens.

    `weights` is a safetensors file with the tensor names of Hugging Face's Llama.
    """

    config: LlamaConfig
    weights: Path
    length: int


def build_adamw(named_parameters: Iterable[tuple[str, Any]]) -> Any:
    """Return `torch.optim.AdamW` in its default implementation, weight decay on matrices only."""
    import torch

    parameters = [parameter for _, parameter in named_parameters]
    groups = [
        {"params": [p for p in parameters if p.ndim >= 2], "weight_decay": WEIGHT_DECAY},
        {"params": [p for p in parameters if p.ndim < 2], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=LEARNING_RATE, betas=BETAS, eps=EPSILON)


def autocast(arithmetic: Arithmetic) -> AbstractContextManager[Any]:
    """Return the context of a forward pass: of autocast to bf16, or an empty one."""
    import torch

    return torch.autocast("cpu", torch.bfloat16) if arithmetic == "mixed" else nullcontext()


def narrow_parameters(model: Any) -> None:
    """Make the weights of a model bf16, but not its tables of angles, which would be too coarse."""
    for parameter in model.parameters():
        parameter.data = parameter.data.bfloat16()


def build_babyllama_step(task: TrainTask, arithmetic: Arithmetic) -> TrainStep:
    """Build the step of this project, as `train.pretrain` runs it with AdamW."""
    from safetensors.torch import load_file

    from common.heap import keep_freed_memory
    from model.llama import Llama
    from model.narrow_weights import NarrowWeights
    from train.optimizer import OptimizerOptions, build_optimizers

    keep_freed_memory()
    model = Llama(task.config)
    model.load_state_dict(load_file(task.weights))
    options = OptimizerOptions.model_validate(
        {
            "name": "adamw",
            "lr": LEARNING_RATE,
            "beta1": BETAS[0],
            "beta2": BETAS[1],
            "weight_decay": WEIGHT_DECAY,
        }
    )
    optimizers = build_optimizers(model, options).values()
    narrow_weights = NarrowWeights(model) if arithmetic == "mixed" else nullcontext()

    def step(inputs: Any, targets: Any) -> float:
        with narrow_weights:
            with autocast(arithmetic):
                # `scale` turns the summed loss into the mean, which the peers return.
                loss = model(inputs, targets, scale=1 / targets.numel())
            loss.backward()
        for optimizer in optimizers:
            optimizer.step()
        model.zero_grad()
        return loss.item()

    return step


def build_transformers_step(task: TrainTask, arithmetic: Arithmetic) -> TrainStep:
    """Build a plain PyTorch step of `LlamaForCausalLM` with sdpa attention and its own loss."""
    from safetensors.torch import load_file
    from transformers import AutoModelForCausalLM
    from transformers import LlamaConfig as HFLlamaConfig

    # `to_hf` uses the keys of transformers.
    config = HFLlamaConfig(**task.config.to_hf())
    config.use_cache = False  # a KV cache is of no use in training
    model = AutoModelForCausalLM.from_config(config, attn_implementation="sdpa")
    model.load_state_dict(load_file(task.weights))
    model.train()
    if arithmetic == "bf16":
        narrow_parameters(model)
    optimizer = build_adamw(model.named_parameters())

    def step(inputs: Any, targets: Any) -> float:
        # The targets are shifted already. With `labels` alone the loss would shift them again and
        # drop the last one; `labels` is needed too, because without it no loss is computed.
        with autocast(arithmetic):
            loss = model(input_ids=inputs, labels=targets, shift_labels=targets).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        return loss.item()

    return step


def build_litgpt_step(
    task: TrainTask, arithmetic: Arithmetic, *, compiled: bool = False
) -> TrainStep:
    """Build a step of litgpt's `GPT` with the loss of its pretraining script.

    With `compiled` the model runs under `torch.compile`, as in that script, otherwise in eager
    mode.
    """
    import torch
    from litgpt.config import Config
    from litgpt.model import GPT
    from litgpt.scripts.convert_hf_checkpoint import copy_weights_hf_llama
    from litgpt.utils import chunked_cross_entropy
    from safetensors.torch import load_file

    llama_config = task.config
    config = Config(
        name="babyllama",
        block_size=task.length,
        vocab_size=llama_config.vocab_size,
        padded_vocab_size=llama_config.vocab_size,
        n_layer=llama_config.num_hidden_layers,
        n_head=llama_config.num_attention_heads,
        n_query_groups=llama_config.num_key_value_heads,
        n_embd=llama_config.hidden_size,
        intermediate_size=llama_config.intermediate_size,
        rotary_percentage=1.0,
        rope_base=int(llama_config.rope_theta),
        parallel_residual=False,
        bias=False,
        norm_class_name="RMSNorm",
        norm_eps=llama_config.rms_norm_eps,
        mlp_class_name="LLaMAMLP",
    )
    model: Any = GPT(config)
    litgpt_state: dict[str, Any] = {}
    # The second argument collects q, k and v weights that are spread over several files.
    copy_weights_hf_llama(config, {}, litgpt_state, load_file(task.weights))
    model.load_state_dict(litgpt_state)
    if arithmetic == "bf16":
        narrow_parameters(model)
    optimizer = build_adamw(model.named_parameters())
    if compiled:
        model = torch.compile(model)

    def step(inputs: Any, targets: Any) -> float:
        with autocast(arithmetic):
            loss = chunked_cross_entropy(model(inputs), targets)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        return loss.item()

    return step


@dataclass(frozen=True)
class Contender:
    """An implementation of a training step, in one kind of arithmetic."""

    package: str | None
    """The package that it needs besides those of this project."""
    arithmetic: Arithmetic
    build: Callable[[TrainTask, Arithmetic], TrainStep]


CONTENDERS = {
    "babyllama": Contender(None, "fp32", build_babyllama_step),
    "babyllama-bf16": Contender(None, "mixed", build_babyllama_step),
    "transformers": Contender("transformers", "fp32", build_transformers_step),
    "transformers-mixed": Contender("transformers", "mixed", build_transformers_step),
    "transformers-bf16": Contender("transformers", "bf16", build_transformers_step),
    "litgpt": Contender("litgpt", "fp32", build_litgpt_step),
    "litgpt-mixed": Contender("litgpt", "mixed", build_litgpt_step),
    "litgpt-bf16": Contender("litgpt", "bf16", build_litgpt_step),
    "litgpt-compiled": Contender(
        "litgpt", "fp32", functools.partial(build_litgpt_step, compiled=True)
    ),
}
