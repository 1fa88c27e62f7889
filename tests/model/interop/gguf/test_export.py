"""GGUF files: weights and shape, read back by `gguf` and by transformers."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from common.errors import UserError
from model.interop.gguf.export import write_gguf
from model.interop.gguf.ollama import modelfile_path
from model.llama import inverse_frequencies
from model.tokenizer.base import Tokenizer
from model.tokenizer.sentencepiece_normalize import normalize_model, parse_sentencepiece_model
from model.tokenizer.sentencepiece_tokenizer import SentencePieceTokenizer
from tests.helpers.gguf_files import (
    JINJA_CHAT_TEMPLATE,
    LINEAR_ROPE_SCALING,
    LLAMA3_ROPE_SCALING,
    YARN_ROPE_SCALING,
    export_to_file,
    random_llama,
    read_gguf_metadata,
    read_gguf_tensors,
)


@pytest.fixture(scope="module")
def tokenizer(tokenizer: Tokenizer) -> Tokenizer:
    """Return the small tokenizer without its merged pieces, because `gguf` reads pieces slowly.

    The pieces that are left are the special ones, the bytes and a thousand single characters.
    """
    model = parse_sentencepiece_model(tokenizer.serialized, "small")
    first_piece = len(model.pieces) - 1000
    assert all(len(piece.piece) == 1 for piece in model.pieces[first_piece:])
    del model.pieces[259:first_piece]
    return SentencePieceTokenizer(normalize_model(model.SerializeToString(), "small")[0])


@pytest.mark.slow
@pytest.mark.parametrize("changes", [{}, {"tie_word_embeddings": True, "num_key_value_heads": 4}])
def test_f32_gguf_round_trips_weights_with_permuted_query_rows(
    changes: dict[str, Any], tokenizer: Tokenizer, tmp_path: Path
) -> None:
    """Prevents a tensor that is lost, doubled or has its rows in another order."""
    model = random_llama(tokenizer, **changes)
    tensors = read_gguf_tensors(export_to_file(model, tokenizer, tmp_path))
    state = dict(model.named_parameters())
    assert len(tensors) == len(state)
    assert ("output.weight" in tensors) == ("tie_word_embeddings" not in changes)
    assert np.array_equal(
        tensors["token_embd.weight"].data, state["model.embed_tokens.weight"].detach()
    )
    assert np.array_equal(
        tensors["blk.2.ffn_down.weight"].data, state["model.layers.2.mlp.down_proj.weight"].detach()
    )
    assert np.array_equal(
        tensors["blk.1.attn_v.weight"].data,
        state["model.layers.1.self_attn.v_proj.weight"].detach(),
    )
    size = model.config.head_dim
    for letter in "qk":
        ours = state[f"model.layers.1.self_attn.{letter}_proj.weight"].detach().numpy()
        theirs = tensors[f"blk.1.attn_{letter}.weight"].data
        for row in range(len(ours)):  # dimension i of a head goes to 2 i, i + d / 2 to 2 i + 1
            head, inside = divmod(row, size)
            assert np.array_equal(
                ours[row], theirs[head * size + 2 * (inside % (size // 2)) + inside // (size // 2)]
            )


@pytest.mark.slow
@pytest.mark.parametrize("tied", [False, True])
def test_transformers_loads_same_model_from_gguf(
    tied: bool, tokenizer: Tokenizer, tmp_path: Path
) -> None:
    """Catches an order of rows that an independent reader of the format does not undo."""
    import transformers

    model = random_llama(tokenizer, tie_word_embeddings=tied, rms_norm_eps=3e-5, rope_theta=5000.0)
    file = export_to_file(model, tokenizer, tmp_path)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, gguf_file=file.name)
    ids = torch.randint(3, 1259, (2, 40), generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        ours = model(ids)
        assert ours.std() > 0.5
        torch.testing.assert_close(theirs(ids).logits, ours, rtol=1e-4, atol=1e-4)


@pytest.mark.slow
def test_gguf_metadata_has_shape_and_special_tokens(tokenizer: Tokenizer, tmp_path: Path) -> None:
    """Prevents llama.cpp from using its own defaults."""
    model = random_llama(
        tokenizer, max_position_embeddings=512, rope_theta=1234.0, rms_norm_eps=3e-5
    )
    model.trained_context = 128
    metadata = read_gguf_metadata(export_to_file(model, tokenizer, tmp_path))
    expected = {
        "general.architecture": "llama",
        "general.name": "测试",
        "general.file_type": 0,
        "llama.context_length": 128,
        "llama.embedding_length": 64,
        "llama.block_count": 3,
        "llama.feed_forward_length": 96,
        "llama.attention.head_count": 4,
        "llama.attention.head_count_kv": 2,
        "llama.attention.key_length": 16,
        "llama.attention.value_length": 16,
        "llama.rope.dimension_count": 16,
        "llama.rope.freq_base": 1234.0,
        "llama.attention.layer_norm_rms_epsilon": pytest.approx(3e-5),
        "llama.vocab_size": 1259,
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.eos_token_id": 2,
        "tokenizer.ggml.unknown_token_id": 0,
        "tokenizer.ggml.add_bos_token": True,
        "tokenizer.ggml.add_eos_token": False,
        "tokenizer.ggml.add_space_prefix": False,
        "tokenizer.chat_template": JINJA_CHAT_TEMPLATE,
    }
    assert {key: metadata.get(key) for key in expected} == expected
    marks = [f"{text}\ufdd0" for text in ("<unk>", "<s>", "</s>")]
    assert metadata["tokenizer.ggml.tokens"] == [
        *marks,
        *(piece.text for piece in tokenizer.pieces[3:]),
    ]
    assert metadata["tokenizer.ggml.scores"] == [piece.score for piece in tokenizer.pieces]
    assert metadata["tokenizer.ggml.token_type"] == [piece.kind for piece in tokenizer.pieces]


@pytest.mark.slow
def test_gguf_has_rope_scaling_factors(tokenizer: Tokenizer, tmp_path: Path) -> None:
    """Prevents a long-context model without its RoPE scaling."""
    linear = export_to_file(
        random_llama(tokenizer, rope_scaling=LINEAR_ROPE_SCALING), tokenizer, tmp_path
    )
    metadata = read_gguf_metadata(linear)
    assert (metadata["llama.rope.scaling.type"], metadata["llama.rope.scaling.factor"]) == (
        "linear",
        4.0,
    )
    assert "rope_freqs.weight" not in read_gguf_tensors(linear)
    model = random_llama(tokenizer, rope_scaling=LLAMA3_ROPE_SCALING)
    file = export_to_file(model, tokenizer, tmp_path)
    factors = read_gguf_tensors(file)["rope_freqs.weight"].data
    plain = 10000.0 ** (-np.arange(8) / 8)
    np.testing.assert_allclose(plain / factors, inverse_frequencies(model.config), rtol=1e-6)
    assert factors.min() == 1 and factors.max() == pytest.approx(8)
    assert "llama.rope.scaling.type" not in read_gguf_metadata(file)


def llama_cpp_yarn_table(metadata: dict[str, Any], length: int) -> np.ndarray:
    """Return the cosines and sines of llama.cpp from a file's metadata, fp64[2, T, d / 2].

    See `rope_yarn` in its ggml/src/ggml-cpu/ops.cpp.
    """
    size, base = metadata["llama.rope.dimension_count"], metadata["llama.rope.freq_base"]
    factor = metadata["llama.rope.scaling.factor"]
    original = metadata["llama.rope.scaling.original_context_length"]
    low, high = (
        size * np.log(original / (turns * 2 * np.pi)) / (2 * np.log(base)) for turns in (32, 1)
    )
    low, high = max(0, np.floor(low)), min(size - 1, np.ceil(high))
    pairs = np.arange(size // 2)
    share = 1 - np.clip((pairs - low) / max(0.001, high - low), 0, 1)
    unscaled = np.outer(np.arange(length), base ** (-2 * pairs / size))
    angles = unscaled / factor * (1 - share) + unscaled * share
    scale = metadata.get("llama.rope.scaling.attn_factor", 1.0) * (1 + 0.1 * np.log(factor))
    return scale * np.stack([np.cos(angles), np.sin(angles)])


@pytest.mark.slow
@pytest.mark.parametrize(
    "changes",
    [{}, {"factor": 3.0}, {"attention_factor": 1.3}, {"mscale": 1.0, "mscale_all_dim": 0.5}],
    ids=str,
)
def test_llama_cpp_computes_the_same_yarn_angles(
    changes: dict[str, Any], tokenizer: Tokenizer, tmp_path: Path
) -> None:
    """Prevents another original length or another attention factor in llama.cpp."""
    model = random_llama(tokenizer, rope_scaling={**YARN_ROPE_SCALING, **changes})
    metadata = read_gguf_metadata(export_to_file(model, tokenizer, tmp_path))
    assert metadata["llama.rope.scaling.type"] == "yarn"
    # Which older versions do not read: only where the default differs.
    has_factor = "llama.rope.scaling.attn_factor" in metadata
    assert has_factor == (not changes.keys().isdisjoint({"attention_factor", "mscale"}))
    expected = llama_cpp_yarn_table(metadata, 256)
    np.testing.assert_allclose(model.model.rotary.cos_sin, expected, atol=2e-5)


@pytest.mark.parametrize(
    ("key", "value"), [("beta_fast", 16.0), ("beta_slow", 2.0), ("truncate", False)]
)
def test_yarn_that_llama_cpp_computes_otherwise_is_refused(
    key: str, value: Any, tokenizer: Tokenizer, tmp_path: Path
) -> None:
    """Prevents a file that loads and has other positions."""
    model = random_llama(tokenizer, rope_scaling={**YARN_ROPE_SCALING, key: value})
    with pytest.raises(UserError, match=f"llama.cpp computes with {key} .* use --format hf"):
        export_to_file(model, tokenizer, tmp_path)
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_q8_0_error_is_half_a_step_with_f16_for_odd_widths(
    tokenizer: Tokenizer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Prevents blocks that straddle rows, and rounded norms."""
    import gguf

    model = random_llama(tokenizer, intermediate_size=100)
    tensors = read_gguf_tensors(export_to_file(model, tokenizer, tmp_path, "q8_0"))
    kinds = {name: tensor.tensor_type.name for name, tensor in tensors.items()}
    assert {kind for name, kind in kinds.items() if "norm" in name} == {"F32"}
    assert {name for name, kind in kinds.items() if kind == "F16"} == {
        f"blk.{n}.ffn_down.weight" for n in range(3)
    }
    assert (
        kinds["token_embd.weight"]
        == kinds["output.weight"]
        == kinds["blk.0.attn_q.weight"]
        == "Q8_0"
    )
    assert "3 of 30 tensors are f16: their width is not a multiple of 32" in capsys.readouterr().err
    ours = model.lm_head.weight.detach().numpy().reshape(-1, 32)
    theirs = gguf.quants.dequantize(
        tensors["output.weight"].data, gguf.GGMLQuantizationType.Q8_0
    ).reshape(-1, 32)
    step = (
        np.abs(ours).max(axis=1, keepdims=True) / 127
    )  # itself rounded to f16: 127 of them are off by 0.06 more
    assert (np.abs(ours - theirs) <= 0.57 * step).all() and not np.array_equal(ours, theirs)


