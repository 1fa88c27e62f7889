"""Options: what a user writes is either understood exactly or answered by one clear line for each mistake."""

from pathlib import Path
from typing import Any, Literal

import pytest
from pydantic import Field, field_validator, model_validator

from common.errors import UserError, run_main
from common.options import (
    Options,
    find_option_errors,
    format_help,
    load_yaml,
    option_fields,
    parse_options,
)
from train.options import PretrainOptions


class Optimizer(Options):
    lr: float = Field(3e-4, gt=0, description="learning rate")
    betas: tuple[float, float] = (0.9, 0.95)
    name: Literal["adamw", "muon"] = "adamw"


class Part(Options):
    first: int = Field(1, gt=0)
    last: int = Field(2, gt=0)

    @model_validator(mode="after")
    def ordered(self) -> "Part":
        if self.first > self.last:
            raise ValueError("--part.first lies behind --part.last")
        return self


class Job(Options):
    rows: int = Field(8, gt=0)
    length: int = Field(4, gt=1)
    steps: int | Literal["auto"] = "auto"
    epochs: float | None = 1.0
    optimizer: Optimizer = Optimizer()
    part: Part = Part()

    @model_validator(mode="after")
    def consistent(self) -> "Job":
        found = []
        if self.rows % self.length:
            found.append(f"--rows {self.rows} is not a multiple of --length {self.length}")
        if self.optimizer.name == "muon" and self.optimizer.lr > 0.5:
            found.append("--optimizer.lr is too high for muon")
        if found:
            raise ValueError("\n".join(found))
        return self


class Task(Job):
    @model_validator(mode="after")
    def horizon(self) -> "Task":
        if self.epochs is None and self.steps == "auto":
            raise ValueError("give --epochs or --steps")
        return self


class Run(Options):
    run: Path
    seed: int = 0
    amp: bool = True
    note: str | None = Field(None, description="what the run is for")
    inputs: tuple[str, ...] = ()
    mode: Literal["on", "off"] = "off"
    steps: int | Literal["auto"] = "auto"
    optimizer: Optimizer = Optimizer()

    @field_validator("seed")
    @classmethod
    def even(cls, value: int) -> int:
        if value % 2:
            raise ValueError("expected an even number")
        return value

    @model_validator(mode="after")
    def together(self) -> "Run":
        if self.note == "contradiction":
            raise ValueError("--note and --run contradict each other")
        return self


def read(tmp_path: Path, *words: str, config: str = "run: runs/x\n") -> tuple[Run, dict[str, Any]]:
    path = tmp_path / "config.yaml"
    path.write_text(config, encoding="utf-8")
    return parse_options(Run, words, name="x.y", description="Does x.", default_config=path)


def mistakes(tmp_path: Path, *words: str, config: str = "run: runs/x\n") -> list[str]:
    with pytest.raises(UserError) as caught:
        read(tmp_path, *words, config=config)
    return str(caught.value).splitlines()


def test_command_line_overrides_only_named_keys(tmp_path: Path) -> None:
    """Prevents one dotted override dropping the rest of its group."""
    options, said = read(
        tmp_path,
        "--optimizer.lr",
        "1e-3",
        "--amp=false",
        config="run: runs/x\nseed: 4\noptimizer: {name: muon, lr: 0.1}\n",
    )
    assert (options.optimizer.lr, options.optimizer.name, options.seed, options.amp) == (
        1e-3,
        "muon",
        4,
        False,
    )
    assert said == {"optimizer": {"lr": "1e-3"}, "amp": False}
    assert read(tmp_path, "--seed", "8", "--optimizer.lr", "0.5")[1] == {
        "seed": 8,
        "optimizer": {"lr": 0.5},
    }


