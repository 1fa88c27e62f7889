"""Write the sample corpus: `python -m assets.sample_generator --out assets/sample`."""

import sys
from pathlib import Path

from pydantic import Field

from common.errors import UserError, run_main
from common.options import Options, parse_options

DESCRIPTION = """Write the sample corpus: texts about an invented valley in the native
formats of the project's data sources. The same command always writes the same bytes."""


class SampleGeneratorOptions(Options):
    """Options of `python -m assets.sample_generator`."""

    out: Path = Field(description="folder to write, for example assets/sample")


def main() -> None:
    """Parse the command line and write the files."""
    options = parse_options(
        SampleGeneratorOptions,
        sys.argv[1:],
        name="assets.sample_generator",
        description=DESCRIPTION,
    )
    if options.out.exists() and not options.out.is_dir():
        raise UserError(f"--out {options.out}: is a file; name a folder")
    # After the options, so that --help is quick.
    from assets.sample_generator.build import build_sample
    from common.files import write_atomic

    files = build_sample()
    for name, data in sorted(files.items()):
        write_atomic(options.out / name, data)
    megabytes = sum(map(len, files.values())) / 1e6
    print(f"{len(files)} files, {megabytes:.2f} MB, written to {options.out}")


if __name__ == "__main__":
    run_main(main)
