"""Checks of decoding: ids of the device against the CPU, in fp32 and int8, one prompt and a batch.

The logits of random models have near ties, so ids may differ where the gap between the two highest
CPU logits is below a given fraction of their standard deviation. After such a position a free
decode is another text and is compared no further; the comparison with given ids covers all
positions.
"""

import torch
from torch import Tensor

from bench.gpu.context import CPU, UNITS, Context, build_model, random_ids, relative_error
from model.decode.batch_generate import generate_batch
from model.decode.batched_inference import InferenceBatch
from model.decode.generate import Sampling, generate
from model.llama import Llama
from model.precision import DTYPES
from model.quantize import quantize_int8

# Bound of the relative error of the logits, and the gap of the two highest that counts as a tie, in
# standard deviations of the logits. In int8 a CPU rounds activations to bf16 and a GPU does not.
LOGITS = {"fp32": 1e-4, "int8": 0.03}
MARGIN = {"fp32": 1e-3, "int8": 0.05}
# Fraction of positions that may be ties. Of 65,000 normally distributed logits the two highest are
# closer than 0.05 standard deviations at one position in five.
CLOSE = {"fp32": 0.05, "int8": 0.4}


def decoding(context: Context, name: str) -> None:
    """Compare single and batched decode in fp32 and int8 with the CPU, narrow types with fp32."""
    config = context.shape(name)
    new = 12 if context.small else 48
    reference = build_model(config, CPU).eval()
    model = build_model(config, context.device).eval()
    sizes = (3, 9, 5) if context.small else (16, 64, 33, 50)
    prompts = [random_ids(config, 1, size, seed=size)[0].tolist() for size in sizes]
    compare_decode(context, "fp32", model, reference, prompts, new)
    expected = InferenceBatch(reference, prompts, max_new_tokens=1).prefill()
    for precision in context.precisions():
        narrow = build_model(config, context.device).to(DTYPES[precision]).eval()
        error = relative_error(
            InferenceBatch(narrow, prompts, max_new_tokens=1).prefill(), expected
        )
        context.report.compare(
            f"{precision}: logits of a batched prefill", error, 24 * UNITS[precision]
        )
    compare_decode(context, "int8", quantize_int8(model), quantize_int8(reference), prompts, new)


def compare_decode(
    context: Context,
    weights: str,
    model: Llama,
    reference: Llama,
    prompts: list[list[int]],
    new: int,
) -> None:
    """Compare the logits of given ids, a free batched decode, and a free decode of one prompt."""
    report = context.report
    logits, ids = _read(reference, prompts, new)
    spread = float(logits.std())
    mine, _ = _read(model, prompts, new, ids)
    report.compare(
        f"{weights}: logits of prefill and {new} decode steps",
        relative_error(mine, logits),
        LOGITS[weights],
    )
    gaps = logits.topk(2).values.diff(dim=-1).abs().squeeze(-1)
    close = gaps < MARGIN[weights] * spread
    other = (mine.argmax(-1) != logits.argmax(-1)) & ~close
    report.compare(f"{weights}: other ids where the gap is clear", float(other.sum()), 0.0)
    report.compare(
        f"{weights}: share of places too close to tell", float(close.float().mean()), CLOSE[weights]
    )
    for kind, batch in (("batched decode", len(prompts)), ("decode of one row at a time", 1)):
        answers, expected = (
            [
                each.ids
                for each in generate_batch(each, prompts, max_new_tokens=new, batch_size=batch)
            ]
            for each in (model, reference)
        )
        triples = zip(prompts, answers, expected, strict=True)
        worst = max(first_difference(reference, *triple) for triple in triples)
        report.compare(
            f"{weights}: {kind}, largest gap where an id differs first",
            worst,
            MARGIN[weights] * spread,
        )
    greedy = Sampling(temperature=0.0)
    answer, expected_answer = (
        list(generate(each, prompts[0], greedy, max_new_tokens=new)) for each in (model, reference)
    )
    gap = first_difference(reference, prompts[0], answer, expected_answer)
    report.compare(
        f"{weights}: generate, gap where an id differs first", gap, MARGIN[weights] * spread
    )


@torch.inference_mode()
def _read(
    model: Llama, prompts: list[list[int]], new: int, given: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Return logits[R, new, V] after the prompts and each next id, and ids[R, new], on the CPU.

    The ids are the argmax, or `given`.
    """
    reader = InferenceBatch(model, prompts, max_new_tokens=new)
    logits = [reader.head.logits(reader.prefill())]
    ids = [logits[0].argmax(-1) if given is None else given[:, 0].to(reader.device)]
    for step in range(1, new):
        logits.append(reader.head.logits(reader.decode_step(ids[-1])))
        ids.append(logits[-1].argmax(-1) if given is None else given[:, step].to(reader.device))
    return torch.stack(logits, 1).float().cpu(), torch.stack(ids, 1).cpu()


@torch.inference_mode()
def first_difference(
    reference: Llama, prompt: list[int], answer: list[int], expected: list[int]
) -> float:
    """Return the gap of the CPU logits at the first position where two answers differ, else 0."""
    if answer == expected:
        return 0.0
    pairs = enumerate(zip(answer, expected, strict=False))
    place = next(
        (index for index, (one, other) in pairs if one != other), min(len(answer), len(expected))
    )
    batch = InferenceBatch(reference, [prompt + expected[:place]], max_new_tokens=1)
    logits = batch.head.logits(batch.prefill())[0]
    top = logits.topk(2).values
    if place < len(answer) and place < len(expected):
        return float((logits[expected[place]] - logits[answer[place]]).abs())
    # One answer ends there with a stop id.
    return float(top[0] - top[1])