@pytest.mark.slow
def test_f16_overflow_raises_and_keeps_old_file(tokenizer: Tokenizer, tmp_path: Path) -> None:
    """Prevents infinite weights, and half a file in place of a whole one."""
    model = random_llama(tokenizer)
    file = export_to_file(model, tokenizer, tmp_path, "f16")
    before = file.read_bytes()
    with torch.no_grad():
        model.model.layers[2].mlp.down_proj.weight[0, 0] = 1e5
    with pytest.raises(
        UserError,
        match=r"blk.2.ffn_down.weight holds numbers that are too large for f16: export as f32",
    ):
        export_to_file(model, tokenizer, tmp_path, "f16")
    assert file.read_bytes() == before
    assert sorted(tmp_path.iterdir()) == sorted([modelfile_path(file), file])


@pytest.mark.parametrize(
    ("existing", "message"),
    [
        ("a.gguf", "exists and is not a GGUF file"),
        ("a.Modelfile", "is not the Modelfile of a.gguf"),
        ("a.gguf/x", "is a folder"),
    ],
)
def test_export_does_not_overwrite_foreign_file(
    tokenizer: Tokenizer, tmp_path: Path, existing: str, message: str
) -> None:
    """Prevents `--out thesis.txt` from overwriting the thesis."""
    (tmp_path / existing).parent.mkdir(exist_ok=True)
    (tmp_path / existing).write_text("GG: somebody's own")
    with pytest.raises(UserError, match=message):
        write_gguf(
            random_llama(tokenizer), tokenizer, None, tmp_path / "a.gguf", dtype="f32", name="x"
        )
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == [tmp_path / existing]
    assert (tmp_path / existing).read_text() == "GG: somebody's own"


def test_tensor_that_llama_cpp_does_not_know_is_refused(
    tokenizer: Tokenizer, tmp_path: Path
) -> None:
    """Prevents a file without a part of the weights, and a traceback."""
    model = random_llama(tokenizer)
    q_proj = model.model.layers[0].self_attn.q_proj
    q_proj.bias = torch.nn.Parameter(torch.ones(q_proj.out_features))
    with pytest.raises(UserError, match=r"q_proj\.bias is not a tensor .* use --format hf"):
        export_to_file(model, tokenizer, tmp_path)
