"""The decoding setting of a run: `decoding.json`, which `evaluate.decoding` writes."""

from pathlib import Path
from typing import Any

from common.errors import UserError
from common.files import read_checksummed_json, write_checksummed_json
from common.options import validate_options
from common.run_layout import DECODING_FILE, find_run
from evaluate.decoding.settings import Decoding

_ADVICE = ": delete it, or run python -m evaluate.decoding again"


def write_run_decoding(run: Path, decoding: Decoding, record: dict[str, Any]) -> None:
    """Write the setting of a run, with a record of how it was chosen."""
    value = {"decoding": decoding.model_dump(mode="json"), **record}
    write_checksummed_json(run / DECODING_FILE, value)


def read_run_decoding(checkpoint: Path) -> Decoding | None:
    """Return the setting of the run that `checkpoint` is or belongs to; None if it has none.

    Raises UserError if the file is damaged.
    """
    run = find_run(checkpoint)
    if run is None or not (run / DECODING_FILE).is_file():
        return None
    value = read_checksummed_json(run / DECODING_FILE, advice=_ADVICE)
    try:
        return validate_options(Decoding, value.get("decoding", {}))
    except UserError as error:
        reason = " ".join(str(error).split("\n"))
        raise UserError(f"{run / DECODING_FILE}: {reason}{_ADVICE}") from None