@pytest.mark.parametrize(
    ("words", "key", "value"),
    [
        (["--seed", "-2"], "seed", -2),
        (["--note", "2024"], "note", "2024"),
        (["--note", "是"], "note", "是"),
        (["--note", "a: b"], "note", "a: b"),
        (["--note", "null"], "note", None),
        (["--note", "#7"], "note", "#7"),
        (["--note", ""], "note", ""),
        (["--note=--x"], "note", "--x"),
        (["--note", "on"], "note", "on"),
        (["--run", "123"], "run", Path("123")),
        (["--run", "2024-01-01"], "run", Path("2024-01-01")),
        (["--run", "1e3"], "run", Path("1e3")),
        (["--inputs", "[a, 2024]"], "inputs", ("a", "2024")),
        (["--mode", "on"], "mode", "on"),
        (["--steps", "10"], "steps", 10),
        (["--steps", "auto"], "steps", "auto"),
    ],
)
def test_values_are_parsed_by_type(
    tmp_path: Path, words: list[str], key: str, value: object
) -> None:
    """Prevents YAML turning text that looks like a number, date or boolean into something that is refused."""
    assert getattr(read(tmp_path, *words)[0], key) == value


def test_all_errors_are_reported_at_once(tmp_path: Path) -> None:
    lines = mistakes(
        tmp_path,
        "--optimizer.lrr",
        "1",
        "--seed",
        "many",
        "--optimizer.name",
        "sgd",
        "stray",
        "--amp",
    )
    assert len(lines) == 5
    text = "\n".join(lines)
    assert "--optimizer.lrr: there is no such option; did you mean --optimizer.lr?" in text
    assert "--seed: 'many' is not valid" in text
    assert "--optimizer.name: 'sgd' is not valid; expected 'adamw' or 'muon'" in text
    assert "'stray' stands alone" in text and "--amp: needs a value" in text


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("--rows 6", ["--rows 6 is not a multiple of --length 4"]),
        # Beside a wrong key, a wrong group and another validator of the same options.
        (
            "--rows 6 --stepz 3",
            [
                "--stepz: there is no such option; did you mean --steps?",
                "--rows 6 is not a multiple of --length 4",
            ],
        ),
        (
            "--rows 6 --optimizer.name sgd",
            [
                "--optimizer.name: 'sgd' is not valid; expected 'adamw' or 'muon'",
                "--rows 6 is not a multiple of --length 4",
            ],
        ),
        (
            "--rows 6 --part.first 3",
            ["--part.first lies behind --part.last", "--rows 6 is not a multiple of --length 4"],
        ),
        (
            "--part.first 3 --optimizer.lrr 1",
            [
                "--optimizer.lrr: there is no such option; did you mean --optimizer.lr?",
                "--part.first lies behind --part.last",
            ],
        ),
        (
            "--rows 6 --epochs null",
            ["--rows 6 is not a multiple of --length 4", "give --epochs or --steps"],
        ),
        (
            "--rows 6 --optimizer.name muon --optimizer.lr 0.6 --epochs null --optimizer.betas [0.9]",
            [
                "--optimizer.betas.1: is required",
                "--rows 6 is not a multiple of --length 4",
                "--optimizer.lr is too high for muon",
                "give --epochs or --steps",
            ],
        ),
        # Of what is itself wrong, nothing more is said: the default that stands in for it was not given.
        (
            "--rows x --length 3",
            [
                "--rows: 'x' is not valid; expected a valid integer, unable to parse string as an integer"
            ],
        ),
        ("--length 3 --rows 0", ["--rows: 0 is not valid; expected greater than 0"]),
        ("--part.first 3 --part.last 0", ["--part.last: 0 is not valid; expected greater than 0"]),
        (
            "--steps x",
            [
                "--steps: 'x' is not valid; expected a valid integer, unable to parse string as an integer or 'auto'"
            ],
        ),
    ],
)
def test_errors_do_not_mask_each_other(tmp_path: Path, words: str, expected: list[str]) -> None:
    """A user who mends one line only to be shown the next, or who is told of a value that he never gave."""
    path = tmp_path / "config.yaml"
    path.write_text("length: 4\n")
    with pytest.raises(UserError) as caught:
        parse_options(Task, words.split(), name="x.y", description="Does x.", default_config=path)
    assert str(caught.value).splitlines() == expected


