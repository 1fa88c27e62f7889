"""Exported files in llama.cpp: the same ids and continuations, nearly the same logits.

Skipped where llama-cpp-python is not installed (requirements-llama-cpp.txt).
"""

import gzip
import importlib.util
import json
import random
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from model.chat_template.template import Template, load_template
from model.checkpoint import locate
from model.config import config_from_preset
from model.decode.batch_generate import generate_batch
from model.export import main as export
from model.interop.gguf.imported_vocab import PRE_TOKENIZERS
from model.interop.hf_import import import_hf
from model.llama import Llama
from model.tokenizer.base import Tokenizer
from model.tokenizer.imported import build_imported_tokenizer
from tests.helpers import hf_checkpoints
from tests.helpers.gguf_files import (
    LINEAR_ROPE_SCALING,
    LLAMA3_ROPE_SCALING,
    PROMPTS,
    YARN_ROPE_SCALING,
    export_to_file,
    llama_cpp_greedy,
    load_in_llama_cpp,
    random_llama,
)

# Before the fixtures and the exports, which take half a minute.
pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("llama_cpp") is None,
    reason="llama-cpp-python is not installed (requirements-llama-cpp.txt)",
)

SPECIAL = [
    "",
    " ",
    "  ",
    "   缩进",
    "结尾   ",
    "\n",
    "\n\n\n",
    "a\r\nb",
    "\t\t制表",
    "\x00",
    "\u3000\u3000全角空格",
    "ＡＢＣ：１２",
    "：",
    "人类：",
    "👨‍👩‍👧‍👦",
    "𠀀𪚥",
    "e\u0301",
    "\ufeff开头",
    "\u200b\u2028",
    "\uffff",
    "\U0010ffff",
    "</s>",
    "<s>你好</s>",
    "<unk>",
    " <s>",
    "a</s>\n</s>b",
    "<0x0A>",
    "[<0xE4><0xBD>]",
    "<s",
    "/s>",
    "<</s>>",
    "<unused_300>",
    "基础",
    "深圳的博物馆",
    "x" * 3000,
    " " * 1000,
    "哈" * 1000,
]


@pytest.mark.slow
def test_llama_cpp_tokenizes_identically(
    either: Tokenizer, real_texts: list[str], tmp_path: Path
) -> None:
    """Prevents an exported model from reading other ids than it was trained on."""
    shape = {
        "hidden_size": 32,
        "intermediate_size": 32,
        "num_hidden_layers": 1,
        "num_key_value_heads": 4,
    }
    theirs = load_in_llama_cpp(
        export_to_file(random_llama(either, **shape), either, tmp_path, "q8_0"), vocab_only=True
    )
    dice = random.Random(0)
    texts = [*real_texts, *SPECIAL]
    for _ in range(800):
        texts.append(
            "".join(dice.choice(either.pieces[259:]).text for _ in range(dice.randint(1, 6)))
        )
    assert len(texts) > 1800
    for text, ids in zip(texts, either.encode_batch(texts), strict=True):
        assert theirs.tokenize(text.encode(), add_bos=False, special=False) == ids, text
        assert not {either.unk_id, either.bos_id, either.eos_id} & set(ids)
    # llama.cpp's programs parse special tokens in user text, too.
    for text in SPECIAL:
        assert theirs.tokenize(text.encode(), add_bos=False, special=True) == either.encode(text)
    assert theirs.tokenize("问 答".encode()) == [either.bos_id, *either.encode("问 答")]
    for text in real_texts[::20]:
        assert theirs.detokenize(either.encode(text)) == text.encode()


SHAPES: list[dict[str, Any]] = [
    {},
    {"tie_word_embeddings": True, "num_key_value_heads": 4},
    {"rope_scaling": LINEAR_ROPE_SCALING},
    {"rope_scaling": LLAMA3_ROPE_SCALING},
    {"rope_scaling": YARN_ROPE_SCALING},
    {"rope_scaling": {**YARN_ROPE_SCALING, "attention_factor": 1.4}},
    {"head_dim": 24},
]


@pytest.mark.slow
@pytest.mark.parametrize("changes", SHAPES, ids=str)
def test_llama_cpp_greedy_matches_in_f32(
    changes: dict[str, Any], tokenizer: Tokenizer, tmp_path: Path
) -> None:
    """Prevents an export that is another model in llama.cpp."""
    model = random_llama(tokenizer, **changes)
    theirs = load_in_llama_cpp(export_to_file(model, tokenizer, tmp_path), logits_all=True)
    generated: set[int] = set()
    for text in PROMPTS:
        prompt = [tokenizer.bos_id, *tokenizer.encode(text)]
        [ours] = generate_batch(model, [prompt], max_new_tokens=64)
        assert llama_cpp_greedy(theirs, prompt, 64) == ours.ids
        generated.update(ours.ids)
    assert len(generated) > 5  # one repeated id proves nothing
    check_logits(model, theirs, 1e-5)


