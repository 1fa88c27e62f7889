"""Write the sample corpus: `python -m assets.sample_generator --out assets/sample`."""

import sys
from pathlib import Path

from pydantic import Field, field_validator

from common.errors import run_main
from common.files import write_atomic
from common.options import Options, parse_options

DESCRIPTION = """Write the sample corpus: the project's own texts about an invented valley.

They are in the native formats of the data sources. The same command always writes the same
bytes."""


class SampleOptions(Options):
    """Options of `python -m assets.sample_generator`."""

    out: Path = Field(description="folder to write, such as assets/sample")

    @field_validator("out")
    @classmethod
    def _check_folder(cls, path: Path) -> Path:
        """Return the path. Raises ValueError if it is a file; the folder need not exist."""
        if path.exists() and not path.is_dir():
            raise ValueError(f"{path} is a file; name a folder")
        return path


def main() -> None:
    """Write the files of the sample."""
    out = parse_options(
        SampleOptions, sys.argv[1:], name="assets.sample_generator", description=DESCRIPTION
    ).out
    # Imported here so that --help and invalid options answer without loading the generator.
    from assets.sample_generator.build import build_sample

    files = build_sample()
    for name, data in sorted(files.items()):
        write_atomic(out / name, data)
    print(f"{len(files)} files, {sum(map(len, files.values())) / 1e6:.2f} MB, written to {out}")


if __name__ == "__main__":
    run_main(main)
