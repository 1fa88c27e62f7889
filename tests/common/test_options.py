"""Options: each value is parsed exactly, or rejected with one clear line."""

import json
import os
from pathlib import Path
from typing import Annotated, Any, Literal

import pytest
from pydantic import Field, ValidationError, field_validator

from common.errors import UserError
from common.options import (
    CliPositionalArg,
    CliSuppress,
    CliVariadicArg,
    CommaSeparated,
    Options,
    OutputFile,
    OutputPage,
    default_values,
    merge_layers,
    parse_options,
    validate_options,
)
from common.yaml_files import load_yaml


class Optimizer(Options):
    lr: float = Field(3e-4, gt=0, description="learning rate")
    betas: tuple[float, float] = (0.9, 0.95)
    name: Literal["adamw", "muon"] = "adamw"


class Part(Options):
    first: int = Field(1, gt=0)
    last: int = Field(2, gt=0)

    def find_conflicts(self) -> list[str]:
        return ["--part.first lies behind --part.last"] if self.first > self.last else []


class Base(Options):
    rows: int = Field(8, gt=0)
    length: int = Field(4, gt=1)

    def find_conflicts(self) -> list[str]:
        return (
            [f"--rows {self.rows} is not a multiple of --length {self.length}"]
            if self.rows % self.length
            else []
        )


class Job(Base):
    run: Path | None = None
    origin: Path | Literal["none"] | None = None
    seed: int = Field(0, description="100 % of the randomness")
    amp: bool = True
    tied: bool | None = None
    note: str | None = Field(None, description="purpose of the run")
    inputs: tuple[str, ...] = ()
    targets: Annotated[tuple[str, ...], CommaSeparated] = ("q", "v")
    mode: Literal["on", "off"] = "off"
    steps: Literal["auto"] | int = "auto"
    epochs: float | None = 1.0
    # A group whose defaults differ from those of its class.
    optimizer: Optimizer = Optimizer(lr=0.02, name="muon")
    part: Part = Part()

    @field_validator("seed")
    @classmethod
    def _even(cls, value: int) -> int:
        if value % 2:
            raise ValueError("expected an even number")
        return value

    def find_conflicts(self) -> list[str]:
        lines = super().find_conflicts()
        if self.epochs is None and self.steps == "auto":
            lines.append("give --epochs or --steps")
        return lines


class Files(Options):
    runs: CliPositionalArg[tuple[Path, ...]] = Field(description="folders of runs")
    extra: CliVariadicArg[tuple[str, ...]] = Field((), description="more files")
    out: OutputFile = Path("report")
    quiet: bool = False
    turn: CliSuppress[str | None] = None
    json_file: OutputFile | None = Field(None, alias="json", description="figures")


class Page(Options):
    page: OutputPage | None = None


class One(Options):
    folder: CliPositionalArg[Path]
    run: Path


class Optional(Options):
    name: CliPositionalArg[str | None] = None


def parse(*arguments: str, schema: Any = Job, config: bool = True, **settings: Any) -> Any:
    """Return the options of a command."""
    return parse_options(
        schema, arguments, name="x.y", description="Does x.", has_config_file=config, **settings
    )


def parse_errors(*arguments: str, schema: Any = Job, **settings: Any) -> list[str]:
    """Return the lines of the error of a command line."""
    with pytest.raises(UserError) as error_info:
        parse(*arguments, schema=schema, **settings)
    return str(error_info.value).splitlines()


def write_yaml(tmp_path: Path, text: str) -> str:
    path = tmp_path / "c.yaml"
    path.write_text(text, encoding="utf-8")
    return str(path)


