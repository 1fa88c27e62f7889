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
from model.config import LlamaConfig
from model.nf4 import num_bytes
from train.lr_schedule import get_lr_multiplier
from train.options import DpoOptions, GrpoOptions, PretrainOptions, SftOptions, auto_dpo_rate
from train.summariser_options import SummariserOptions

CONFIGS = sorted((Path(__file__).parent.parent.parent / "configs").glob("*.yaml"))
SCHEMAS: dict[str, type[Options]] = {
    "pretrain": PretrainOptions,
    "sft": SftOptions,
    "dpo": DpoOptions,
    "grpo": GrpoOptions,
    "qlora": SftOptions,
    "instructions": SftOptions,
    "long-43m": PretrainOptions,
    "long-7b-lora": SftOptions,
    "laptop": SummariserOptions,
    "summariser": SummariserOptions,
}

LLAMA_33B: dict[str, Any] = {
    "hidden_size": 6656,
    "intermediate_size": 17920,
    "num_hidden_layers": 60,
    "num_attention_heads": 52,
    "num_key_value_heads": 52,
    "max_position_embeddings": 2048,
    "rope_theta": 10_000.0,
    "tie_word_embeddings": False,
    "reading_heads": False,
}


@pytest.mark.parametrize("config", CONFIGS, ids=lambda path: path.stem)
def test_config_files_parse_with_their_command(config: Path) -> None:
    """Prevents a key renamed in the code alone, and a scaling without a base."""
    schema = SCHEMAS.get(config.stem) or SCHEMAS[config.stem.partition("-")[0]]
    values = merge_layers(default_values(schema), load_yaml(config, as_text=True))
    # Extending a context needs a model, which no file can name.
    if config.stem == "long-43m":
        with pytest.raises(UserError, match="name the model to go on from, BASE=RUN"):
            validate_options(schema, values)
        values["base"] = "runs/wiki"
    validate_options(schema, values)


@pytest.mark.parametrize("schema", [PretrainOptions, SftOptions, GrpoOptions, PrepareOptions])
def test_empty_config_gives_the_defaults_of_the_model(
    schema: type[Options], tmp_path: Path
) -> None:
    """Prevent a short YAML that trains with other values than `--help` shows."""
    (tmp_path / "empty.yaml").write_text("")
    arguments = ["--config", str(tmp_path / "empty.yaml")]
    options = parse_options(schema, arguments, name="x", description="", has_config_file=True)
    assert options == schema()


@pytest.mark.slow
@pytest.mark.parametrize("schema", [PretrainOptions, SftOptions, GrpoOptions])
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


def test_qlora_config_is_the_recipe_of_anima() -> None:
    """Prevent a default that replaces a number of the recipe, and a schedule that decays."""
    (config,) = (path for path in CONFIGS if path.stem == "qlora-33b")
    arguments = ["--config", str(config), "--base", "runs/guanaco-33b"]
    options = parse_options(
        SftOptions, arguments, name="train.sft", description="", has_config_file=True
    )
    lora, optimizer = options.lora, options.optimizer
    assert (lora.rank, lora.alpha, lora.dropout, len(lora.targets)) == (64, 16, 0, 7)
    assert (options.adapter, options.quantize, options.max_steps) == ("lora", "nf4", 10_000)
    assert options.batch_tokens == 16 * options.sequence_length == 16 * (512 + 512)
    assert (optimizer.lr, optimizer.clip, optimizer.weight_decay) == (1e-4, 0.3, 0)
    multipliers = [get_lr_multiplier(options.schedule, step, 10_000) for step in range(10_000)]
    assert multipliers[0] < 0.01 and multipliers[300:] == [1.0] * 9_700
    config_33b = LlamaConfig(32_000, **{**LLAMA_33B, **options.model.preset_overrides()})
    assert config_33b == LlamaConfig(32_000, **LLAMA_33B)
    # Of 24 GB, the weights take this much.
    assert num_bytes(config_33b, other_bytes=2) == pytest.approx(17.41e9, rel=0.01)


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


def test_rate_of_preferences_depends_on_the_size_unless_given() -> None:
    """Prevents a default that destroys a large model, or with which a small one stands still."""
    rates = [auto_dpo_rate(count, uses_lora=False) for count in (2e6, 43e6, 135e6, 7e9)]
    assert rates == sorted(rates, reverse=True)
    assert rates[2] == pytest.approx(1e-6) and rates[-1] > 1e-7
    assert auto_dpo_rate(135e6, uses_lora=True) == pytest.approx(1e-5)
    arguments = ["--data", "x", "--optimizer.lr", "2e-5"]
    options = parse_options(DpoOptions, arguments, name="train.dpo", description="")
    resolved = options.optimizer.resolve(num_parameters=7_000_000, uses_lora=False)
    assert (resolved.lr, resolved.name, resolved.weight_decay) == (2e-5, "adamw", 0.0)


def test_target_margin_is_refused_where_it_has_no_effect() -> None:
    """Prevents a figure for SimPO that the default loss ignores."""
    values = {"data": "x", "dpo": {"gamma": 0.5}}
    with pytest.raises(UserError, match=r"^--dpo.gamma is for --dpo.loss simpo"):
        validate_options(DpoOptions, values)
    validate_options(DpoOptions, {"data": "x", "dpo": {"gamma": 0.5, "loss": "simpo"}})
