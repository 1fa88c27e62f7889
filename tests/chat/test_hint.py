"""What a chat says first of a model that was not taught to talk."""

from pathlib import Path

import pytest
import torch

from chat import load_model
from common.files import write_checksummed_json
from data.prepare.options import PrepareOptions
from data.prepare.pipeline import prepare_groups
from data.readers.source_args import SourceGroup
from data.shards import ShardSet
from model.chat_template.template import Template
from model.checkpoint import locate, weights
from model.config import LlamaConfig
from model.llama import Llama
from model.tokenizer.base import Tokenizer

SOURCES = {"csl": "summary/csl/dev.tsv", "redgpt": "sft/redgpt/RedGPT-Dataset-V1-CN.test.json"}


@pytest.fixture(scope="module")
def sets(root: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, ShardSet]:
    """A set of summaries and one of conversations."""
    folder = tmp_path_factory.mktemp("sets")
    for name, file in SOURCES.items():
        group = SourceGroup(name, (str(root / "assets/sample" / file),))
        prepare_groups(
            [group], folder / name, root / "assets/tokenizer", PrepareOptions(workers=1, limit=5)
        )
    return {name: ShardSet.open(folder / name) for name in SOURCES}


def hint(
    run: Path, tokenizer: Tokenizer, trained_on: list[ShardSet] | None, *, talks: bool = True
) -> str:
    """What is said of a run that was trained on these sets; None: of an export, which knows nothing of its data."""
    folder = locate.step_folder(run, 1) if trained_on is not None else run
    folder.mkdir(parents=True)
    shape = LlamaConfig(
        tokenizer.vocab_size,
        hidden_size=8,
        intermediate_size=8,
        num_hidden_layers=1,
        num_attention_heads=1,
        num_key_value_heads=1,
    )
    weights.save_checkpoint(Llama(shape).init_weights(0), tokenizer, folder)
    if talks:
        Template().save(folder)
    if trained_on is not None:
        data = [{"set": each.fingerprint, "weight": 1.0} for each in trained_on]
        write_checksummed_json(
            run / "run.json",
            {"shards": [str(each.folder) for each in trained_on], "fingerprints": {"data": data}},
        )
    return (
        load_model.capability_hint(load_model.load_chat_model(folder, torch.device("cpu"), "fp32"))
        or ""
    )


def test_summary_only_model_shows_usage_hint(
    sets: dict[str, ShardSet], tokenizer: Tokenizer, tmp_path: Path
) -> None:
    """Nonsense in answer to 你好, without a word about what the model is for; the same words about one that talks."""
    said = hint(tmp_path / "titles", tokenizer, [sets["csl"]])
    assert (
        said.startswith("提示：这个模型微调时只学了给文章写标题")
        and "请为下面的文章写一个标题：" in said
    )
    assert hint(tmp_path / "mix", tokenizer, [sets["csl"], sets["redgpt"]]) == ""
    assert hint(tmp_path / "dialogues", tokenizer, [sets["redgpt"]]) == ""
    assert hint(tmp_path / "export", tokenizer, None) == ""
    assert "只会续写" in hint(tmp_path / "pretrained", tokenizer, [], talks=False)
