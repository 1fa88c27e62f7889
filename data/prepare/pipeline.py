"""Prepare raw corpora as a shard set: read, clean, deduplicate, encode, split.

The parent process reads records and hands out units of them; workers clean and encode a unit each
(`data.prepare.worker`). Then duplicates are found across all units, and the remaining sequences are
copied into shards (`data.prepare.write_shards`). Until the shard set is whole, everything lies in
`.NAME.work` beside it, and the same command continues an interrupted preparation. The shard set is
the same bytes whatever the number of workers and however often it was interrupted.

    python -m data.prepare --source NAME --input FILE… [--source NAME --input FILE…] --tokenizer
    PATH --out DIR
"""

import contextlib
import glob
import itertools
import json
import shlex
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
from common.locks import exclusive_lock
from common.machine import num_cores, peak_memory_bytes
from common.progress import progress_bar
from data.kinds import find_kind
from data.kinds.base import RecordKind
from data.prepare.dedup import minhash_permutations
from data.prepare.options import PrepareOptions
from data.prepare.provenance import (
    changed_keys,
    describe_settings,
    find_differences,
    write_provenance,
)
from data.prepare.source_args import SourceGroup
from data.prepare.worker import (
    UNIT_BYTES,
    WorkUnit,
    load_unit_manifest,
    split_into_units,
    unit_folder,
)
from data.prepare.worker_pool import open_worker_pool
from data.prepare.write_shards import write_shard_set
from data.readers.files import ProgressCallback
from data.records import BadRecord
from data.shards import PROVENANCE_FILE, REPORT_FILE
from data.sources import find_source
from data.sources.fields import PREFERENCE_FIELDS
from data.usable_records import check_bad_share
from model.chat_template.template import load_template
from model.tokenizer import load_tokenizer


def prepare_groups(
    groups: Sequence[SourceGroup],
    out: Path,
    tokenizer: Path,
    options: PrepareOptions,
    *,
    corpus: dict[str, Any] | None = None,
    replace_outdated: bool = False,
) -> dict[str, Any]:
    """Prepare several sources into one shard set, in their order; return its report.

    An `out` that already holds this preparation is reused. `replace_outdated` replaces any other
    shard set there, which stays in place until the new one is whole. `corpus` (its name and parts)
    is recorded as the origin of the inputs. Raises UserError if `out` is something else, if a file
    is in both splits, if another process is preparing it, if inputs cannot be read, if more than
    `options.quarantine_share` of the records are unreadable, or if no record is left to train on.
    """
    start_time = time.monotonic()
    if options.dedup.exact:
        _check_splits(groups)
    loaded_tokenizer = load_tokenizer(tokenizer)
    # Lead-ins are drawn when examples are built: the prepared set does not depend on them.
    template = replace(load_template(tokenizer), lead_ins=False)
    kind = _resolve_kind(groups)
    # Without `workers` and `quarantine_share`, which do not change the contents of the set.
    settings = describe_settings(
        loaded_tokenizer.fingerprint,
        options.model_dump(mode="json", include={"limit", "validation", "clean", "dedup"}),
    )
    if _is_prepared(out, settings, groups, replace_outdated):
        work = _work_folder_path(out)
        if work.exists():
            # Left over if an earlier preparation was killed after it had written the set, or that
            # of another process, which is replacing the set by one of other inputs.
            with contextlib.suppress(UserError), exclusive_lock(work / "lock", "in use"):
                shutil.rmtree(work, ignore_errors=True)
        # Training and `make data` look for a set every time: reuse is not worth a message there.
        if not replace_outdated:
            print(f"{out} already holds this preparation of the same inputs: nothing to do")
        return load_report(out)
    with _open_work_folder(out, settings) as work:
        # The workers load tokenizer and template from here.
        loaded_tokenizer.save(work)
        template.save(work)
        unit_manifests, worker_peak_memory = _process_units(groups, work, options)
        # Training and `make data` have no options of preparation, which take another command.
        advice = (
            "is it the right --source? Correct the file or allow more (--quarantine_share), and "
            "run the command again"
        )
        if replace_outdated:
            advice = (
                "correct the file and run the command again, or allow more with "
                f"{_prepare_command(groups, tokenizer)}, and name DIR as data"
            )
        _check_quarantine(
            work / "parts", unit_manifests, max_share=options.quarantine_share, advice=advice
        )
        write_provenance(work, settings, groups, corpus)
        report = write_shard_set(
            out,
            work / "parts",
            unit_manifests,
            loaded_tokenizer,
            template,
            kind,
            options.dedup,
            options.validation,
            work / PROVENANCE_FILE,
        )
        if not report["kept"]:
            # Units of different options are not mixed: with the folder still there, the user could
            # not try other options.
            shutil.rmtree(work)
            raise _empty_result_error(groups, report, options)
        seconds = time.monotonic() - start_time
        report |= {
            "seconds": round(seconds, 1),
            "megabytes_per_second": round(report["bytes"] / 1e6 / seconds, 2),
            "workers": options.workers or num_cores(),
            "peak_memory_parent": peak_memory_bytes(),
            "peak_memory_worker": worker_peak_memory,
        }
        # Written after the manifest, which does not list it: equal shard sets take different times.
        write_checksummed_json(out / REPORT_FILE, report)
        shutil.rmtree(work)
    return report


