"""`python -m model.import_hf`: a Llama from elsewhere becomes a run that trains, evaluates, talks and exports here."""

import argparse
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from common.errors import UserError, run_main
from common.files import atomic_folder, read_json, read_limited, write_checksummed_json
from common.machine import collect_environment
from common.options import CommandParser
from model.chat_template.from_jinja import UnsupportedTemplateError, infer_template
from model.chat_template.template import TEMPLATE_FILE as TEMPLATE_FILE
from model.chat_template.template import Template, template_for_tokenizer
from model.chat_template.to_jinja import build_jinja_template
from model.checkpoint import locate, weights
from model.checkpoint.adapters import ADAPTER_CONFIG_FILE
from model.config import LlamaConfig
from model.interop.hf_export import is_export
from model.llama import Llama
from model.tokenizer.base import IMPORTED_TOKENIZER_FILE, Tokenizer
from model.tokenizer.base import TOKENIZER_FILE as TOKENIZER_FILE
from model.tokenizer.imported import (
    TOKENIZER_JSON,
    ImportedTokenizer,
    build_imported_tokenizer,
    load_hf_tokenizer,
)

DESCRIPTION = """Make a run of a folder in Hugging Face's layout: config.json of a Llama without biases, safetensors (one file
or several), tokenizer.json. Nothing in it is unpickled; its chat template is run once, in a sandbox.

  python -m model.import_hf ~/models/SmolLM2-135M-Instruct --run runs/smollm2
  python -m chat --checkpoint runs/smollm2
  python -m train.pretrain --base runs/smollm2 --data corpus.jsonl --run runs/smollm2-zh
  python -m train.sft --base runs/smollm2 --data csl --run runs/smollm2-csl"""
_PICKLE_PATTERNS = ("*.bin", "*.pt", "*.pth")
GENERATION_CONFIG = "generation_config.json"
# Buffers that older versions of transformers wrote among the weights.
_IGNORED_BUFFER = "rotary_emb.inv_freq"


