"""Raw corpora → a shard set: read, clean, deduplicate, encode, split.

The parent process reads and hands out parts (`data.prepare.worker`); workers make them into tokens; then duplicates are found
over all of them and what stays is copied into shards (`data.prepare.write_shards`). Until the shard set is whole, everything lies
in `.NAME.work` beside it, and the same command goes on where it was interrupted. The shard set is the same bytes
whatever the number of workers and however often it was interrupted.

    python -m data.prepare --source NAME --input FILE… [--source NAME --input FILE…] --tokenizer PATH --out DIR
"""

import contextlib
import fcntl
import glob
import itertools
import json
import shutil
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from common.errors import UserError
from common.files import (
    MANIFEST,
    name_path_in_errors,
    read_checksummed_json,
    read_json,
    remove_temporary_files,
    write_checksummed_json,
    write_json,
)
from common.machine import num_cores, peak_memory_bytes
from common.progress import progress_bar
from data.prepare.dedup import minhash_permutations
from data.prepare.options import PrepareOptions
from data.prepare.worker import (
    UNIT_BYTES,
    WorkUnit,
    load_unit_manifest,
    split_into_units,
    unit_folder,
)
from data.prepare.worker_pool import open_worker_pool
from data.prepare.write_shards import write_shard_set
from data.readers.source_args import SourceGroup
from data.records import Kind
from data.shards import REPORT_FILE, SHARD_FORMAT
from data.sources import find_source
from model.chat_template.template import load_template
from model.tokenizer import load_tokenizer
from model.tokenizer.base import Tokenizer

# Raise this when a change makes other ids of the same records: sets prepared by another version are prepared again.
PREPARE_VERSION = 1


def prepare_source(
    source: str, inputs: list[str], out: Path, tokenizer: Path, options: PrepareOptions
) -> dict[str, Any]:
    """Prepare one source's inputs (files, folders, globs, `hub`) as the shard set `out`; returns the report."""
    return prepare_groups([SourceGroup(source, tuple(inputs))], out, tokenizer, options)


def prepare_groups(
    groups: Sequence[SourceGroup], out: Path, tokenizer: Path, options: PrepareOptions
) -> dict[str, Any]:
    """Prepare several sources into one shard set, in their order; returns the report.

    An `out` that is already this preparation is left as it is. UserError if it is something else, if inputs cannot be
    read, or if more than `quarantine_share` of the records are bad.
    """
    start_time = time.monotonic()
    loaded_tokenizer = load_tokenizer(tokenizer)
    # Lead-ins are drawn when examples are built: the prepared set does not depend on them.
    template = replace(load_template(tokenizer), lead_ins=False)
    kind = _resolve_kind(groups)
    identity = _build_identity(groups, loaded_tokenizer, options)
    if (report := _load_existing_report(out, identity)) is not None:
        shutil.rmtree(_work_folder_path(out), ignore_errors=True)
        return report
    with _open_work_folder(out, identity) as work:
        loaded_tokenizer.save(work)
        template.save(work)
        unit_manifests, peak = _process_units(groups, work, options)
        _check_quarantine(work / "parts", unit_manifests, options.quarantine_share)
        manifest_fields = {
            "sources": identity["inputs"],
            "preparation": identity,
            "code": PREPARE_VERSION,
        }
        report = write_shard_set(
            out,
            work / "parts",
            unit_manifests,
            loaded_tokenizer,
            template,
            kind,
            options.dedup,
            options.validation,
            manifest_fields,
        )
        if not report["kept"]:
            # The work must not stand in the way of other options.
            shutil.rmtree(work)
            raise _empty_result_error(groups, report, options)
        seconds = time.monotonic() - start_time
        report |= {
            "seconds": round(seconds, 1),
            "megabytes_per_second": round(report["bytes"] / 1e6 / seconds, 2),
            "workers": options.workers or num_cores(),
            "peak_memory_parent": peak_memory_bytes(),
            "peak_memory_worker": peak,
        }
        # After the manifest, which therefore does not know it: seconds are no part of what was prepared.
        write_checksummed_json(out / REPORT_FILE, report)
        shutil.rmtree(work)
    return report