def _check_splits(groups: Sequence[SourceGroup]) -> None:
    """Raise UserError if a file is in both splits: train would have nothing but duplicates."""
    for group in groups:
        train_files = {path.resolve() for path in group.train_files()} if group.dev else set()
        for path in group.dev_files():
            if path.resolve() in train_files:
                raise UserError(
                    f"--dev {path}: it is also an --input, so no record of it is left to train on"
                )


def _resolve_kind(groups: Sequence[SourceGroup]) -> RecordKind[Any]:
    """Return the kind of all records. Raises UserError if the sources have different kinds."""
    kind_by_source = {group.source: find_source(group.source).kind for group in groups}
    kinds = set(kind_by_source.values())
    if len(kinds) > 1:
        pairs = ", ".join(f"{source} {kind}" for source, kind in kind_by_source.items())
        raise UserError(
            f"--source: one shard set holds one kind of records ({pairs}); prepare them separately "
            "and mix them in training: --data one+other"
        )
    return find_kind(kinds.pop())


def _empty_result_error(
    groups: Sequence[SourceGroup], report: dict[str, Any], options: PrepareOptions
) -> UserError:
    """Return the error for a preparation that is left without a record to train on.

    It names the inputs, the reasons why their records were dropped, and what to do about it.
    """
    first_input, *other_inputs = (input_ for group in groups for input_ in group.inputs)
    name = first_input
    if other_inputs:
        name += f" and {len(other_inputs):,} more"
    if not report["records"]:
        return UserError(f"{name}: there is not one record in the inputs")
    reasons = report["dropped"]
    counts = [f"{reason} {count}" for reason, count in reasons.items()]
    advice = ""
    if "too_short" in reasons:
        advice = (
            f"; a document has at least {options.clean.minimum_characters:,} characters "
            "(data.prepare --clean.minimum_characters)"
        )
    if any(reason.startswith("unsupported ") for reason in reasons):
        advice += "; docs/data.md says which fields cost a record and why"
    if any(reason.removeprefix("unsupported field ") in PREFERENCE_FIELDS for reason in reasons):
        advice += "; preference pairs are for make dpo DATA=FILE (the source preferences)"
    return UserError(
        f"{name}: none of {report['records']:,} records is left to train on "
        f"({', '.join(counts) or 'all quarantined'}){advice}"
    )


def _is_prepared(
    out: Path, settings: dict[str, Any], groups: Sequence[SourceGroup], replace_outdated: bool
) -> bool:
    """Return whether `out` holds a shard set of these settings and inputs.

    Raises UserError if it holds something that must not be overwritten: anything other than a shard
    set or, without `replace_outdated`, a set of another preparation.
    """
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return False
    if not (out / MANIFEST).is_file() or not (out / PROVENANCE_FILE).is_file():
        raise UserError(
            f"{out}: exists and is not a shard set of this version: move it elsewhere"
            + ("" if replace_outdated else ", or give another --out")
        )
    differences = find_differences(out, settings, groups)
    if differences and not replace_outdated:
        raise UserError(
            f"--out {out}: already holds another preparation (what differs: "
            f"{', '.join(differences)}); delete it, or give another --out"
        )
    return not differences


def load_report(out: Path) -> dict[str, Any]:
    """Return the report of a prepared shard set. Raises UserError if the file is damaged."""
    if (out / REPORT_FILE).is_file():
        return read_checksummed_json(out / REPORT_FILE, advice=": delete it")
    # The preparation was killed just before it wrote the report. The manifest has all of it except
    # the times and the memory.
    return dict(read_json(out / MANIFEST)["report"])


