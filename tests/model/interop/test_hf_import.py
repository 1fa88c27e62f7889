"""Imports from Hugging Face: the same logits, ids, conversations, and what a run can do."""

import gzip
import hashlib
import json
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from chat.load_model import capability_hint, load_chat_model
from common.errors import UserError, run_main
from data.prepare.options import PrepareOptions
from data.prepare.pipeline import prepare_groups
from data.prepare.source_args import SourceGroup
from evaluate.__main__ import main as evaluate
from model.chat_template import from_jinja
from model.chat_template.template import (
    ImportedTemplate,
    Template,
    load_template,
)
from model.checkpoint import locate, weights
from model.config import LlamaConfig
from model.decode.batch_generate import generate_batch
from model.decode.detokenize import stream_text
from model.import_hf import main as import_main
from model.interop.hf_export import export_hf
from model.interop.hf_import import import_hf
from model.llama import Llama
from model.tokenizer import load_tokenizer
from model.tokenizer.base import Tokenizer
from tests.helpers import hf_checkpoints
from tests.helpers.hf_checkpoints import (
    CHAT_TEMPLATES,
    LLAMA3_TEMPLATE,
    SPECIAL_TOKENS,
    save_hf_checkpoint,
    update_json,
)
from tests.helpers.prepare import encode_split
from train import sft

CPU = torch.device("cpu")
SHAPES: dict[str, dict[str, Any]] = {
    "grouped": {"num_key_value_heads": 2},
    "tied": {"tie_word_embeddings": True},
    "linear": {"rope_parameters": {"rope_type": "linear", "factor": 4.0, "rope_theta": 10000.0}},
    "llama3": {
        "rope_parameters": {
            "rope_type": "llama3",
            "factor": 8.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "rope_theta": 500000.0,
            "original_max_position_embeddings": 64,
        }
    },
    "yarn": {
        "rope_parameters": {
            "rope_type": "yarn",
            "factor": 8.0,
            "rope_theta": 10000.0,
            "original_max_position_embeddings": 64,
        }
    },
    # Without an original length: transformers takes max_position_embeddings, as here.
    "yarn-mscale": {
        "rope_parameters": {
            "rope_type": "yarn",
            "factor": 4.0,
            "rope_theta": 10000.0,
            "mscale": 1.0,
            "mscale_all_dim": 0.5,
            "beta_fast": 16,
            "truncate": False,
        }
    },
}
AWKWARD = [
    "",
    " ",
    "  两个 空格 ",
    "\n\n\n",
    "a\r\nb\t",
    "👨‍👩‍👧 𠀀",
    "e\u0301 Don't 1234567",
    "</s><s>",
    "<|eot_id|>问<|im_start|>",
    "<|end|>",
]


@pytest.fixture(scope="module")
def texts(root: Path) -> list[str]:
    with gzip.open(
        root / "assets/sample/pretrain/jsonl/stories.jsonl.gz", "rt", encoding="utf-8"
    ) as file:
        return [json.loads(line)["text"][:200] for line, _ in zip(file, range(150), strict=False)]


@pytest.fixture(scope="module")
def byte_level(texts: list[str]) -> Any:
    return hf_checkpoints.train_byte_level_bpe(texts)


@pytest.fixture(scope="module")
def legacy(root: Path) -> Any:
    return hf_checkpoints.legacy_llama2_tokenizer(root)


