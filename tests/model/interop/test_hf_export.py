"""Exports to Hugging Face: transformers gives the same numbers, text and tokens."""

import gzip
import json
import shutil
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from common.errors import UserError
from common.files import read_json, write_json
from common.metrics_file import read_metrics
from model import export
from model.chat_template.template import Template, load_template
from model.checkpoint import locate, weights
from model.config import config_from_preset
from model.decode.batch_generate import generate_batch
from model.decode.sampling import DEFAULT_SAMPLING
from model.interop.hf_export import DTYPES, export_hf
from model.llama import Llama
from model.tokenizer import load_tokenizer

CPU = torch.device("cpu")
QUESTIONS = ["人们去哪里看比赛？", "奖品是什么？", "</s>你好<s>", "谁是第一名？\n\n第二名呢？"]


@pytest.fixture(scope="module")
def reference_shape(shared: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint of random weights, two layers of the 43M shape, with the real tokenizer."""
    tokenizer = load_tokenizer(shared / "tokenizer/llama-chinese-65k.model")
    folder = tmp_path_factory.mktemp("43m")
    config = config_from_preset("babyllama-43m", tokenizer.vocab_size)
    model = Llama(replace(config, num_hidden_layers=2)).init_weights(0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            # At initialization attention is nearly uniform, which would hide errors.
            parameter.mul_(4.0 if "layers" in name and parameter.dim() > 1 else 1.0)
    weights.save_checkpoint(model, tokenizer, folder)
    Template().save(folder)
    return folder


def theirs(folder: Path) -> tuple[Any, Any]:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(folder)
    assert type(model).__name__ == "LlamaForCausalLM"
    return model.eval(), AutoTokenizer.from_pretrained(folder)


def check(checkpoint: Path, exported: Path, texts: list[str]) -> None:
    """Compare logits, ids, prompts and greedy continuations."""
    model, tokenizer = weights.load_checkpoint(checkpoint, CPU)
    their_model, their_tokenizer = theirs(exported)
    ids = tokenizer.encode_batch(texts)
    assert their_tokenizer(texts)["input_ids"] == [[tokenizer.bos_id, *row] for row in ids]
    rows = torch.tensor([row[:48] for row in ids if len(row) >= 48][:2])
    with torch.no_grad():
        torch.testing.assert_close(their_model(rows).logits, model(rows), rtol=1e-4, atol=1e-4)
    prompts = [
        Template().encode_prompt(tokenizer, [], question, "资料一则。") for question in QUESTIONS
    ]
    answers = generate_batch(model, prompts, max_new_tokens=8)
    for question, prompt, answer in zip(QUESTIONS, prompts, answers, strict=True):
        inputs = their_tokenizer.apply_chat_template(
            [{"role": "user", "content": question}],
            documents=[{"text": "资料一则。"}],
            add_generation_prompt=True,
            return_tensors="pt",
        )
        assert inputs["input_ids"][0].tolist() == prompt
        generated = their_model.generate(**inputs, do_sample=False, max_new_tokens=8)[
            0, len(prompt) :
        ].tolist()
        assert generated == [*answer.ids, *([tokenizer.eos_id] if answer.reached_stop_id else [])]
    assert len({tuple(answer.ids) for answer in answers}) > 1


@pytest.fixture(scope="module")
def texts(root: Path) -> list[str]:
    with gzip.open(
        root / "assets/sample/pretrain/jsonl/stories.jsonl.gz", "rt", encoding="utf-8"
    ) as file:
        return [json.loads(line)["text"][:300] for line, _ in zip(file, range(200), strict=False)]


@pytest.mark.slow
def test_exported_run_generates_identically_in_transformers(
    trained_run: Path, texts: list[str], tmp_path: Path
) -> None:
    """Prevents an export with other weights, ids, prompts or stop ids."""
    export_hf(trained_run, tmp_path / "out", max_shard_size="100KB")
    assert len(list((tmp_path / "out").glob("model-0*.safetensors"))) > 2
    check(trained_run, tmp_path / "out", texts)


@pytest.mark.slow
def test_reference_config_with_real_tokenizer_generates_identically(
    reference_shape: Path, texts: list[str], tmp_path: Path
) -> None:
    """Catches what holds for a toy vocabulary and a tied head only."""
    export_hf(reference_shape, tmp_path / "out", max_shard_size="90MB")
    check(reference_shape, tmp_path / "out", texts[:50])


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_dtype_applies_to_weights_and_config(dtype: Any, trained_run: Path, tmp_path: Path) -> None:
    """Prevents weights of twice the requested size, or a config that makes transformers convert."""
    from transformers import AutoModelForCausalLM

    export_hf(trained_run, tmp_path / "out", dtype=dtype)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype="auto")
    assert {parameter.dtype for parameter in loaded.parameters()} == {DTYPES[dtype]}
    mine, _ = weights.load_checkpoint(trained_run, CPU)
    for name, parameter in loaded.named_parameters():
        assert torch.equal(parameter, mine.state_dict()[name].to(DTYPES[dtype]))


@pytest.mark.slow
def test_exported_folder_loads_as_checkpoint(trained_run: Path, tmp_path: Path) -> None:
    """Prevents an export that only transformers can load, or whose damage goes unnoticed."""
    export_hf(trained_run, tmp_path / "one")
    export_hf(trained_run, tmp_path / "many", max_shard_size="100KB")
    model, tokenizer = weights.load_checkpoint(trained_run, CPU)
    for name in ("one", "many"):
        again, same = weights.load_checkpoint(tmp_path / name, CPU)
        assert (
            again.config == model.config and again.trained_context == model.trained_context == 256
        )
        assert same.fingerprint == tokenizer.fingerprint
        assert all(
            torch.equal(value, model.state_dict()[key]) for key, value in again.state_dict().items()
        )
        assert load_template(tmp_path / name) == Template()
    assert locate.weights_sha256(tmp_path / "one") == locate.weights_sha256(
        locate.resolve_checkpoint(trained_run)
    )
    export_hf(tmp_path / "many", tmp_path / "again")
    one, again_file = (
        (tmp_path / name / "model.safetensors").read_bytes() for name in ("one", "again")
    )
    assert one == again_file
    shard = sorted((tmp_path / "many").glob("model-0*.safetensors"))[1]
    shard.write_bytes(shard.read_bytes()[:-1] + b"\x7f")
    with pytest.raises(UserError, match=f"{shard.name} is damaged"):
        weights.load_checkpoint(tmp_path / "many", CPU)


@pytest.mark.slow
def test_exported_config_files_describe_the_model(trained_run: Path, tmp_path: Path) -> None:
    """Prevents generation without a stop id, and keys that transformers drops or misreads."""
    from transformers import AutoConfig, GenerationConfig

    export_hf(trained_run, tmp_path / "out", dtype="bfloat16")
    config = AutoConfig.from_pretrained(tmp_path / "out")
    assert (config.dtype, config.trained_length) == (torch.bfloat16, 256)
    assert (config.bos_token_id, config.eos_token_id, config.tie_word_embeddings) == (1, 2, True)
    generation = GenerationConfig.from_pretrained(tmp_path / "out")
    assert (generation.bos_token_id, generation.eos_token_id, generation.pad_token_id) == (1, 2, 2)
    assert generation.do_sample and generation.max_new_tokens == 256
    drawn = (generation.temperature, generation.top_p, generation.top_k)
    assert drawn == (DEFAULT_SAMPLING.temperature, DEFAULT_SAMPLING.top_p, DEFAULT_SAMPLING.top_k)


@pytest.mark.slow
def test_model_card_has_training_and_scores(trained_run: Path, tmp_path: Path) -> None:
    """Prevents a model that nobody can judge or train again."""
    import yaml

    rouge = {"step": 12, "rouge_1": {"f": 0.4321}, "records": 300, "made": {"cores": 987654321}}
    write_json(trained_run / "results/rouge.json", rouge)
    compared = {"step": 12, "before": {"step": 534}, "settings": {"max_new_tokens": 128}}
    write_json(trained_run / "results/before-after.json", compared)
    run_info = read_json(trained_run / "run.json")
    export_hf(trained_run, tmp_path / "out")
    card = (tmp_path / "out/README.md").read_text(encoding="utf-8")
    head = yaml.safe_load(card.split("---")[1])
    assert head["language"] == ["zh"] and head["pipeline_tag"] == "text-generation"
    records = read_metrics(trained_run)
    tokens = [record["tokens"] for record in records if record["kind"] == "train"][-1]
    loss = [record["loss"] for record in records if record["kind"] == "validation"][-1]
    for row in (
        "| steps | 12 |",
        f"| tokens | {tokens:,} |",
        "| device | cpu |",
        "## Scores at step 12",
        f"| validation loss | {loss:,.4f} |",
        "| rouge rouge_1.f | 0.4321 |",
        "| rouge records | 300 |",
        f"| shard sets | {Path(run_info['shards'][0]).name} |",
    ):
        assert row in card, row
    # The machine that measured a score is not a score.
    assert "987,654,321" not in card and "987654321" not in card
    # Nor is what changed from another model.
    assert "before-after" not in card


@pytest.mark.slow
def test_model_card_scores_only_exported_weights(trained_run: Path, tmp_path: Path) -> None:
    """Prevents the scores of another step, of narrower numbers or of a baseline beside them."""
    run = tmp_path / "run"
    shutil.copytree(trained_run, run, ignore=shutil.ignore_patterns("results"))
    step_folder = locate.resolve_checkpoint(run)
    for name, values in {
        "same_step": {"step": 12, "good": 1},
        "later_step": {"step": 24, "later": 2},
        "quantized": {"step": 12, "weights": "int8", "int8_score": 3},
        "narrow": {"step": 12, "kv_cache": "bf16", "narrow_score": 3},
        "baseline": {"data_fingerprint": "x", "trigram_loss": 4.0625},
    }.items():
        write_json(run / f"results/{name}.json", values)
    with (run / "metrics.jsonl").open("a") as file:
        file.write('{"kind": "validation", "step": 24, "loss": 9.5}\n')
        file.write('{"kind": "spike", "step": 12, "jump": 7.5}\n')
    with (run / "config.yaml").open("a") as file:
        file.write("adapter: lora\nlora: {rank: 4, alpha: 8.0, dropout: 0.0, targets: [q_proj]}\n")
    # Copied without links, the best checkpoint is a folder; an export may lie inside the run.
    shutil.copytree(step_folder, step_folder.parent / "best", dirs_exist_ok=True)
    for source in (run, step_folder.parent / "best"):
        export_hf(source, run / "exports/hf")
        card = (run / "exports/hf/README.md").read_text(encoding="utf-8")
        assert "| same_step good | 1 |" in card and "| steps | 12 |" in card
        others = ("later", "int8", "narrow", "trigram", "9.5", "jump", "step 24", "muon")
        assert [word for word in others if word in card] == []
        assert "| optimizer | adamw |" in card and "| lora.rank | 4 |" in card
    export_hf(run / "exports/hf", tmp_path / "again")
    assert "## Training" not in (tmp_path / "again/README.md").read_text(encoding="utf-8")


@pytest.mark.slow
def test_export_overwrites_only_earlier_exports(trained_run: Path, tmp_path: Path) -> None:
    """Prevents an export from deleting a folder of the user."""
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "thesis.txt").write_text("all of it")
    for out in (mine, mine / "thesis.txt", trained_run):
        with pytest.raises(UserError, match=f"{out} exists and is not an earlier export"):
            export_hf(trained_run, out)
    assert (mine / "thesis.txt").read_text() == "all of it"
    export_hf(trained_run, tmp_path / "out")
    export_hf(trained_run, tmp_path / "out", max_shard_size="100KB")
    assert not (tmp_path / "out/model.safetensors").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            "--format hf --dtype q8_0",
            "--dtype q8_0: for --format hf one of float32, float16, bfloat16",
        ),
        (
            "--format gguf --dtype float32",
            "--dtype float32: for --format gguf one of f32, f16, q8_0",
        ),
        (
            "--format hf --max_shard_size big",
            "--max_shard_size big: expected a size such as 200MB or 5GB",
        ),
    ],
)
def test_user_errors_are_one_line(
    arguments: str, message: str, trained_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Prevents a traceback, or half an exported folder."""
    paths = ["--checkpoint", str(trained_run), "--out", str(tmp_path / "out")]
    monkeypatch.setattr(sys, "argv", ["export", *paths, *arguments.split()])
    with pytest.raises(UserError) as caught:
        export.main()
    assert str(caught.value) == message
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_dtype_overflow_raises(trained_run: Path, tmp_path: Path) -> None:
    """Prevents infinite weights in an export."""
    model, tokenizer = weights.load_checkpoint(trained_run, CPU)
    with torch.no_grad():
        model.model.embed_tokens.weight[0, 0] = 1e6
    (tmp_path / "large").mkdir()
    weights.save_checkpoint(model, tokenizer, tmp_path / "large")
    with pytest.raises(UserError, match=r"embed_tokens\.weight has values that are too large"):
        export_hf(tmp_path / "large", tmp_path / "out", dtype="float16")