def check_logits(model: Llama, theirs: Any, tolerance: float) -> None:
    """Compare logits on 200 ids: the RMS difference is at most `tolerance` of their spread."""
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(3, model.config.vocab_size, (200,), generator=generator).tolist()
    theirs.reset()
    theirs.eval(ids)
    with torch.inference_mode():
        ours = model(torch.tensor([ids]))[0].numpy()
    difference = theirs.scores[: len(ids)] - ours
    assert np.sqrt(np.square(difference).mean()) <= tolerance * ours.std()


@pytest.mark.slow
@pytest.mark.parametrize(("dtype", "tolerance"), [("f16", 0.005), ("q8_0", 0.08)])
def test_llama_cpp_logits_are_close(
    dtype: str, tolerance: float, tokenizer: Tokenizer, tmp_path: Path
) -> None:
    """Prevents a wrong block layout: the file loads and answers nonsense."""
    model = random_llama(tokenizer)
    check_logits(
        model,
        load_in_llama_cpp(export_to_file(model, tokenizer, tmp_path, dtype), logits_all=True),
        tolerance,
    )


@pytest.mark.slow
def test_llama_cpp_renders_a_conversation_with_one_bos(
    tokenizer: Tokenizer, tmp_path: Path
) -> None:
    """Prevents two <bos>, or none, which training never showed."""
    theirs = load_in_llama_cpp(export_to_file(random_llama(tokenizer), tokenizer, tmp_path))
    from llama_cpp.llama_chat_format import Jinja2ChatFormatter

    # As llama-cpp-python looks them up for the template of a file.
    marks = [theirs._model.token_get_text(index) for index in (tokenizer.bos_id, tokenizer.eos_id)]
    formatter = Jinja2ChatFormatter(theirs.metadata["tokenizer.chat_template"], marks[1], marks[0])
    messages: Any = [
        {"role": "user", "content": "你好</s>"},
        {"role": "assistant", "content": " 好！"},
        {"role": "user", "content": "1 加 1？"},
    ]
    rendered = formatter(messages=messages)
    ids = theirs.tokenize(
        rendered.prompt.encode(), add_bos=not rendered.added_special, special=True
    )
    assert ids == Template().encode_prompt(tokenizer, [("你好</s>", " 好！")], "1 加 1？")


# Imported models


KINDS: dict[str, Callable[[list[str]], Any]] = {
    **{
        name: lambda texts, cuts=cuts: hf_checkpoints.train_byte_level_bpe(
            texts, cuts, vocab_size=2500, ignore_merges=False
        )
        for cuts, name in PRE_TOKENIZERS.items()
    },
    "whole words": lambda texts: hf_checkpoints.train_byte_level_bpe(texts, vocab_size=2500),
    "sentencepiece": lambda texts: hf_checkpoints.train_sentencepiece_bpe(texts, vocab_size=2500),
    "a space first": lambda texts: hf_checkpoints.train_sentencepiece_bpe(
        texts, add_prefix_space=True, vocab_size=2500
    ),
    "cut at spaces": lambda texts: hf_checkpoints.train_sentencepiece_bpe(
        texts, split_on_spaces=True, vocab_size=2500
    ),
}
# White space, digits, marks and letters of many kinds, which pre-tokenizers split differently.
MIXED = "aZ1٣½ \t\n\r\u3000\u200b哈中，。！'’sStTlLvV\u0301\u0903_-$€😀①\x85\xa0ſßΣк"


