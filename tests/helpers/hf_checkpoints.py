"""Folders of models as others make them: tokenizers trained here with the tokenizers library, saved by transformers."""

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch

from model.tokenizer import hf_json
from model.tokenizer.base import Tokenizer

LLAMA3 = """{% set loop_messages = messages %}{% for message in loop_messages %}{% set content = '<|start_header_id|>' + \
message['role'] + '<|end_header_id|>\n\n'+ message['content'] | trim + '<|eot_id|>' %}{% if loop.index0 == 0 %}{% set content \
= bos_token + content %}{% endif %}{{ content }}{% endfor %}{% if add_generation_prompt %}\
{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}"""
CHATML = """{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}{{ '<|im_start|>system
You are a helpful assistant<|im_end|>
' }}{% endif %}{{'<|im_start|>' + message['role'] + '
' + message['content'] + '<|im_end|>' + '
'}}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant
' }}{% endif %}"""
NO_SYSTEM = """{{ bos_token }}{% for message in messages %}{% if message['role'] == 'user' %}{{ '[INST] ' + message['content'] \
+ ' [/INST]' }}{% elif message['role'] == 'assistant' %}{{ ' ' + message['content'] + ' ' + eos_token }}{% else %}\
{{ raise_exception('Only user and assistant roles are supported!') }}{% endif %}{% endfor %}"""
LLAMA2 = """{% if messages[0]['role'] == 'system' %}{% set loop_messages = messages[1:] %}{% set system_message = \
messages[0]['content'] %}{% else %}{% set loop_messages = messages %}{% set system_message = false %}{% endif %}\
{% for message in loop_messages %}{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}\
{{ raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}{% endif %}\
{% if loop.index0 == 0 and system_message != false %}{% set content = '<<SYS>>\\n' + system_message + '\\n<</SYS>>\\n\\n' + \
message['content'] %}{% else %}{% set content = message['content'] %}{% endif %}{% if message['role'] == 'user' %}\
{{ bos_token + '[INST] ' + content.strip() + ' [/INST]' }}{% elif message['role'] == 'assistant' %}\
{{ ' ' + content.strip() + ' ' + eos_token }}{% endif %}{% endfor %}"""
ZEPHYR = """{% for message in messages %}{{ '<|' + message['role'] + '|>\n' }}{{ message['content'] + eos_token }}{{ '\n' }}\
{% endfor %}{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% endif %}"""
CHAT_TEMPLATES = {"llama3": LLAMA3, "chatml": CHATML, "no-system": NO_SYSTEM}
SPECIALS = ["<|begin|>", "<|end|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>", "<|im_start|>", "<|im_end|>"]
SPLIT = (r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+")


def byte_level(texts: Iterable[str], cuts: Sequence[str] = (SPLIT,), *, size: int = 700, ignore_merges: bool = True) -> Any:
    """A byte-level BPE trained on texts, which are cut by regular expressions; by default as Llama 3 does it."""
    import tokenizers
    from tokenizers import decoders, models, pre_tokenizers, trainers

    made = tokenizers.Tokenizer(models.BPE(ignore_merges=ignore_merges))
    made.pre_tokenizer = pre_tokenizers.Sequence([
        *(pre_tokenizers.Split(tokenizers.Regex(cut), "isolated") for cut in cuts),
        pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])
    made.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(vocab_size=size, special_tokens=SPECIALS, show_progress=False,
                                  initial_alphabet=pre_tokenizers.ByteLevel.alphabet())
    made.train_from_iterator(texts, trainer)
    return made


def sentencepiece(texts: Iterable[str], *, space_first: bool = False, cut: bool = False, size: int = 1500) -> Any:
    """A BPE with byte fallback trained on lines of texts, which writes spaces as Llama 2 does; `cut` at them beforehand."""
    import tokenizers
    from tokenizers import decoders, models, normalizers, pre_tokenizers, trainers

    made = tokenizers.Tokenizer(models.BPE(byte_fallback=True, fuse_unk=True, unk_token="<unk>"))
    if cut:
        made.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="never", split=True)
    else:
        first = [normalizers.Prepend("▁")] if space_first else []
        made.normalizer = normalizers.Sequence([*first, normalizers.Replace(" ", "▁")])
    ends = [decoders.Strip(" ", 1, 0)] if space_first else []
    made.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), *ends])
    specials = ["<unk>", "<s>", "</s>"]
    trainer = trainers.BpeTrainer(vocab_size=size, special_tokens=[*specials, *(f"<0x{byte:02X}>" for byte in range(256))],
                                  show_progress=False, limit_alphabet=size // 3, max_token_length=6)
    made.train_from_iterator((line for text in texts for line in text.split("\n")), trainer)
    # Byte pieces are no tokens that are looked for in text.
    facts = json.loads(made.to_str())
    facts["added_tokens"] = [each for each in facts["added_tokens"] if each["content"] in specials]
    return tokenizers.Tokenizer.from_str(json.dumps(facts))


def llama2(texts: Iterable[str], **flags: Any) -> Any:
    """transformers' tokenizer of Llama 2, trained on texts; `flags` are those of its own, without any it is as version 4
    wrote it into `tokenizer.json`: the normalizer puts a space before every text."""
    from transformers import LlamaTokenizer, PreTrainedTokenizerFast

    backend = sentencepiece(texts, space_first=True)
    model = json.loads(backend.to_str())["model"]
    made = LlamaTokenizer(vocab=model["vocab"], merges=[tuple(pair) for pair in model["merges"]], **flags) if flags else (
        PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<s>", eos_token="</s>", unk_token="<unk>"))
    made.add_special_tokens({"extra_special_tokens": ["<|im_start|>", "<|im_end|>"]})
    return made


def legacy(root: Path) -> Any:
    """A BPE as transformers makes it of Llama 2's SentencePiece model: a space before every text, byte fallback."""
    import tokenizers

    facts = hf_json.definition(Tokenizer.load(root / "assets/tokenizer"))
    facts["normalizer"] = {"type": "Sequence", "normalizers": [{"type": "Prepend", "prepend": "▁"}, facts["normalizer"]]}
    facts["decoder"]["decoders"].append({"type": "Strip", "content": " ", "start": 1, "stop": 0})
    return tokenizers.Tokenizer.from_str(json.dumps(facts))


def save(folder: Path, backend: Any, specials: tuple[str, str], chat_template: str | None = None, shards: str = "5GB",
         **shape: Any) -> Any:
    """A folder as transformers writes it; returns the random model in it."""
    from transformers import PreTrainedTokenizerFast

    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, bos_token=specials[0], eos_token=specials[1])
    return save_with(folder, tokenizer, chat_template, shards, **shape)


def save_with(folder: Path, tokenizer: Any, chat_template: str | None = None, shards: str = "5GB", **shape: Any) -> Any:
    """`save` with a tokenizer of transformers."""
    from transformers import LlamaConfig, LlamaForCausalLM

    tokenizer.chat_template = chat_template
    tokenizer.save_pretrained(folder)
    torch.manual_seed(0)
    sizes = {"vocab_size": len(tokenizer) + 9, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2,
             "num_attention_heads": 4, "max_position_embeddings": 512, "bos_token_id": tokenizer.bos_token_id,
             "eos_token_id": [tokenizer.eos_token_id, 3], "initializer_range": 0.3}
    model = LlamaForCausalLM(LlamaConfig(**{**sizes, **shape}))
    model.save_pretrained(folder, max_shard_size=shards)
    return model.eval()


def change(folder: Path, name: str = "config.json", **values: Any) -> None:
    """Say something else in a JSON file of a folder."""
    file = folder / name
    file.write_text(json.dumps({**json.loads(file.read_text()), **values}))
