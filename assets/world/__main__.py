"""Write the sample corpus: `python -m assets.world --out assets/sample`."""

import argparse
from pathlib import Path

from assets.world.build import build
from common.errors import run_main
from common.files import write_atomic


def main() -> None:
    """Parse the command line and write the files."""
    parser = argparse.ArgumentParser(
        prog="python -m assets.world",
        description="Write the sample corpus: the project's own texts about an invented valley, in the native formats"
        " of the project's data sources. The same command always writes the same bytes.")
    parser.add_argument("--out", type=Path, required=True, help="folder to write, e.g. assets/sample")
    out = parser.parse_args().out
    files = build()
    for name, data in sorted(files.items()):
        write_atomic(out / name, data)
    print(f"{len(files)} files, {sum(map(len, files.values())) / 1e6:.2f} MB, written to {out}")


if __name__ == "__main__":
    run_main(main)