def read_help(capsys: pytest.CaptureFixture[str], schema: Any = Job, config: bool = True) -> str:
    with pytest.raises(SystemExit) as exit_info:
        parse("--help", schema=schema, config=config)
    assert exit_info.value.code == 0
    return capsys.readouterr().out


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "key", "value"),
    [
        (["--seed", "-2"], "seed", -2),
        (["--seed=4"], "seed", 4),
        (["--note", "2024"], "note", "2024"),
        (["--note", "是"], "note", "是"),
        (["--note", "a: b"], "note", "a: b"),
        (["--note", "null"], "note", None),
        (["--note", "#7"], "note", "#7"),
        (["--note", ""], "note", ""),
        (["--note=--x"], "note", "--x"),
        (["--note", "-x"], "note", "-x"),
        (["--note", "on"], "note", "on"),
        (["--note", "[a, b]"], "note", "[a, b]"),
        (["--note", 'a\\b "c"'], "note", 'a\\b "c"'),
        (["--run", "123"], "run", Path("123")),
        (["--run", "2024-01-01"], "run", Path("2024-01-01")),
        (["--run", "\udcff"], "run", Path("\udcff")),
        (["--origin", "none"], "origin", "none"),
        (["--origin", "nones"], "origin", Path("nones")),
        (["--inputs", '[a, 2024, "b,c"]'], "inputs", ("a", "2024", "b,c")),
        (["--inputs", "a,b", "--inputs", "2024"], "inputs", ("a,b", "2024")),
        (["--inputs", "[]"], "inputs", ()),
        (["--inputs", "["], "inputs", ("[",)),
        (["--inputs", '"是"'], "inputs", ('"是"',)),
        (["--targets", "q, k"], "targets", ("q", "k")),
        (["--targets", "[q, k]"], "targets", ("q", "k")),
        (["--mode", "on"], "mode", "on"),
        (["--steps", "10"], "steps", 10),
        (["--steps", "auto"], "steps", "auto"),
        (["--amp", "false"], "amp", False),
        (["--amp=false"], "amp", False),
        (["--amp"], "amp", True),
        (["--amp", "--seed", "2"], "seed", 2),
        (["--tied", "true"], "tied", True),
        (["--seed", "2", "--seed", "4"], "seed", 4),
        (["--optimizer.lr", "1e-3"], "optimizer", Optimizer(lr=1e-3, name="muon")),
        (
            ["--optimizer.betas", "[0.5, 0.6]"],
            "optimizer",
            Optimizer(lr=0.02, name="muon", betas=(0.5, 0.6)),
        ),
    ],
)
def test_command_line_value_is_parsed_by_the_type_of_its_field(
    arguments: list[str], key: str, value: object
) -> None:
    """Prevents text, paths and lists that look like YAML from being changed or refused."""
    assert getattr(parse(*arguments), key) == value


@pytest.mark.parametrize(
    ("text", "key", "value"),
    [
        ("run: 2024-01-01", "run", Path("2024-01-01")),
        ("run: 123", "run", Path("123")),
        ("note: 2024-01-01", "note", "2024-01-01"),
        ("note: 1:30", "note", "1:30"),
        ("note: null", "note", None),
        ("note: 'null'", "note", "null"),
        ("mode: on", "mode", "on"),
        ("amp: no", "amp", False),
        ("amp: false", "amp", False),
        ("inputs: [a, 1e3]", "inputs", ("a", "1e3")),
        ("targets: q,k", "targets", ("q", "k")),
        ("steps: 10", "steps", 10),
        ("epochs: 3e-4", "epochs", 3e-4),
        ("", "seed", 0),
    ],
)
def test_yaml_value_is_parsed_by_the_type_of_its_field(
    tmp_path: Path, text: str, key: str, value: object
) -> None:
    """Prevents YAML from turning text into a number, a date or a boolean."""
    assert getattr(parse("--config", write_yaml(tmp_path, text)), key) == value


def test_layers_are_merged_key_by_key(tmp_path: Path) -> None:
    """Prevents one key of a group in YAML from resetting the rest of the group."""
    path = write_yaml(tmp_path, "seed: 4\noptimizer: {betas: [0.1, 0.2]}\n")
    options = parse("--config", path, "--optimizer.lr", "1e-3", "--amp=false")
    assert options.optimizer == Optimizer(lr=1e-3, name="muon", betas=(0.1, 0.2))
    assert (options.seed, options.amp) == (4, False)
    assert merge_layers({"a": {"b": 1}}, {"a": 2}) == {"a": 2} and merge_layers(
        {"a": 2}, {"a": {"b": 1}}
    ) == {"a": {"b": 1}}


