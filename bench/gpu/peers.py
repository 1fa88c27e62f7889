"""The Llama of transformers beside this one: same weights, ids and precision, in rounds."""

import statistics
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from transformers import AutoModelForCausalLM
from transformers import LlamaConfig as HFLlamaConfig

from bench.gpu.context import Context, best_precision, random_ids, relative_error
from bench.gpu.speed import LENGTH, NEW, PROMPT, time_decode
from bench.gpu.steps import TrainingStep
from model.config import LlamaConfig
from model.llama import Llama
from train.autotune import ComputePlan, autocast
from train.optimizer import OptimizerOptions

ROWS = 32  # of a micro-batch; halved until both fit into memory
ROUNDS = 3  # each measures both implementations
STEPS = 5  # timed steps of an implementation in a round
# Bounds of the relative difference of losses: in fp32, and of the second step in the narrow type.
FP32_LOSS_TOLERANCE, LOW_PRECISION_LOSS_TOLERANCE = 1e-5, 0.02


def build_hf_model(config: LlamaConfig, weights: dict[str, Any], device: torch.device) -> Any:
    """Return the Llama of transformers with these weights and sdpa attention, to be trained."""
    hf_config = HFLlamaConfig(**config.to_hf())
    hf_config.use_cache = False  # a KV cache is of no use in training
    model = AutoModelForCausalLM.from_config(hf_config, attn_implementation="sdpa")
    model.load_state_dict(weights)
    return model.to(device).train()


class HFTrainingStep:
    """A plain training step of transformers, the counterpart of `TrainingStep`.

    It has the loss of transformers, torch's fused AdamW, and the clipping of this project.
    """

    def __init__(self, model: Any, compute_plan: ComputePlan, ids: torch.Tensor) -> None:
        options = OptimizerOptions.model_validate({"name": "adamw"})
        # Weight decay is on matrices only, as in this project.
        matrices = [parameter for parameter in model.parameters() if parameter.dim() >= 2]
        vectors = [parameter for parameter in model.parameters() if parameter.dim() < 2]
        groups = [
            {"params": matrices, "weight_decay": options.weight_decay},
            {"params": vectors, "weight_decay": 0.0},
        ]
        self._optimizer = torch.optim.AdamW(
            groups, lr=options.lr, betas=(options.beta1, options.beta2), fused=True
        )
        is_fp16 = compute_plan.precision == "fp16"
        self._scaler = torch.amp.GradScaler(ids.device.type, enabled=is_fp16)
        self._model = model
        self._forward = torch.compile(model) if compute_plan.compile else model
        self._precision = compute_plan.precision
        self._ids = ids
        self._clip = options.clip

    def __call__(self) -> float:
        """Train one step and return its loss, which waits for the device."""
        targets = self._ids.roll(-1, 1)
        with autocast(self._ids.device, self._precision):
            loss = _hf_loss(self._forward, self._ids, targets)
        self._scaler.scale(loss).backward()
        self._scaler.unscale_(self._optimizer)
        torch.nn.utils.clip_grad_norm_(self._model.parameters(), self._clip)
        self._scaler.step(self._optimizer)
        self._scaler.update()
        self._optimizer.zero_grad(set_to_none=True)
        return float(loss.detach())


