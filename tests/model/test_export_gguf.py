"""A GGUF file is the model: read back by `gguf` and by transformers, and run by llama.cpp where it is installed.

llama.cpp is there with llama-cpp-python (requirements-llama-cpp.txt), which pip compiles; without it its tests skip.
"""

import gzip
import json
import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from chat.settings import DEFAULTS
from common.errors import UserError
from model.config import LlamaConfig, preset
from model.decode import decode
from model.export_gguf import export_gguf, vocabulary
from model.llama import Llama, inverse_frequencies
from model.modelfile import SAMPLING, modelfile_of
from model.template import Template
from model.tokenizer import Piece, Tokenizer
from model.tokenizer_normalise import NORMAL, UNUSED

ROOT = Path(__file__).parent.parent.parent
SMALL = ROOT / "assets" / "tokenizer"
STOCK = ROOT.parent / "shared" / "tokenizer" / "llama-chinese-65k.model"
JINJA = (
    "{{ bos_token }}{% for message in messages %}{% if message.role == 'user' %}人类：{{ message.content }}"
    "{{ '\\n\\n' }}助手：{% else %}{{ message.content }}{{ eos_token }}{{ '\\n\\n' }}{% endif %}{% endfor %}"
)
SPECIAL = [
    "", " ", "  ", "   缩进", "结尾   ", "\n", "\n\n\n", "a\r\nb", "\t\t制表", "\x00", "\u3000\u3000全角空格",
    "ＡＢＣ：１２", "：", "人类：", "👨‍👩‍👧‍👦", "𠀀𪚥", "e\u0301", "\ufeff开头", "\u200b\u2028", "\uffff", "\U0010ffff",
    "</s>", "<s>你好</s>", "<unk>", " <s>", "a</s>\n</s>b", "<0x0A>", "[<0xE4><0xBD>]", "<s", "/s>", "<</s>>",
    "<unused_300>", "基础", "深圳的博物馆", "x" * 3000, " " * 1000, "哈" * 1000,
]


