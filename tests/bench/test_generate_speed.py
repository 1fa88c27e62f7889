"""The decoding benchmark: its checks and its arithmetic."""

from pathlib import Path
from typing import Any

import pytest

from bench import generate_speed
from bench.decoders import DECODERS, DecodeTask, WeightPrecision
from bench.generate_speed import (
    MODEL_CONFIG,
    Measurement,
    check_equal_ids,
    make_prompts,
    resolve_entrants,
    summarize,
    weight_bytes_per_step,
)
from bench.options import GenerateSpeedOptions
from common.errors import UserError
from common.options import validate_options
from data.corpora.sample import SMALL_TOKENIZER
from model.config import LlamaConfig
from model.tokenizer import load_tokenizer


def measurement(
    name: str, decode: float, *, precision: WeightPrecision = "fp32", batch: int = 1, **changes: Any
) -> Measurement:
    values: dict[str, Any] = {
        "prompt_tokens": 64,
        "ids": [[5, 6, 7]] * batch,
        "prefill_seconds": 0.5,
        "peak_bytes": 10**9,
        "bandwidth": 20e9,
        **changes,
    }
    return Measurement(name, precision, batch, decode_seconds=decode, **values)


def test_contenders_with_different_ids_are_rejected() -> None:
    """Prevents the speed of a peer with other weights or prompts, or one that stopped early."""
    same = [measurement("transformers", 1), measurement("babyllama", 1)]
    check_equal_ids(same)
    check_equal_ids(
        [
            *same,
            measurement("llama-cpp", 1, precision="int8", ids=[[9, 9, 9]]),
            measurement("babyllama", 1, precision="int8"),
        ]
    )
    with pytest.raises(
        UserError, match="babyllama and transformers generated different ids in fp32 at batch 1"
    ):
        check_equal_ids([same[0], measurement("babyllama", 1, ids=[[5, 6, 8]])])
    with pytest.raises(UserError, match="babyllama generated different ids in two rounds"):
        check_equal_ids(
            [
                measurement("babyllama", 1, precision="int8"),
                measurement("babyllama", 1, precision="int8", ids=[[5, 6, 8]]),
            ]
        )


def test_row_is_median_of_its_rounds() -> None:
    """Catch mixed precisions or batches, an inverted ratio, a first id that counts as decoded."""
    rows = summarize(
        [
            measurement("babyllama", 1),
            measurement("babyllama", 2),
            measurement("babyllama", 8),
            measurement("transformers", 4),
            measurement("babyllama", 1, precision="int8"),
            measurement("babyllama", 4, batch=16),
            measurement("transformers", 16, batch=16),
        ]
    )
    by_name = {(row["contender"], row["precision"], row["batch"]): row for row in rows}
    assert len(by_name) == 5
    ours, peer = by_name["babyllama", "fp32", 1], by_name["transformers", "fp32", 1]
    assert (ours["decode"], ours["slowest"], ours["fastest"], ours["prefill"]) == (
        1.0,
        0.25,
        2.0,
        128.0,
    )
    assert (peer["decode"], peer["lead"]) == (0.5, 2.0)
    assert (
        by_name["transformers", "fp32", 16]["lead"] == 4.0
        and by_name["babyllama", "fp32", 16]["decode"] == 8.0
    )
    weights = 12 * (4 * 256**2 + 3 * 256 * 768) + 256 * 65_000
    # Keys and values in fp32: 64 prompt tokens and on average half of the three new ids of a row.
    cache = 4 * 2 * 12 * 256
    one, sixteen = cache * (64 + 1.5), cache * (64 + 16 * 1.5)
    assert (
        ours["limit"]
        == peer["limit"]
        == peer["own_limit"]
        == pytest.approx(20e9 / (4 * weights + one))
    )
    assert by_name["babyllama", "fp32", 16]["limit"] == pytest.approx(
        16 * 20e9 / (4 * weights + sixteen)
    )
    assert by_name["babyllama", "int8", 1]["own_limit"] == pytest.approx(20e9 / (weights + one))
    assert ours["own_limit"] == pytest.approx(20e9 / (4 * weights - 3 * 256 * 65_000 + one))
    assert weight_bytes_per_step("babyllama", "bf16", MODEL_CONFIG) == 2 * weights
    assert weight_bytes_per_step("transformers", "fp32", MODEL_CONFIG) == 4 * weights


def test_changed_ids_are_counted_against_fp32() -> None:
    """Catch a share of another batch, or of the ids of another precision."""
    rows = summarize(
        [
            measurement("transformers", 1, batch=2),
            measurement("babyllama", 1, batch=16, ids=[[1, 1, 1]] * 16),
            measurement("babyllama", 1, batch=2, precision="bf16", ids=[[5, 6, 7], [5, 1, 2]]),
            measurement("babyllama", 1, precision="int8"),
        ]
    )
    shares = {(row["precision"], row["batch"]): row["changed"] for row in rows}
    assert shares == {("fp32", 2): 0, ("fp32", 16): 0, ("bf16", 2): 1 / 3, ("int8", 1): None}


def test_prompts_are_deterministic_with_unequal_lengths() -> None:
    """Catch rounds with other prompts, and a batch without padding."""
    assert make_prompts(16, 64) == make_prompts(16, 64) and [
        len(each) for each in make_prompts(1, 64)
    ] == [64]
    lengths = [len(each) for each in make_prompts(16, 64)]
    assert (
        len(lengths) == 16 and (min(lengths), max(lengths)) == (16, 64) and len(set(lengths)) > 10
    )


def test_unrunnable_setup_is_reported_before_running(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Prevents a missing package that ends the run after minutes or is skipped silently."""
    with pytest.raises(UserError, match="--contenders lama: unknown contender"):
        resolve_entrants(["lama"])
    monkeypatch.setattr(
        generate_speed, "find_spec", lambda name: None if name == "llama_cpp" else object()
    )
    assert {generate_speed.ENTRANTS[index][0] for index in resolve_entrants(list(DECODERS))} == {
        "babyllama",
        "transformers",
    }
    assert (
        "llama-cpp is left out: it is not installed (pip install llama-cpp-python"
        in capsys.readouterr().out
    )
    with pytest.raises(UserError, match="--new: '1' is not valid; expected at least 2"):
        validate_options(GenerateSpeedOptions, {"new": "1"})


@pytest.mark.slow
@pytest.mark.parametrize(
    ("peer", "package"), [("transformers", "transformers"), ("llama-cpp", "llama_cpp")]
)
def test_the_project_and_its_peers_decode_the_same_ids(
    peer: str, package: str, tmp_path: Path
) -> None:
    """Catch a contender with another model or padding, or with the logits of another prompt."""
    pytest.importorskip(package)
    from safetensors.torch import save_file

    from model.llama import Llama

    config = LlamaConfig(
        vocab_size=load_tokenizer(SMALL_TOKENIZER).vocab_size,
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=4,
        initializer_range=0.2,
    )
    save_file(Llama(config).init_weights(1).state_dict(), tmp_path / "weights.safetensors")
    task = DecodeTask(config, tmp_path / "weights.safetensors", SMALL_TOKENIZER, "fp32", 1)
    prompts = [[1, 5, 9], [1, *range(30, 50)], [1]]
    ours, theirs = (DECODERS[name](task)(prompts, 30) for name in ("babyllama", peer))
    assert ours.ids == theirs.ids and len({tuple(each) for each in ours.ids}) == 3
