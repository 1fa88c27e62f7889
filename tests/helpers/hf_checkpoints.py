"""Hugging Face model folders, saved by transformers, with tokenizers trained for the test."""

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch

from model.tokenizer import hf_json, load_tokenizer
from model.tokenizer.sentencepiece_tokenizer import SentencePieceTokenizer

LLAMA3_TEMPLATE = (
    "{% set loop_messages = messages %}{% for message in loop_messages %}"
    "{% set content = '<|start_header_id|>' + message['role'] + '<|end_header_id|>\n\n"
    "'+ message['content'] | trim + '<|eot_id|>' %}{% if loop.index0 == 0 %}"
    "{% set content = bos_token + content %}{% endif %}{{ content }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}"
    "{% endif %}"
)
CHATML_TEMPLATE = (
    "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}"
    "{{ '<|im_start|>system\nYou are a helpful assistant<|im_end|>\n' }}{% endif %}"
    "{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'}}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
NO_SYSTEM_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}{% if message['role'] == 'user' %}"
    "{{ '[INST] ' + message['content'] + ' [/INST]' }}{% elif message['role'] == 'assistant' %}"
    "{{ ' ' + message['content'] + ' ' + eos_token }}{% else %}"
    "{{ raise_exception('Only user and assistant roles are supported!') }}{% endif %}"
    "{% endfor %}"
)
LLAMA2_TEMPLATE = (
    "{% if messages[0]['role'] == 'system' %}{% set loop_messages = messages[1:] %}"
    "{% set system_message = messages[0]['content'] %}{% else %}"
    "{% set loop_messages = messages %}{% set system_message = false %}{% endif %}"
    "{% for message in loop_messages %}"
    "{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('Conversation roles must alternate "
    "user/assistant/user/assistant/...') }}"
    "{% endif %}{% if loop.index0 == 0 and system_message != false %}"
    "{% set content = '<<SYS>>\\n' + system_message + '\\n<</SYS>>\\n\\n' + "
    "message['content'] %}"
    "{% else %}{% set content = message['content'] %}{% endif %}"
    "{% if message['role'] == 'user' %}"
    "{{ bos_token + '[INST] ' + content.strip() + ' [/INST]' }}"
    "{% elif message['role'] == 'assistant' %}{{ ' ' + content.strip() + ' ' + eos_token }}"
    "{% endif %}{% endfor %}"
)
ZEPHYR_TEMPLATE = (
    "{% for message in messages %}{{ '<|' + message['role'] + '|>\n' }}"
    "{{ message['content'] + eos_token }}{{ '\n' }}{% endfor %}{% if add_generation_prompt %}"
    "{{ '<|assistant|>\n' }}{% endif %}"
)
CHAT_TEMPLATES = {
    "llama3": LLAMA3_TEMPLATE,
    "chatml": CHATML_TEMPLATE,
    "no-system": NO_SYSTEM_TEMPLATE,
}
SPECIAL_TOKENS = [
    "<|begin|>",
    "<|end|>",
    "<|start_header_id|>",
    "<|end_header_id|>",
    "<|eot_id|>",
    "<|im_start|>",
    "<|im_end|>",
]
LLAMA3_SPLIT_PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def train_byte_level_bpe(
    texts: Iterable[str],
    split_patterns: Sequence[str] = (LLAMA3_SPLIT_PATTERN,),
    *,
    vocab_size: int = 700,
    ignore_merges: bool = True,
) -> Any:
    """Train a byte-level BPE on texts split by regular expressions (default: Llama 3's)."""
    import tokenizers
    from tokenizers import decoders, models, pre_tokenizers, trainers

    tokenizer = tokenizers.Tokenizer(models.BPE(ignore_merges=ignore_merges))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            *(
                pre_tokenizers.Split(tokenizers.Regex(pattern), "isolated")
                for pattern in split_patterns
            ),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=SPECIAL_TOKENS,
        show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


