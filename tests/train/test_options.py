"""The options of training: configuration files, defaults, and values that contradict each other."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from common.errors import UserError
from common.options import (
    Options,
    default_values,
    merge_layers,
    parse_options,
    validate_options,
)
from common.yaml_files import load_yaml
from data.prepare.options import PrepareOptions
from train.options import PretrainOptions, SftOptions

CONFIGS = sorted((Path(__file__).parent.parent.parent / "configs").glob("*.yaml"))
SCHEMAS: dict[str, type[Options]] = {
    "pretrain": PretrainOptions,
    "sft": SftOptions,
    "instructions": SftOptions,
}


@pytest.mark.parametrize("config", CONFIGS, ids=lambda path: path.stem)
def test_config_files_parse_with_their_command(config: Path) -> None:
    """Prevent a key renamed in the code alone, for which the command refuses the file."""
    schema = SCHEMAS[config.stem.partition("-")[0]]
    validate_options(schema, merge_layers(default_values(schema), load_yaml(config, as_text=True)))


@pytest.mark.parametrize("schema", [PretrainOptions, SftOptions, PrepareOptions])
def test_empty_config_gives_the_defaults_of_the_model(
    schema: type[Options], tmp_path: Path
) -> None:
    """Prevent a short YAML that trains with other values than `--help` shows."""
    (tmp_path / "empty.yaml").write_text("")
    arguments = ["--config", str(tmp_path / "empty.yaml")]
    options = parse_options(schema, arguments, name="x", description="", has_config_file=True)
    assert options == schema()


@pytest.mark.slow
@pytest.mark.parametrize("schema", [PretrainOptions, SftOptions])
def test_config_of_one_line_changes_one_value(schema: type[Options], tmp_path: Path) -> None:
    """Prevent a group of which a YAML sets one value, and the others are not those of `--help`."""
    config = tmp_path / "one.yaml"
    groups = [value for value in default_values(schema).items() if isinstance(value[1], dict)]
    assert len(groups) > 4
    for group, defaults in groups:
        [(key, value), *_] = defaults.items()
        config.write_text(yaml.safe_dump({group: {key: value}}))
        arguments = ["--config", str(config)]
        options = parse_options(schema, arguments, name="x", description="", has_config_file=True)
        assert options == schema(), group


@pytest.mark.parametrize(
    ("values", "advice"),
    [
        ({"batch_tokens": 1000, "sequence_length": 512}, "1024 would be"),
        ({"micro_batch": 0}, "more than 0|above 0"),
        ({"micro_batch": "many"}, "auto"),
        ({"model": {"preset": "gpt5"}}, "babyllama-43m"),
        ({"sequence_length": 1}, "more than 1|above 1"),
        ({"schedule": {"warmup": 0.6, "decay": 0.6}}, "may not exceed 1"),
    ],
)
def test_invalid_option_errors_suggest_valid_values(values: dict[str, Any], advice: str) -> None:
    """Prevent a run that fails an hour later, or that trains something else."""
    with pytest.raises(UserError, match=advice):
        validate_options(PretrainOptions, values)


def test_an_adapter_needs_a_base() -> None:
    """Prevent random weights that are frozen for good."""
    with pytest.raises(UserError, match=r"^--adapter lora: .*--base none"):
        validate_options(SftOptions, {"adapter": "lora", "base": "none"})
    with pytest.raises(UserError) as caught:
        validate_options(SftOptions, {"adapter": "lara", "lora": {"targets": "qproj"}})
    lines = str(caught.value).splitlines()
    assert [line.split(":")[0] for line in lines] == ["--adapter", "--lora.targets.0"]


def test_rates_of_fine_tuning_depend_on_the_data_unless_given() -> None:
    """Prevents rates for summaries that replace those of a command line, or are never used."""
    arguments = ["--optimizer.lr", "1e-3", "--optimizer.clip", "2"]
    given = parse_options(SftOptions, arguments, name="train.sft", description="")
    optimizer = given.optimizer.resolve(has_summaries=True)
    assert (optimizer.lr, optimizer.muon_lr, optimizer.clip) == (1e-3, 2e-2, 2.0)
    defaults = parse_options(SftOptions, [], name="train.sft", description="")
    for has_summaries, rates in ((True, (3e-3, 2e-2)), (False, (5e-4, 6e-3))):
        optimizer = defaults.optimizer.resolve(has_summaries=has_summaries)
        assert (optimizer.lr, optimizer.muon_lr) == rates


@pytest.mark.parametrize("schema", [PretrainOptions, SftOptions])
def test_all_checkpoints_can_be_kept(schema: type[Any], tmp_path: Path) -> None:
    """Prevents a run that records `all` in its config.yaml and cannot be resumed."""
    arguments = ["--checkpoint.keep", "all"]
    given = parse_options(schema, arguments, name="train", description="")
    assert given.checkpoint.keep == "all"
    recorded = tmp_path / "config.yaml"
    recorded.write_text(yaml.safe_dump(given.model_dump(mode="json")))
    for more, keep in (([], "all"), (["--checkpoint.keep", "3"], 3)):
        resumed = parse_options(
            schema, more, name="train", description="", find_recorded_options=lambda _: recorded
        )
        assert resumed.checkpoint.keep == keep
    for value in ("0", "every", "1.5"):
        with pytest.raises(UserError, match=f"'{value}' is not valid; expected 'all' or "):
            parse_options(schema, ["--checkpoint.keep", value], name="train", description="")