@pytest.mark.slow
@pytest.mark.parametrize("name", KINDS)
def test_llama_cpp_tokenizes_like_imported_tokenizer(
    name: str, real_texts: list[str], tmp_path: Path
) -> None:
    """Prevents other splits or merges in llama.cpp than in the original tokenizer."""
    definition = json.loads(KINDS[name](real_texts[::2]).to_str())
    tokenizer = build_imported_tokenizer(definition, {}, 1, 2, 0, Path("tokenizer.json"))
    shape = {
        "hidden_size": 32,
        "intermediate_size": 32,
        "num_hidden_layers": 1,
        "num_key_value_heads": 4,
    }
    theirs = load_in_llama_cpp(
        export_to_file(
            random_llama(tokenizer, **shape), tokenizer, tmp_path, "q8_0", chat_template=None
        ),
        vocab_only=True,
    )
    dice = random.Random(0)
    mixed = ["".join(dice.choice(MIXED) for _ in range(dice.randint(1, 14))) for _ in range(800)]
    texts = [*real_texts, *SPECIAL, *mixed]
    assert len(texts) > 1800
    for text, ids in zip(texts, tokenizer.encode_batch(texts), strict=True):
        assert theirs.tokenize(text.encode(), add_bos=False, special=False) == ids, text


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["byte-level", "sentencepiece"])
def test_llama_cpp_greedy_matches_on_imported_conversation(
    kind: str, root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Prevents other prompt ids, two <bos>, and an answer that runs past its end."""
    with gzip.open(
        root / "assets/sample/pretrain/jsonl/stories.jsonl.gz", "rt", encoding="utf-8"
    ) as file:
        texts = [json.loads(line)["text"][:200] for line, _ in zip(file, range(200), strict=False)]
    if kind == "byte-level":
        backend, names, chat = (
            hf_checkpoints.train_byte_level_bpe(texts),
            ("<|begin|>", "<|end|>"),
            hf_checkpoints.LLAMA3_TEMPLATE,
        )
    else:
        backend, names, chat = (
            hf_checkpoints.train_sentencepiece_bpe(texts, add_prefix_space=True),
            ("<s>", "</s>"),
            hf_checkpoints.NO_SYSTEM_TEMPLATE,
        )
    hf_checkpoints.save_hf_checkpoint(
        tmp_path / "theirs", backend, names, chat, num_key_value_heads=2
    )
    model, tokenizer, note = import_hf(tmp_path / "theirs", tmp_path / "run")
    assert note == "its own chat template"
    out = tmp_path / "out.gguf"
    monkeypatch.setattr(
        "sys.argv",
        ["export", "--checkpoint", str(tmp_path / "run"), "--format", "gguf", "--out", str(out)],
    )
    export()
    theirs = load_in_llama_cpp(out, logits_all=True)
    from llama_cpp.llama_chat_format import Jinja2ChatFormatter

    marks = [
        theirs._model.token_get_text(index) for index in (theirs.token_eos(), theirs.token_bos())
    ]
    formatter = Jinja2ChatFormatter(theirs.metadata["tokenizer.chat_template"], *marks)
    # With a prefix space before every text the two differ in answers of earlier turns.
    turns = [("你好", "你好！")] if kind == "byte-level" else []
    messages: Any = [
        {"role": role, "content": text}
        for turn in turns
        for role, text in zip(("user", "assistant"), turn, strict=True)
    ]
    rendered = formatter(messages=[*messages, {"role": "user", "content": "1 加 1？"}])
    ids = theirs.tokenize(
        rendered.prompt.encode(), add_bos=not rendered.added_special, special=True
    )
    template = load_template(locate.resolve_checkpoint(tmp_path / "run"))
    assert ids == template.encode_prompt(tokenizer, turns, "1 加 1？")
    # The decoder here never answers with an id that stands for no token; llama.cpp may.
    model.unused_ids = ()
    for text in ("从前，", "1 + 1 = ", "镇上"):
        start = [tokenizer.bos_id, *tokenizer.encode(text)]
        [ours] = generate_batch(model, [start], max_new_tokens=40)
        assert (
            llama_cpp_greedy(theirs, start, 40)[: len(ours.ids)] == ours.ids
            and len(set(ours.ids)) > 5
        )
    check_logits(model, theirs, 1e-5)
    assert all(llama_cpp_stops(theirs, index) for index in model.config.stop_ids)


def llama_cpp_stops(theirs: Any, index: int) -> bool:
    """Return whether llama.cpp stops at an id."""
    import llama_cpp

    return bool(llama_cpp.llama_vocab_is_eog(theirs._model.vocab, index))


@pytest.mark.slow
def test_llama_cpp_greedy_matches_at_reference_config(stock: Tokenizer, tmp_path: Path) -> None:
    """Catches what holds for small models but not for 65,000 pieces and 12 layers."""
    tokenizer = stock
    model = (
        Llama(
            replace(
                config_from_preset("babyllama-43m", tokenizer.vocab_size), initializer_range=0.06
            )
        )
        .init_weights(0)
        .eval()
    )
    theirs = load_in_llama_cpp(export_to_file(model, tokenizer, tmp_path))
    for text in PROMPTS:
        prompt = [tokenizer.bos_id, *tokenizer.encode(text)]
        [ours] = generate_batch(model, [prompt], max_new_tokens=64)
        assert llama_cpp_greedy(theirs, prompt, 64) == ours.ids
