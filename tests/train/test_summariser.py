"""The stages of `make summariser`: what is run, skipped and run again, and all of it once."""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from common import run_layout
from common.errors import UserError
from data.corpora.resolver import resolve_shard_set
from data.corpora.sample import SMALL_TOKENIZER
from tests.helpers.training import TINY_SHAPE, to_arguments
from train import summariser, summariser_stages

RUN_MODULE = summariser_stages.run_module
TINY: dict[str, Any] = {
    "sequence_length": 512,
    "batch_tokens": 512,
    "max_steps": 4,
    "device": "cpu",
    "evaluation.every": 4,
}
OPTIONS = {
    "vocabulary": 640,
    "limit": 1,
    **{f"pretrain.{key}": value for key, value in {**TINY, "model": TINY_SHAPE}.items()},
    "pretrain.evaluation.sample_tokens": 0,
    **{f"sft.{key}": value for key, value in TINY.items()},
    "sft.evaluation.examples": 1,
    **{f"grpo.{key}": value for key, value in TINY.items() if key != "batch_tokens"},
    "grpo.grpo.prompts": 2,
    "grpo.grpo.samples": 2,
    "grpo.evaluation.examples": 1,
}


def run_stages(monkeypatch: pytest.MonkeyPatch, **options: Any) -> None:
    """Run `python -m train.summariser` in this process."""
    monkeypatch.setattr(sys, "argv", ["summariser", *to_arguments({**OPTIONS, **options})])
    summariser.main()


@pytest.fixture
def commands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """The commands of the stages, none of which is run: their results are empty."""
    called: list[list[str]] = []

    def record(command: list[str]) -> int:
        called.append(command)
        result = {"evaluate": "report.md", "evaluate.decoding": "decoding.json"}.get(command[0])
        if result is not None:
            Path(value_of(command, "--checkpoint"), result).touch()
            return 0
        run = Path(value_of(command, "--out" if command[0] == "data.tokenizer" else "--run"))
        run.mkdir(parents=True, exist_ok=True)
        if run.name == "speed":
            records = [
                {"kind": "train", "step": step, "tokens_per_second": rate}
                for step, rate in ((5, 1.0), (10, 990.0), (15, 1000.0), (20, 1200.0))
            ]
            lines = (json.dumps(record) + "\n" for record in records)
            (run / "metrics.jsonl").write_text("".join(lines))
        return 0

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(summariser_stages, "run_module", record)
    # The tokenizer of a stage that is not run cannot encode any set.
    monkeypatch.setattr(
        summariser_stages,
        "resolve_shard_set",
        lambda name, tokenizer: resolve_shard_set(name, SMALL_TOKENIZER),
    )
    return called


def value_of(command: list[str], option: str) -> str:
    """Return the value of an option in a command."""
    return command[command.index(option) + 1]


