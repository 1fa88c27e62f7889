"""Options: a value is either understood exactly or answered by one clear line for each mistake."""

import json
from pathlib import Path
from typing import Annotated, Any, Literal

import pytest
from pydantic import Field, ValidationError, field_validator

from common.errors import UserError, run_main
from common.options import (
    CliPositionalArg,
    CliSuppress,
    CliVariadicArg,
    CommaSeparated,
    Options,
    OutputFile,
    default_values,
    load_yaml,
    merge_layers,
    parse_options,
    validate_options,
)


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


class One(Options):
    folder: CliPositionalArg[Path]
    run: Path


class Optional(Options):
    name: CliPositionalArg[str | None] = None


def read(*words: str, schema: Any = Job, config: bool = True, **more: Any) -> Any:
    return parse_options(
        schema, words, name="x.y", description="Does x.", has_config_file=config, **more
    )


def mistakes(*words: str, schema: Any = Job, **more: Any) -> list[str]:
    with pytest.raises(UserError) as caught:
        read(*words, schema=schema, **more)
    return str(caught.value).splitlines()


def yaml_file(tmp_path: Path, text: str) -> str:
    path = tmp_path / "c.yaml"
    path.write_text(text, encoding="utf-8")
    return str(path)


def help_of(capsys: pytest.CaptureFixture[str], schema: Any = Job, config: bool = True) -> str:
    with pytest.raises(SystemExit) as left:
        read("--help", schema=schema, config=config)
    assert left.value.code == 0
    return capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "key", "value"),
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
def test_a_value_on_the_command_line_is_read_as_its_type(
    words: list[str], key: str, value: object
) -> None:
    assert getattr(read(*words), key) == value


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
def test_a_value_in_yaml_is_read_as_its_type(
    tmp_path: Path, text: str, key: str, value: object
) -> None:
    """Prevents YAML turning text that looks like a number, date or boolean into something else."""
    assert getattr(read("--config", yaml_file(tmp_path, text)), key) == value


def test_layers_are_merged_key_by_key(tmp_path: Path) -> None:
    """Prevents one key of a group in YAML from resetting the rest of the group."""
    path = yaml_file(tmp_path, "seed: 4\noptimizer: {betas: [0.1, 0.2]}\n")
    options = read("--config", path, "--optimizer.lr", "1e-3", "--amp=false")
    assert options.optimizer == Optimizer(lr=1e-3, name="muon", betas=(0.1, 0.2))
    assert (options.seed, options.amp) == (4, False)
    assert merge_layers({"a": {"b": 1}}, {"a": 2}) == {"a": 2} and merge_layers(
        {"a": 2}, {"a": {"b": 1}}
    ) == {"a": {"b": 1}}