def main() -> None:
    """Entry point."""
    parser = CommandParser(
        prog="python -m model.import_hf",
        description=DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("folder", type=Path, help="the model's folder")
    parser.add_argument(
        "--run", type=Path, required=True, help="the run to make, such as runs/NAME"
    )
    options = parser.parse_args()
    model, tokenizer, said = import_hf(options.folder, options.run)
    config = model.config
    print(
        f"{options.run}: {config.num_parameters / 1e6:.1f}M parameters, {config.max_position_embeddings:,} positions, vocabulary "
        f"{tokenizer.vocab_size:,}; {said}"
    )


def import_hf(folder: Path, run: Path) -> tuple[Llama, Tokenizer, str]:
    """Make the run; returns its model and tokenizer, and in words which chat template it has.

    UserError if the folder is no Llama that can be used here, or the run exists.
    """
    if run.exists():
        raise UserError(f"--run {run} exists already: name a new run")
    values = _read_config(folder)
    tokenizer, template_note = _load_tokenizer(folder, values)
    ids = {
        "bos_token_id": tokenizer.bos_id,
        "eos_token_id": _collect_stop_ids(folder, values, tokenizer),
    }
    config = LlamaConfig.from_hf({**values, **ids}, str(folder / locate.CONFIG_FILE))
    if tokenizer.vocab_size > config.vocab_size:
        raise UserError(
            f"{folder}: the tokenizer has {tokenizer.vocab_size} ids, the model {config.vocab_size}: they do "
            "not belong together"
        )
    model = weights.load_model(
        folder, config, torch.device("cpu"), values, ignore_suffix=_IGNORED_BUFFER
    )
    _write_run(folder, run, model, tokenizer)
    return model, tokenizer, template_note


def _read_config(folder: Path) -> dict[str, Any]:
    if not folder.is_dir():
        raise UserError(
            f"{folder} is no folder here: download the model first, and name the folder that its "
            f"{locate.CONFIG_FILE} lies in"
        )
    values = read_json(folder / locate.CONFIG_FILE)
    has_weights = locate.has_weights(folder)
    if not has_weights and (
        pickled := sorted(path.name for form in _PICKLE_PATTERNS for path in folder.glob(form))
    ):
        raise UserError(
            f"{folder}: {pickled[0]} is pickled, which runs whatever code it holds; convert it to safetensors, for "
            "example with transformers' save_pretrained"
        )
    if locate.is_adapter(folder):
        raise UserError(
            f"{folder} is an adapter: it needs no import; import its base, write the folder of that run into "
            f"{ADAPTER_CONFIG_FILE} (base_model_name_or_path), and use the adapter as it is"
        )
    if not has_weights:
        raise UserError(
            f"{folder} has no weights: expected {locate.WEIGHTS_FILE} or {locate.WEIGHTS_INDEX_FILE}"
        )
    return (
        values
        if isinstance(values, dict)
        else LlamaConfig.from_hf(values, str(folder / locate.CONFIG_FILE)).to_hf()
    )


def _collect_stop_ids(folder: Path, values: dict[str, Any], tokenizer: Tokenizer) -> list[int]:
    """The ids at which the model stops elsewhere too, the one that ends an answer here first."""
    stop_ids = [tokenizer.eos_id, tokenizer.eod_id]
    for name, said in (
        (locate.CONFIG_FILE, values),
        (GENERATION_CONFIG, _read_generation_config(folder)),
    ):
        ids = said.get("eos_token_id")
        listed = ids if isinstance(ids, list) else [] if ids is None else [ids]
        if not all(
            isinstance(each, int) and not isinstance(each, bool) and each >= 0 for each in listed
        ):
            raise UserError(
                f"{folder / name}: eos_token_id: {ids!r} is not valid; expected an id, or a list of ids"
            )
        # Some name ids that the tokenizer does not have: nothing could be said with them.
        stop_ids += [each for each in listed if each < tokenizer.vocab_size]
    return list(dict.fromkeys(stop_ids))


def _read_generation_config(folder: Path) -> dict[str, Any]:
    said = read_json(folder / GENERATION_CONFIG) if (folder / GENERATION_CONFIG).is_file() else {}
    if not isinstance(said, dict):
        raise UserError(
            f"{folder / GENERATION_CONFIG}: expected keys and values, found {type(said).__name__}"
        )
    return said


def _load_tokenizer(folder: Path, values: dict[str, Any]) -> tuple[Tokenizer, str]:
    """The tokenizer, with the words of its chat template where they can be used, and what became of that."""
    default_note = "the project's own template"
    ours = (
        is_export(folder)
        or (folder / IMPORTED_TOKENIZER_FILE).is_file()
        or (folder / TEMPLATE_FILE).is_file()
    )
    if ours or not (folder / TOKENIZER_JSON).is_file():
        return _load_native_tokenizer(folder), "the template of the folder" if (
            folder / TEMPLATE_FILE
        ).is_file() else default_note
    tokenizer = load_hf_tokenizer(folder, values)
    source = _read_chat_template(folder, tokenizer)
    if not source:
        return tokenizer, f"{default_note}: it has no chat template"
    if source == build_jinja_template(Template()):  # saved again by another program
        return tokenizer, default_note
    if not isinstance(source, str):
        return (
            tokenizer,
            f"{default_note}: it has several chat templates, of which none can be chosen here",
        )
    try:
        template, end = infer_template(source, tokenizer)
    except UnsupportedTemplateError as reason:
        return (
            tokenizer,
            f"{default_note}: its chat template cannot be used ({' '.join(str(reason).split())[:200]})",
        )
    kept = {**tokenizer.tokenizer_config, "chat_template": source}
    return build_imported_tokenizer(
        tokenizer.definition,
        kept,
        tokenizer.bos_id,
        end,
        tokenizer.unk_id,
        asdict(template),
        folder / TOKENIZER_JSON,
    ), "its own chat template"


def _read_chat_template(folder: Path, tokenizer: ImportedTokenizer) -> Any:
    """The Jinja source in a folder; several under their names, or nothing, where it has that."""
    file = folder / "chat_template.jinja"
    try:
        return (
            read_limited(file).decode()
            if file.is_file()
            else tokenizer.tokenizer_config.get("chat_template")
        )
    except UnicodeDecodeError as error:
        raise UserError(
            f"{file} is not UTF-8 text ({error.reason} at byte {error.start}): save it as UTF-8, or remove it "
            "to do without it"
        ) from None


def _load_native_tokenizer(folder: Path) -> Tokenizer:
    """The tokenizer of a folder that this project exported."""
    if not (folder / IMPORTED_TOKENIZER_FILE).is_file() and not (folder / TOKENIZER_FILE).is_file():
        raise UserError(
            f"{folder} has no {TOKENIZER_JSON}: save the tokenizer beside the model, for example with transformers' "
            "AutoTokenizer.from_pretrained(…).save_pretrained(…)"
        )
    tokenizer = Tokenizer.load(folder)
    if (
        tokenizer.file_name == TOKENIZER_FILE
        and tokenizer.serialized != (folder / TOKENIZER_FILE).read_bytes()
    ):
        # Normalised it gives other ids than the model was trained on.
        raise UserError(
            f"{folder}: {TOKENIZER_FILE} alone does not say how texts were cut; save {TOKENIZER_JSON} beside it, for "
            "example with transformers' AutoTokenizer.from_pretrained(…).save_pretrained(…)"
        )
    return tokenizer


def _write_run(folder: Path, run: Path, model: Llama, tokenizer: Tokenizer) -> None:
    run_info = {
        "made": collect_environment(torch.device("cpu")),
        "imported_from": str(folder),
        "shards": [],
        "fingerprints": {
            "data": [],
            "tokenizer": tokenizer.fingerprint,
            "model": model.config.to_hf(),
        },
    }
    with atomic_folder(run) as run_folder:
        step = locate.step_folder(run_folder, 0)
        with atomic_folder(
            step, {"format": "babyllama-checkpoint-1", "step": 0}
        ) as checkpoint_folder:
            weights.save_checkpoint(model, tokenizer, checkpoint_folder)
            if (folder / TEMPLATE_FILE).is_file():
                Template.load(folder).save(checkpoint_folder)
            elif tokenizer.template_fields:
                template_for_tokenizer(tokenizer).save(checkpoint_folder)
        write_checksummed_json(run_folder / "run.json", run_info)


if __name__ == "__main__":
    run_main(main)