@pytest.mark.slow
@pytest.mark.parametrize("name", SHAPES)
def test_imported_logits_match_transformers(name: str, byte_level: Any, tmp_path: Path) -> None:
    """Prevents a model with a wrong RoPE scaling, a lost shard or an untied head."""
    theirs = save_hf_checkpoint(
        tmp_path / "theirs",
        byte_level,
        ("<|begin|>", "<|end|>"),
        max_shard_size="100KB",
        **SHAPES[name],
    )
    assert len(list((tmp_path / "theirs").glob("*.safetensors"))) > 1
    import_hf(tmp_path / "theirs", tmp_path / "run")
    ours, _ = weights.load_checkpoint(tmp_path / "run", CPU)
    ids = torch.randint(700, (2, 200), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        torch.testing.assert_close(ours(ids), theirs(ids).logits, rtol=1e-4, atol=1e-4)
        prompt = ids[:1, :9]
        generated = theirs.generate(
            prompt,
            attention_mask=torch.ones_like(prompt),
            do_sample=False,
            max_new_tokens=20,
            pad_token_id=1,
            suppress_tokens=list(ours.unused_ids),
        )
        answer = generate_batch(ours, [prompt[0].tolist()], max_new_tokens=20)[0]
        assert generated[0, 9 : 9 + len(answer.ids)].tolist() == answer.ids
        assert generated[0, 9 + len(answer.ids) :].tolist() in (
            [[1], [3]] if answer.reached_stop_id else [[]]
        )
        export_hf(tmp_path / "run", tmp_path / "out")
        from transformers import AutoModelForCausalLM

        again = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
        torch.testing.assert_close(again(ids).logits, theirs(ids).logits, rtol=1e-4, atol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["byte_level", "legacy"])
def test_imported_tokenizer_matches_transformers_and_round_trips(
    kind: str, request: pytest.FixtureRequest, texts: list[str], tmp_path: Path
) -> None:
    """Prevents an imported model from reading other ids, before or after another export."""
    from transformers import AutoTokenizer

    names = {"byte_level": ("<|begin|>", "<|end|>"), "legacy": ("<s>\ufdd0", "</s>\ufdd0")}[kind]
    save_hf_checkpoint(tmp_path / "theirs", request.getfixturevalue(kind), names)
    import_hf(tmp_path / "theirs", tmp_path / "run")
    ours = load_tokenizer(locate.resolve_checkpoint(tmp_path / "run"))
    theirs = AutoTokenizer.from_pretrained(tmp_path / "theirs")
    all_texts = texts + AWKWARD
    expected = theirs(all_texts, add_special_tokens=False, split_special_tokens=True)["input_ids"]
    assert ours.encode_batch(all_texts) == [ours.encode(text) for text in all_texts] == expected
    assert [ours.decode(ids) for ids in expected] == all_texts
    assert not {ours.bos_id, ours.eos_id} & {index for ids in expected for index in ids}
    for text, ids in zip(AWKWARD, expected[-len(AWKWARD) :], strict=True):
        assert "".join(stream_text(ours, ids)) == text
        assert ours.characters_per_id[ids].sum() == len(text) + (
            ours.adds_prefix_space and bool(ids)
        )
    export_hf(tmp_path / "run", tmp_path / "out")
    again = AutoTokenizer.from_pretrained(tmp_path / "out")
    assert (
        again(all_texts, add_special_tokens=False, split_special_tokens=True)["input_ids"]
        == expected
    )
    assert (again.bos_token_id, again.eos_token_id) == (ours.bos_id, ours.eos_id)
    assert weights.load_checkpoint(tmp_path / "out", CPU)[1].fingerprint == ours.fingerprint


def conversations(root: Path) -> list[tuple[str, list[tuple[str, str]]]]:
    """Return conversations of the sample, with and without their references."""
    path = root / "assets/sample/sft/redgpt/RedGPT-Dataset-V1-CN.test.json"
    from data.records import Conversation
    from data.sources import SOURCES

    conversations = [
        (record.reference, [(turn.question, turn.answer) for turn in record.turns])
        for record in SOURCES["redgpt"].iter_records(path)
        if isinstance(record, Conversation)
    ]
    return [*conversations[:5], *(("", turns) for _, turns in conversations[5:10])]


@pytest.mark.slow
@pytest.mark.parametrize("name", CHAT_TEMPLATES)
def test_imported_chat_template_is_used(
    name: str, byte_level: Any, root: Path, tmp_path: Path
) -> None:
    """Prevents prompts in another format than in tuning, and a loss on the wrong ids."""
    from transformers import AutoTokenizer

    save_hf_checkpoint(
        tmp_path / "theirs", byte_level, ("<|begin|>", "<|end|>"), CHAT_TEMPLATES[name]
    )
    model, ours, note = import_hf(tmp_path / "theirs", tmp_path / "run")
    assert note == "its own chat template"
    template = load_template(locate.resolve_checkpoint(tmp_path / "run"))
    assert isinstance(template, ImportedTemplate)
    ends = {"llama3": "<|eot_id|>", "chatml": "<|im_end|>", "no-system": "<|end|>"}
    assert model.config.eos_token_id == ours.eos_id == SPECIAL_TOKENS.index(ends[name])
    theirs = AutoTokenizer.from_pretrained(tmp_path / "theirs")
    sample = conversations(root)
    for reference, turns in sample:
        system = "" if name == "no-system" else reference
        messages = [{"role": "system", "content": system}] if system else []
        for question, answer in turns:
            messages += [
                {"role": "user", "content": question},
                {"role": "assistant", "content": answer},
            ]
        expected = theirs.apply_chat_template(
            messages[:-1], add_generation_prompt=True, return_dict=False
        )
        prompt = template.encode_prompt(ours, turns[:-1], turns[-1][0], system=system)
        assert prompt == expected
        ids, spans = template.encode(ours, turns, system=system)
        whole = theirs.apply_chat_template(messages, return_dict=False)
        assert whole[: len(ids)] == ids
        assert [ours.decode(ids[start:stop]).strip() for start, stop in spans] == [
            answer for _, answer in turns
        ]
        assert all(ids[stop - 1] == ours.eos_id for _, stop in spans)


@pytest.mark.slow
def test_alpaca_template_renders_the_prompt_of_anima(
    byte_level: Any, root: Path, tmp_path: Path
) -> None:
    """Prevents a QLoRA of the recipe in configs/ with another prompt than the recipe's."""
    template_source = (root / "configs" / "alpaca.jinja").read_text()
    save_hf_checkpoint(tmp_path / "theirs", byte_level, ("<|begin|>", "<|end|>"), template_source)
    _, tokenizer, note = import_hf(tmp_path / "theirs", tmp_path / "run")
    assert note == "its own chat template"
    template = load_template(locate.resolve_checkpoint(tmp_path / "run"))
    # The entry prompt_no_input of ALPACA_PROMPT_DICT in Anima's training/qlora.py.
    expected = (
        "Below is an instruction that describes a task. Write a response that appropriately "
        "completes the request.\n\n### Instruction:\n把这句话译成英文\n\n### Response: "
    )
    prompt = template.encode_prompt(tokenizer, [], "把这句话译成英文")
    assert prompt[0] == tokenizer.bos_id and tokenizer.decode(prompt[1:]) == expected
    # It has no system message: a passage, or a system text, stands in the instruction.
    prompt = template.encode_prompt(tokenizer, [], "译成英文", "小驼在河东。", "答得简短。")
    assert tokenizer.eos_id not in prompt
    assert tokenizer.decode(prompt[1:]).startswith(expected.partition("把")[0])


@pytest.mark.slow
def test_import_keeps_stop_ids_and_eod_id(byte_level: Any, root: Path, tmp_path: Path) -> None:
    """Prevents generation past <|end_of_text|>, and documents that end like answers."""
    from transformers import AutoConfig, GenerationConfig

    save_hf_checkpoint(tmp_path / "theirs", byte_level, ("<|begin|>", "<|end|>"), LLAMA3_TEMPLATE)
    # The original model also stops at id 702 of its padded vocabulary, which the tokenizer lacks.
    update_json(tmp_path / "theirs", "generation_config.json", eos_token_id=[1, 6, 702, 128009])
    model, tokenizer, _ = import_hf(tmp_path / "theirs", tmp_path / "run")
    assert (tokenizer.vocab_size, model.config.vocab_size) == (700, 709)
    assert SPECIAL_TOKENS[4] == "<|eot_id|>" and model.config.stop_ids == (4, 1, 3, 6, 702)
    unused_ids = (700, 701, *range(703, 709))
    assert model.unused_ids == unused_ids
    assert weights.load_checkpoint(tmp_path / "run", CPU)[0].unused_ids == unused_ids
    assert (tokenizer.eos_id, tokenizer.eod_id) == (4, 1)
    prepare_groups(
        [SourceGroup("text", (str(root / "assets/sample/pretrain/text"),))],
        tmp_path / "data",
        locate.resolve_checkpoint(tmp_path / "run"),
        PrepareOptions(workers=1, limit=5),
    )
    assert {(ids[0], ids[-1]) for ids in encode_split(tmp_path / "data", "train")} == {(0, 1)}
    export_hf(tmp_path / "run", tmp_path / "out")
    assert AutoConfig.from_pretrained(tmp_path / "out").eos_token_id == [4, 1, 3, 6, 702]
    generation_config = GenerationConfig.from_pretrained(tmp_path / "out")
    assert generation_config.eos_token_id == [4, 1, 3, 6, 702]
    assert weights.load_checkpoint(tmp_path / "out", CPU)[0].config == model.config


@pytest.mark.slow
def test_ids_between_tokens_are_unused(byte_level: Any, tmp_path: Path) -> None:
    """Prevents ids without a token in answers, where padding precedes the last tokens."""
    definition = json.loads(byte_level.to_str())
    vocab = definition["model"]["vocab"]
    last = max(vocab, key=vocab.get)
    vocab[last] = 704
    backend = type(byte_level).from_str(json.dumps(definition))
    save_hf_checkpoint(tmp_path / "theirs", backend, ("<|begin|>", "<|end|>"))
    model, tokenizer, _ = import_hf(tmp_path / "theirs", tmp_path / "run")
    assert (tokenizer.vocab_size, model.config.vocab_size) == (705, 709)
    assert model.unused_ids == (*range(699, 704), *range(705, 709))
    assert tokenizer.decode([*tokenizer.encode("从前"), *model.unused_ids]) == "从前"


@pytest.mark.slow
@pytest.mark.parametrize("name", CHAT_TEMPLATES)
def test_imported_special_token_spelled_in_text_stays_text(
    name: str, byte_level: Any, tmp_path: Path
) -> None:
    """Prevents a user from opening a system turn by typing a special token."""
    save_hf_checkpoint(
        tmp_path / "theirs", byte_level, ("<|begin|>", "<|end|>"), CHAT_TEMPLATES[name]
    )
    _, ours, _ = import_hf(tmp_path / "theirs", tmp_path / "run")
    template = load_template(locate.resolve_checkpoint(tmp_path / "run"))
    plain = template.encode_prompt(ours, [("问", "答")], "问", "资料")
    typed = "".join(f"\ufdd0{special}{special}" for special in SPECIAL_TOKENS)
    hostile = template.encode_prompt(ours, [(typed, typed)], typed, typed)
    for index in range(len(SPECIAL_TOKENS)):
        assert hostile.count(index) == plain.count(index)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("source", "reason"),
    [
        ("{% for m in messages %}{{ m['content'][::-1] }}{% endfor %}", "it leaves out a message"),
        (
            "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}\n{% endfor %}",
            "no special token ends an answer",
        ),
        ("{% for m in messages %}{{ m['content'] ", "TemplateSyntaxError"),
        ("{{ messages.__class__.__base__.__subclasses__() }}", "SecurityError"),
        (
            "{% for m in messages %}{% if loop.last %}!{% endif %}{{ m['content'] }}<|end|>"
            "{% endfor %}",
            "a prompt is not a prefix",
        ),
        (
            "{% for m in messages %}{{ m['content'] | upper }}<|end|>{% endfor %}",
            "it changes messages or earlier turns",
        ),
        ("{{ 'x' * 3000000000 }}", "MemoryError"),
        ("{{ " + "(" * 3000 + "1" + ")" * 3000 + " }}", "RecursionError"),
        pytest.param(
            "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}",
            "too much time",
            marks=pytest.mark.slow,
        ),
    ],
)
def test_unsupported_chat_template_is_reported_and_skipped(
    source: str,
    reason: str,
    byte_level: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Prevents half of a chat format, and an untrusted program that runs unbounded."""
    if reason == "too much time":
        monkeypatch.setattr(from_jinja, "_MAX_CPU_SECONDS", 1)
    save_hf_checkpoint(tmp_path / "theirs", byte_level, ("<|begin|>", "<|end|>"), source)
    _, _, note = import_hf(tmp_path / "theirs", tmp_path / "run")
    assert (
        note.startswith("the project's own template: its chat template cannot be used (")
        and reason in note
    )
    assert load_template(locate.resolve_checkpoint(tmp_path / "run")) == Template()


@pytest.mark.slow
def test_imported_model_can_be_fine_tuned(
    byte_level: Any, root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Prevents preparation, training, chat and export with different templates."""
    from transformers import AutoTokenizer

    save_hf_checkpoint(tmp_path / "theirs", byte_level, ("<|begin|>", "<|end|>"), LLAMA3_TEMPLATE)
    import_hf(tmp_path / "theirs", tmp_path / "base")
    group = SourceGroup(
        "redgpt", (str(root / "assets/sample/sft/redgpt/RedGPT-Dataset-V1-CN.json.gz"),)
    )
    prepare_groups(
        [group],
        tmp_path / "data",
        locate.resolve_checkpoint(tmp_path / "base"),
        PrepareOptions(workers=1, limit=12),
    )
    options = {
        "base": tmp_path / "base",
        "data": tmp_path / "data",
        "run": tmp_path / "tuned",
        "sequence_length": 512,
        "batch_tokens": 512,
        "max_steps": 1,
        "device": "cpu",
        "evaluation.examples": 0,
    }
    monkeypatch.chdir(root)
    monkeypatch.setattr(
        sys,
        "argv",
        [
            "sft",
            *(argument for key, value in options.items() for argument in (f"--{key}", str(value))),
        ],
    )
    sft.main()
    export_hf(tmp_path / "tuned", tmp_path / "out")
    _, tokenizer = weights.load_checkpoint(tmp_path / "out", CPU)
    template = load_template(tmp_path / "out")
    base_template = load_template(locate.resolve_checkpoint(tmp_path / "base"))
    assert template == base_template != Template()
    messages = [{"role": "user", "content": "你好"}]
    theirs = AutoTokenizer.from_pretrained(tmp_path / "out")
    expected = theirs.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)
    assert template.encode_prompt(tokenizer, [], "你好") == expected


