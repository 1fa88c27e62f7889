"""The configuration files that come with the project, and the defaults below them."""

from pathlib import Path

import pytest

from common.options import default_values, load_yaml, merge_layers, parse_options, validate_options
from data.prepare.options import PrepareOptions
from train.options import PretrainOptions, SftOptions

CONFIGS = sorted((Path(__file__).parent.parent.parent / "configs").glob("*.yaml"))
SCHEMAS = {"pretrain": PretrainOptions, "sft": SftOptions}


@pytest.mark.parametrize("config", CONFIGS, ids=lambda path: path.stem)
def test_config_files_parse_with_their_command(config: Path) -> None:
    """Prevents a key renamed in the code alone, for which the command refuses the file."""
    schema = SCHEMAS[config.stem.partition("-")[0]]
    validate_options(schema, merge_layers(default_values(schema), load_yaml(config, as_text=True)))


@pytest.mark.parametrize("schema", [PretrainOptions, SftOptions, PrepareOptions])
def test_empty_config_gives_the_defaults_of_the_model(schema, tmp_path: Path) -> None:
    """Prevents a short YAML that trains with other values than `--help` shows."""
    (tmp_path / "empty.yaml").write_text("")
    arguments = ["--config", str(tmp_path / "empty.yaml")]
    options = parse_options(schema, arguments, name="x", description="", has_config_file=True)
    assert options == schema()
