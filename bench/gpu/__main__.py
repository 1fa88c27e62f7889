"""`python -m bench.gpu`, `make check-gpu`: check this project on a GPU; see docs/gpu.md."""

import argparse
from pathlib import Path
from typing import NoReturn

from bench.gpu.checks import BY_NAME, CHECKS
from bench.gpu.results import JSON, PAGE
from bench.gpu.runner import Runner, probe
from bench.gpu.training import Plan, train_and_score
from common.errors import UserError, run_main

OUT = Path("runs") / "check-gpu"
DESCRIPTION = """Check this project on a GPU: equality with the CPU first, then memory, then speed.

Each check is a process, and its result is written when it ends. The same command continues an
interrupted run with the checks that have no verdict. Exit status 1 if a check failed or timed out.
With --train it trains instead, and runs no check."""


class _OneLineParser(argparse.ArgumentParser):
    """An ArgumentParser that reports an invalid option in one line, without the usage."""

    def error(self, message: str) -> NoReturn:
        """See `argparse.ArgumentParser.error`."""
        raise UserError(f"{message} (see {self.prog} --help)")


def parse_arguments() -> argparse.Namespace:
    """Parse the command line. Raises UserError for an invalid value."""
    # common.options needs packages that may be missing on the machine with the GPU.
    parser = _OneLineParser(prog="python -m bench.gpu", description=DESCRIPTION, allow_abbrev=False)
    parser.add_argument(
        "--device",
        choices=("auto", "cpu", "cuda"),
        default="auto",
        help="device; cpu runs the same list with small models, to test the code (default: auto)",
    )
    parser.add_argument(
        "--out", type=Path, default=OUT, help=f"folder of {JSON} and {PAGE} (default: %(default)s)"
    )
    parser.add_argument(
        "--work", type=Path, help="folder of runs and other large files (default: OUT-work)"
    )
    parser.add_argument(
        "--minutes", type=float, help="end after this many minutes, a running check included"
    )
    parser.add_argument(
        "--only",
        nargs="+",
        metavar="NAME",
        help="only these checks, also those that have a verdict",
    )
    parser.add_argument("--list", action="store_true", help="print the checks, and run none")
    parser.add_argument(
        "--train",
        type=float,
        metavar="MINUTES",
        help="pretrain, fine-tune and score for this many minutes; the same command continues",
    )
    parser.add_argument(
        "--data", default="sample", help="--train: text to pretrain on (default: sample)"
    )
    parser.add_argument(
        "--tune", default="csl", help="--train: what to fine-tune on (default: csl)"
    )
    parser.add_argument(
        "--keep_weights", action="store_true", help="--train: copy the trained weights into OUT"
    )
    options = parser.parse_args()
    for name in options.only or ():
        if name not in BY_NAME:
            raise UserError(f"--only {name}: unknown check; see python -m bench.gpu --list")
    for name in ("minutes", "train"):
        value = getattr(options, name)
        if value is not None and value <= 0:
            raise UserError(f"--{name} {value}: must be above 0")
    return options


def main() -> int:
    """Run the command. Returns the exit code: 1 if a check, or a command of --train, failed."""
    options = parse_arguments()
    if options.list:
        for check in CHECKS:
            print(f"{check.name:22} {check.title}")
        return 0
    out = options.out
    work = (options.work or out.with_name(f"{out.name}-work")).resolve()
    work.parent.mkdir(parents=True, exist_ok=True)
    device = probe(options.device, work.parent)
    size_note = ", small models" if device.kind == "cpu" else ""
    print(f"{device.name}, torch {device.torch}{size_note}; results in {out}", flush=True)
    if options.train is not None:
        plan = Plan(
            out=out / "train",
            work=work.with_name(f"{work.name}-train"),
            device=device.kind,
            data=options.data,
            tune=options.tune,
        )
        return train_and_score(plan, options.train, keep_weights=options.keep_weights)
    runner = Runner(out, work, device)
    if runner.results.moved_previous:
        print(
            "the earlier results are of another device, torch or source: renamed to "
            f"previous-{JSON} and previous-{PAGE}"
        )
    checks = (
        [BY_NAME[name] for name in options.only] if options.only else runner.results.pending(CHECKS)
    )
    unfinished = runner.run(checks, options.minutes)
    if unfinished:
        print(
            f"{len(unfinished)} checks are left, {unfinished[0]} first: "
            "the same command goes on with them"
        )
    failures = runner.results.failures
    if failures:
        print(
            f"failed: {', '.join(failures)}; send {out / JSON} and {out / PAGE} "
            "(docs/gpu.md says how)"
        )
    return int(bool(failures))


if __name__ == "__main__":
    run_main(main)
