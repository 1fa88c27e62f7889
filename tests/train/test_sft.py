"""Fine-tuning as a user runs it: from a run or from nothing, stopped and continued, and what it refuses."""

import os
import shutil
import signal
import subprocess
from pathlib import Path
from typing import Any

import pytest

from common.errors import UserError
from common.files import write_checksummed_json, write_json, write_manifest
from common.metrics_file import read_metrics
from data.prepare.options import PrepareOptions
from data.prepare.pipeline import prepare_groups
from data.prepare.source_args import SourceGroup
from data.shards import ShardSet
from model.chat_template.template import Template, load_template
from model.checkpoint.locate import (
    find_newest_step,
    list_steps,
    resolve_checkpoint,
    step_folder,
    weights_sha256,
)
from model.config import LlamaConfig
from model.tokenizer.base import Tokenizer
from tests.fault_injection.child import Fault
from tests.helpers.processes import CommandProcess, PauseAfterStep
from train.run_dir import RunDir

TINY = [
    "--model.hidden_size",
    "32",
    "--model.intermediate_size",
    "64",
    "--model.num_hidden_layers",
    "2",
    "--model.num_attention_heads",
    "4",
]
CLOCKS = {"tokens_per_second", "mfu", "memory_bytes"}


@pytest.fixture(scope="module")
def tuning(root: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A little of the sample's CSL (with its dev split), RedGPT and stories, prepared."""
    folder, sample = tmp_path_factory.mktemp("tuning"), root / "assets" / "sample"
    groups = {
        "csl": SourceGroup(
            "csl", (str(sample / "summary/csl/train.tsv"),), (str(sample / "summary/csl/dev.tsv"),)
        ),
        "redgpt": SourceGroup("redgpt", (str(sample / "sft/redgpt/RedGPT-Dataset-V1-CN.json.gz"),)),
        "text": SourceGroup("jsonl", (str(sample / "pretrain/jsonl/stories.jsonl.gz"),)),
    }
    for name, group in groups.items():
        prepare_groups(
            [group], folder / name, root / "assets/tokenizer", PrepareOptions(workers=1, limit=120)
        )
    return {name: folder / name for name in groups}


def start(
    module: str, *words: str, fault: Fault | None = None, anew: bool = False
) -> CommandProcess:
    sizes = [
        "--sequence_length",
        "256",
        "--batch_tokens",
        "1024",
        "--device",
        "cpu",
        "--log_every",
        "2",
    ]
    return CommandProcess(
        f"train.{module}",
        *sizes,
        *words,
        fault=fault,
        fresh_interpreter=anew,
    )


def start_sft(*words: str, fault: Fault | None = None, anew: bool = False) -> CommandProcess:
    often = [
        "--checkpoint.every",
        "5",
        "--evaluation.every",
        "8",
        "--evaluation.examples",
        "3",
        "--evaluation.max_new_tokens",
        "4",
    ]
    return start("sft", *often, *words, fault=fault, anew=anew)


def sft(*words: str) -> subprocess.CompletedProcess[str]:
    return start_sft(*words).wait()


def records(run: Path) -> list[dict[str, Any]]:
    return [
        {key: value for key, value in record.items() if key not in CLOCKS}
        for record in read_metrics(run)
    ]


def tensors(run: Path, step: int) -> tuple[bytes, bytes]:
    folder = step_folder(run, step)
    return (folder / "model.safetensors").read_bytes(), (
        folder / "optimizer.safetensors"
    ).read_bytes()


@pytest.mark.slow
def test_killed_fine_tuning_resumes_bit_identically(
    tuning: dict[str, Path], tmp_path: Path
) -> None:
    """A mix whose order, requests or replay differ after a resume; a run that cannot go on without its base."""
    base = tmp_path / "pretrain"
    words = [
        "--run",
        str(base),
        "--data",
        str(tuning["text"]),
        *TINY,
        "--max_steps",
        "4",
        "--evaluation.sample_tokens",
        "0",
    ]
    done = start("pretrain", *words).wait()
    assert done.returncode == 0, done.stderr
    mix = f"{tuning['csl']}+{tuning['redgpt']}:0.5+replay:0.3"
    words = ["--data", mix, "--base", str(base), "--max_steps", "24", "--lead_ins", "true"]
    done = start_sft(*words, "--run", str(tmp_path / "whole"), anew=True).wait()
    assert done.returncode == 0, done.stderr
    assert "complete" in done.stdout and "examples" in done.stdout
    kinds = {record["kind"] for record in records(tmp_path / "whole")}
    assert {"train", "validation", "rouge", "answers", "sample", "evaluated"} <= kinds

    run = tmp_path / "killed"
    process = start_sft(*words, "--run", str(run), fault=PauseAfterStep(12))
    process.send_signal_when(signal.SIGKILL, lambda: 10 in list_steps(run))
    assert process.wait().returncode == -signal.SIGKILL
    assert find_newest_step(run) == 10
    shutil.rmtree(base / "checkpoints")
    done = sft(*words, "--run", str(run))
    assert done.returncode == 0 and "continues after step" in done.stdout, done.stderr
    assert tensors(run, 24) == tensors(tmp_path / "whole", 24)
    assert records(run) == records(tmp_path / "whole")
    folder = step_folder(run, 24)
    assert load_template(folder) == Template(lead_ins=True)
    best = (run / "checkpoints" / "best").resolve()
    scores = {r["step"]: r["rouge_1"] for r in records(run) if r["kind"] == "rouge"}
    assert best.name == f"step-{max(scores, key=lambda step: (scores[step], -step)):08d}"


@pytest.mark.slow
def test_fine_tuning_from_scratch_learns_answers(tuning: dict[str, Path], tmp_path: Path) -> None:
    """A loss on the wrong ids does not fall like this; a log without a dev loss."""
    words = [
        "--data",
        str(tuning["redgpt"]),
        "--base",
        "none",
        *TINY,
        "--max_steps",
        "30",
        "--run",
        str(tmp_path / "run"),
    ]
    done = sft(*words, "--evaluation.every", "10", "--evaluation.scored", "2")
    assert done.returncode == 0, done.stderr
    # A long dev split is scored as a whole once, at the end.
    scored = [
        (record["kind"], record["step"], record["tokens"])
        for record in records(tmp_path / "run")
        if "accuracy" in record and record["kind"] != "train"
    ]
    assert [each[:2] for each in scored] == [
        *(("validation", step) for step in (10, 20, 30)),
        ("final", 30),
    ]
    assert scored[0][2] == scored[2][2] < scored[3][2]
    losses = [
        record["loss"] for record in records(tmp_path / "run") if record["kind"] == "validation"
    ]
    assert losses[-1] < losses[0] - 0.5
    accuracies = [
        record["accuracy"] for record in records(tmp_path / "run") if record["kind"] == "train"
    ]
    assert accuracies[-1] > accuracies[0]
    done = sft(*words, "--seed", "1")
    assert done.returncode == 2 and "another seed" in done.stderr


@pytest.mark.slow
def test_early_stopped_run_does_not_resume(tuning: dict[str, Path], tmp_path: Path) -> None:
    """Hours of training after the best score, or an ended run that trains on when it is started again."""
    words = [
        "--data",
        str(tuning["csl"]),
        "--base",
        "none",
        *TINY,
        "--max_steps",
        "40",
        "--run",
        str(tmp_path / "run"),
        "--evaluation.every",
        "2",
        "--evaluation.patience",
        "2",
        "--evaluation.examples",
        "1",
        "--evaluation.max_new_tokens",
        "1",
        "--optimizer.lr",
        "1e-9",
        "--optimizer.muon_lr",
        "1e-9",
    ]
    for turn in range(2):
        done = sft(*words)
        assert done.returncode == 0 and "ended early" in done.stdout, done.stderr
        assert find_newest_step(tmp_path / "run") == 6, turn
        assert "the best after step 2 (which the run stands for now)" in done.stdout
        assert resolve_checkpoint(tmp_path / "run") == step_folder(tmp_path / "run", 2)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--data", "TEXT", "--base", "none"], "without questions and answers"),
        (["--data", "CSL+replay:0.1", "--base", "none"], "no base"),
        (["--data", "replay", "--base", "none"], "csl+replay:0.1"),
        (["--data", "CSL", "--base", "/nowhere"], "/nowhere"),
        (["--data", "CSL", "--base", "none", "--epochs", "null"], "--epochs or --max_steps"),
        (
            ["--data", "CSL", "--base", "none", "--sequence_length", "16", "--batch_tokens", "64"],
            "no example",
        ),
        (["--data", "csll", "--base", "none"], "did you mean csl"),
    ],
)
def test_untrainable_setup_gives_one_line_error(
    tuning: dict[str, Path], tmp_path: Path, words: list[str], said: str
) -> None:
    """A traceback, or a run of nonsense, where a line would do."""
    words = [
        word.replace("TEXT", str(tuning["text"])).replace("CSL", str(tuning["csl"]))
        for word in words
    ]
    done = sft(*words, *TINY, "--run", str(tmp_path / "run"))
    assert done.returncode == 2 and said in done.stderr and "Traceback" not in done.stderr, (
        done.stderr
    )
    assert len(done.stderr.strip().splitlines()) == 1