def test_an_empty_yaml_gives_the_defaults_that_help_shows(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = " ".join(help_of(capsys).split())
    options = read("--config", yaml_file(tmp_path, ""))
    assert options == read() == Job()
    assert options.optimizer.lr == 0.02 and "learning rate (default: 0.02)" in text
    assert options.targets == ("q", "v") and "--targets str (default: q,v)" in text
    assert default_values(Job) == json.loads(Job().model_dump_json())


def test_a_resumed_run_keeps_its_options_but_for_those_given(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text("seed: 8\noptimizer: {lr: 0.5}\nrows: 16\n")
    seen = []

    def recorded(values: dict[str, Any]) -> Path | None:
        seen.append(values["run"])
        path = Path(values["run"] or "nowhere") / "config.yaml"
        return path if path.is_file() else None

    options = read("--run", str(tmp_path), "--seed", "2", find_recorded_options=recorded)
    assert (options.seed, options.optimizer.lr, options.optimizer.name, options.rows) == (
        2,
        0.5,
        "muon",
        16,
    )
    assert seen == [str(tmp_path)]
    file = tmp_path / "mine.yaml"
    file.write_text(f"run: {tmp_path}\nrows: 4\n")
    assert read("--config", str(file), find_recorded_options=recorded).rows == 4
    assert read(find_recorded_options=recorded) == Job()


def test_all_mistakes_of_single_options_are_reported_together(tmp_path: Path) -> None:
    lines = mistakes(
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
            "--optimizer.lrr: there is no such option; did you mean --optimizer.lr?",
            "--seed: 'many' is not valid; expected a whole number",
            "--optimizer.name: 'sgd' is not valid; expected 'adamw' or 'muon'",
            "'stray' stands alone: options are written --key value",
            "--note: needs a value (--note VALUE)",
        ]
    )
    path = yaml_file(tmp_path, "seeed: 1\noptimizer: {lr: 0}\n")
    assert mistakes("--config", path, "--rowz", "1") == [
        "--rowz: there is no such option; did you mean --rows?",
        "--optimizer.lr: '0' is not valid; expected more than 0",
        "--seeed: there is no such option; did you mean --seed?",
    ]


def test_conflicts_are_reported_together_once_all_values_are_valid() -> None:
    both = ["--rows 6 is not a multiple of --length 4", "give --epochs or --steps"]
    assert mistakes("--rows", "6", "--epochs", "null") == both
    assert mistakes("--rows", "6", "--epochs", "null", "--seed", "x") == [
        "--seed: 'x' is not valid; expected a whole number"
    ]
    assert mistakes("--part.first", "3") == ["--part.first lies behind --part.last"]
    assert mistakes("--part.first", "3", "--sed", "1") == [
        "--sed: there is no such option; did you mean --seed?"
    ]
    with pytest.raises(ValidationError):
        Job(rows=6)


@pytest.mark.parametrize(
    ("words", "line"),
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
        (["--seed.x", "3"], "--seed.x: there is no such option; did you mean --seed?"),
        (["--optimizer.betas", "[0.9]"], "--optimizer.betas.1: is required"),
        (
            ["--steps", "x"],
            "--steps: 'x' is not valid; expected 'auto' or a whole number",
        ),
        (["--completely_else", "1"], "--completely_else: there is no such option; see --help"),
        (["--optim", "1"], "--optim: there is no such option; see --help"),
        (["--see", "2"], "--see: there is no such option; did you mean --seed?"),
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
def test_each_mistake_names_its_option_and_what_is_expected(words: list[str], line: str) -> None:
    assert mistakes(*words) == [line]


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
def test_a_broken_config_is_one_line_with_its_name(tmp_path: Path, text: str, part: str) -> None:
    path = yaml_file(tmp_path, text)
    (line,) = mistakes("--config", path)
    assert line.startswith(f"--config {path}: ") and part in line


def test_a_config_that_is_missing_or_not_utf8_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "gbk.yaml").write_bytes("名: 值".encode("gb18030"))
    for name in ("none.yaml", "gbk.yaml", "."):
        with pytest.raises(UserError, match="--config"):
            load_yaml(tmp_path / name)
    assert mistakes("--config", "none.yaml", "--sed", "1") == [
        "--sed: there is no such option; did you mean --seed?",
        "--config none.yaml: no such file",
    ]
    assert mistakes("--config", yaml_file(tmp_path, "1: 2")) == [
        "--1: there is no such option; see --help"
    ]


def test_a_command_without_a_config_file_has_no_such_option(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert mistakes("--config", "x", config=False) == [
        "--config: there is no such option; see --help"
    ]
    assert "--config" not in help_of(capsys, config=False)


def test_positional_arguments_lists_and_files_to_write(tmp_path: Path) -> None:
    options = read(
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
    assert mistakes(schema=Files) == ["RUNS: is required"]
    assert mistakes(
        "a", "--json", str(tmp_path), "--out", "/dev/null/x", "--jsom", "1", schema=Files
    ) == [
        "--jsom: there is no such option; did you mean --json?",
        "--out: /dev/null/x cannot be written: /dev/null is not a writable folder; "
        "name another file",
        f"--json: {tmp_path} is a folder; name a file to write",
    ]
    assert mistakes(schema=One) == ["FOLDER: is required", "--run: is required"]
    assert read("x", "--run", "y", schema=One) == One(folder=Path("x"), run=Path("y"))
    assert mistakes("x", "z", "--run", "y", schema=One) == [
        "'z' stands alone: options are written --key value"
    ]
    assert (read(schema=Optional).name, read("csl", schema=Optional).name) == (None, "csl")


def test_help_names_every_option_with_type_default_and_meaning(
    capsys: pytest.CaptureFixture[str],
) -> None:
    text = " ".join(help_of(capsys).split())
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
    text = help_of(capsys, Files, config=False)
    assert (
        "usage: python -m x.y RUNS [--option value]" in text
        and "turn" not in text
        and "--json Path" in text
    )
    assert "(required)" in help_of(capsys, One)


def test_values_do_not_change_after_parsing() -> None:
    with pytest.raises(ValidationError, match="frozen"):
        read().seed = 2
    assert validate_options(Job, {"seed": "2"}).seed == 2


def test_the_environment_does_not_set_options(monkeypatch: pytest.MonkeyPatch) -> None:
    """Prevents `SEED=3` in a shell changing a run: pydantic-settings can read the environment."""
    monkeypatch.setenv("SEED", "8")
    monkeypatch.setenv("seed", "8")
    assert read().seed == 0


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
