"""Examples of the sample's test split, in the terminal; tests/chat/serve has the page."""

import json
from pathlib import Path

import pytest

from chat import examples
from chat.examples import find_examples
from data.corpora.sample import SAMPLE_SFT_FILES
from data.shards import ShardSet
from tests.chat.conftest import Chat, write_run_on


@pytest.mark.slow
def test_examples_come_from_the_test_split_of_the_sample(
    sample_sets: dict[str, ShardSet], talker: Path, tmp_path: Path
) -> None:
    """Prevents examples that the model was trained on, or that have another task than it has."""
    both = [sample_sets["csl"], sample_sets["redgpt"]]
    found = find_examples(write_run_on(tmp_path / "run", talker, both))
    titles, passages = found[: examples.MAX_EXAMPLES], found[examples.MAX_EXAMPLES :]
    (file,) = SAMPLE_SFT_FILES["redgpt"].test
    lines = file.read_text(encoding="utf-8").splitlines()[: examples.MAX_EXAMPLES]
    rows = [json.loads(line) for line in lines]
    assert [example.reference for example in passages] == [row["reference"] for row in rows]
    for example, row in zip(passages, rows, strict=True):
        assert example.questions
        assert all(question in row["dialogue"] for question in example.questions)
    (file,) = SAMPLE_SFT_FILES["csl"].test
    lines = file.read_text(encoding="utf-8").splitlines()[: examples.MAX_EXAMPLES]
    abstracts = [line.partition("\t")[2] for line in lines]
    requests = [f"请为下面的文章写一个标题：\n{abstract}" for abstract in abstracts]
    assert [example.questions for example in titles] == [(request,) for request in requests]
    assert {example.reference for example in titles} == {""}


@pytest.mark.slow
def test_other_models_have_no_examples(
    sample_sets: dict[str, ShardSet], talker: Path, tmp_path: Path
) -> None:
    """Prevents the sample's invented passages for a model of real data, or of unknown data."""
    assert find_examples(talker) == ()
    real = tmp_path / "redgpt-0123abcd"
    real.symlink_to(sample_sets["redgpt"].folder)
    assert find_examples(write_run_on(tmp_path / "run", talker, [ShardSet.open(real)])) == ()


@pytest.mark.slow
def test_example_is_the_reference_and_the_next_one_another(
    sample_sets: dict[str, ShardSet],
    talker: Path,
    tmp_path: Path,
    chat: Chat,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Prevents a passage that is shown and not read, and the same one for ever."""
    monkeypatch.setattr(examples, "MAX_EXAMPLES", 2)
    run = write_run_on(tmp_path / "run", talker, [sample_sets["redgpt"]])
    first, second = find_examples(run)
    shown = [
        "\n".join([example.reference, "可以问：", *example.questions])
        for example in (first, second, first)
    ]
    result = chat("/示例\n/资料\n/EXAMPLE\n/资料\n/示例\n", "--checkpoint", str(run))
    expected = [shown[0], first.reference, shown[1], second.reference, shown[2]]
    assert (result.code, result.out) == (0, "\n".join(expected) + "\n")
    assert f"资料：{len(second.reference)} 字（示例 2）" in result.err
    result = chat("/示例\n")
    assert result.out == "" and "没有适合这个模型的示例" in result.err


@pytest.mark.slow
def test_example_of_summaries_is_asked(
    sample_sets: dict[str, ShardSet], talker: Path, tmp_path: Path, chat: Chat
) -> None:
    """Prevents an abstract that the user has to copy, and a title for it after other turns."""
    run = write_run_on(tmp_path / "run", talker, [sample_sets["csl"]])
    transcript = tmp_path / "对话.md"
    lines = ["/资料 别的资料。", "我叫书白。", "/示例", f"/保存 {transcript}"]
    result = chat("\n".join(lines), "--checkpoint", str(run))
    request = find_examples(run)[0].questions[0]
    assert f"{request}\n" in result.out, result.err
    before, after = transcript.read_text(encoding="utf-8").split("## 对话 2")
    assert "别的资料" in before and "资料" not in after and f"**人类：** {request}" in after
