"""Bad options: whatever is wrong with a command line, it ends with exit code 2 and a line that names it and the cure.

The table has a row for each mistake: the command, and words that the one line on stderr must have. `{…}` are files and
folders that the fixture `places` makes. The commands run in this process, a few at the end in one of their own.
"""

import importlib
import json
import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from common.errors import run_main
from common.files import write_json, write_sealed
from data.inputs import Group
from data.prepare import PrepareOptions, prepare_groups
from model import checkpoints
from model.config import LlamaConfig
from model.llama import Llama
from model.tokenizer import Tokenizer

TRAIN = "train.pretrain --data {text} --run {new}"
TUNE = "train.sft --base none --data {pairs} --run {new}"
PREPARE = "data.prepare --source jsonl --input {corpus} --tokenizer {tokenizer} --out {new}"
SCORE = "evaluate.perplexity --checkpoint {model}"

TABLE = """
# training: keys and values
train.pretrain --max_stepz 3                                | --max_stepz: there is no such option; did you mean --max_steps?
train.pretrain --model.hiden_size 3                         | did you mean --model.hidden_size?
train.pretrain --max_steps                                  | --max_steps: needs a value
train.pretrain stray                                        | 'stray' stands alone: options are written --key value
train.pretrain --max_steps many                             | --max_steps: 'many' is not valid; expected a valid integer
train.pretrain --max_steps 0                                | --max_steps: 0 is not valid; expected greater than 0
train.pretrain --max_steps -5                               | --max_steps: -5 is not valid; expected greater than 0
train.pretrain --max_steps 1.5                              | --max_steps: 1.5 is not valid
train.pretrain --max_steps 2024-13-45                       | --max_steps: '2024-13-45' is not valid
train.pretrain --max_steps {brackets}                       | --max_steps: | is not valid
train.pretrain --max_steps {digits}                         | --max_steps: | is not valid
train.pretrain --optimizer.lr nan                           | --optimizer.lr: 'nan' is not valid; expected a finite number
train.pretrain --optimizer.clip inf                         | --optimizer.clip: 'inf' is not valid; expected a finite number
train.pretrain --optimizer.clip .inf                        | --optimizer.clip: inf is not valid; expected a finite number
train.pretrain --optimizer.lr -1                            | --optimizer.lr: -1 is not valid; expected greater than 0
train.pretrain --optimizer.name sgd | --optimizer.name: 'sgd' is not valid; expected 'muon' or 'adamw'
train.pretrain --optimizer 3                                | --optimizer: is a group of options, not a value
train.pretrain --model '{{1: 2}}'                           | --model.1: there is no such option
train.pretrain --seed -1                                    | --seed: -1 is not valid
train.pretrain --seed 99999999999999999999                  | --seed: 99999999999999999999 is not valid
train.pretrain --device tpu                                 | --device: 'tpu' is not valid; expected 'auto', 'cpu' or 'cuda'
train.pretrain --batch_tokens 100                           | --batch_tokens 100 is not a multiple of --sequence_length
train.pretrain --micro_batch 0                              | --micro_batch 0: expected auto or a number of rows above 0
train.pretrain --compile maybe                              | --compile: 'maybe' is not valid
train.pretrain --model.preset llama-7b | --model.preset llama-7b: there is no such preset; choose babyllama
train.pretrain --schedule.warmup 0.8 --schedule.decay 0.8   | may not exceed 1 together
train.pretrain --run                                        | --run: expected one argument
train.pretrain --config                                     | --config: expected one argument
# training: configuration files
train.pretrain --config {nowhere}.yaml                      | --config {nowhere}.yaml: no such file
train.pretrain --config {folder}                            | --config {folder}: not readable as YAML: | Is a directory
train.pretrain --config {list_yaml}                         | expected keys and values, found list
train.pretrain --config {date_yaml}                         | not readable as YAML: month must be in 1..12
train.pretrain --config {deep_yaml}                         | not readable as YAML: maximum recursion depth
train.pretrain --config {bomb_yaml}                         | aliases (*name) are not read: write the value out
train.pretrain --config {number_yaml}                       | the key 1 is no text
train.pretrain --config {code_yaml}                         | not readable as YAML: could not determine a constructor
train.pretrain --config {huge}                              | is larger than 1 MB
train.pretrain --config {binary}                            | not readable as YAML
# training: data, shapes, folders
train.pretrain --data wikipedi --run {new} | DATA=wikipedi: there is no such data set | did you mean wikipedia
train.sft --data tokenizer --base none --run {new}          | DATA=tokenizer: holds no records | the names are sample, belle
train.pretrain --data {nowhere} --run {new}                 | there is no such data set and no such file or folder
train.pretrain --data {long} --run {new}                    | the name is too long
train.pretrain --data {empty} --run {new}                   | {empty} is empty
train.pretrain --data {pairs} --run {new}                   | holds summaries, not text to pretrain on: fine-tune on it
train.pretrain --data {text}:0 --run {new}                  | the weight of {text} must be above 0
train.pretrain --data {text}:inf --run {new}                | the weight of {text} must be above 0
train.pretrain --data {archive} --run {new}                 | is a zip file: unpack it first
train.pretrain --data {broken_set} --run {new}              | is missing: prepare {broken_set} again
train.pretrain --data {text} --run {folder}                 | exists and is not a run: name another folder
train.pretrain --data {text} --run {corpus}                 | exists and is not a run: name another folder
train.pretrain --data {text} --run /dev/null/x              | /dev/null
train.pretrain --data {text} --tokenizer {nowhere} --run {new} | {nowhere} does not exist: give a SentencePiece model
train.pretrain --data {text} --tokenizer {corpus} --run {new}  | is not a SentencePiece model, or is damaged
train.pretrain --data {text} --tokenizer {folder} --run {new}  | tokenizer.model does not exist
train.pretrain --data {text} --device cuda --run {new}      | --device cuda: torch sees no CUDA device here; use --device cpu
<TRAIN> --model.num_attention_heads 7                       | hidden_size | is not a multiple of num_attention_heads 7
<TRAIN> --model.hidden_size 32 --model.num_attention_heads 32  | head_dim 1 | must be even for RoPE
<TRAIN> --model.num_key_value_heads 3                       | is not a multiple of num_key_value_heads 3
<TRAIN> --model.max_position_embeddings 64                  | --model.max_position_embeddings 64 is shorter than a row
<TRAIN> --model.num_hidden_layers 1000000 | 1,000,000 layers | GB of memory, and this machine has | smaller model
<TRAIN> --model.hidden_size 1000000000 --model.num_attention_heads 8 | GB of memory, and this machine has
<TRAIN> --model.max_position_embeddings 1000000000000       | GB of memory, and this machine has
# fine-tuning
train.sft --base {nowhere} --data {pairs} --run {new} | {nowhere} is no checkpoint: expected a run
train.sft --base {folder} --data {pairs} --run {new}        | {folder} is no checkpoint
train.sft --base {young} --data {pairs} --run {new}         | {young} has no checkpoint that can be used yet: train it first
train.sft --base {qwen} --data {pairs} --run {new}          | model_type is 'qwen2'; only llama is supported
train.sft --base {model} --tokenizer {tokenizer} --run {new} | --tokenizer is for --base none: {model} has its own
train.sft --base {model} --data {pairs} --run {new} --sequence_length 1024 | --sequence_length 1024: the model's context is
train.sft --base none --epochs inf                          | --epochs: 'inf' is not valid; expected a finite number
train.sft --base none --epochs null --max_steps null        | give --epochs or --max_steps
train.sft --base none --data replay --run {new}             | --data replay: is mixed into something, such as csl+replay:0.1
train.sft --base none --data {pairs}+replay --run {new}     | there is no base to have any
train.sft --base none --data {text} --run {new}             | is text without questions and answers: pretrain on it
<TUNE> --sequence_length 8 --batch_tokens 64                | no example fits a row of 8 tokens: raise --sequence_length
# preparing
data.prepare                                                | --tokenizer: is required | --out: is required
data.prepare --source wikis --input {corpus}                | --source wikis: there is no such source; there are wikipedia
data.prepare --source                                       | --source takes one name, not nothing
data.prepare --input {corpus}                               | --input: say first what it is, with --source NAME
data.prepare --source jsonl                                 | --source jsonl: needs --input FILE
data.prepare --source jsonl --input                         | --input needs files, folders, globs, or hub
data.prepare --source csl --input hub <INTO> | source csl has no place on the hub; give its files
data.prepare --source jsonl --input {nowhere} --tokenizer {tokenizer} --out {new}  | --input {nowhere}: there is no such file
data.prepare --source jsonl --input {folder}/*.gz --tokenizer {tokenizer} --out {new} | no file matches it
data.prepare --source jsonl --input {folder} --tokenizer {tokenizer} --out {new} | there are no files in it
data.prepare --source jsonl --input /dev/zero --tokenizer {tokenizer} --out {new} | /dev/zero: is a pipe or a device
data.prepare --source jsonl --input {empty} --tokenizer {tokenizer} --out {new}  | there is not one record in the inputs
data.prepare --source redgpt --input {corpus} <INTO> | records cannot be read | is it the right --source?
data.prepare --source redgpt --input {corpus} --source jsonl --input {corpus} <INTO> | holds one kind of records
<FROM> --out {model}                                        | exists and is no shard set; give another --out
<FROM> --out {pairs}                                        | is already prepared otherwise | give another --out
data.prepare --source jsonl --input {corpus} --tokenizer {tokenizer} --out {corpus}/x | {corpus} | a part of this path is a file
data.prepare --source jsonl --input {corpus} --tokenizer {tokenizer} --out {long}   | the name is too long
<PREPARE> --limit -1                                        | --limit: -1 is not valid; expected greater than or equal to 1
<PREPARE> --workers 0                                       | --workers: 0 is not valid
<PREPARE> --validation nan                                  | --validation: 'nan' is not valid; expected a finite number
<PREPARE> --validation 0.9                                  | --validation: 0.9 is not valid
<PREPARE> --quarantine_share 2                              | --quarantine_share: 2 is not valid
<PREPARE> --clean.minimum_letters x                         | --clean.minimum_letters: 'x' is not valid
<PREPARE> --clean.minimum_characters 100000 | {corpus}: none of 30 records is left to train on (too_short 30); a document has
# downloading
data.download wikipedi | DATA=wikipedi: there is no such data set; did you mean wikipedia
data.download csl lcsts                                     | unrecognized arguments: lcsts
data.download csl --token x                                 | --token: there is no such option; did you mean --tokenizer?
data.download --parts                                       | --parts: expected one argument
data.download csl --parts x --tokenizer {tokenizer}         | --parts x: there is no such part
data.download csl --tokenizer {nowhere}                     | --tokenizer {nowhere}: no such file or folder
# tokenizers
data.tokenizer                                              | required: train|import|export|inspect
data.tokenizer learn                                        | invalid choice: 'learn'
data.tokenizer train                                        | required: --out
data.tokenizer train --out {new} --vocabulary 10            | --vocabulary 10: must be between 260 and
data.tokenizer train --out {new} --vocabulary 1000000000000 | --vocabulary 1000000000000: must be between 260 and
data.tokenizer train --out {new} --longest 1000000000000    | --longest 1000000000000: must be between 1 and 512
data.tokenizer train --out {new} --vocabulary x             | --vocabulary: invalid int value: 'x'
data.tokenizer train --out {new} --coverage nan             | --coverage nan: must be between 0.98 and 1
data.tokenizer train --out {new} --input {corpus} --vocabulary 100000 | this text supports at most
data.tokenizer train --out {new} --input {empty} --source jsonl       | there is no text in it to learn a vocabulary from
data.tokenizer import --input {corpus} --out {new}          | is not a SentencePiece model, or is damaged
data.tokenizer import --input {tokenizer} --out {corpus}    | {corpus} | is there already and no folder
data.tokenizer export --tokenizer {nowhere} --out {new}     | {nowhere} does not exist: give a SentencePiece model
data.tokenizer inspect --tokenizer {tokenizer} --input {corpus} --source x | --source x: there is no such source
# evaluation
evaluate --checkpoint {nowhere}                             | {nowhere} does not exist: name a run with RUN=runs/NAME
evaluate --checkpoint {model}                               | {model} is neither a run nor one of its steps
evaluate                                                    | there is no run with a checkpoint in runs/: make pretrain first
evaluate --checkpoint {young} --limit 0                     | --limit 0: at least 1
evaluate.perplexity                                         | required: --checkpoint
evaluate.perplexity --chekpoint x --checkpoint {model} | --chekpoint: there is no such option; did you mean --checkpoint?
evaluate.perplexity --checkpoint {nowhere} --data {text}    | {nowhere} is no checkpoint
evaluate.perplexity --checkpoint {qwen} --data {text}       | model_type is 'qwen2'; only llama is supported
evaluate.perplexity --checkpoint {cut} --data {text}        | model.safetensors cannot be read
evaluate.perplexity --checkpoint {other_shape} --data {text} | does not fit its config.json
evaluate.perplexity --checkpoint {other_vocabulary} --data {text} | the tokenizer has 8192 pieces, the model 100
evaluate.perplexity --checkpoint {no_tokenizer} --data {text} | tokenizer.model does not exist
evaluate.perplexity --checkpoint {damaged} --data {text} | is damaged (sha256 differs from the manifest)
<SCORE> | {model} does not say what it was trained on: name a shard set with --data
<SCORE> --data {nowhere}                                    | {nowhere} is not a prepared shard set
<SCORE> --data {text} --split test                          | --split: invalid choice: 'test'
<SCORE> --source jsonl                                      | --source and --input belong together
<SCORE> --source jsonl --input {nowhere}                    | --input {nowhere}: there is no such file or folder
<SCORE> --source jsonl --input {empty}                      | fewer than two tokens, nothing to score
<SCORE> --data {text} --limit 1                             | --limit 1: at least 2 tokens of text are needed
<SCORE> --data {text} --limit x                             | --limit: invalid int value: 'x'
<SCORE> --data {text} --json {folder}                       | {folder}: is a folder; name a file to write
<SCORE> --data {text} --json {corpus}/x.json                | {corpus} is no folder that may be written to; name another file
evaluate.rouge                                              | say what is scored: --checkpoint RUN, --baseline NAME
evaluate.rouge --checkpoint {nowhere}                       | {nowhere} does not exist: name a run
evaluate.rouge --baseline first20                           | say what is scored
evaluate.rouge --baseline last20 --source csl --input {corpus} | --baseline: invalid choice: 'last20'
evaluate.rouge --baseline first20 --source jsonl --input {corpus} | --source jsonl has documents; this measures summaries
evaluate.rouge --baseline first20 --source csl --input {corpus}   | there is no record of csl in it
evaluate.rouge --score {nowhere}                            | {nowhere} cannot be read: No such file or directory
evaluate.rouge --score {folder}                             | {folder} cannot be read: Is a directory
evaluate.rouge --score {empty}                              | has no lines; a line is
evaluate.rouge --score {corpus}                             | line 1: there is no text 'prediction' in it
evaluate.rouge --score {surrogate}                          | line 1: not valid JSON
evaluate.rouge --score {corpus} --checkpoint {model}        | leave out --checkpoint
evaluate.rouge --checkpoint {model} --source csl --input {tsv} --beams 0  | --beams 0: at least 1
evaluate.rouge --checkpoint {model} --source csl --input {tsv} --limit -3 | --limit -3: at least 1
evaluate.rouge --checkpoint {model} --source csl --input {tsv} --predictions {folder} | is a folder; name a file to write
evaluate.reading --checkpoint {model}                       | --checkpoint RUN --source redgpt --input FILE
evaluate.reading --checkpoint {model} --source csl --input {tsv} | --source csl has summaries; this measures conversations
evaluate.repetition                                         | say what is measured
evaluate.repetition --checkpoint {model}                    | --checkpoint needs questions
evaluate.repetition --score {corpus} --json {folder}        | is a folder; name a file to write
evaluate.trigram                                            | one of the arguments --data --checkpoint is required
evaluate.trigram --data {folder}                            | {folder} is not a prepared shard set
evaluate.trigram --data {text} --checkpoint {model}         | not allowed with argument
evaluate.report                                             | required: RUN
evaluate.report {nowhere}                                   | {nowhere} does not exist; name folders that training made
evaluate.report {folder}                                    | {folder} is no run: it has no run.json
evaluate.report {young} --out {corpus}/x                    | cannot be written | name another place
evaluate.report {broken_run}                                | run.json cannot be read as JSON
# talking
chat --checkpoint {nowhere}                                 | {nowhere} is no checkpoint
chat --checkpoint {qwen}                                    | model_type is 'qwen2'
chat --checkpoint {model} --temperature hot                 | --temperature hot：要一个 0 到 5 之间的数
chat --checkpoint {model} --top_p nan                       | --top_p nan：要一个 0 到 1 之间的数
chat --checkpoint {model} --seed -1                         | --seed -1：要一个不小于 0 的整数
chat --checkpoint {model} --reference x --wikipedia y       | not allowed with argument --reference
chat --checkpoint {model} --reference-file {nowhere}        | {nowhere}：读不了这个文件
chat --checkpoint {model} --reference-file {binary}         | 不是 UTF-8 文本
chat --tempreature 1 | --tempreature: there is no such option; did you mean --temperature?
# measuring speed
bench.train --contenders gpt5                               | --contenders gpt5: there is no such contender
bench.train --steps 1                                       | --steps 1: must be at least 2
bench.train --json {folder}                                 | is a folder; name a file to write
bench.sft --data {nowhere}                                  | {nowhere} is not a prepared shard set
bench.soak                                                  | required: what
bench.soak train --minutes nan                              | --minutes nan: must be above 0
bench.soak chat                                             | chat needs a model that talks: --checkpoint
bench.loss --precision int3                                 | --precision: invalid choice: 'int3'
bench.loss --tokens -1                                      | --tokens -1: must be at least 1
"""
SHORT = {"<TRAIN>": TRAIN, "<TUNE>": TUNE, "<PREPARE>": PREPARE, "<SCORE>": SCORE,
         "<FROM>": PREPARE.removesuffix(" --out {new}"),
         "<INTO>": "--tokenizer {tokenizer} --out {new}"}