def _hf_loss(model: Any, ids: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    # The targets are shifted already. With `labels` alone the loss would shift them again and drop
    # the last one; `labels` is needed too, because without it no loss is computed.
    return model(input_ids=ids, labels=targets, shift_labels=targets).loss


def compare_with_transformers(context: Context, mode: str) -> None:
    """Compare logits, losses and training throughput with transformers.

    `mode`, "eager" or "compiled", is that of the training steps; the logits and the first loss are
    eager in both. In eager mode greedy decoding is compared too.
    """
    is_compiled = mode == "compiled"
    report, device = context.report, context.device
    config = context.model_config("43m")
    length = 32 if context.is_small else LENGTH
    model = Llama(config).init_weights(0)
    hf_model = build_hf_model(config, model.state_dict(), device)
    model = model.to(device).train()
    ids = random_ids(config, 2, length).to(device)
    targets = ids.roll(-1, 1)
    with torch.no_grad():
        logits, hf_logits = model(ids), hf_model(input_ids=ids).logits
        loss = float(model(ids, targets, scale=1 / ids.numel()))
        hf_loss = float(_hf_loss(hf_model, ids, targets))
    report.compare("logits, fp32", relative_error(logits, hf_logits), 1e-4)
    report.compare("loss, fp32", abs(loss - hf_loss) / hf_loss, FP32_LOSS_TOLERANCE)
    precision, _ = best_precision(device)
    compute_plan = ComputePlan(
        device=str(device),
        precision=precision,
        compile=is_compiled,
        micro_rows=1,  # replaced by the largest that fits
        loss_path="chunked",
    )
    _compare_training(context, model, hf_model, compute_plan, length)
    if not is_compiled:
        _compare_decoding(context, model, hf_model)


def _compare_training(
    context: Context, model: Llama, hf_model: Any, compute_plan: ComputePlan, length: int
) -> None:
    """Compare the loss of the second step, and measure tokens/s in alternating rounds.

    Both train with micro-batches of the same size, the largest that fits for both.
    """
    report = context.report
    all_rows = 2 if context.is_small else ROWS
    rows = all_rows
    while True:
        try:
            our_step = TrainingStep(
                model, replace(compute_plan, micro_rows=rows), length, rows, optimizer="adamw"
            )
            ids = random_ids(model.config, rows, length).to(context.device)
            hf_step = HFTrainingStep(hf_model, compute_plan, ids)
            # Warm-up and compilation. As many steps for both, so that the losses are comparable.
            losses = [(our_step(), hf_step()) for _ in range(2)]
            break
        except torch.cuda.OutOfMemoryError:
            if rows == 1:
                raise
            rows //= 2
        # After the handler: inside it the traceback still refers to tensors.
        torch.cuda.empty_cache()
    # A first attempt that ran out of memory may have trained one of the two models already.
    if rows == all_rows:
        our_loss, hf_loss = losses[1]
        report.compare(
            "loss of the second step",
            abs(our_loss - hf_loss) / hf_loss,
            LOW_PRECISION_LOSS_TOLERANCE,
        )
    num_rounds, num_steps = (1, 1) if context.is_small else (ROUNDS, STEPS)
    our_speeds, hf_speeds = [], []
    for _ in range(num_rounds):
        our_speeds.append(rows * length / _median_step_seconds(context, our_step, num_steps))
        hf_speeds.append(rows * length / _median_step_seconds(context, hf_step, num_steps))
    our_speed, hf_speed = statistics.median(our_speeds), statistics.median(hf_speeds)
    report.figure("training, this project", our_speed, "tokens/s")
    report.figure("training, transformers", hf_speed, "tokens/s")
    report.figure("training, this project / transformers", our_speed / hf_speed)
    report.figure(
        "micro-batch of both", f"{rows} rows of {length}, {compute_plan.precision}, AdamW"
    )


def _median_step_seconds(
    context: Context, train_step: Callable[[], float], num_steps: int
) -> float:
    """Run `num_steps` training steps, and return the seconds of the median one."""
    seconds = []
    for _ in range(num_steps):
        context.synchronize()
        start = time.perf_counter()
        train_step()
        context.synchronize()
        seconds.append(time.perf_counter() - start)
    return statistics.median(seconds)


def _compare_decoding(context: Context, model: Llama, hf_model: Any) -> None:
    """Measure greedy decoding, prefill included, in new tokens/s at two batch sizes."""
    _, dtype = best_precision(context.device)
    model, hf_model = model.to(dtype).eval(), hf_model.to(dtype).eval()
    prompt_length, num_new = (8, 4) if context.is_small else (PROMPT, NEW)
    for rows in (1, 2) if context.is_small else (1, 16):
        ids = random_ids(model.config, rows, prompt_length)
        time_decode(context, model, ids.tolist(), 4)  # warm-up
        our_seconds = sum(time_decode(context, model, ids.tolist(), num_new))
        device_ids = ids.to(context.device)
        _hf_generate(hf_model, device_ids, 4)  # warm-up
        context.synchronize()
        start = time.perf_counter()
        _hf_generate(hf_model, device_ids, num_new)
        context.synchronize()
        hf_seconds = time.perf_counter() - start
        for name, seconds in (("this project", our_seconds), ("transformers", hf_seconds)):
            context.report.figure(
                f"prefill and decode of {rows} rows, {name}",
                rows * num_new / seconds,
                "new tokens/s",
            )


@torch.inference_mode()
def _hf_generate(model: Any, ids: torch.Tensor, num_new: int) -> Any:
    """Decode exactly `num_new` ids greedily with transformers and its KV cache."""
    return model.generate(
        ids,
        attention_mask=torch.ones_like(ids),
        max_new_tokens=num_new,
        min_new_tokens=num_new,
        do_sample=False,
        use_cache=True,
        pad_token_id=0,
        eos_token_id=None,
    )