def train_sentencepiece_bpe(
    texts: Iterable[str],
    *,
    add_prefix_space: bool = False,
    split_on_spaces: bool = False,
    vocab_size: int = 1500,
) -> Any:
    """Train a BPE with byte fallback on lines of text, in which ▁ stands for a space as in Llama 2.

    `add_prefix_space` puts one before every text; `split_on_spaces` keeps pieces within a word.
    """
    import tokenizers
    from tokenizers import decoders, models, normalizers, pre_tokenizers, trainers

    tokenizer = tokenizers.Tokenizer(
        models.BPE(byte_fallback=True, fuse_unk=True, unk_token="<unk>")
    )
    if split_on_spaces:
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="never", split=True)
    else:
        prepend = [normalizers.Prepend("▁")] if add_prefix_space else []
        tokenizer.normalizer = normalizers.Sequence([*prepend, normalizers.Replace(" ", "▁")])
    strip = [decoders.Strip(" ", 1, 0)] if add_prefix_space else []
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), *strip]
    )
    special_tokens = ["<unk>", "<s>", "</s>"]
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[*special_tokens, *(f"<0x{byte:02X}>" for byte in range(256))],
        show_progress=False,
        limit_alphabet=vocab_size // 3,
        max_token_length=6,
    )
    tokenizer.train_from_iterator((line for text in texts for line in text.split("\n")), trainer)
    # The trainer makes every special token an added one, which is matched in text. The byte pieces
    # <0x00> to <0xFF> must not be: a text that contains "<0x41>" is not the letter A.
    definition = json.loads(tokenizer.to_str())
    definition["added_tokens"] = [
        token for token in definition["added_tokens"] if token["content"] in special_tokens
    ]
    return tokenizers.Tokenizer.from_str(json.dumps(definition))


def train_llama2_tokenizer(texts: Iterable[str], **flags: Any) -> Any:
    """Train transformers' tokenizer of Llama 2 on texts, with the given `flags` of LlamaTokenizer.

    Without flags it is as version 4 of transformers wrote it into `tokenizer.json`: the normalizer
    puts a space before every text.
    """
    from transformers import LlamaTokenizer, PreTrainedTokenizerFast

    backend = train_sentencepiece_bpe(texts, add_prefix_space=True)
    model = json.loads(backend.to_str())["model"]
    if flags:
        merges = [tuple(pair) for pair in model["merges"]]
        tokenizer = LlamaTokenizer(vocab=model["vocab"], merges=merges, **flags)
    else:
        tokenizer = PreTrainedTokenizerFast(
            tokenizer_object=backend, bos_token="<s>", eos_token="</s>", unk_token="<unk>"
        )
    tokenizer.add_special_tokens({"extra_special_tokens": ["<|im_start|>", "<|im_end|>"]})
    return tokenizer


def legacy_llama2_tokenizer(root: Path) -> Any:
    """Return a BPE as transformers 4 converted Llama 2's SentencePiece model, with prefix space."""
    import tokenizers

    tokenizer = load_tokenizer(root / "assets/tokenizer")
    assert isinstance(tokenizer, SentencePieceTokenizer)
    definition = hf_json.build_tokenizer_json(tokenizer)
    definition["normalizer"] = {
        "type": "Sequence",
        "normalizers": [{"type": "Prepend", "prepend": "▁"}, definition["normalizer"]],
    }
    definition["decoder"]["decoders"].append(
        {"type": "Strip", "content": " ", "start": 1, "stop": 0}
    )
    return tokenizers.Tokenizer.from_str(json.dumps(definition))


def save_hf_checkpoint(
    folder: Path,
    backend: Any,
    bos_and_eos: tuple[str, str],
    chat_template: str | None = None,
    max_shard_size: str = "5GB",
    **config_overrides: Any,
) -> Any:
    """Write a model folder with transformers, and return the random model in it.

    `backend` is a tokenizer of the `tokenizers` library, `config_overrides` are fields of the
    model's config.
    """
    from transformers import PreTrainedTokenizerFast

    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend, bos_token=bos_and_eos[0], eos_token=bos_and_eos[1]
    )
    return save_hf_checkpoint_with_tokenizer(
        folder, tokenizer, chat_template, max_shard_size, **config_overrides
    )


def save_hf_checkpoint_with_tokenizer(
    folder: Path,
    tokenizer: Any,
    chat_template: str | None = None,
    max_shard_size: str = "5GB",
    **config_overrides: Any,
) -> Any:
    """Write a model folder as `save_hf_checkpoint` does, with a tokenizer of transformers."""
    from transformers import LlamaConfig, LlamaForCausalLM

    tokenizer.chat_template = chat_template
    tokenizer.save_pretrained(folder)
    torch.manual_seed(0)
    config = {
        "vocab_size": len(tokenizer) + 9,
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "max_position_embeddings": 512,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": [tokenizer.eos_token_id, 3],
        "initializer_range": 0.3,
    }
    model = LlamaForCausalLM(LlamaConfig(**{**config, **config_overrides}))
    model.save_pretrained(folder, max_shard_size=max_shard_size)
    return model.eval()


def update_json(folder: Path, file_name: str = "config.json", **values: Any) -> None:
    """Change values in a JSON file of a folder."""
    file = folder / file_name
    file.write_text(json.dumps({**json.loads(file.read_text()), **values}))
