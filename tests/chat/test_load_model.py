"""The choice of a model and its description."""

import os
from pathlib import Path

import pytest
import torch

from chat import load_model
from chat.errors import ChatError
from common import run_layout
from common.errors import UserError
from common.files import write_json, write_manifest
from data.prepare.options import PrepareOptions
from data.prepare.pipeline import prepare_groups
from data.prepare.source_args import SourceGroup
from data.shards import ShardSet
from model.chat_template.template import Template
from model.checkpoint import weights
from model.config import LlamaConfig
from model.llama import Llama
from model.tokenizer.base import Tokenizer
from tests.chat.conftest import write_run_on

CPU = torch.device("cpu")
SOURCE_FILES = {
    "csl": "summary/csl/dev.tsv",
    "redgpt": "sft/redgpt/RedGPT-Dataset-V1-CN.test.json",
}


def make_run(
    folder: Path,
    checkpoint: Path,
    *,
    saved_at: int = 100,
    has_template: bool = True,
    trained_context: int = 64,
) -> Path:
    """Write a run with a checkpoint of step 7; return the checkpoint's folder."""
    step_folder = run_layout.step_folder(folder, 7)
    step_folder.mkdir(parents=True)
    model, tokenizer = weights.load_checkpoint(checkpoint, CPU)
    model.trained_context = trained_context
    weights.save_checkpoint(model, tokenizer, step_folder)
    if has_template:
        Template().save(step_folder)
    write_manifest(step_folder)
    write_json(folder / "run.json", {})
    os.utime(step_folder, (saved_at, saved_at))
    return step_folder


def describe(path: Path) -> str:
    return load_model.load_chat_model(path, CPU, "auto").description


@pytest.mark.slow
def test_newest_run_is_chosen_preferring_fine_tuned(talker: Path, tmp_path: Path) -> None:
    """Prevents a chat with a pretrained or unfinished run while a fine-tuned one exists."""
    runs = tmp_path / "runs"
    with pytest.raises(UserError, match="make pretrain"):
        load_model.find_default_run(runs)
    make_run(runs / "old", talker, saved_at=100)
    make_run(runs / "new", talker, saved_at=200)
    make_run(runs / "pretrained", talker, saved_at=300, has_template=False)
    (runs / "unfinished").mkdir()
    write_json(runs / "unfinished" / "run.json", {})
    assert load_model.find_default_run(runs) == runs / "new"
    loaded_model = load_model.load_chat_model(runs / "new", CPU, "auto")
    assert loaded_model.folder == runs / "new/checkpoints/step-00000007"
    assert loaded_model.is_chat_tuned
    assert not load_model.load_chat_model(runs / "pretrained", CPU, "auto").is_chat_tuned


@pytest.mark.slow
def test_unfinished_training_is_reported(talker: Path, tmp_path: Path) -> None:
    """Prevents a model stopped early by Ctrl-C from passing for all that training can give."""
    stopped = tmp_path / "stopped"
    write_manifest(make_run(stopped, talker), {"step": 7, "steps": 9})
    write_json(stopped / "run.json", {"fingerprints": {"template": {}}})
    expected = f"，训练尚未完成：第 7 步，共 9 步；继续训练：make sft RUN={stopped}"
    assert describe(stopped).endswith(expected)
    write_json(stopped / "run.json", {"fingerprints": None})
    assert "make pretrain RUN=" in describe(stopped)


@pytest.mark.slow
def test_unfinished_training_of_earlier_version_is_reported(talker: Path, tmp_path: Path) -> None:
    """Prevents silence about older checkpoints, and a command that a shell splits at a space."""
    folder = tmp_path / "two words"
    write_manifest(make_run(folder, talker), {"step": 7})
    write_json(folder / "run.json", {"fingerprints": {"max_steps": 20}})
    assert describe(folder).endswith(f"第 7 步，共 20 步；继续训练：make pretrain 'RUN={folder}'")


@pytest.mark.slow
def test_finished_training_is_not_reported(talker: Path, tmp_path: Path) -> None:
    """Prevents the notice for a finished run, for one step of a run, and for an export."""
    write_manifest(make_run(tmp_path / "finished", talker), {"step": 7, "steps": 7})
    step_folder = make_run(tmp_path / "stopped", talker)
    write_manifest(step_folder, {"step": 7, "steps": 9})
    for path in (tmp_path / "finished", step_folder, talker):
        assert "训练尚未完成" not in describe(path)


@pytest.mark.slow
def test_context_is_trained_context(talker: Path, tmp_path: Path) -> None:
    """Prevents positions that the model was never trained on."""
    make_run(tmp_path / "short", talker, trained_context=64)
    make_run(tmp_path / "long", talker, trained_context=5000)
    for path, context_length in (
        (tmp_path / "short", 64),
        (tmp_path / "long", 256),  # all positions that the model has
        (talker, 256),
    ):
        assert load_model.load_chat_model(path, CPU, "auto").context_length == context_length
    model, _ = weights.load_checkpoint(tmp_path / "short", CPU)
    assert model.trained_context == 64 and model.config.max_position_embeddings == 256