def test_the_real_commands_report_all_problems_at_once() -> None:
    """Validators of the training options that the mechanism does not reach."""
    values = {
        "batch_tokens": 1000,
        "sequence_length": 512,
        "model": {"preset": "none"},
        "seed": "x",
        "datum": 1,
    }
    text = "\n".join(find_option_errors(PretrainOptions, values))
    for words in (
        "--batch_tokens 1000 is not a multiple",
        "--model.preset none",
        "--seed: 'x' is not",
        "mean --data?",
    ):
        assert text.count(words) == 1, text
    assert find_option_errors(PretrainOptions, {}) == []


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--seed", "3"], "--seed: expected an even number"),
        (["--seed", "1.5"], "--seed: 1.5 is not valid"),
        (["--optimizer.lr", "0"], "--optimizer.lr: 0 is not valid; expected greater than 0"),
        (["--optimizer", "3"], "--optimizer: is a group of options, not a value"),
        (["--seed.x", "3"], "--seed: {'x': 3} is not valid"),
        (["--optimizer.betas", "[0.9]"], "--optimizer.betas.1: is required"),
        (["--note", "contradiction"], "--note and --run contradict each other"),
        (["--completely_else", "1"], "--completely_else: there is no such option; see --help"),
        (["--seed", "1", "--seed.x", "3"], "--seed.x: seed was already given a value"),
    ],
)
def test_each_error_names_key_and_expected_value(
    tmp_path: Path, words: list[str], said: str
) -> None:
    lines = mistakes(tmp_path, *words)
    assert any(line.startswith(said) for line in lines), lines


def test_missing_required_key_is_named(tmp_path: Path) -> None:
    assert mistakes(tmp_path, config="seed: 2\n") == ["--run: is required"]


def test_unknown_key_in_config_file_is_an_error(tmp_path: Path) -> None:
    """Prevents a misspelt key in a config silently training with the default."""
    assert mistakes(tmp_path, config="run: x\noptimizer: {lrr: 1}\n") == [
        "--optimizer.lrr: there is no such option; did you mean --optimizer.lr?"
    ]


@pytest.mark.parametrize("text", ["a: [", "- a\n- b\n", "a: b: c", "\x00", "3"])
def test_invalid_config_file_gives_one_line_error(tmp_path: Path, text: str) -> None:
    path = tmp_path / "c.yaml"
    path.write_text(text)
    with pytest.raises(UserError) as caught:
        load_yaml(path)
    assert str(caught.value).startswith(f"--config {path}: ") and "\n" not in str(caught.value)


def test_missing_or_non_utf8_config_gives_one_line_error(tmp_path: Path) -> None:
    (tmp_path / "gbk.yaml").write_bytes("名: 值".encode("gb18030"))
    for name in ("none.yaml", "gbk.yaml", "."):
        with pytest.raises(UserError, match="--config"):
            load_yaml(tmp_path / name)
    (tmp_path / "empty.yaml").write_text("# nothing\n")
    assert load_yaml(tmp_path / "empty.yaml") == {}


def test_yaml_numbers_parsed_as_text_are_converted(tmp_path: Path) -> None:
    """Prevents `3e-4`, which YAML 1.1 takes for text, being refused as a learning rate."""
    assert read(tmp_path, config="run: x\noptimizer: {lr: 3e-4}\n")[0].optimizer.lr == 3e-4


def test_numeric_looking_yaml_path_error_explains_quoting(tmp_path: Path) -> None:
    assert "quote one that looks like a number" in mistakes(tmp_path, config="run: 123\n")[0]


def test_options_are_immutable(tmp_path: Path) -> None:
    options, _ = read(tmp_path)
    with pytest.raises(ValueError, match="frozen"):
        options.seed = 2  # type: ignore[misc]


def test_help_lists_every_key_with_default_and_description(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as left:
        read(tmp_path, "--help", config="run: runs/x\nseed: 42\n")
    assert left.value.code == 0
    text = capsys.readouterr().out
    for key in option_fields(Run):
        assert f"--{key} " in text
    assert "--seed N (default 42)" in text and "learning rate" in text and "adamw|muon" in text
    assert format_help(Run, name="x", description="d", default_config=tmp_path / "none.yaml")


@pytest.mark.parametrize(
    ("error", "code", "said"),
    [
        (UserError("one\ntwo"), 2, "error: one\nerror: two\n"),
        (KeyboardInterrupt(), 130, "interrupted\n"),
    ],
)
def test_user_error_exits_with_2_without_traceback(
    error: BaseException, code: int, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    def main() -> None:
        raise error

    with pytest.raises(SystemExit) as left:
        run_main(main)
    assert left.value.code == code and capsys.readouterr().err == said


def test_internal_error_keeps_traceback() -> None:
    def main() -> None:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        run_main(main)