def _resolve_kind(groups: Sequence[SourceGroup]) -> Kind:
    """What all sources of a preparation yield. UserError where they differ."""
    kinds = {group.source: find_source(group.source).kind for group in groups}
    if len(set(kinds.values())) > 1:
        said = ", ".join(f"{source} {kind}" for source, kind in kinds.items())
        raise UserError(
            f"--source: one shard set holds one kind of records ({said}); prepare them apart and mix them in "
            "training: --data one+other"
        )
    return next(iter(kinds.values()))


def _empty_result_error(
    groups: Sequence[SourceGroup], report: dict[str, Any], options: PrepareOptions
) -> UserError:
    first, *others = (text for group in groups for text in group.inputs)
    name = f"{first} and {len(others):,} more" if others else first
    if not report["records"]:
        return UserError(f"{name}: there is not one record in the inputs")
    reasons = (
        ", ".join(f"{reason} {count}" for reason, count in report["dropped"].items())
        or "all quarantined"
    )
    least = (
        (
            f"; a document has at least {options.clean.minimum_characters:,} characters (data.prepare "
            "--clean.minimum_characters)"
        )
        if "too_short" in report["dropped"]
        else ""
    )
    return UserError(
        f"{name}: none of {report['records']:,} records is left to train on ({reasons}){least}"
    )


def _build_identity(
    groups: Sequence[SourceGroup], tokenizer: Tokenizer, options: PrepareOptions
) -> dict[str, Any]:
    """Everything the shard set's bytes depend on."""
    return {
        "inputs": [{"source": group.source, **group.summarize()} for group in groups],
        "tokenizer": tokenizer.fingerprint,
        "options": options.model_dump(
            mode="json", include={"limit", "validation", "clean", "dedup"}
        ),
    }


def _load_existing_report(out: Path, identity: dict[str, Any]) -> dict[str, Any] | None:
    """The report of an `out` that is this very preparation; None if there is none. UserError if it is anything else."""
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return None
    if not (out / MANIFEST).is_file():
        raise UserError(f"--out {out}: exists and is no shard set; give another --out")
    manifest = read_json(out / MANIFEST)
    previous_identity = manifest.get("preparation", {})
    if manifest.get("format") != SHARD_FORMAT or previous_identity != identity:
        changed = ", ".join(_changed_keys(previous_identity, identity)) or "its format"
        raise UserError(
            f"--out {out}: is already prepared otherwise (what differs: {changed}); give another --out"
        )
    is_other_code = manifest.get("code", PREPARE_VERSION) != PREPARE_VERSION
    print(
        f"{out} is already prepared from the same inputs with the same options: nothing to do"
        + (
            " (another version of this code did it: delete it to prepare it anew)"
            if is_other_code
            else ""
        )
    )
    return (
        read_checksummed_json(out / REPORT_FILE, ": delete it")
        if (out / REPORT_FILE).is_file()
        else dict(manifest["report"])
    )


def _changed_keys(before: Any, after: Any, prefix: str = "") -> list[str]:
    if isinstance(before, dict) and isinstance(after, dict):
        keys = sorted(before.keys() | after.keys())
        return [
            line
            for key in keys
            for line in _changed_keys(before.get(key), after.get(key), f"{prefix}{key}.")
        ]
    return [] if before == after else [prefix.rstrip(".")]


def _work_folder_path(out: Path) -> Path:
    return out.parent / f".{out.name}.work"


