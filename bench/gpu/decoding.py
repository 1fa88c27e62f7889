"""Checks of decoding: ids of the device against the CPU, in fp32 and int8, one prompt and a batch.

The logits of random models have near ties, so ids may differ where the gap between the two highest
CPU logits is below a given fraction of their standard deviation. From such a position on, two
models that decode freely generate different texts, and these are compared no further. With teacher
forcing (the CPU's ids are given to the device too) all positions are compared.
"""

import torch
from torch import Tensor

from bench.gpu.context import CPU, UNIT_ROUNDOFF, Context, build_model, random_ids, relative_error
from model.decode.batch_generate import generate_batch
from model.decode.batched_inference import start_batch
from model.decode.generate import Sampling, generate
from model.llama import Llama
from model.precision import DTYPES
from model.quantize import quantize_int8

# By the precision of the weights: the bound of the relative error of the logits, and the gap of the
# two highest that counts as a tie, in standard deviations of the logits. In int8 a CPU rounds
# activations to bf16 and a GPU does not.
LOGIT_ERRORS = {"fp32": 1e-4, "int8": 0.03}
TIE_GAPS = {"fp32": 1e-3, "int8": 0.05}
# Fraction of positions that may be ties. Of 65,000 normally distributed logits the two highest are
# closer than 0.05 standard deviations at one position in five.
TIE_SHARES = {"fp32": 0.05, "int8": 0.4}


def decoding(context: Context, name: str) -> None:
    """Compare decoding in fp32 and int8 with the CPU, and the prefill in bf16 and fp16 with fp32.

    Each is decoded in a batch of all prompts and one prompt at a time.
    """
    config = context.model_config(name)
    num_new = 12 if context.is_small else 48
    reference = build_model(config, CPU).eval()
    model = build_model(config, context.device).eval()
    sizes = (3, 9, 5) if context.is_small else (16, 64, 33, 50)
    prompts = [random_ids(config, 1, size, seed=size)[0].tolist() for size in sizes]
    compare_decode(context, "fp32", model, reference, prompts, num_new)
    expected_hidden = start_batch(reference, prompts, max_new_tokens=1)[1]
    for precision in context.low_precisions():
        narrow_model = build_model(config, context.device).to(DTYPES[precision]).eval()
        hidden = start_batch(narrow_model, prompts, max_new_tokens=1)[1]
        context.report.compare(
            f"{precision}: hidden states of a batched prefill",
            relative_error(hidden, expected_hidden),
            24 * UNIT_ROUNDOFF[precision],
        )
    # Last, because quantization changes the models in place.
    quantize_int8(model)
    quantize_int8(reference)
    compare_decode(context, "int8", model, reference, prompts, num_new)


def compare_decode(
    context: Context,
    weight_precision: str,
    model: Llama,
    reference: Llama,
    prompts: list[list[int]],
    num_new: int,
) -> None:
    """Compare logits under teacher forcing, and the ids of free decoding by each implementation.

    `reference` is the model on the CPU. Free decoding is compared until the first different id,
    where the two ids must be a tie.
    """
    report = context.report
    logits, ids = _decode_logits(reference, prompts, num_new)
    tie_gap = TIE_GAPS[weight_precision] * float(logits.std())
    device_logits, _ = _decode_logits(model, prompts, num_new, forced_ids=ids)
    report.compare(
        f"{weight_precision}: logits of prefill and {num_new} decode steps",
        relative_error(device_logits, logits),
        LOGIT_ERRORS[weight_precision],
    )
    top_gaps = logits.topk(2).values.diff(dim=-1).abs().squeeze(-1)
    is_tie = top_gaps < tie_gap
    is_wrong = (device_logits.argmax(-1) != logits.argmax(-1)) & ~is_tie
    report.compare(
        f"{weight_precision}: different ids where the gap is clear", float(is_wrong.sum()), 0.0
    )
    report.compare(
        f"{weight_precision}: share of positions too close to tell",
        float(is_tie.float().mean()),
        TIE_SHARES[weight_precision],
    )
    for kind, batch_size in (("batched decode", len(prompts)), ("decode of one row at a time", 1)):
        answers, expected_answers = (
            generate_batch(each_model, prompts, max_new_tokens=num_new, batch_size=batch_size)
            for each_model in (model, reference)
        )
        largest_gap = max(
            logit_gap_at_divergence(reference, prompt, answer.ids, expected.ids)
            for prompt, answer, expected in zip(prompts, answers, expected_answers, strict=True)
        )
        report.compare(
            f"{weight_precision}: {kind}, largest gap where an id differs first",
            largest_gap,
            tie_gap,
        )
    greedy = Sampling(temperature=0.0)
    answer_ids, expected_ids = (
        list(generate(each_model, prompts[0], greedy, max_new_tokens=num_new))
        for each_model in (model, reference)
    )
    gap = logit_gap_at_divergence(reference, prompts[0], answer_ids, expected_ids)
    report.compare(f"{weight_precision}: generate, gap where an id differs first", gap, tie_gap)


@torch.inference_mode()
def _decode_logits(
    model: Llama, prompts: list[list[int]], num_new: int, forced_ids: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Return the logits[R, num_new, V] of greedy decoding and the new ids[R, num_new], on the CPU.

    With `forced_ids`[R, num_new] those are decoded instead of the argmax (teacher forcing).
    """
    batch, hidden = start_batch(model, prompts, max_new_tokens=num_new)
    logits: list[Tensor] = []
    ids: list[Tensor] = []
    for step in range(num_new):
        if step > 0:
            hidden = batch.decode_step(ids[-1])
        logits.append(batch.head.logits(hidden))
        if forced_ids is None:
            ids.append(logits[-1].argmax(-1))
        else:
            ids.append(forced_ids[:, step].to(batch.device))
    return torch.stack(logits, 1).float().cpu(), torch.stack(ids, 1).cpu()


@torch.inference_mode()
def logit_gap_at_divergence(
    reference: Llama, prompt: list[int], answer: list[int], expected: list[int]
) -> float:
    """Return how far apart the logits of two answers' ids are where the answers first differ.

    The logits are those of `reference`. Returns 0.0 if the answers are equal.
    """
    if answer == expected:
        return 0.0
    common_length = min(len(answer), len(expected))
    position = next(
        (index for index in range(common_length) if answer[index] != expected[index]),
        common_length,
    )
    batch, hidden = start_batch(reference, [prompt + expected[:position]], max_new_tokens=1)
    logits = batch.head.logits(hidden)[0]
    if position < common_length:
        return float((logits[expected[position]] - logits[answer[position]]).abs())
    # One answer ended here with a stop id, which it does not contain. Greedy decoding took the most
    # likely id, so the gap to the other one is at least that of the two most likely ids.
    top_logits = logits.topk(2).values
    return float(top_logits[0] - top_logits[1])