def test_empty_yaml_gives_the_defaults_of_the_help(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Prevents a YAML from running with other defaults than `--help` shows."""
    text = " ".join(read_help(capsys).split())
    options = parse("--config", write_yaml(tmp_path, ""))
    assert options == parse() == Job()
    assert options.optimizer.lr == 0.02 and "learning rate (default: 0.02)" in text
    assert options.targets == ("q", "v") and "--targets str (default: q,v)" in text
    assert default_values(Job) == json.loads(Job().model_dump_json())


def test_recorded_options_lie_between_defaults_and_config(tmp_path: Path) -> None:
    """Prevents a resumed run from falling back to the defaults."""
    (tmp_path / "config.yaml").write_text("seed: 8\noptimizer: {lr: 0.5}\nrows: 16\n")
    seen = []

    def recorded(values: dict[str, Any]) -> Path | None:
        seen.append(values["run"])
        path = Path(values["run"] or "nowhere") / "config.yaml"
        return path if path.is_file() else None

    options = parse("--run", str(tmp_path), "--seed", "2", find_recorded_options=recorded)
    assert (options.seed, options.optimizer.lr, options.optimizer.name, options.rows) == (
        2,
        0.5,
        "muon",
        16,
    )
    assert seen == [str(tmp_path)]
    file = tmp_path / "mine.yaml"
    file.write_text(f"run: {tmp_path}\nrows: 4\n")
    assert parse("--config", str(file), find_recorded_options=recorded).rows == 4
    assert parse(find_recorded_options=recorded) == Job()


def test_file_of_another_command_gives_the_options_that_both_have(tmp_path: Path) -> None:
    """Prevents a planner that refuses the file of a run, or overlooks a wrong value in it."""
    file = tmp_path / "run.yaml"
    file.write_text("seed: 4\nother: 3\noptimizer: {lr: 0.5, momentum: 0.9}\n")
    with pytest.raises(UserError, match="--other: unknown option"):
        parse("--config", str(file))
    options = parse("--config", str(file), "--mode", "on", ignores_unknown_keys=True)
    assert (options.seed, options.mode) == (4, "on")
    assert (options.optimizer.lr, options.optimizer.name) == (0.5, "muon")
    file.write_text("seed: 5\nother: 3\n")
    with pytest.raises(UserError, match="--seed: expected an even number"):
        parse("--config", str(file), ignores_unknown_keys=True)


def test_all_wrong_options_are_reported_together(tmp_path: Path) -> None:
    """Prevents a user from fixing one option only to be told of the next."""
    lines = parse_errors(
        "--optimizer.lrr",
        "1",
        "--seed",
        "many",
        "--optimizer.name",
        "sgd",
        "stray",
        "--note",
        "--rows=6",
    )
    assert sorted(lines) == sorted(
        [
            "--optimizer.lrr: unknown option; did you mean --optimizer.lr?",
            "--seed: 'many' is not valid; expected a whole number",
            "--optimizer.name: 'sgd' is not valid; expected 'adamw' or 'muon'",
            "'stray' stands alone: options are written --key value",
            "--note: needs a value (--note VALUE)",
        ]
    )
    path = write_yaml(tmp_path, "seeed: 1\noptimizer: {lr: 0}\n")
    assert parse_errors("--config", path, "--rowz", "1") == [
        "--rowz: unknown option; did you mean --rows?",
        "--optimizer.lr: '0' is not valid; expected more than 0",
        "--seeed: unknown option; did you mean --seed?",
    ]


def test_conflicts_are_reported_once_all_values_are_valid() -> None:
    """Prevents a conflict with a default in place of a misspelled option."""
    both = ["--rows 6 is not a multiple of --length 4", "give --epochs or --steps"]
    assert parse_errors("--rows", "6", "--epochs", "null") == both
    assert parse_errors("--rows", "6", "--epochs", "null", "--seed", "x") == [
        "--seed: 'x' is not valid; expected a whole number"
    ]
    assert parse_errors("--part.first", "3") == ["--part.first lies behind --part.last"]
    assert parse_errors("--part.first", "3", "--sed", "1") == [
        "--sed: unknown option; did you mean --seed?"
    ]
    with pytest.raises(ValidationError):
        Job(rows=6)


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["--seed", "3"], "--seed: expected an even number"),
        (
            ["--seed", "1.5"],
            "--seed: '1.5' is not valid; expected a whole number",
        ),
        (
            ["--optimizer.lr", "-1e-3"],
            "--optimizer.lr: '-1e-3' is not valid; expected more than 0",
        ),
        (["--optimizer.lr", "nan"], "--optimizer.lr: 'nan' is not valid; expected a finite number"),
        (
            ["--optimizer", "3"],
            "--optimizer: is a group of options, not a value; write --optimizer.KEY VALUE",
        ),
        (
            ["--optimizer"],
            "--optimizer: is a group of options, not a value; write --optimizer.KEY VALUE",
        ),
        (["--seed.x", "3"], "--seed.x: unknown option; did you mean --seed?"),
        (["--optimizer.betas", "[0.9]"], "--optimizer.betas.1: is required"),
        (
            ["--steps", "x"],
            "--steps: 'x' is not valid; expected 'auto' or a whole number",
        ),
        (["--completely_else", "1"], "--completely_else: unknown option; see --help"),
        (["--optim", "1"], "--optim: unknown option; see --help"),
        (["--see", "2"], "--see: unknown option; did you mean --seed?"),
        (
            ["--amp", "maybe"],
            "--amp: 'maybe' is not valid; expected true or false",
        ),
        (["--tied"], "--tied: needs a value (--tied VALUE)"),
        (["--config"], "--config: needs a value (--config VALUE)"),
        (["-x"], "'-x' stands alone: options are written --key value"),
        (
            ["--seed", "x" * 500],
            "--seed: '" + "x" * 79 + "… is not valid; expected a whole number",
        ),
    ],
)
def test_error_names_the_option_and_the_expected_value(arguments: list[str], line: str) -> None:
    """Prevents an error without the option, the value, or what it may be."""
    assert parse_errors(*arguments) == [line]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("a: [", "not readable as YAML"),
        ("- a\n- b\n", "expected keys and values, found list"),
        ("a: b: c", "not readable"),
        ("\x00", "not readable"),
        ("3", "expected keys and values, found str"),
        ("[" * 3000, "recursion"),
        ("a: &a [x, x]\nb: [*a, *a]", "aliases (*name) are not read"),
        ("a: !!python/name:os.system", "constructor"),
        ("# " + "x" * (2 << 20), "is larger than 1 MB"),
        ("? [a]\n: 1", "not readable as YAML"),
    ],
)
def test_broken_config_is_one_line_with_its_path(tmp_path: Path, text: str, part: str) -> None:
    """Prevents a traceback, code execution or gigabytes from a hostile YAML."""
    path = write_yaml(tmp_path, text)
    (line,) = parse_errors("--config", path)
    assert line.startswith(f"--config {path}: ") and part in line


def test_missing_or_undecodable_config_is_one_line(tmp_path: Path) -> None:
    """Prevents a traceback for a wrong path or a file in another encoding."""
    (tmp_path / "gbk.yaml").write_bytes("名: 值".encode("gb18030"))
    for name in ("none.yaml", "gbk.yaml", "."):
        with pytest.raises(UserError, match="--config"):
            load_yaml(tmp_path / name)
    assert parse_errors("--config", "none.yaml", "--sed", "1") == [
        "--sed: unknown option; did you mean --seed?",
        "--config none.yaml: no such file",
    ]
    assert parse_errors("--config", write_yaml(tmp_path, "1: 2")) == [
        "--1: unknown option; see --help"
    ]


def test_command_without_config_file_refuses_the_option(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Prevents a --config that is accepted and ignored."""
    assert parse_errors("--config", "x", config=False) == ["--config: unknown option; see --help"]
    assert "--config" not in read_help(capsys, config=False)


def test_positionals_lists_and_output_files(tmp_path: Path) -> None:
    """Prevents an output path that fails after an hour of work."""
    options = parse(
        "a,b",
        "2024",
        "--extra",
        "c,d",
        "null",
        "--json",
        f"{tmp_path}/x.json",
        "--quiet",
        schema=Files,
    )
    assert (options.runs, options.extra, options.quiet) == (
        (Path("a,b"), Path("2024")),
        ("c,d", "null"),
        True,
    )
    assert options.json_file == tmp_path / "x.json" and options.out == Path("report")
    assert parse_errors(schema=Files) == ["RUNS: is required"]
    assert parse_errors(
        "a", "--json", str(tmp_path), "--out", "/dev/null/x", "--jsom", "1", schema=Files
    ) == [
        "--jsom: unknown option; did you mean --json?",
        "--out: /dev/null/x cannot be written: /dev/null is not a writable folder; "
        "name another file",
        f"--json: {tmp_path} is a folder; name a file to write",
    ]
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    # /dev/stdout is a link to a regular file where the output is redirected to one.
    for special in (str(pipe), "/dev/stdout"):
        assert parse_errors("a", "--json", special, schema=Files) == [
            f"--json: {special} is a device or a pipe; name a file to write"
        ]
    assert parse_errors(schema=One) == ["FOLDER: is required", "--run: is required"]
    assert parse("x", "--run", "y", schema=One) == One(folder=Path("x"), run=Path("y"))
    assert parse_errors("x", "z", "--run", "y", schema=One) == [
        "'z' stands alone: options are written --key value"
    ]
    assert (parse(schema=Optional).name, parse("csl", schema=Optional).name) == (None, "csl")


def test_output_that_root_cannot_write_either_is_refused() -> None:
    """Prevents a path without room for files from failing after an hour of work of root."""
    assert parse_errors("a", "--json", "/proc/x/y", schema=Files) == [
        "--json: /proc/x/y cannot be written: /proc is not a writable folder; name another file"
    ]


def test_page_is_checked_by_its_files(tmp_path: Path) -> None:
    """Prevents a page that fails after an hour of work because PAGE.html is a folder."""
    assert parse("--page", f"{tmp_path}/x", schema=Page).page == tmp_path / "x"
    (tmp_path / "x.html").mkdir()
    assert parse_errors("--page", f"{tmp_path}/x", schema=Page) == [
        f"--page: {tmp_path}/x.html is a folder; name a file to write"
    ]
    assert list(tmp_path.iterdir()) == [tmp_path / "x.html"]


def test_help_shows_type_default_and_description(
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Prevents help without a default, or with an internal option."""
    text = " ".join(read_help(capsys).split())
    for part in (
        "usage: python -m x.y [--option value]",
        "Does x.",
        "--seed int 100 % of the randomness (default: 0)",
        "--mode {on,off} (default: off)",
        "--optimizer.name {adamw,muon} (default: muon)",
        "--config FILE",
        "--note str purpose of the run --inputs str",
        "--amp [true|false] (default: true)",
        "optimizer options:",
    ):
        assert part in text, part
    text = read_help(capsys, Files, config=False)
    assert (
        "usage: python -m x.y RUNS [--option value]" in text
        and "turn" not in text
        and "--json Path" in text
    )
    assert "(required)" in read_help(capsys, One)


def test_options_are_frozen() -> None:
    """Prevents a value that changes after it was recorded."""
    with pytest.raises(ValidationError, match="frozen"):
        parse().seed = 2
    assert validate_options(Job, {"seed": "2"}).seed == 2


def test_environment_does_not_set_options(monkeypatch: pytest.MonkeyPatch) -> None:
    """Prevents `SEED=3` in a shell changing a run: pydantic-settings can read the environment."""
    monkeypatch.setenv("SEED", "8")
    monkeypatch.setenv("seed", "8")
    assert parse().seed == 0