@pytest.fixture(scope="module")
def shard_sets(root: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, ShardSet]:
    """A set of summaries and one of conversations."""
    folder = tmp_path_factory.mktemp("sets")
    for name, file in SOURCE_FILES.items():
        group = SourceGroup(name, (str(root / "assets/sample" / file),))
        prepare_groups(
            [group], folder / name, root / "assets/tokenizer", PrepareOptions(workers=1, limit=5)
        )
    return {name: ShardSet.open(folder / name) for name in SOURCE_FILES}


def save_tiny_model(folder: Path, tokenizer: Tokenizer, *, has_template: bool) -> None:
    folder.mkdir(parents=True)
    config = LlamaConfig(
        tokenizer.vocab_size,
        hidden_size=8,
        intermediate_size=8,
        num_hidden_layers=1,
        num_attention_heads=1,
        num_key_value_heads=1,
    )
    weights.save_checkpoint(Llama(config).init_weights(0), tokenizer, folder)
    if has_template:
        Template().save(folder)


def hint_of_run(
    run: Path, tokenizer: Tokenizer, trained_on: list[ShardSet], *, has_template: bool = True
) -> str | None:
    """Return the hint for a run that was trained on these sets."""
    checkpoint = run.with_name(f"{run.name}-checkpoint")
    save_tiny_model(checkpoint, tokenizer, has_template=has_template)
    step_folder = write_run_on(run, checkpoint, trained_on)
    return load_model.capability_hint(load_model.load_chat_model(step_folder, CPU, "fp32"))


@pytest.mark.slow
def test_model_trained_on_summaries_alone_gets_a_hint(
    shard_sets: dict[str, ShardSet], tokenizer: Tokenizer, tmp_path: Path
) -> None:
    """Prevents nonsense in answer to 你好 without a word about what the model can do."""
    hint = hint_of_run(tmp_path / "titles", tokenizer, [shard_sets["csl"]])
    assert hint is not None and hint.startswith("提示：这个模型微调时只学过给文章拟标题")
    assert "请为下面的文章写一个标题：" in hint and "/示例" not in hint


@pytest.mark.slow
def test_model_trained_on_the_sample_gets_a_hint_with_examples(
    sample_sets: dict[str, ShardSet],
    shard_sets: dict[str, ShardSet],
    tokenizer: Tokenizer,
    tmp_path: Path,
) -> None:
    """Prevents a first conversation with 你好, which the sample's model cannot answer."""
    reading = hint_of_run(tmp_path / "reading", tokenizer, [sample_sets["redgpt"]])
    assert reading is not None and "回答关于这段资料的问题" in reading and "/资料" in reading
    titles = hint_of_run(tmp_path / "titles", tokenizer, [sample_sets["csl"]])
    assert titles is not None and "给文章拟标题" in titles
    # What is true of one part alone is not said of a mixture.
    both = [sample_sets["csl"], sample_sets["redgpt"]]
    assert hint_of_run(tmp_path / "both", tokenizer, both) == reading
    for hint in (reading, titles):
        assert "/示例（或 /example" in hint and "\n" not in hint


def test_pretrained_model_gets_a_hint(tokenizer: Tokenizer, tmp_path: Path) -> None:
    """Prevents a pretrained model that seems to be broken because it does not answer."""
    hint = hint_of_run(tmp_path / "pretrained", tokenizer, [], has_template=False)
    assert hint is not None and "只会续写" in hint


@pytest.mark.slow
def test_conversational_model_gets_no_hint(
    shard_sets: dict[str, ShardSet], tokenizer: Tokenizer, tmp_path: Path
) -> None:
    """Prevents a false warning about a model that converses, or about an export."""
    both = [shard_sets["csl"], shard_sets["redgpt"]]
    assert hint_of_run(tmp_path / "mix", tokenizer, both) is None
    assert hint_of_run(tmp_path / "dialogues", tokenizer, [shard_sets["redgpt"]]) is None
    save_tiny_model(tmp_path / "export", tokenizer, has_template=True)
    loaded_model = load_model.load_chat_model(tmp_path / "export", CPU, "fp32")
    assert load_model.capability_hint(loaded_model) is None


def test_missing_tokenizer_is_named(tokenizer: Tokenizer, tmp_path: Path) -> None:
    """Prevents a folder or run without a tokenizer that is called damaged, and trained anew."""
    folder = tmp_path / "model"
    save_tiny_model(folder, tokenizer, has_template=True)
    (folder / "tokenizer.model").unlink()
    step_folder = write_run_on(tmp_path / "run", folder, [])
    for path, named in ((folder, folder), (tmp_path / "run", step_folder)):
        with pytest.raises(ChatError) as refused:
            load_model.load_chat_model(path, CPU, "fp32")
        message = str(refused.value)
        assert message.startswith(f"{named} 中没有分词器") and "损坏" not in message
        assert "--checkpoint" in message