def _work_folder_path(out: Path) -> Path:
    """Return the folder of unfinished work beside `out`."""
    return out.parent / f".{out.name}.work"


@contextlib.contextmanager
def _open_work_folder(out: Path, settings: dict[str, Any]) -> Iterator[Path]:
    """Lock and yield the folder of unfinished work beside `out`, created if it is missing.

    `plan.json` records the settings of the work. The units of records that an interrupted
    preparation has finished, in `parts`, are kept if the settings are the same, and deleted if only
    the code version differs. Raises UserError if another process is preparing `out`, or if the
    folder belongs to a preparation with other settings, such as options or the tokenizer.
    """
    work = _work_folder_path(out)
    (work / "parts").mkdir(parents=True, exist_ok=True)
    busy_message = f"{out}: another process is preparing it right now"
    with exclusive_lock(work / "lock", busy_message):
        # Inputs are not compared: `load_unit_manifest` reuses a unit only if its records are the
        # same.
        expected_plan = {**settings, "unit_bytes": UNIT_BYTES}
        plan_path = work / "plan.json"
        changed = changed_keys(read_json(plan_path), expected_plan) if plan_path.exists() else []
        if set(changed) - {"version"}:
            raise UserError(
                f"{work} holds an unfinished preparation with other options (what "
                f"differs: {', '.join(changed)}); repeat its options to continue it, or delete it: "
                f"rm -r {shlex.quote(str(work))}"
            )
        if changed:
            print(f"{work} is from another version of this program: starting over", flush=True)
            shutil.rmtree(work / "parts")
            (work / "parts").mkdir()
        write_json(plan_path, expected_plan)
        # What `atomic_folder` leaves behind if it is killed: half-written units, and beside `out` a
        # half-written set, or the set that was being replaced.
        remove_temporary_files(work / "parts")
        remove_temporary_files(out.parent, f".{glob.escape(out.name)}.????????.*")
        with name_path_in_errors(work):
            yield work


def _process_units(
    groups: Sequence[SourceGroup], work: Path, options: PrepareOptions
) -> tuple[list[dict[str, Any]], int]:
    """Read all inputs and encode their units in worker processes, except those finished earlier.

    Return the manifests of the units in order, and the peak memory of the largest worker (bytes).
    """
    files = [path for group in groups for path in group.train_files() + group.dev_files()]
    num_bytes = sum(path.stat().st_size for path in files)
    is_streamed = any(group.is_streamed for group in groups)
    num_workers = options.workers or num_cores()
    if not is_streamed and num_bytes < UNIT_BYTES // 4:
        # Starting processes would take longer than the work.
        num_workers = 1
    permutations = minhash_permutations() if options.dedup.near else None
    with (
        progress_bar("preparing", None if is_streamed else num_bytes, unit="B") as bar,
        open_worker_pool(num_workers, (work / "parts", work, options.clean, permutations)) as pool,
    ):
        for unit in _iter_units(groups, options.limit, bar.update):
            # Finished before an interruption.
            manifest = load_unit_manifest(unit, work / "parts")
            if manifest is not None:
                pool.manifests[unit.index] = manifest
            else:
                pool.submit(unit)
        pool.join()
    return [pool.manifests[index] for index in range(len(pool.manifests))], pool.peak_memory


def _iter_units(
    groups: Sequence[SourceGroup], limit: int | None, on_bytes_read: ProgressCallback
) -> Iterator[WorkUnit]:
    """Yield the units of all groups, numbered from 0: all dev files first, then all inputs.

    At most `limit` records are read of the dev files, and as many of the inputs, of each group.
    """
    passes: list[tuple[SourceGroup, str | None]] = []
    # Held-out records come first: of duplicates the first stays, so training loses the repetition.
    passes += [(group, "validation") for group in groups if group.dev]
    # None: the digest of each record decides its split, in a release without a dev split.
    passes += [(group, "train" if group.dev else None) for group in groups]
    next_index = 0
    for group, split in passes:
        records = itertools.islice(group.read_records(on_bytes_read, split), limit)
        for unit in split_into_units(group.source, records, next_index, split):
            yield unit
            next_index = unit.index + 1


