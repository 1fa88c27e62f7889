"""The configuration files that come with the project."""

from pathlib import Path

import pytest

from common.options import load_yaml, mistakes
from data.prepare.pipeline import PrepareOptions
from train.options import PretrainOptions, SftOptions

CONFIGS = sorted((Path(__file__).parent.parent.parent / "configs").glob("*.yaml"))
SCHEMAS = {"prepare": PrepareOptions, "pretrain": PretrainOptions, "sft": SftOptions}


@pytest.mark.parametrize("config", CONFIGS, ids=lambda path: path.stem)
def test_a_configuration_is_one_of_its_command(config: Path) -> None:
    """A key that was renamed in the code alone: the file's command refuses the file, on the machine with the GPU."""
    assert mistakes(SCHEMAS[config.stem.partition("-")[0]], load_yaml(config)) == []