def llama(tokenizer: Tokenizer, seed: int = 0, **changes: Any) -> Llama:
    """A small model whose weights are large enough that its choices are clear, with norms that are not one."""
    shape: dict[str, Any] = {
        "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 3, "num_attention_heads": 4,
        "num_key_value_heads": 2, "max_position_embeddings": 256, "initializer_range": 0.15,
    }
    model = Llama(LlamaConfig(vocab_size=tokenizer.vocabulary_size, **{**shape, **changes})).initialise(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" in name:
                parameter.uniform_(0.5, 1.5, generator=torch.Generator().manual_seed(seed))
    return model.eval()


def exported(model: Llama, tokenizer: Tokenizer, folder: Path, dtype: Any = "f32", chat: str | None = JINJA) -> Path:
    """The model's file in a folder."""
    file = folder / f"model-{dtype}.gguf"
    export_gguf(model, tokenizer, chat, file, dtype=dtype, name="测试")
    return file


def tensors(file: Path) -> dict[str, Any]:
    """The tensors of a file as `gguf` reads them."""
    import gguf

    return {tensor.name: tensor for tensor in gguf.GGUFReader(file).tensors}


def values(file: Path) -> dict[str, Any]:
    """The metadata of a file as `gguf` reads it."""
    import gguf

    return {key: field.contents() for key, field in gguf.GGUFReader(file).fields.items()}


# The file, read back


@pytest.mark.parametrize("changes", [{}, {"tie_word_embeddings": True, "num_key_value_heads": 4}])
def test_every_weight_comes_back_from_f32_and_query_rows_interleaved(
    changes: dict[str, Any], tokenizer: Tokenizer, tmp_path: Path
) -> None:
    """A tensor lost, doubled or in another order of rows is a model that loads and talks nonsense."""
    model = llama(tokenizer, **changes)
    found = tensors(exported(model, tokenizer, tmp_path))
    state = dict(model.named_parameters())
    assert len(found) == len(state)
    assert ("output.weight" in found) == ("tie_word_embeddings" not in changes)
    assert np.array_equal(found["token_embd.weight"].data, state["model.embed_tokens.weight"].detach())
    assert np.array_equal(found["blk.2.ffn_down.weight"].data, state["model.layers.2.mlp.down_proj.weight"].detach())
    assert np.array_equal(found["blk.1.attn_v.weight"].data, state["model.layers.1.self_attn.v_proj.weight"].detach())
    size = model.config.head_dim
    for letter in "qk":
        ours = state[f"model.layers.1.self_attn.{letter}_proj.weight"].detach().numpy()
        theirs = found[f"blk.1.attn_{letter}.weight"].data
        for row in range(len(ours)):  # dimension i of a head goes to 2 i, i + d / 2 to 2 i + 1
            head, inside = divmod(row, size)
            assert np.array_equal(ours[row], theirs[head * size + 2 * (inside % (size // 2)) + inside // (size // 2)])


@pytest.mark.slow
@pytest.mark.parametrize("tied", [False, True])
def test_transformers_reads_the_same_model_from_the_file(tied: bool, tokenizer: Tokenizer, tmp_path: Path) -> None:
    """Another implementation of the format, which undoes llama.cpp's order of rows itself, must agree on the logits."""
    import transformers
    model = llama(tokenizer, tie_word_embeddings=tied, rms_norm_eps=3e-5, rope_theta=5000.0)
    file = exported(model, tokenizer, tmp_path)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, gguf_file=file.name)
    ids = torch.randint(3, 8000, (2, 40), generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        ours = model(ids)
        assert ours.std() > 0.5
        torch.testing.assert_close(theirs(ids).logits, ours, rtol=1e-4, atol=1e-4)


def test_the_shape_and_the_sentence_marks_are_stated(tokenizer: Tokenizer, tmp_path: Path) -> None:
    """llama.cpp fills in its own defaults for what a file does not say."""
    model = llama(tokenizer, max_position_embeddings=512, rope_theta=1234.0, rms_norm_eps=3e-5)
    model.context = 128
    found = values(exported(model, tokenizer, tmp_path))
    expected = {
        "general.architecture": "llama", "general.name": "测试", "general.file_type": 0, "llama.context_length": 128,
        "llama.embedding_length": 64, "llama.block_count": 3, "llama.feed_forward_length": 96,
        "llama.attention.head_count": 4, "llama.attention.head_count_kv": 2, "llama.attention.key_length": 16,
        "llama.attention.value_length": 16, "llama.rope.dimension_count": 16, "llama.rope.freq_base": 1234.0,
        "llama.attention.layer_norm_rms_epsilon": pytest.approx(3e-5), "llama.vocab_size": 8192,
        "tokenizer.ggml.model": "llama", "tokenizer.ggml.bos_token_id": 1, "tokenizer.ggml.eos_token_id": 2,
        "tokenizer.ggml.unknown_token_id": 0, "tokenizer.ggml.add_bos_token": True, "tokenizer.ggml.add_eos_token": False,
        "tokenizer.ggml.add_space_prefix": False, "tokenizer.chat_template": JINJA,
    }
    assert {key: found.get(key) for key in expected} == expected
    marks = [f"{text}\ufdd0" for text in ("<unk>", "<s>", "</s>")]
    assert found["tokenizer.ggml.tokens"] == [*marks, *(piece.text for piece in tokenizer.pieces[3:])]
    assert found["tokenizer.ggml.scores"] == [piece.score for piece in tokenizer.pieces]
    assert found["tokenizer.ggml.token_type"] == [piece.kind for piece in tokenizer.pieces]


LINEAR = {"rope_type": "linear", "factor": 4.0}
LLAMA3 = {
    "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}


def test_scaled_rotary_frequencies_are_stated(tokenizer: Tokenizer, tmp_path: Path) -> None:
    """A long-context model without its scaling reads long texts in another order."""
    linear = exported(llama(tokenizer, rope_scaling=LINEAR), tokenizer, tmp_path)
    found = values(linear)
    assert (found["llama.rope.scaling.type"], found["llama.rope.scaling.factor"]) == ("linear", 4.0)
    assert "rope_freqs.weight" not in tensors(linear)
    model = llama(tokenizer, rope_scaling=LLAMA3)
    file = exported(model, tokenizer, tmp_path)
    factors = tensors(file)["rope_freqs.weight"].data
    plain = 10000.0 ** (-np.arange(8) / 8)
    np.testing.assert_allclose(plain / factors, inverse_frequencies(model.config), rtol=1e-6)
    assert factors.min() == 1 and factors.max() == pytest.approx(8)
    assert "llama.rope.scaling.type" not in values(file)


def test_q8_0_is_within_half_a_step_and_f16_where_a_width_is_no_multiple_of_32(
    tokenizer: Tokenizer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Blocks that straddle rows, or rounded norms, would cost quality that nobody could explain."""
    import gguf

    model = llama(tokenizer, intermediate_size=100)
    found = tensors(exported(model, tokenizer, tmp_path, "q8_0"))
    kinds = {name: tensor.tensor_type.name for name, tensor in found.items()}
    assert {kind for name, kind in kinds.items() if "norm" in name} == {"F32"}
    assert {name for name, kind in kinds.items() if kind == "F16"} == {f"blk.{n}.ffn_down.weight" for n in range(3)}
    assert kinds["token_embd.weight"] == kinds["output.weight"] == kinds["blk.0.attn_q.weight"] == "Q8_0"
    assert "3 of 30 tensors are f16, as their width is no multiple of 32" in capsys.readouterr().err
    ours = model.lm_head.weight.detach().numpy().reshape(-1, 32)
    theirs = gguf.quants.dequantize(found["output.weight"].data, gguf.GGMLQuantizationType.Q8_0).reshape(-1, 32)
    step = np.abs(ours).max(axis=1, keepdims=True) / 127  # itself rounded to f16: 127 of them are off by 0.06 more
    assert (np.abs(ours - theirs) <= 0.57 * step).all() and not np.array_equal(ours, theirs)


def test_weights_that_f16_cannot_hold_are_refused_and_the_old_file_stays(tokenizer: Tokenizer, tmp_path: Path) -> None:
    """An infinite weight answers nonsense; half a file in place of a whole one answers nothing."""
    model = llama(tokenizer)
    file = exported(model, tokenizer, tmp_path, "f16")
    before = file.read_bytes()
    with torch.no_grad():
        model.model.layers[2].mlp.down_proj.weight[0, 0] = 1e5
    with pytest.raises(UserError, match=r"blk.2.ffn_down.weight holds numbers that are too large for f16: export as f32"):
        exported(model, tokenizer, tmp_path, "f16")
    assert file.read_bytes() == before
    assert sorted(tmp_path.iterdir()) == sorted([modelfile_of(file), file])


def test_a_vocabulary_larger_than_the_tokenizers_is_filled_up(tokenizer: Tokenizer) -> None:
    """llama.cpp refuses a file with more rows in its embedding than tokens."""
    pieces = vocabulary(tokenizer, tokenizer.vocabulary_size + 2)
    assert pieces[3:-2] == tokenizer.pieces[3:]
    assert [(piece.text, piece.kind) for piece in pieces[-2:]] == [("<unused_8192>", UNUSED), ("<unused_8193>", UNUSED)]


def test_no_text_merges_into_an_unused_piece(shared: Path) -> None:
    """llama.cpp merges by text whatever the type: 基础 would become an id that training never saw."""
    tokenizer = Tokenizer.load(STOCK)
    pieces = vocabulary(tokenizer, tokenizer.vocabulary_size)
    changed = [index for index, (a, b) in enumerate(zip(tokenizer.pieces, pieces, strict=True)) if a != b]
    assert changed == [0, 1, 2, *(index for index, piece in enumerate(tokenizer.pieces) if piece.kind == UNUSED)]
    assert len(changed) == 878
    assert len({piece.text for piece in pieces}) == len(pieces)


def test_a_byte_piece_that_text_would_merge_into_is_refused(tokenizer: Tokenizer) -> None:
    """A literal `<0x0A>` would become a line end; llama.cpp finds byte pieces by that text, so it cannot be changed."""
    pieces = list(tokenizer.pieces)
    pieces[500] = Piece("<0x0A", -1.5, NORMAL)
    tokenizer = Tokenizer(tokenizer.serialized)
    tokenizer.pieces = pieces
    with pytest.raises(UserError, match=r"id 13, <0x0A>, is no normal piece, but llama.cpp would merge text into it"):
        vocabulary(tokenizer, len(pieces))


# Ollama's file

# No Go runs in these tests: this text was rendered by Go's text/template and gave the texts of `Template` (docs/gguf.md).
GO_TEMPLATE = (
    '{{ if .System }}{{ "资料：" }}{{ .System }}{{ "\\n\\n" }}{{ end }}'
    '{{ range $index, $message := .Messages }}{{ if eq $message.Role "user" }}'
    '{{ "人类：" }}{{ $message.Content }}{{ "\\n\\n助手：" }}{{ else if eq $message.Role "assistant" }}{{ $message.Content }}'
    '{{ if gt (len (slice $.Messages $index)) 1 }}{{ "</s>\\ufdd0\\n\\n" }}{{ end }}{{ end }}{{ end }}'
)


def test_the_modelfile_names_the_file_the_stops_and_the_sampling_of_chat(tokenizer: Tokenizer, tmp_path: Path) -> None:
    """Ollama would not stop, or sample otherwise than `python -m chat`."""
    model = llama(tokenizer)
    model.context = 128
    file = exported(model, tokenizer, tmp_path, "q8_0")
    text = modelfile_of(file).read_text(encoding="utf-8")
    assert text.splitlines()[0] == f"FROM ./{file.name}"
    assert f'TEMPLATE """{GO_TEMPLATE}"""\n' in text
    assert 'PARAMETER num_ctx 128\nPARAMETER num_predict 64\nPARAMETER temperature 0.7\nPARAMETER top_p 0.9\n' in text
    assert text.endswith('PARAMETER stop """\n\n人类："""\n')
    assert {key: getattr(DEFAULTS, key) for key in ("temperature", "top_p", "top_k")}.items() <= SAMPLING.items()


def test_a_model_without_a_template_continues_text_in_ollama(tokenizer: Tokenizer, tmp_path: Path) -> None:
    """A pretrained model knows no dialogue; asked in one it would write nonsense."""
    file = exported(llama(tokenizer), tokenizer, tmp_path, chat=None)
    text = modelfile_of(file).read_text(encoding="utf-8")
    assert 'TEMPLATE """{{ .Prompt }}"""\n' in text and "人类" not in text
    assert "tokenizer.chat_template" not in values(file)


def test_two_exports_share_a_folder_with_a_modelfile_of_the_users_own(tokenizer: Tokenizer, tmp_path: Path) -> None:
    """The second export makes Ollama load it under the first one's name, and what the user wrote is gone."""
    (tmp_path / "Modelfile").write_text("FROM qwen")
    for name in ("a.gguf", "b.gguf", "a.gguf"):
        export_gguf(llama(tokenizer), tokenizer, None, tmp_path / name, dtype="f32", name="x")
    assert (tmp_path / "Modelfile").read_text() == "FROM qwen"
    assert [(tmp_path / f"{name}.Modelfile").read_text().split("\n")[0] for name in "ab"] == ["FROM ./a.gguf", "FROM ./b.gguf"]


@pytest.mark.parametrize(("there", "words"), [
    ("a.gguf", "exists and is no GGUF file"), ("a.Modelfile", "is no Modelfile of a.gguf"), ("a.gguf/x", "is a folder"),
])
def test_a_file_that_is_no_export_is_not_replaced(tokenizer: Tokenizer, tmp_path: Path, there: str, words: str) -> None:
    """`--out thesis.txt` and the thesis is gone."""
    (tmp_path / there).parent.mkdir(exist_ok=True)
    (tmp_path / there).write_text("GG: somebody's own")
    with pytest.raises(UserError, match=words):
        export_gguf(llama(tokenizer), tokenizer, None, tmp_path / "a.gguf", dtype="f32", name="x")
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == [tmp_path / there]
    assert (tmp_path / there).read_text() == "GG: somebody's own"


# llama.cpp


def run(file: Path, **options: Any) -> Any:
    """A file in llama.cpp."""
    llama_cpp = pytest.importorskip("llama_cpp", reason="llama-cpp-python is not installed (requirements-llama-cpp.txt)")
    exact = {"type_k": llama_cpp.GGML_TYPE_F32, "type_v": llama_cpp.GGML_TYPE_F32}  # its cache is f16 by default
    return llama_cpp.Llama(str(file), n_ctx=256, n_threads=1, n_threads_batch=1, verbose=False, **exact, **options)


@pytest.fixture(scope="module", params=["small", "stock"])
def either(request: pytest.FixtureRequest) -> Tokenizer:
    if request.param == "small":
        return Tokenizer.load(SMALL)
    request.getfixturevalue("shared")
    return Tokenizer.load(STOCK)


@pytest.fixture(scope="module")
def real_texts(shared: Path) -> list[str]:
    """Thousands of real texts: beginnings of articles, single lines, raw files with their tabs and brackets."""
    texts: list[str] = []
    for path in sorted((shared / "data" / "pretrain").glob("*.jsonl.gz")):
        with gzip.open(path, "rt", encoding="utf-8") as file:
            rows = [json.loads(line) for line, _ in zip(file, range(70), strict=False)]
        for row in rows:
            text = row.get("text") or row.get("答") or "\n".join(part["内容"] for part in row.get("段落", []))
            texts += [text[:700], text[:150].strip().replace("\n", "  "), *text[700:].split("\n")[:3]]
    for name in ("csl_ts/dev.tsv", "lcsts/PART_III.txt"):
        texts += (shared / "data" / "summary" / name).read_text(encoding="utf-8").split("\n")[:400]
    return [text[:700] for text in texts]


@pytest.mark.slow
def test_llama_cpp_gives_the_same_ids(either: Tokenizer, real_texts: list[str], tmp_path: Path) -> None:
    """An exported model would read other ids than it was trained on."""
    shape = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1, "num_key_value_heads": 4}
    theirs = run(exported(llama(either, **shape), either, tmp_path, "q8_0"), vocab_only=True)
    dice = random.Random(0)
    texts = [*real_texts, *SPECIAL]
    for _ in range(2000):
        texts.append("".join(dice.choice(either.pieces[259:]).text for _ in range(dice.randint(1, 6))))
    assert len(texts) > 6000
    for text, ids in zip(texts, either.encode_batch(texts), strict=True):
        assert theirs.tokenize(text.encode(), add_bos=False, special=False) == ids, text
        assert not {either.unk_id, either.bos_id, either.eos_id} & set(ids)
    for text in SPECIAL:  # the programs around llama.cpp parse special tokens in whatever the user typed
        assert theirs.tokenize(text.encode(), add_bos=False, special=True) == either.encode(text)
    assert theirs.tokenize("问 答".encode()) == [either.bos_id, *either.encode("问 答")]
    for text in real_texts[::20]:
        assert theirs.detokenize(either.encode(text)) == text.encode()


PROMPTS = ["从前，", "问：今天 天气怎么样？\n\n答：", "The quick brown fox", "1 + 1 = "]


def greedy(theirs: Any, prompt: list[int], count: int) -> list[int]:
    """llama.cpp's likeliest ids behind a prompt, `<eos>` left out."""
    theirs.reset()
    ids: list[int] = []
    for index in theirs.generate(prompt, temp=0.0, repeat_penalty=1.0):
        if index == theirs.token_eos() or len(ids) == count:
            break
        ids.append(index)
    return ids


SHAPES: list[dict[str, Any]] = [
    {}, {"tie_word_embeddings": True, "num_key_value_heads": 4}, {"rope_scaling": LINEAR}, {"rope_scaling": LLAMA3},
    {"head_dim": 24},
]


@pytest.mark.parametrize("changes", SHAPES, ids=["gqa", "tied", "linear", "llama3", "wide heads"])
def test_llama_cpp_continues_alike_in_f32(changes: dict[str, Any], tokenizer: Tokenizer, tmp_path: Path) -> None:
    """The point of the file: the same model elsewhere."""
    model = llama(tokenizer, **changes)
    theirs = run(exported(model, tokenizer, tmp_path), logits_all=True)
    said: set[int] = set()
    for text in PROMPTS:
        prompt = [tokenizer.bos_id, *tokenizer.encode(text)]
        [ours] = decode(model, [prompt], max_new_tokens=64)
        assert greedy(theirs, prompt, 64) == ours.ids
        said.update(ours.ids)
    assert len(said) > 5  # one id over and over proves nothing
    check_logits(model, theirs, 1e-5)


def check_logits(model: Llama, theirs: Any, tolerance: float) -> None:
    """Logits of llama.cpp and of the model on 200 ids, apart by `tolerance` of their spread at most (root mean square)."""
    ids = torch.randint(3, 8000, (200,), generator=torch.Generator().manual_seed(1)).tolist()
    theirs.reset()
    theirs.eval(ids)
    with torch.inference_mode():
        ours = model(torch.tensor([ids]))[0].numpy()
    difference = theirs.scores[: len(ids)] - ours
    assert np.sqrt(np.square(difference).mean()) <= tolerance * ours.std()


@pytest.mark.parametrize(("dtype", "tolerance"), [("f16", 0.005), ("q8_0", 0.08)])
def test_llama_cpp_has_nearly_the_same_logits_in(
    dtype: str, tolerance: float, tokenizer: Tokenizer, tmp_path: Path
) -> None:
    """A wrong block layout gives a file that loads and answers nonsense."""
    model = llama(tokenizer)
    check_logits(model, run(exported(model, tokenizer, tmp_path, dtype), logits_all=True), tolerance)


def test_llama_cpp_renders_a_conversation_with_one_bos(tokenizer: Tokenizer, tmp_path: Path) -> None:
    """Two <bos>, or none, is a prompt that training never showed."""
    theirs = run(exported(llama(tokenizer), tokenizer, tmp_path))
    from llama_cpp.llama_chat_format import Jinja2ChatFormatter

    # As llama-cpp-python finds them for the template of a file.
    marks = [theirs._model.token_get_text(index) for index in (tokenizer.bos_id, tokenizer.eos_id)]
    formatter = Jinja2ChatFormatter(theirs.metadata["tokenizer.chat_template"], marks[1], marks[0])
    messages: Any = [{"role": "user", "content": "你好</s>"}, {"role": "assistant", "content": " 好！"},
                     {"role": "user", "content": "1 加 1？"}]
    made = formatter(messages=messages)
    ids = theirs.tokenize(made.prompt.encode(), add_bos=not made.added_special, special=True)
    assert ids == Template().prompt(tokenizer, [("你好</s>", " 好！")], "1 加 1？")


@pytest.mark.slow
def test_llama_cpp_continues_alike_at_the_reference_shape(shared: Path, tmp_path: Path) -> None:
    """What holds for small shapes may not for 65,000 pieces and 12 layers."""
    tokenizer = Tokenizer.load(STOCK)
    model = Llama(replace(preset("babyllama-43m", tokenizer.vocabulary_size), initializer_range=0.06)).initialise(0).eval()
    theirs = run(exported(model, tokenizer, tmp_path))
    for text in PROMPTS:
        prompt = [tokenizer.bos_id, *tokenizer.encode(text)]
        [ours] = decode(model, [prompt], max_new_tokens=64)
        assert greedy(theirs, prompt, 64) == ours.ids