@pytest.mark.slow
@pytest.mark.parametrize(
    ("source", "file"),
    [
        ("text", "pretrain/text"),
        ("redgpt", "sft/redgpt/RedGPT-Dataset-V1-CN.json.gz"),
        ("csl", "summary/csl"),
    ],
)
def test_every_data_kind_prepares_with_imported_tokenizer(
    source: str, file: str, byte_level: Any, root: Path, tmp_path: Path
) -> None:
    """Prevents a base that can be imported but not fine-tuned."""
    save_hf_checkpoint(tmp_path / "theirs", byte_level, ("<|begin|>", "<|end|>"), LLAMA3_TEMPLATE)
    _, tokenizer, _ = import_hf(tmp_path / "theirs", tmp_path / "base")
    prepare_groups(
        [SourceGroup(source, (str(root / "assets/sample" / file),))],
        tmp_path / "data",
        locate.resolve_checkpoint(tmp_path / "base"),
        PrepareOptions(workers=1, limit=20),
    )
    texts = [tokenizer.decode(ids) for ids in encode_split(tmp_path / "data", "train")]
    assert len(texts) > 5 and all("\ufffd" not in text and len(text) > 10 for text in texts)


def retokenize(folder: Path, **values: Any) -> None:
    file = folder / "tokenizer.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **values}))