@contextlib.contextmanager
def _open_work_folder(out: Path, identity: dict[str, Any]) -> Iterator[Path]:
    """The folder of unfinished work beside `out`, locked. UserError if another process or preparation has it."""
    work = _work_folder_path(out)
    (work / "parts").mkdir(parents=True, exist_ok=True)
    with (work / "lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise UserError(f"--out {out}: another process is preparing it right now") from None
        # Inputs are not compared: a part is only taken if its records are the same.
        expected_plan = {key: identity[key] for key in ("tokenizer", "options")}
        expected_plan |= {"format": SHARD_FORMAT, "part_bytes": UNIT_BYTES, "code": PREPARE_VERSION}
        plan_path = work / "plan.json"
        changed = _changed_keys(read_json(plan_path), expected_plan) if plan_path.exists() else []
        if set(changed) - {"code"}:
            raise UserError(
                f"--out {out}: an unfinished preparation with other arguments lies in {work} (what differs: "
                f"{', '.join(changed)}); repeat those to go on with it, or delete it: rm -r {work}"
            )
        if changed:
            print(
                f"{work} was begun by another version of this code: its parts are made again",
                flush=True,
            )
            shutil.rmtree(work / "parts")
            (work / "parts").mkdir()
        write_json(plan_path, expected_plan)
        remove_temporary_files(work / "parts")
        for path in out.parent.glob(f".{glob.escape(out.name)}.????????.tmp"):
            shutil.rmtree(path)
        with name_path_in_errors(work):
            yield work


def _process_units(
    groups: Sequence[SourceGroup], work: Path, options: PrepareOptions
) -> tuple[list[dict[str, Any]], int]:
    """Read all inputs and have their parts made; returns the parts' facts in order and the largest worker's memory."""
    sizes = [path.stat().st_size for group in groups for path in group.files()]
    is_streamed = any(group.is_streamed for group in groups)
    workers = options.workers or num_cores()
    if not is_streamed and sum(sizes) < UNIT_BYTES // 4:
        workers = 1
    arguments = (
        work / "parts",
        work,
        options.clean,
        minhash_permutations() if options.dedup.near else None,
    )
    with (
        progress_bar("preparing", None if is_streamed else sum(sizes), unit="B") as bar,
        open_worker_pool(workers, arguments) as pool,
    ):
        for part in _iter_units(groups, options.limit, bar.update):
            if facts := load_unit_manifest(part, work / "parts"):
                pool.manifests[part.index] = facts
            else:
                pool.submit(part)
        pool.join()
    return [pool.manifests[index] for index in range(len(pool.manifests))], pool.peak_memory


def _iter_units(
    groups: Sequence[SourceGroup], limit: int | None, on_bytes_read: Any
) -> Iterator[WorkUnit]:
    next_index = 0
    # What a release holds out comes first: a record that training repeats is then dropped from training.
    validation_passes = [(group, "validation") for group in groups if group.dev]
    for group, split in [
        *validation_passes,
        *((group, "train" if group.dev else None) for group in groups),
    ]:
        for part in split_into_units(
            group.source,
            itertools.islice(group.read_records(on_bytes_read, split), limit),
            next_index,
            split,
        ):
            yield part
            next_index = part.index + 1


def _check_quarantine(
    units_folder: Path, unit_manifests: list[dict[str, Any]], share: float
) -> None:
    records = sum(facts["records"] for facts in unit_manifests)
    bad = sum(facts["quarantined"] for facts in unit_manifests)
    if bad > share * records:
        index = next(index for index, facts in enumerate(unit_manifests) if facts["quarantined"])
        first = json.loads(
            (unit_folder(units_folder, index) / "quarantine.jsonl")
            .read_text(encoding="utf-8")
            .split("\n")[0]
        )
        raise UserError(
            f"{bad} of {records} records cannot be read ({bad / records:.2%}; --quarantine_share allows {share:.2%}), "
            f"the first in {first['file']} line {first['line']}: {first['reason']}; is it the right --source? Mend the "
            "file or allow more, and run the command again"
        )


def format_report(report: dict[str, Any], out: Path) -> str:
    """A report in lines for people."""
    lines = [
        f"{out}: {report['kept']:,} {report['kind']} of {report['records']:,} records, {report['characters']:,} "
        f"characters, {report['tokens']:,} tokens ({report['characters_per_token']:.3f} characters a token)",
        f"  unreadable {report['quarantined']:,}"
        + (", see quarantine.jsonl" if report["quarantined"] else ""),
    ]
    lines += [
        f"  dropped {count:,} {reason.replace('_', ' ')}"
        for reason, count in report["dropped"].items()
    ]
    if len(report["sources"]) > 1:
        lines += [
            f"  {name}: {counts['kept']:,} {report['kind']}, {counts['characters']:,} characters"
            for name, counts in report["sources"].items()
        ]
    if "longer_than" in report:
        longer = ", ".join(f"{count:,} over {row}" for row, count in report["longer_than"].items())
        lines.append(
            f"  longer than a row of so many tokens, and cut there at a turn or left out: {longer}"
        )
    if "seconds" in report:
        parent, worker = (report[f"peak_memory_{who}"] / 1e6 for who in ("parent", "worker"))
        lines.append(
            f"  {report['seconds']:.1f} s, {report['megabytes_per_second']:.1f} MB/s with {report['workers']} workers; "
            f"peak memory {parent:.0f} MB (parent), {worker:.0f} MB (largest worker)"
        )
    return "\n".join(lines)