def test_unknown_data_is_found_before_pretraining(
    commands: list[list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Prevents a night of pretraining for a name that does not exist."""
    with pytest.raises(UserError, match="nope: unknown data set"):
        run_stages(monkeypatch, data="csl+replay:0.1+nope")
    assert [command[0] for command in commands] == ["data.tokenizer"]


def test_summaries_are_fine_tuned_on_without_test_passages(
    commands: list[list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Prevents a score on articles that the model was fine-tuned on."""
    titles = (f"题目\t第{number}篇文章，说的是别的事情。\n" for number in range(40))
    Path("own.tsv").write_text("标题\t摘要\n" + "".join(titles), encoding="utf-8")
    mixture = "own.tsv:0.5+csl+decontaminated(own.tsv)+replay:0.1"
    run_stages(monkeypatch, data=mixture, rewards=True)
    assert value_of(commands[2], "--data") == (
        # The sample's part of csl cannot be compared, and nothing is compared twice.
        "decontaminated(own.tsv):0.5+csl+decontaminated(own.tsv)+replay:0.1"
    )
    assert commands[3][0] == "train.grpo"
    assert value_of(commands[3], "--base") == value_of(commands[2], "--run")
    assert value_of(commands[3], "--data") == (
        "decontaminated(own.tsv):0.5+csl+decontaminated(own.tsv)"
    )


def test_nothing_is_trained_on_with_a_test_passage(
    commands: list[list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Prevents test passages in the text, or in the conversations beside the summaries."""
    for name, record in (
        ("news.jsonl", {"text": "今天的新闻说的是天气。" * 9}),
        ("talk.jsonl", {"instruction": "今天天气怎么样？", "output": "今天是晴天。"}),
    ):
        lines = (json.dumps({**record, "id": n}, ensure_ascii=False) for n in range(40))
        Path(name).write_text("\n".join(lines), encoding="utf-8")
    run_stages(monkeypatch, text="news.jsonl", data="csl+talk.jsonl:0.1")
    assert value_of(commands[0], "--input") == "news.jsonl"
    assert value_of(commands[1], "--data") == "decontaminated(news.jsonl)"
    assert value_of(commands[1], "--curriculum.data") == "titles_as_text(news.jsonl)"
    assert value_of(commands[2], "--data") == "csl+decontaminated(talk.jsonl):0.1"
    # With a test file of one's own.
    named = "decontaminated(news.jsonl,test.tsv)"
    commands.clear()
    run_stages(monkeypatch, text=named, run=Path("runs/other"))
    assert value_of(commands[0], "--input") == "news.jsonl"
    assert value_of(commands[1], "--data") == named
    assert value_of(commands[1], "--curriculum.data") == "titles_as_text(news.jsonl,test.tsv)"
    with pytest.raises(UserError, match=r"--text long.*: has to be a file or folder"):
        run_stages(monkeypatch, text="long(news.jsonl,512)")
    with pytest.raises(UserError, match=r"--text .*none\.jsonl.*: no such file or folder"):
        run_stages(monkeypatch, text="decontaminated(none.jsonl)")


def test_reward_may_have_other_data(
    commands: list[list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Prevents a reward for copying the extracts that fine-tuning begins with."""
    beginning = f"在旧电脑上安装新的系统并不难。{'先下载镜像，再写进优盘。' * 12}"
    text = f"# 在旧电脑上安装新的系统\n\n{beginning}\n"
    Path("news.jsonl").write_text(
        "".join(json.dumps({"text": text + str(n)}, ensure_ascii=False) + "\n" for n in range(9)),
        encoding="utf-8",
    )
    run_stages(
        monkeypatch,
        data="csl+headline_extracts(news.jsonl):0.5",
        rewards=True,
        reward_data="csl+headlines(news.jsonl)",
    )
    assert value_of(commands[2], "--data") == "csl+headline_extracts(news.jsonl):0.5"
    assert value_of(commands[3], "--data") == "csl+headlines(news.jsonl)"
    assert commands[4][0] == "evaluate.decoding"
    # The decoding is chosen on the dev split of these data, not on that of --data.
    commands.clear()
    run_stages(monkeypatch, data="csl", rewards=True, reward_data="headlines(news.jsonl)")
    assert [command[0] for command in commands] == ["train.sft", "train.grpo", "evaluate"]
    with pytest.raises(UserError, match="all of it has to be summaries"):
        run_stages(monkeypatch, rewards=True, reward_data="csl+redgpt")
    with pytest.raises(UserError, match="give --rewards true"):
        run_stages(monkeypatch, reward_data="csl")


def test_data_without_summaries_is_refused(
    commands: list[list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Prevents a night after which there is nothing to score."""
    with pytest.raises(UserError, match=r"--data redgpt: there are no summaries in it"):
        run_stages(monkeypatch, data="redgpt")
    assert [command[0] for command in commands] == ["data.tokenizer"]


def test_stages_that_are_done_are_skipped(
    commands: list[list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Prevents a second night of the same pretraining, and an old score of a new model."""
    run_stages(monkeypatch)
    names = [command[0] for command in commands]
    assert names == [
        "data.tokenizer",
        "train.pretrain",
        "train.sft",
        "evaluate.decoding",
        "evaluate",
    ]
    assert value_of(commands[1], "--curriculum.data") == "titles_as_text(sample)"
    commands.clear()
    run_stages(monkeypatch)
    assert commands == []
    run_stages(monkeypatch, **{"sft.epochs": 3.0})
    assert [command[0] for command in commands] == [
        "train.sft",
        "evaluate.decoding",
        "evaluate",
    ]
    commands.clear()
    shutil.rmtree("runs/summariser-base")
    run_stages(monkeypatch, **{"sft.epochs": 3.0})
    assert [command[0] for command in commands] == [
        "train.pretrain",
        "train.sft",
        "evaluate.decoding",
        "evaluate",
    ]


def test_hours_become_steps_once(
    commands: list[list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Prevents a night that another measurement makes longer when it goes on, or never ends."""
    for _ in range(2):
        run_stages(monkeypatch, hours=0.1, pretraining=0.5)
    assert [command[0] for command in commands] == [
        "data.tokenizer",
        "train.pretrain",
        "train.pretrain",
        "train.sft",
        "evaluate.decoding",
        "evaluate",
    ]
    # 0.1 hours * 3,600 s * 0.5 * 1,000 tokens/s (the first steps do not count) / 512 tokens.
    assert value_of(commands[2], "--max_steps") == str(int(0.1 * 3600 * 0.5 * 1000 / 512))
    assert not Path("runs/summariser-recipe/speed").exists()


def test_stage_that_fails_ends_the_command(
    commands: list[list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Prevents fine-tuning of a base whose training was interrupted, and a stage marked as done."""

    def interrupt(command: list[str]) -> int:
        commands.append(command)
        is_pretraining = command[0] == "train.pretrain"
        if not is_pretraining:
            Path(value_of(command, "--out")).mkdir(parents=True)
        return 130 if is_pretraining else 0

    monkeypatch.setattr(summariser_stages, "run_module", interrupt)
    for _ in range(2):
        with pytest.raises(SystemExit) as ended:
            run_stages(monkeypatch)
        assert ended.value.code == 130
    assert [command[0] for command in commands] == [
        "data.tokenizer",
        "train.pretrain",
        "train.pretrain",
    ]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_stopped_stage_has_time_to_save(root: Path, tmp_path: Path, number: int) -> None:
    """Prevents a stage that is killed while it saves its checkpoint, or that is left behind."""
    stage = """
import signal, sys, time
def save(number, frame):
    print("saving", flush=True); time.sleep(1); print("saved", flush=True); sys.exit(128 + number)
signal.signal(signal.SIGINT, save); signal.signal(signal.SIGTERM, save)
print("ready", flush=True); time.sleep(60)
"""
    (tmp_path / "stage.py").write_text(stage)
    code = "import train.summariser_stages as s, sys; sys.exit(s.run_module(['stage']))"
    environment = {**os.environ, "PYTHONPATH": f"{root}:{tmp_path}"}
    process = subprocess.Popen(
        [sys.executable, "-c", code],
        env=environment,
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    assert process.stdout is not None and process.stdout.readline() == "ready\n"
    # Ctrl-C goes to all processes of a terminal, SIGTERM to the one that is named.
    send = os.killpg if number == signal.SIGINT else os.kill
    send(process.pid, number)
    assert process.stdout.read() == "saving\nsaved\n"
    assert process.wait() == 128 + number


def test_text_that_does_not_exist_is_refused(
    commands: list[list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Prevents a tokenizer of the sample for a text whose name has a typo."""
    with pytest.raises(UserError, match=r"--text wiki\.json: no such file"):
        run_stages(monkeypatch, text="wiki.json")
    assert commands == []


def write_articles(path: Path) -> None:
    """Write articles of random sentences, whose titles are the beginnings of the articles."""
    chance = random.Random(0)
    characters = [chr(0x4E00 + 7 * number) for number in range(300)]
    lines = []
    for _ in range(60):
        sentences = ["".join(chance.choices(characters, k=20)) + "。" for _ in range(8)]
        text = f"# {sentences[0][:9]}\n\n{''.join(sentences)}"
        lines.append(json.dumps({"text": text}, ensure_ascii=False) + "\n")
    path.write_text("".join(lines), encoding="utf-8")


@pytest.mark.slow
def test_all_stages_run(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Prevents options that a stage lacks, and a stage that does not find the one before.

    The many commands of the evaluation are left out here: they take most of a minute.
    """
    evaluated = []

    def run_unless_evaluation(command: list[str]) -> int:
        if command[0] != "evaluate":
            return RUN_MODULE(command)
        evaluated.append(command[1:])
        return 0

    monkeypatch.setattr(summariser_stages, "run_module", run_unless_evaluation)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(root))
    write_articles(Path("text.jsonl"))
    run_stages(monkeypatch, text="text.jsonl", hours=0.0005, rewards=True)
    assert evaluated == [["--checkpoint", "runs/summariser", "--limit", "1"]]
    assert run_layout.list_steps(Path("runs/summariser-sft")) == [4]
    assert run_layout.list_steps(Path("runs/summariser")) == [4]
    assert Path("runs/summariser", run_layout.DECODING_FILE).is_file()
    base = yaml.safe_load(Path("runs/summariser-base/config.yaml").read_text(encoding="utf-8"))
    assert base["curriculum"]["data"] == "titles_as_text(text.jsonl)"
