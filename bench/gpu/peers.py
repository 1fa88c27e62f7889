"""The Llama of transformers beside this one: the same weights, ids and precision, in turns."""

import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from transformers import AutoModelForCausalLM
from transformers import LlamaConfig as TheirConfig

from bench.gpu.context import Context, best_precision, random_ids, relative_error
from bench.gpu.speed import LENGTH, NEW, PROMPT, time_decode
from bench.gpu.steps import TrainingStep
from model.config import LlamaConfig
from model.llama import Llama
from train.autotune import ComputePlan, autocast
from train.optimizer import OptimizerOptions

# Rows of a micro-batch, halved until both fit; turns of each; steps of a turn.
ROWS, TURNS, STEPS = 32, 3, 5
# Relative difference of losses: both in fp32, and after some steps in the narrow type.
FP32_LOSS, NARROW_LOSS = 1e-5, 0.02


def their_model(config: LlamaConfig, weights: dict[str, Any], device: torch.device) -> Any:
    """Return the Llama of transformers with these weights and sdpa attention."""
    theirs = TheirConfig(**config.to_hf())
    theirs.use_cache = False
    model = AutoModelForCausalLM.from_config(theirs, attn_implementation="sdpa")
    model.load_state_dict(weights)
    return model.to(device).train()


class TheirStep:
    """A plain training step of transformers: own loss, fused AdamW, clipped as in this project."""

    def __init__(self, model: Any, choices: ComputePlan, ids: torch.Tensor) -> None:
        options = OptimizerOptions.model_validate({"name": "adamw"})
        matrices = [each for each in model.parameters() if each.dim() >= 2]
        vectors = [each for each in model.parameters() if each.dim() < 2]
        groups = [
            {"params": matrices, "weight_decay": options.weight_decay},
            {"params": vectors, "weight_decay": 0.0},
        ]
        self._optimizer = torch.optim.AdamW(
            groups, lr=options.lr, betas=(options.beta1, options.beta2), fused=True
        )
        self._scaler = torch.amp.GradScaler(ids.device.type, enabled=choices.precision == "fp16")
        self._model, self._choices, self._ids, self._clip = model, choices, ids, options.clip
        self._called = torch.compile(model) if choices.compile else model

    def __call__(self) -> float:
        """Train one step and return its loss."""
        targets = self._ids.roll(-1, 1)
        with autocast(self._ids.device, self._choices.precision):
            # `shift_labels` are already shifted.
            loss = self._called(input_ids=self._ids, labels=targets, shift_labels=targets).loss
        self._scaler.scale(loss).backward()
        self._scaler.unscale_(self._optimizer)
        torch.nn.utils.clip_grad_norm_(self._model.parameters(), self._clip)
        self._scaler.step(self._optimizer)
        self._scaler.update()
        self._optimizer.zero_grad(set_to_none=True)
        return float(loss.detach())


def beside(context: Context, how: str) -> None:
    """Compare losses, training throughput in turns, and greedy decode with transformers."""
    compiled = how == "compiled"
    report, device = context.report, context.device
    config = context.shape("43m")
    length = 32 if context.small else LENGTH
    model = Llama(config).init_weights(0)
    weights = model.state_dict()
    theirs = their_model(config, weights, device)
    model = model.to(device).train()
    ids = random_ids(config, 2, length).to(device)
    targets = ids.roll(-1, 1)
    with torch.no_grad():
        report.compare(
            "logits, fp32", relative_error(model(ids), theirs(input_ids=ids).logits), 1e-4
        )
        loss = float(model(ids, targets, scale=1 / ids.numel()))
        other = float(theirs(input_ids=ids, labels=targets, shift_labels=targets).loss)
    report.compare("loss, fp32", abs(loss - other) / other, FP32_LOSS)
    choices = ComputePlan(
        device=str(device),
        precision=best_precision(device)[0],
        compile=compiled,
        micro_rows=1,
        loss_path="chunked",
    )
    _train(context, model, theirs, choices, length)
    if not compiled:
        _decode(context, model, theirs)


def _train(context: Context, model: Llama, theirs: Any, choices: ComputePlan, length: int) -> None:
    report, rows = context.report, 2 if context.small else ROWS
    steps = 1 if context.small else STEPS
    while True:
        try:
            ours = TrainingStep(
                model, replace(choices, micro_rows=rows), length, rows, optimizer="adamw"
            )
            peer = TheirStep(
                theirs, choices, random_ids(model.config, rows, length).to(context.device)
            )
            # Warm-up and compilation; as many steps for both, so that the losses are comparable.
            losses = [(ours(), peer()) for _ in range(2)]
            break
        except torch.cuda.OutOfMemoryError:
            if rows == 1:
                raise
            rows //= 2
        # Outside of the handler: its traceback refers to tensors.
        torch.cuda.empty_cache()
    if rows == (2 if context.small else ROWS):
        report.compare(
            "loss of the second step", abs(losses[1][0] - losses[1][1]) / losses[1][1], NARROW_LOSS
        )
    speeds: dict[str, list[float]] = {"this project": [], "transformers": []}
    for _ in range(1 if context.small else TURNS):
        for name, step in (("this project", ours), ("transformers", peer)):
            speeds[name].append(rows * length / _seconds(context, step, steps))
    middle = {name: sorted(values)[len(values) // 2] for name, values in speeds.items()}
    for name, value in middle.items():
        report.figure(f"training, {name}", value, "tokens/s")
    report.figure(
        "training, this project / transformers", middle["this project"] / middle["transformers"]
    )
    report.figure("micro-batch of both", f"{rows} rows of {length}, {choices.precision}, AdamW")


def _seconds(context: Context, step: Callable[[], float], count: int) -> float:
    """Return the seconds of the median of `count` steps."""
    seconds = []
    for _ in range(count):
        context.synchronize()
        start = time.perf_counter()
        step()
        context.synchronize()
        seconds.append(time.perf_counter() - start)
    return sorted(seconds)[count // 2]


def _decode(context: Context, model: Llama, theirs: Any) -> None:
    report, dtype = context.report, best_precision(context.device)[1]
    model, theirs = model.to(dtype).eval(), theirs.to(dtype).eval()
    prompt, new = (8, 4) if context.small else (PROMPT, NEW)
    for rows in (1, 2) if context.small else (1, 16):
        ids = random_ids(model.config, rows, prompt)
        time_decode(context, model, ids.tolist(), 4)
        ours = sum(time_decode(context, model, ids.tolist(), new))
        their_ids = ids.to(context.device)
        their_generate(theirs, their_ids, 4)
        context.synchronize()
        start = time.perf_counter()
        their_generate(theirs, their_ids, new)
        context.synchronize()
        other = time.perf_counter() - start
        for name, seconds in (("this project", ours), ("transformers", other)):
            report.figure(
                f"prefill and decode of {rows} rows, {name}", rows * new / seconds, "new tokens/s"
            )


@torch.inference_mode()
def their_generate(model: Any, ids: torch.Tensor, new: int) -> Any:
    """Return the ids of greedy decoding with transformers and its cache."""
    return model.generate(
        ids,
        attention_mask=torch.ones_like(ids),
        max_new_tokens=new,
        min_new_tokens=new,
        do_sample=False,
        use_cache=True,
        pad_token_id=0,
        eos_token_id=None,
    )