ROWS = [line.split("|", 1) for line in TABLE.strip().splitlines() if not line.startswith("#")]


@pytest.fixture(scope="module")
def places(root: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """What the table names, by name."""
    folder = tmp_path_factory.mktemp("places")
    made = {name: folder / name for name in (
        "corpus", "tsv", "empty", "folder", "nowhere", "huge", "binary", "archive", "surrogate", "text", "pairs", "broken_set",
        "model", "qwen", "cut", "other_shape", "other_vocabulary", "no_tokenizer", "damaged", "young", "broken_run",
        *(f"{kind}_yaml" for kind in ("list", "date", "deep", "bomb", "number", "code")))}
    made["tokenizer"] = root / "assets" / "tokenizer"
    made["corpus"].write_text("".join(
        json.dumps({"text": f"第{n}篇：春天来了，村里的人都出门去看花。{chr(0x4e00 + 7 * n) * 30}"}) + "\n" for n in range(30)))
    made["tsv"].write_text("".join(f"标题{n}\t文章{n}{chr(0x4e00 + n) * 40}\n" for n in range(30)), encoding="utf-8")
    made["empty"].touch()
    made["folder"].mkdir()
    (made["folder"] / ".hidden").touch()  # an empty folder may become a run, or a shard set
    made["huge"].write_text("# " + "x" * (2 << 20))
    made["binary"].write_bytes(b"\xff\xfe\0")
    made["archive"].write_bytes(b"PK\x03\x04rest")
    made["surrogate"].write_text('{"prediction": "\\ud800", "reference": "a"}\n')
    for kind, text in {
        "list": "- 1", "date": "note: 2024-13-45", "deep": "[" * 20_000, "number": "1: 2", "code": "a: !!python/name:os.system",
        "bomb": "a: &a [x,x]\n" + "".join(f"{b}: &{b} [*{a},*{a}]\n" for a, b in zip("abcdefgh", "bcdefghi", strict=True)),
    }.items():
        made[f"{kind}_yaml"].write_text(text)
    options = PrepareOptions(workers=1)
    prepare_groups([Group("jsonl", (str(made["corpus"]),))], made["text"], made["tokenizer"], options)
    prepare_groups([Group("csl", (str(made["tsv"]),))], made["pairs"], made["tokenizer"], options)
    shutil.copytree(made["text"], made["broken_set"])
    next(made["broken_set"].glob("train-*.offsets.npy")).unlink()
    _models(made)
    write_json(made["young"] / "run.json", {"fingerprints": {}, "shards": []})
    (made["broken_run"]).mkdir()
    (made["broken_run"] / "run.json").write_text("{")
    assert not torch.cuda.is_available()
    return {**{name: str(path) for name, path in made.items()}, "long": str(folder / ("x" * 5000)), "brackets": "[" * 5000,
            "digits": "1" * 5000}


def _models(made: dict[str, Path]) -> None:
    """A checkpoint that is sound, and copies with a fault each."""
    config = LlamaConfig(vocab_size=8192, hidden_size=32, intermediate_size=64, num_hidden_layers=1, num_attention_heads=2,
                         num_key_value_heads=2, max_position_embeddings=512)
    made["model"].mkdir()
    checkpoints.save(Llama(config).initialise(0), Tokenizer.load(made["tokenizer"]), made["model"])
    for name in ("qwen", "cut", "other_shape", "other_vocabulary", "no_tokenizer", "damaged"):
        shutil.copytree(made["model"], made[name])
    for name, change in {"qwen": {"model_type": "qwen2"}, "other_shape": {"intermediate_size": 48},
                         "other_vocabulary": {"vocab_size": 100}}.items():
        write_json(made[name] / "config.json", {**config.to_hf(), **change})
    (made["no_tokenizer"] / "tokenizer.model").unlink()
    weights = made["cut"] / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    write_sealed(made["damaged"] / "manifest.json", {"files": {"model.safetensors": {
        "bytes": (made["damaged"] / "model.safetensors").stat().st_size, "sha256": "0" * 64}}})


def test_the_table_is_one() -> None:
    """Prevents rows that are skipped by the way they are written."""
    assert len(ROWS) > 150 and all(len(row) == 2 and row[1].strip() for row in ROWS)
    assert {row[0].split()[0].split(".")[0] for row in ROWS} >= {"data", "evaluate", "chat", "bench"}


@pytest.mark.parametrize(("command", "expected"), ROWS, ids=[row[0].strip() for row in ROWS])
def test_a_mistake_is_one_line_that_names_it(
    places: dict[str, str], root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
    command: str, expected: str,
) -> None:
    """A traceback, a usage text of ten lines, exit code 0 or 1, or half a run left behind that then is in the way."""
    for short, long in SHORT.items():
        command = command.replace(short, long)
    new = tmp_path / "new"
    words = [word.format(**places, new=new) for word in shlex.split(command)]
    if "--config" not in words and words[0].startswith("train."):
        words += ["--config", str(root / "configs" / f"{words[0].removeprefix('train.')}.yaml")]
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", words)
    monkeypatch.setattr("builtins.input", lambda *_: pytest.fail("the command went on to talk"))
    name = {"evaluate": "evaluate.__main__", "chat": "chat.__main__"}.get(words[0], words[0])
    sys.argv = words
    with pytest.raises(SystemExit) as left:
        run_main(importlib.import_module(name).main)
    said = [line for line in capsys.readouterr().err.replace("\r", "\n").split("\n") if line.strip() and "it/s" not in line
            and "B/s" not in line and not line.startswith(("模型", "提示", "preparing:", "reading:", "scoring:", "turns:"))]
    assert left.value.code == 2, said
    parts = [part.strip().format(**places, new=new) for part in expected.split(" | ")]
    assert all(part in "\n".join(said) for part in parts), said
    # One line a mistake: only an invocation without any required option makes two.
    assert said and all(line.startswith("error: ") for line in said)
    assert len(said) == (2 if words == ["data.prepare"] else 1)
    assert not new.exists()


@pytest.mark.slow
@pytest.mark.parametrize(("command", "expected"), [
    ("train.pretrain --max_stepz 3", "--max_stepz: there is no such option"),
    ("data.download --parts", "--parts: expected one argument"),
    ("evaluate.perplexity --checkpoint nowhere", "nowhere is no checkpoint"),
    ("chat --checkpoint nowhere", "nowhere is no checkpoint"),
])
def test_the_commands_themselves_end_so(root: Path, command: str, expected: str) -> None:
    done = subprocess.run([sys.executable, "-m", *shlex.split(command)], cwd=root, capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("error: ") and expected in done.stderr and done.stderr.count("\n") == 1


@pytest.mark.slow
def test_make_passes_a_mistake_on(root: Path, tmp_path: Path) -> None:
    """make's own code for a failed command is 2, whatever the command's; its line must not hide the command's."""
    # What the make that runs the tests was told is not for the one inside a test.
    environment = {key: value for key, value in os.environ.items() if key not in ("MAKEFLAGS", "MAKEOVERRIDES", "ARGS")}
    for target, expected in (("pretrain DATA=wikipedi", "did you mean wikipedia"), ("evaluate RUN=nowhere", "does not exist")):
        done = subprocess.run(["make", "-o", "setup", *target.split()], cwd=root, capture_output=True, text=True, timeout=120,
                              env=environment)
        assert done.returncode == 2 and expected in done.stderr and "Traceback" not in done.stderr


def test_mixes_of_other_weights_are_other_runs() -> None:
    """One that is taken for the other, and refused for its data."""
    from train.entry import run_name

    assert run_name("sft", "csl+lcsts") == Path("runs/sft-csl+lcsts") != run_name("sft", "csl:0.5+lcsts")


def test_another_tokenizer_for_a_run_that_has_one_is_refused(places: dict[str, str], tmp_path: Path, root: Path) -> None:
    """`--tokenizer` on a continued run, silently ignored."""
    from common.errors import UserError
    from train.base import _check_tokenizer

    run, own = tmp_path / "run", Path(places["model"])
    run.mkdir()
    (run / "config.yaml").write_text("tokenizer: gone\n")
    _check_tokenizer(None, run, own)
    _check_tokenizer(Path("gone"), run, own)
    _check_tokenizer(root / "assets" / "tokenizer", run, own)
    with pytest.raises(UserError, match="elsewhere does not exist"):
        _check_tokenizer(tmp_path / "elsewhere", run, own)
    data = bytearray((root / "assets" / "tokenizer" / "tokenizer.model").read_bytes())
    from sentencepiece import sentencepiece_model_pb2

    other = sentencepiece_model_pb2.ModelProto()
    other.ParseFromString(bytes(data))
    del other.pieces[-1]
    (tmp_path / "other.model").write_bytes(other.SerializeToString())
    with pytest.raises(UserError, match="was made with another tokenizer; leave --tokenizer out"):
        _check_tokenizer(tmp_path / "other.model", run, own)
