"""`python -m bench.gpu`, `make check-gpu`: check this project on a GPU, in order of worth; see docs/gpu.md."""

import sys
from pathlib import Path

from pydantic import Field, field_validator

from bench.gpu.checks import BY_NAME, CHECKS
from bench.gpu.results import JSON, PAGE
from bench.gpu.runner import Runner, probe
from bench.gpu.training import Plan, train_and_score
from common.errors import run_main
from common.options import CliVariadicArg, Device, Options, parse_options

OUT = Path("runs") / "check-gpu"
DESCRIPTION = """Check this project on a GPU: equality with the CPU first, then memory, then speed. Each check is a process
of its own; its result is written when it ends, so that a run that was cut off leaves what it found, and the same command
goes on with the checks that have no verdict. Exit status 1 if a check failed or timed out. With --train no check is made."""


class GpuOptions(Options):
    """Options of `python -m bench.gpu`."""

    device: Device = Field(
        "auto", description="where to run; cpu: the same checks with small shapes, to try the code"
    )
    out: Path = Field(OUT, description=f"folder of {JSON} and {PAGE}")
    work: Path | None = Field(
        None, description="folder of runs and other large files (default: OUT-work)"
    )
    minutes: float | None = Field(
        None, gt=0, description="start no check and train no further after so many minutes"
    )
    only: CliVariadicArg[tuple[str, ...]] = Field(
        (), description="only these checks, also those that have a verdict"
    )
    list_checks: bool = Field(False, alias="list", description="print the checks and exit")
    train: float | None = Field(
        None,
        gt=0,
        description="pretrain, fine-tune and score for so many minutes; run it again to resume",
    )
    data: str = Field("sample", description="text to pretrain on, with --train")
    tune: str = Field("csl", description="data to fine-tune on, with --train")
    keep_weights: bool = Field(False, description="copy the trained weights into OUT, with --train")

    @field_validator("only")
    @classmethod
    def _check_names(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for name in value:
            if name not in BY_NAME:
                raise ValueError(
                    f"there is no check {name}; python -m bench.gpu --list prints them"
                )
        return value


def main() -> int:
    """Entry point."""
    options = parse_options(GpuOptions, sys.argv[1:], name="bench.gpu", description=DESCRIPTION)
    if options.list_checks:
        for check in CHECKS:
            print(f"{check.name:22} {check.title}")
        return 0
    out = options.out
    work = (options.work or out.with_name(f"{out.name}-work")).resolve()
    work.parent.mkdir(parents=True, exist_ok=True)
    device = probe(options.device, work.parent)
    shapes = ", small shapes" if device.kind == "cpu" else ""
    print(f"{device.name}, torch {device.torch}{shapes}; results in {out}", flush=True)
    if options.train is not None:
        plan = Plan(
            out / "train",
            work.with_name(f"{work.name}-train"),
            device.kind,
            options.data,
            options.tune,
        )
        return train_and_score(plan, options.train, keep_weights=options.keep_weights)
    runner = Runner(out, work, device)
    if runner.results.put_aside:
        print(f"what was there is of another device, torch or source: put aside as previous-{JSON}")
    checks = (
        [BY_NAME[name] for name in options.only] if options.only else runner.results.pending(CHECKS)
    )
    left = runner.run(checks, options.minutes)
    if left:
        print(f"{len(left)} checks are left, {left[0]} first: the same command goes on with them")
    bad = runner.results.bad
    if bad:
        print(
            f"failed: {', '.join(bad)}; send {out / JSON} and {out / PAGE} (docs/gpu.md says how)"
        )
    return int(bool(bad))


if __name__ == "__main__":
    run_main(main)