@pytest.mark.slow
def test_batch_option_error_creates_no_run_directory(
    tuning: dict[str, Path], tmp_path: Path
) -> None:
    """A run that was made with rows that cannot be, and then refuses the right ones because they are others."""
    run = tmp_path / "run"
    words = ["--data", str(tuning["csl"]), "--base", "none", *TINY, "--run", str(run)]
    for wrong in (
        ["--sequence_length", "16", "--batch_tokens", "64"],
        ["--sequence_length", "8192", "--batch_tokens", "8192"],
    ):
        done = sft(*words, *wrong)
        assert done.returncode == 2 and "Traceback" not in done.stderr, done.stderr
        assert not run.exists(), wrong


def options_of(**values: Any) -> Any:
    from train.options import SftOptions

    return SftOptions(epochs=1, **values)


def made(run: Path, step: int, steps: int | None = None, **fingerprints: Any) -> Path:
    """A run with one checkpoint, as far as whoever looks for a base looks; `steps` of the whole run."""
    folder = step_folder(run, step)
    folder.parent.mkdir(parents=True)
    folder.mkdir()
    for name in ("model.safetensors", "config.json"):
        (folder / name).write_text(run.name)
    write_manifest(folder, {"step": step, "steps": steps})
    write_json(run / "run.json", {"shards": [], "fingerprints": fingerprints})
    return folder


