"""The decoding settings of a run: `decoding.json`, which `evaluate.decoding` writes.

Its fields are the setting, `decoding`, and a record of how it was chosen. `sources` has the same
fields for each source whose texts are decoded in another way.
"""

from pathlib import Path
from typing import Any, NamedTuple

from common.errors import UserError
from common.files import read_checksummed_json, write_checksummed_json
from common.options import validate_options
from common.run_layout import DECODING_FILE, find_run
from evaluate.decoding.settings import Decoding

_ADVICE = ": delete it, and run python -m evaluate.decoding again, also with each --source"


class StoredDecoding(NamedTuple):
    """A setting of a run."""

    decoding: Decoding
    source: str | None  # whose texts alone it is for


def read_decoding_file(run: Path) -> dict[str, Any]:
    """Return the contents of the file of a run; without a file, nothing.

    Raises UserError if the file is damaged.
    """
    path = run / DECODING_FILE
    return read_checksummed_json(path, advice=_ADVICE) if path.is_file() else {}


def write_run_decoding(
    run: Path, decoding: Decoding, record: dict[str, Any], source: str | None = None
) -> None:
    """Write a setting of a run, with a record of how it was chosen.

    It is for the texts of one source, or else for those of all sources that have none of their own.
    Raises UserError if the file exists and is damaged.
    """
    stored = read_decoding_file(run)
    choice = {"decoding": decoding.model_dump(mode="json"), **record}
    sources = stored.pop("sources", {})
    if source is None:
        stored = choice
    else:
        sources[source] = choice
    write_checksummed_json(run / DECODING_FILE, {**stored, "sources": sources})


def read_run_decoding(checkpoint: Path, source: str) -> StoredDecoding | None:
    """Return how the run that `checkpoint` is or belongs to decodes texts of a source.

    None if nothing was chosen. Raises UserError if the file is damaged.
    """
    run = find_run(checkpoint)
    if run is None:
        return None
    stored = read_decoding_file(run)
    sources = stored.get("sources", {})
    choice = sources.get(source, stored)
    if "decoding" not in choice:
        return None
    try:
        decoding = validate_options(Decoding, choice["decoding"])
    except UserError as error:
        reason = " ".join(str(error).split("\n"))
        raise UserError(f"{run / DECODING_FILE}: {reason}{_ADVICE}") from None
    return StoredDecoding(decoding, source if source in sources else None)
