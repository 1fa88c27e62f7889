"""A model of short rows that goes on with long ones: what is trained, resumed and exported."""

import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from common.errors import UserError
from common.files import read_json
from common.run_layout import step_folder
from model import export
from model.checkpoint import locate, weights
from model.config import LlamaConfig
from model.decode.batch_generate import generate_batch
from model.interop.hf_export import export_hf
from model.llama import Llama
from model.tokenizer.base import Tokenizer
from tests.helpers.training import TINY_SHAPE, checkpoint_bytes, to_arguments, write_text_set
from train import pretrain, sft

CPU = torch.device("cpu")
YARN = {"rope_type": "yarn", "factor": 8.0, "original_max_position_embeddings": 64}


@pytest.fixture(scope="module")
def base(tokenizer: Tokenizer, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of 2,048 positions that was trained with 64, with weights that attend clearly."""
    folder = tmp_path_factory.mktemp("base")
    model = Llama(LlamaConfig(tokenizer.vocab_size, num_key_value_heads=4, **TINY_SHAPE))
    model.init_weights(0)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.mul_(4.0)
    model.trained_context = 64
    weights.save_checkpoint(model, tokenizer, folder)
    return folder


@pytest.fixture(scope="module")
def options(base: Path, tokenizer: Tokenizer, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The options of a run of four steps with rows of 512 tokens, scaled by YaRN."""
    text = write_text_set(
        tmp_path_factory.mktemp("text") / "set", tokenizer, train=60, validation=9
    )
    return {
        "base": base,
        "data": text,
        "sequence_length": 512,
        "batch_tokens": 1024,
        "max_steps": 4,
        "checkpoint.every": 2,
        "checkpoint.keep": "all",
        "evaluation.every": 4,
        "evaluation.sample_tokens": 2,
        "device": "cpu",
        "model.rope_scaling": "yarn",
    }


def train(run: Path, options: dict[str, Any], command: Any = pretrain) -> None:
    """Run a training command in this process."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("train.monitoring.throughput.matmul_flops", lambda *_: 1e9)
        patch.setattr(sys, "argv", ["train", *to_arguments({"run": run, **options})])
        command.main()


@pytest.fixture(scope="module")
def whole(options: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that was never stopped."""
    run = tmp_path_factory.mktemp("whole") / "run"
    train(run, options)
    return run


@pytest.mark.slow
def test_extended_run_is_the_same_model_in_transformers(whole: Path, tmp_path: Path) -> None:
    """Catch a config without the scaling, or decoding with other positions than training."""
    model, tokenizer = weights.load_checkpoint(locate.resolve_checkpoint(whole), CPU)
    assert model.config.rope_scaling == YARN and model.trained_context == 512
    assert model.config.max_position_embeddings == 512
    export_hf(whole, tmp_path / "out")
    values = read_json(tmp_path / "out" / "config.json")
    assert values["rope_scaling"] == YARN and values["max_position_embeddings"] == 512
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    ids = torch.randint(
        3, tokenizer.vocab_size, (1, 512), generator=torch.Generator().manual_seed(1)
    )
    with torch.no_grad():
        torch.testing.assert_close(model(ids), theirs(ids).logits, rtol=1e-4, atol=1e-4)
        prompt = ids[:, :400]
        expected = theirs.generate(
            prompt,
            attention_mask=torch.ones_like(prompt),
            do_sample=False,
            max_new_tokens=30,
            pad_token_id=0,
        )
    [answer] = generate_batch(model, [prompt[0].tolist()], max_new_tokens=30)
    assert expected[0, 400 : 400 + len(answer.ids)].tolist() == answer.ids


@pytest.mark.slow
def test_extended_run_resumes_and_refuses_another_scaling(
    whole: Path, options: dict[str, Any], tmp_path: Path
) -> None:
    """Catch a resumed run that is scaled a second time, and one that goes on with another model."""
    run = tmp_path / "run"
    train(run, options)
    assert checkpoint_bytes(run, 4) == checkpoint_bytes(whole, 4)
    shutil.rmtree(step_folder(run, 4))
    for changes, line in (
        ({"model.rope_scaling": "linear"}, "model.rope_scaling.rope_type: yarn -> linear"),
        ({"model.rope_factor": 16}, "model.rope_scaling.factor: 8.0 -> 16.0"),
        ({"model.rope_scaling": "none"}, "was trained with yarn scaling"),
    ):
        with pytest.raises(UserError, match=line):
            train(run, {**options, **changes})
    train(run, options)
    assert checkpoint_bytes(run, 4) == checkpoint_bytes(whole, 4)


@pytest.mark.slow
def test_scaling_trains_another_model_than_none(
    whole: Path, options: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Catch an extension that changes the config and not the training."""
    train(tmp_path / "run", {**options, "model.rope_scaling": "none"})
    printed = capsys.readouterr().out
    assert "RoPE scaling" not in printed and "past      tokens with at least so many" in printed
    plain, _ = weights.load_checkpoint(locate.resolve_checkpoint(tmp_path / "run"), CPU)
    assert plain.config.rope_scaling is None and plain.trained_context == 512
    assert checkpoint_bytes(tmp_path / "run", 4) != checkpoint_bytes(whole, 4)


@pytest.mark.slow
def test_adapter_extends_its_base(
    base: Path, root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Catch an adapter that is merged into its base, and the base's frequencies with it."""
    options = {
        "base": base,
        "data": root / "assets/sample/summary/csl/dev.tsv",
        "sequence_length": 512,
        "batch_tokens": 1024,
        "max_steps": 2,
        "checkpoint.every": 2,
        "evaluation.every": 2,
        "evaluation.examples": 0,
        "device": "cpu",
        "adapter": "lora",
        "model.rope_scaling": "yarn",
    }
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("data.corpora.resolver.PREPARED_FOLDER", tmp_path / "prepared")
        train(tmp_path / "run", options, sft)
    assert "RoPE scaling yarn × 8" in capsys.readouterr().out
    folder = locate.resolve_checkpoint(tmp_path / "run")
    merged, tokenizer = weights.load_checkpoint(folder, CPU)
    assert merged.config.rope_scaling == YARN and merged.trained_context == 512
    export_hf(tmp_path / "run", tmp_path / "out")
    exported, _ = weights.load_checkpoint(tmp_path / "out", CPU)
    ids = torch.randint(
        3, tokenizer.vocab_size, (1, 512), generator=torch.Generator().manual_seed(1)
    )
    with torch.no_grad():
        assert torch.equal(merged(ids), exported(ids))
        base_model, _ = weights.load_checkpoint(base, CPU)
        assert not torch.allclose(base_model(ids), merged(ids), atol=1e-2)


@pytest.mark.slow
@pytest.mark.parametrize("rope_type", ["yarn", "none"])
def test_export_extends_without_training(
    rope_type: str, base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Catch an extended export with the context, or the frequencies, of its checkpoint."""
    arguments = ["--checkpoint", str(base), "--format", "hf", "--rope_scaling", rope_type]

    def export_to(name: str, context: int) -> None:
        out = ["--out", str(tmp_path / name), "--context", str(context)]
        monkeypatch.setattr(sys, "argv", ["export", *arguments, *out])
        export.main()

    export_to("out", 512)
    model, tokenizer = weights.load_checkpoint(tmp_path / "out", CPU)
    assert model.trained_context == 512
    assert model.config.rope_scaling == (YARN if rope_type == "yarn" else None)
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    ids = torch.randint(
        3, tokenizer.vocab_size, (1, 512), generator=torch.Generator().manual_seed(1)
    )
    plain, _ = weights.load_checkpoint(base, CPU)
    with torch.no_grad():
        torch.testing.assert_close(model(ids), theirs(ids).logits, rtol=1e-4, atol=1e-4)
        assert torch.equal(model(ids), plain(ids)) == (rope_type == "none")
    with pytest.raises(UserError, match="was trained with 64 tokens: extend it to more"):
        export_to("other", 64)
    assert not (tmp_path / "other").exists()