def turn_into_adapter(folder: Path) -> None:
    """Rename weights and config to those of a PEFT adapter, which has no config.json."""
    (folder / "model.safetensors").rename(folder / locate.ADAPTER_WEIGHTS_FILE)
    (folder / "config.json").rename(folder / locate.ADAPTER_CONFIG_FILE)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (
            lambda folder: update_json(folder, model_type="qwen2"),
            "model_type is 'qwen2'; only llama is supported",
        ),
        (
            lambda folder: update_json(folder, attention_bias=True),
            "attention_bias is set; biases are not supported",
        ),
        (
            lambda folder: update_json(
                folder, rope_parameters={"rope_type": "dynamic", "factor": 2.0}
            ),
            "rope_scaling 'dynamic' is not supported",
        ),
        (
            lambda folder: (folder / "model.safetensors").rename(folder / "pytorch_model.bin"),
            "pytorch_model.bin is a pickle",
        ),
        (lambda folder: (folder / "model.safetensors").unlink(), "has no weights"),
        (turn_into_adapter, "is an adapter, which is used without an import"),
        (
            lambda folder: (folder / "model.safetensors").write_bytes(b"no tensors"),
            "cannot be read",
        ),
        (lambda folder: (folder / "tokenizer.json").unlink(), "has no tokenizer.json"),
        (lambda folder: (folder / "tokenizer.json").write_text('{"model": {}}'), "tokenizer.json"),
        (lambda folder: retokenize(folder, added_tokens=[{}]), "tokenizer.json cannot be read: "),
        (lambda folder: retokenize(folder, added_tokens=None), "tokenizer.json cannot be read: "),
        (
            lambda folder: retokenize(folder, decoder=None),
            "its decoder is not supported",
        ),
        (
            lambda folder: retokenize(folder, decoder={"type": "Sequence", "decoders": None}),
            "tokenizer.json cannot be read: ",
        ),
        (
            lambda folder: (folder / "tokenizer_config.json").write_text(
                '{"eos_token": "<|end|>", "x": "\\ud800"}'
            ),
            "half a character",
        ),
        (
            lambda folder: (folder / "chat_template.jinja").write_bytes(b"{{ \xff }}"),
            "chat_template.jinja is not UTF-8 text",
        ),
        (lambda folder: update_json(folder, num_hidden_layers=3), "does not fit its config.json"),
        (lambda folder: update_json(folder, vocab_size=20), "do not belong together"),
        (
            lambda folder: update_json(folder, "generation_config.json", eos_token_id="</s>"),
            "generation_config.json: eos_token_id: '</s>' is not valid; expected an id, or a list",
        ),
    ],
)
def test_unsupported_import_gives_one_line_error(
    spoil: Any,
    message: str,
    byte_level: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Prevents a traceback, code run from a pickle, or half a run."""
    save_hf_checkpoint(tmp_path / "theirs", byte_level, ("<|begin|>", "<|end|>"))
    spoil(tmp_path / "theirs")
    monkeypatch.setattr(
        sys, "argv", ["import_hf", str(tmp_path / "theirs"), "--run", str(tmp_path / "run")]
    )
    with pytest.raises(SystemExit) as ended:
        run_main(import_main)
    error = capsys.readouterr().err.splitlines()
    assert (
        ended.value.code == 2 and len([line for line in error if line.startswith("error: ")]) == 1
    )
    assert message in error[-1]
    assert [path.name for path in tmp_path.iterdir()] == ["theirs"]


@pytest.mark.slow
def test_imported_tokenizer_is_validated_on_load(byte_level: Any, tmp_path: Path) -> None:
    """Prevents a hostile run from bypassing the checks of the import."""
    save_hf_checkpoint(tmp_path / "theirs", byte_level, ("<|begin|>", "<|end|>"))
    import_hf(tmp_path / "theirs", tmp_path / "run")
    file = locate.resolve_checkpoint(tmp_path / "run") / "tokenizer_imported.json"
    fields = json.loads(file.read_text(encoding="utf-8"))
    definition = fields["definition"]
    # Knows the characters of its special tokens only, and fails at any other.
    narrow = {
        "type": "Unigram",
        "unk_id": None,
        "byte_fallback": False,
        "vocab": [
            *([text, -99.0] for text in SPECIAL_TOKENS),
            *([char, -1.0] for char in sorted(set("".join(SPECIAL_TOKENS)))),
        ],
    }
    for changes in (
        {"bos_id": 10**6},
        {"eos_id": None},
        {"config": {"x": "\ud800"}},
        {"definition": {}},
        {"definition": {**definition, "decoder": None}},
        {"definition": {**definition, "model": narrow, "pre_tokenizer": None}},
    ):
        file.write_text(json.dumps({**fields, **changes}))
        with pytest.raises(UserError, match=r"^[^\n]*tokenizer_imported\.json[^\n]*$"):
            load_tokenizer(file.parent)


@pytest.mark.slow
def test_imported_tokenizer_of_earlier_version_loads(byte_level: Any, tmp_path: Path) -> None:
    """Prevents runs from before the template moved to template.json from becoming unusable."""
    save_hf_checkpoint(tmp_path / "theirs", byte_level, ("<|begin|>", "<|end|>"), LLAMA3_TEMPLATE)
    _, tokenizer, _ = import_hf(tmp_path / "theirs", tmp_path / "run")
    fields = {**json.loads(tokenizer.serialized), "words": {"bare": "x", "lead_ins": False}}
    serialized = json.dumps(fields, ensure_ascii=False).encode()
    (tmp_path / "tokenizer_imported.json").write_bytes(serialized)
    earlier = load_tokenizer(tmp_path)
    assert earlier.fingerprint == hashlib.sha256(serialized).hexdigest()
    assert (earlier.eos_id, earlier.eod_id) == (tokenizer.eos_id, tokenizer.eod_id)
    assert earlier.encode("你好 </s>") == tokenizer.encode("你好 </s>")


def test_hf_folder_is_not_loaded_as_native_checkpoint(byte_level: Any, tmp_path: Path) -> None:
    """Prevents a tokenizer.model of others from being normalized: the model knows other ids."""
    save_hf_checkpoint(tmp_path / "theirs", byte_level, ("<|begin|>", "<|end|>"))
    (tmp_path / "theirs/tokenizer.model").write_bytes(b"")
    with pytest.raises(UserError, match=r"import it with python -m model\.import_hf"):
        weights.load_checkpoint(tmp_path / "theirs", CPU)


@pytest.mark.slow
def test_import_does_not_overwrite_existing_run(tmp_path: Path) -> None:
    """Prevents a download from replacing days of training."""
    (tmp_path / "run/checkpoints").mkdir(parents=True)
    with pytest.raises(UserError, match="exists already"):
        import_hf(tmp_path, tmp_path / "run")
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["checkpoints"]


def test_evaluating_imported_run_without_data_gives_clear_error(
    byte_level: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Prevents a run.json called damaged, or an empty report."""
    save_hf_checkpoint(tmp_path / "theirs", byte_level, ("<|begin|>", "<|end|>"))
    import_hf(tmp_path / "theirs", tmp_path / "run")
    capsys.readouterr()
    monkeypatch.setattr(sys, "argv", ["evaluate", "--checkpoint", str(tmp_path / "run")])
    with pytest.raises(SystemExit) as ended:
        run_main(evaluate)
    (line,) = capsys.readouterr().err.splitlines()
    assert ended.value.code == 2 and "has no data of its own to measure it on" in line
    assert not (tmp_path / "run/results").exists()


@pytest.mark.slow
def test_exported_folder_imports_with_its_tokenizer(trained_run: Path, tmp_path: Path) -> None:
    """Prevents an export that comes back with other ids."""
    export_hf(trained_run, tmp_path / "out")
    import_hf(tmp_path / "out", tmp_path / "run")
    again, tokenizer = weights.load_checkpoint(tmp_path / "run", CPU)
    assert tokenizer.fingerprint == weights.load_checkpoint(trained_run, CPU)[1].fingerprint
    assert (again.trained_context, load_template(locate.resolve_checkpoint(tmp_path / "run"))) == (
        256,
        Template(),
    )


@pytest.mark.slow
@pytest.mark.parametrize(
    "template", [Template(), Template(human="问：", assistant="答："), None], ids=str
)
def test_export_saved_again_by_transformers_is_what_it_was(
    template: Template | None, trained_run: Path, tmp_path: Path
) -> None:
    """Prevents a fine-tuned model called only pretrained, or the other way, or another format."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    checkpoint = tmp_path / "checkpoint"
    shutil.copytree(locate.resolve_checkpoint(trained_run), checkpoint)
    (checkpoint / "manifest.json").unlink()
    (checkpoint / "template.json").unlink(missing_ok=True)
    if template is not None:
        template.save(checkpoint)
    export_hf(checkpoint, tmp_path / "out")
    AutoModelForCausalLM.from_pretrained(tmp_path / "out").save_pretrained(tmp_path / "saved")
    AutoTokenizer.from_pretrained(tmp_path / "out").save_pretrained(tmp_path / "saved")
    jinja = tmp_path / "saved/chat_template.jinja"
    jinja.write_bytes(jinja.read_bytes().strip().replace(b"\n", b"\r\n"))
    import_hf(tmp_path / "saved", tmp_path / "run")
    loaded = load_chat_model(tmp_path / "run", CPU, "fp32")
    if template is None:
        assert not loaded.is_chat_tuned
        return
    assert loaded.is_chat_tuned and capability_hint(loaded) is None
    _, tokenizer = weights.load_checkpoint(checkpoint, CPU)
    conversation = [("从前有什么？", "有一座山。")], "那里还有？"
    # Of other texts the reference is not known: Jinja gets it as a document, not as a message.
    for reference in ("", "山里有一座庙。") if template == Template() else ("",):
        assert loaded.template.encode_prompt(
            loaded.tokenizer, *conversation, reference
        ) == template.encode_prompt(tokenizer, *conversation, reference)


@pytest.mark.slow
def test_pretrained_run_round_trips_through_export_and_import(
    tokenizer: Tokenizer, tmp_path: Path
) -> None:
    """Prevents an export of ours from being treated as a model of others."""
    shape = LlamaConfig(
        tokenizer.vocab_size,
        hidden_size=8,
        intermediate_size=8,
        num_hidden_layers=1,
        num_attention_heads=1,
        num_key_value_heads=1,
    )
    (tmp_path / "bare").mkdir()
    weights.save_checkpoint(Llama(shape).init_weights(0), tokenizer, tmp_path / "bare")
    export_hf(tmp_path / "bare", tmp_path / "out")
    model, again, note = import_hf(tmp_path / "out", tmp_path / "run")
    assert note == "the project's own template"
    assert (model.config, again.fingerprint) == (shape, tokenizer.fingerprint)
    assert not (locate.resolve_checkpoint(tmp_path / "run") / "template.json").exists()
    export_hf(tmp_path / "run", tmp_path / "again")
    names = {path.name for path in (tmp_path / "out").iterdir()} - {"manifest.json", "README.md"}
    assert all(
        (tmp_path / "out" / name).read_bytes() == (tmp_path / "again" / name).read_bytes()
        for name in names
    )
    # As another program saves it: only its chat template shows that it is ours.
    for name in ("manifest.json", "tokenizer.model"):
        (tmp_path / "out" / name).unlink()
    assert import_hf(tmp_path / "out", tmp_path / "saved")[2] == "the project's own template"
