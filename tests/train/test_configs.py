"""The configuration files that come with the project."""

from pathlib import Path

import pytest

from common.options import find_option_errors, load_yaml
from data.prepare.pipeline import PrepareOptions
from train.options import PretrainOptions, SftOptions

CONFIGS = sorted((Path(__file__).parent.parent.parent / "configs").glob("*.yaml"))
SCHEMAS = {"prepare": PrepareOptions, "pretrain": PretrainOptions, "sft": SftOptions}


@pytest.mark.parametrize("config", CONFIGS, ids=lambda path: path.stem)
def test_config_files_parse_with_their_command(config: Path) -> None:
    """A key that was renamed in the code alone: the file's command refuses the file, on the machine with the GPU."""
    assert find_option_errors(SCHEMAS[config.stem.partition("-")[0]], load_yaml(config)) == []