def _check_quarantine(
    units_folder: Path, unit_manifests: list[dict[str, Any]], *, max_share: float, advice: str
) -> None:
    """Raise UserError with `advice` if more than `max_share` of all records cannot be read."""
    # The message names the first unreadable record, which is in the first unit that has one.
    first_bad = None
    for index, manifest in enumerate(unit_manifests):
        if manifest["quarantined"]:
            quarantine_path = unit_folder(units_folder, index) / "quarantine.jsonl"
            with quarantine_path.open(encoding="utf-8") as file:
                first_bad = BadRecord(**json.loads(file.readline()))
            break
    check_bad_share(
        num_records=sum(manifest["records"] for manifest in unit_manifests),
        num_bad=sum(manifest["quarantined"] for manifest in unit_manifests),
        first_bad=first_bad,
        max_share=max_share,
        advice=advice,
    )


def _prepare_command(groups: Sequence[SourceGroup], tokenizer: Path) -> str:
    """Return the command that prepares groups with another `quarantine_share`, SHARE, as DIR."""
    arguments = ["python", "-m", "data.prepare"]
    for group in groups:
        arguments += ["--source", group.source]
        for option, files in (("--input", group.inputs), ("--dev", group.dev)):
            if files:
                # The files of a large corpus would make an unreadable line.
                arguments += [option, *(files if len(files) <= 3 else ["FILES"])]
    arguments += ["--tokenizer", str(tokenizer), "--quarantine_share", "SHARE", "--out", "DIR"]
    return shlex.join(arguments)


def format_report(report: dict[str, Any], out: Path) -> str:
    """Format the report of the shard set in `out` as lines to print.

    The manifest's copy of a report has no times and no memory; they are then left out.
    """
    kind = report["kind"]
    lines = [
        f"{out}: {report['kept']:,} {kind} of {report['records']:,} records, "
        f"{report['characters']:,} characters, {report['tokens']:,} tokens "
        f"({report['characters_per_token']:.3f} characters a token)"
    ]
    for split, counts in report["splits"].items():
        share = counts["tokens"] / report["tokens"]
        lines.append(
            f"  {split} {counts['sequences']:,} {kind}, {counts['tokens']:,} tokens ({share:.1%})"
        )
    if report["divided"]:
        lines.append(
            f"  long documents in train without their end, which is held out: {report['divided']:,}"
        )
    hint = ", see quarantine.jsonl" if report["quarantined"] else ""
    lines.append(f"  unreadable {report['quarantined']:,}{hint}")
    for reason, count in report["dropped"].items():
        lines.append(f"  dropped {count:,} {reason.replace('_', ' ')}")
    if report.get("unlisted_fields"):
        lines.append(f"  {_format_unlisted_fields(report)}")
    if len(report["sources"]) > 1:
        for name, counts in report["sources"].items():
            lines.append(
                f"  {name}: {counts['kept']:,} {kind}, {counts['characters']:,} characters"
            )
    if "longer_than" in report:
        counts = ", ".join(
            f"{count:,} over {row_length} tokens"
            for row_length, count in report["longer_than"].items()
        )
        lines.append(f"  longer than a row, so cut at a turn or left out in training: {counts}")
    if "seconds" in report:
        parent_megabytes = report["peak_memory_parent"] / 1e6
        worker_megabytes = report["peak_memory_worker"] / 1e6
        lines.append(
            f"  {report['seconds']:.1f} s, {report['megabytes_per_second']:.1f} MB/s with "
            f"{report['workers']} workers; peak memory {parent_megabytes:.0f} MB (parent), "
            f"{worker_megabytes:.0f} MB (largest worker)"
        )
    return "\n".join(lines)


def format_left_out(report: dict[str, Any], out: Path) -> list[str]:
    """Return what training on the shard set in `out` does without, one line each, if anything."""
    counts = [
        f"{count:,} {reason.replace('_', ' ')}" for reason, count in report["dropped"].items()
    ]
    if report["quarantined"]:
        counts.append(f"{report['quarantined']:,} unreadable")
    lines = []
    if counts:
        num_left_out = report["records"] - report["kept"]
        lines.append(
            f"{out}: {num_left_out:,} of {report['records']:,} records are left out: "
            f"{', '.join(counts)}"
        )
    # Sets of earlier versions do not have the key.
    if report.get("unlisted_fields"):
        lines.append(f"{out}: {_format_unlisted_fields(report)}")
    return lines


def _format_unlisted_fields(report: dict[str, Any]) -> str:
    """Return the fields of a report that no source reads or has a rule for."""
    counts = ", ".join(f"{name} ({count:,})" for name, count in report["unlisted_fields"].items())
    return (
        f"fields that are not read, in how many records: {counts}; is any of them part of a text, "
        "or a mark not to train on it?"
    )