def test_resumed_run_keeps_its_base(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A run told to begin from another base that goes on with its own without a word, or that needs a base that is gone, or
    of which only the folder is left."""
    from train.initial_checkpoint import resolve_initial_checkpoint

    first, second = made(tmp_path / "first", 3), made(tmp_path / "second", 3)
    own = weights_sha256(first)
    run = tmp_path / "run"
    step = made(run, 5, base=own)
    (run / "config.yaml").write_text(f"base: {first}\n")
    for base in (first, tmp_path / "first", None):
        found = resolve_initial_checkpoint(options_of(base=base), run)
        assert found.fingerprint == own and found.tokenizer_path == step
    other = resolve_initial_checkpoint(options_of(base=tmp_path / "second"), run)
    assert other.folder == second and other.fingerprint == weights_sha256(second) != own
    assert resolve_initial_checkpoint(options_of(base="none"), run).fingerprint == "none"
    # The base is trained anew where it lies: neither who names it nor who names nothing goes on as if it were the same.
    (first / "model.safetensors").write_text("others")
    write_manifest(first)
    for base in (first, tmp_path / "first"):
        again = resolve_initial_checkpoint(options_of(base=base), run).fingerprint
        assert again == weights_sha256(first) != own
        with pytest.raises(
            UserError,
            match="another base: where --base leads there are other weights than the run began with",
        ):
            RunDir(run)._check_fingerprints({"base": own}, {"base": again}, {}, [], [])
    # There is no more of it than its folder, or not even that.
    for there, bases in ((True, (tmp_path / "first",)), (False, (first, tmp_path / "first"))):
        shutil.rmtree(tmp_path / "first")
        if there:
            (tmp_path / "first" / "checkpoints").mkdir(parents=True)
            write_json(tmp_path / "first" / "run.json", {})
        for base in bases:
            found = resolve_initial_checkpoint(options_of(base=base), run)
            assert found.fingerprint == own and found.folder == first
        said = capsys.readouterr().out
        assert (
            f"goes on without it: {tmp_path / 'first'} has no checkpoint" in said
        ) == there and said.count("\n") == there


def test_unfinished_base_gives_a_warning(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Fine-tuning what Ctrl-C stopped at a tenth, taken for the whole; a line about one that is whole."""
    from train.initial_checkpoint import resolve_initial_checkpoint

    young, whole, ended = (
        made(tmp_path / name, 3, steps) for name, steps in (("a", 5), ("b", 3), ("c", 5))
    )
    write_checksummed_json(tmp_path / "c" / "ended.json", {"best": 3})
    for base in (whole.parent.parent, ended.parent.parent, young):
        resolve_initial_checkpoint(options_of(base=base), tmp_path / "run")
        assert capsys.readouterr().out == "", base
    resolve_initial_checkpoint(options_of(base=tmp_path / "a"), tmp_path / "run")
    said = f"{tmp_path / 'a'} is unfinished, at step 3 of 5; to train it to its end first: make pretrain RUN={tmp_path / 'a'}\n"
    assert capsys.readouterr().out == f"base      {said}"


def test_replay_uses_only_base_pretraining_text(
    root: Path, tuning: dict[str, Path], tmp_path: Path
) -> None:
    """The base's conversations taken for text; a part added to a run's mix that ends in a traceback; advice in a circle."""
    from train.initial_checkpoint import InitialCheckpoint, open_replay_set

    run = tmp_path / "run"
    for name, said in (("csl", "fine-tuned"), ("text", None)):
        folder, shards = made(tmp_path / name, 3), ShardSet.open(tuning[name])
        facts = {
            "shards": [str(shards.folder)],
            "fingerprints": {"data": [{"set": shards.fingerprint, "weight": 1.0}]},
        }
        write_checksummed_json(tmp_path / name / "run.json", facts)
        base = InitialCheckpoint(folder, folder, "")
        if said is None:
            assert open_replay_set(run, base, 0).folder == shards.folder
            # A run of one set that is continued with replay besides.
            write_checksummed_json(run / "run.json", facts)
            assert open_replay_set(run, base, 1).folder == shards.folder
            # A first try with another mix, refused before it trained, binds nobody.
            write_checksummed_json(run / "run.json", {**facts, "shards": [str(tuning["csl"])]})
            assert open_replay_set(run, base, 0).folder == shards.folder
        else:
            with pytest.raises(UserError, match=said):
                open_replay_set(run, base, 0)
    write_checksummed_json(
        tmp_path / "text" / "run.json",
        {
            **facts,
            "shards": [facts["shards"][0]] * 2,
            "fingerprints": {"data": facts["fingerprints"]["data"] * 2},
        },
    )
    with pytest.raises(UserError, match="2 shard sets: leave replay out"):
        open_replay_set(tmp_path / "new", base, 0)


def test_replay_of_less_than_a_row_is_refused(
    root: Path, tuning: dict[str, Path], shard_set: Path, tmp_path: Path, tokenizer: Tokenizer
) -> None:
    """Text that was asked for against forgetting, of which nothing comes, without a word."""
    from train.initial_checkpoint import InitialCheckpoint
    from train.sft import _open_mixture

    folder, shards = made(tmp_path / "base", 3), ShardSet.open(shard_set)
    facts = {
        "shards": [str(shard_set)],
        "fingerprints": {"data": [{"set": shards.fingerprint, "weight": 1.0}]},
    }
    write_checksummed_json(tmp_path / "base" / "run.json", facts)
    length = shards.load_split("train").num_tokens
    write_json(
        folder / "config.json",
        LlamaConfig(tokenizer.vocab_size, max_position_embeddings=length).to_hf(),
    )
    shutil.copy(root / "assets/tokenizer/tokenizer.model", folder)
    base = InitialCheckpoint(folder, folder, "")
    for rows, refused in ((length, True), (length - 1, False)):
        options = options_of(
            data=f"{tuning['csl']}+replay:0.1", sequence_length=rows, batch_tokens=rows
        )
        if refused:
            with pytest.raises(UserError, match=f"nothing to replay: .* one row of {rows} tokens"):
                _open_mixture(options, tmp_path / "new", base, tokenizer, Template())
        else:
            assert (
                len(
                    _open_mixture(options, tmp_path / "new", base, tokenizer, Template())
                    .train_examples[1]
                    .lengths(0)
                )
                == 1
            )


def test_newest_pretraining_run_is_default_base(tmp_path: Path) -> None:
    """Fine-tuning an old run because its name sorts last, the newest was given a name, or a base; a fine-tuned one."""
    from train.initial_checkpoint import find_newest_pretrain_run

    assert find_newest_pretrain_run(tmp_path) is None
    for stamp, name in (
        (3, "pretrain-a"),
        (9, "wiki"),
        (5, "pretrain-c"),
        (20, "sft-csl"),
        (21, "tuned"),
    ):
        folder = made(tmp_path / name, 10, base="1234", **({"template": {}} if stamp > 9 else {}))
        os.utime(folder, (stamp, stamp))
    assert find_newest_pretrain_run(tmp_path) == tmp_path / "wiki"
