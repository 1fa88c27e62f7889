"""Write the sample corpus: `python -m assets.sample_generator --out assets/sample`."""

from pathlib import Path

from assets.sample_generator.build import build_sample
from common.errors import UserError, run_main
from common.files import write_atomic
from common.options import CommandParser


def main() -> None:
    """Parse the command line and write the files."""
    parser = CommandParser(
        prog="python -m assets.sample_generator",
        description="Write the sample corpus: the project's own texts about an invented valley, in the native formats"
        " of the project's data sources. The same command always writes the same bytes.",
    )
    parser.add_argument(
        "--out", type=Path, required=True, help="folder to write, e.g. assets/sample"
    )
    out = parser.parse_args().out
    if out.exists() and not out.is_dir():
        raise UserError(f"--out {out}: is a file; name a folder")
    files = build_sample()
    for name, data in sorted(files.items()):
        write_atomic(out / name, data)
    print(f"{len(files)} files, {sum(map(len, files.values())) / 1e6:.2f} MB, written to {out}")


if __name__ == "__main__":
    run_main(main)
