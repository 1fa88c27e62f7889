"""Downloads that end whole and verified, or leave a part behind that the next attempt continues.

The bytes go to `.NAME.part` beside the target and take its name only when they are complete and their sha256 is the one
that is known: from the caller, from the hub that serves the file (the `X-Linked-ETag` of a Hugging Face hub), or from
the first download, which is recorded in `.NAME.lock`. A server may break off, ignore ranges, lie about lengths, change
the file between attempts or answer with an error page; every one of these ends in the right file or in one clear line.
"""

import errno
import os
import re
import shutil
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from common.errors import UserError
from common.files import fsync, read_json, sha256_file, write_json
from common.locks import exclusive_lock
from common.progress import progress_bar

CHUNK_BYTES = 1 << 16
# What a server's own trouble looks like: worth another try at the same address.
TRANSIENT_STATUS_CODES = frozenset({408, 425, 429, 500, 502, 503, 504})
SHA256_PATTERN = re.compile(r"[0-9a-f]{64}")
HTML_PREFIXES = (b"<!doctype html", b"<html")


@dataclass(frozen=True)
class RetryPolicy:
    """How hard a download tries: attempts at each address without progress, first pause and socket timeout (s)."""

    max_attempts: int = 4
    initial_backoff: float = 1.0
    timeout: float = 30.0


class DownloadError(UserError):
    """No address gave the file."""


class _RetryableError(Exception):
    """This attempt failed; another at the same address may succeed."""

    def __init__(self, reason: str, retry_after: float = 0.0) -> None:
        super().__init__(reason)
        self.retry_after = retry_after


class _ConnectionFailed(_RetryableError):
    """Nothing answered at this address: a second try is enough, or a machine without a network waits for minutes."""


class _UrlFailed(Exception):
    """This address will not give the file."""


def download(
    urls: Sequence[str],
    target: Path,
    *,
    size: int | None = None,
    sha256: str | None = None,
    retry_policy: RetryPolicy | None = None,
) -> Path:
    """Make sure that `target` holds the file that any of `urls` (mirrors, tried in order) gives; return `target`.

    A target that is there already is verified and nothing is fetched, so this works without a network. `size` (bytes)
    and `sha256` (hex) are given only where they are known. Raises UserError naming the addresses and the cure:
    `NotDownloaded` where none of them gives the file.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    expected_sha256 = sha256 or _read_lock(target)
    if target.exists():
        _verify_existing(target, size, sha256, expected_sha256)
        return target
    failures = []
    with _lock_part_file(target) as part_path:
        for url in urls:
            if target.exists():  # another process ended it while this one opened the part
                return target
            try:
                source = _fetch_with_retries(
                    url, part_path, size, expected_sha256, retry_policy or RetryPolicy()
                )
                _publish(part_path, target, source)
                return target
            except _UrlFailed as failure:
                failures.append(f"{url} ({failure})")
            except OSError as error:
                raise UserError(
                    f"cannot write {part_path}: {error.strerror}; free some space, then run again (the part is kept)"
                ) from None
    anew = (
        ""
        if sha256 or not expected_sha256
        else f", delete {_lock_path(target)} if it was published anew"
    )
    raise DownloadError(
        f"cannot download {target.name}: {'; '.join(failures)}. Try again later (a broken download is continued)"
        f"{anew}, or download it by hand and save it as {target}"
    )


def _read_lock(target: Path) -> str | None:
    lock = _lock_path(target)
    if not lock.exists():
        return None
    value = read_json(lock)
    digest = value.get("sha256") if isinstance(value, dict) else None
    if not isinstance(digest, str) or not SHA256_PATTERN.fullmatch(digest):
        raise UserError(f"{lock} does not name a sha256: delete it and run again")
    return digest


def _lock_path(target: Path) -> Path:
    # Hidden names are left out by whatever reads a whole folder as a corpus.
    return target.with_name(f".{target.name}.lock")


def _verify_existing(
    target: Path, size: int | None, sha256: str | None, expected_sha256: str | None
) -> None:
    actual_size = target.stat().st_size
    if size is not None and actual_size != size:
        raise UserError(
            f"{target} has {actual_size} bytes instead of {size}: delete it and run again"
        )
    digest = sha256_file(target)
    if expected_sha256 is not None and digest != expected_sha256:
        origin = "the download list" if sha256 else f"its first download, {_lock_path(target).name}"
        raise UserError(
            f"{target} has sha256 {digest} instead of {expected_sha256} ({origin}): delete it and run again"
        )
    if _read_lock(target) is None:
        write_json(_lock_path(target), {"sha256": digest, "bytes": actual_size, "url": None})


@contextmanager
def _lock_part_file(target: Path) -> Iterator[Path]:
    part_path = target.with_name(f".{target.name}.part")
    busy_message = f"{target} is being downloaded by another process: wait for it to end"
    with exclusive_lock(part_path, busy_message):
        try:
            yield part_path
        finally:
            if part_path.exists() and not part_path.stat().st_size:
                _state_path(part_path).unlink(missing_ok=True)
                part_path.unlink()


def _fetch_with_retries(
    url: str, part_path: Path, size: int | None, sha256: str | None, retry_policy: RetryPolicy
) -> dict[str, Any]:
    """Bring the whole file into `part_path`; return where it came from and its digest. `_GiveUp` when this address fails."""
    num_failures, max_bytes_reached = 0, -1
    while True:
        try:
            response_info = _request_once(url, part_path, size, sha256, retry_policy.timeout)
            digest = sha256_file(part_path)
            expected = sha256 or response_info.get("sha256")
            if expected is None or digest == expected:
                return {"sha256": digest, "bytes": part_path.stat().st_size, "url": url}
            _discard_part(part_path)
            problem = f"wrong content: sha256 {digest} instead of {expected}"
            if not response_info["resumed"]:
                raise _UrlFailed(problem)
            # The two halves may be of two versions of the file: once more, from the start.
            raise _RetryableError(problem)
        except _RetryableError as failure:
            reached = part_path.stat().st_size
            num_failures = 1 if reached > max_bytes_reached else num_failures + 1
            max_bytes_reached = max(max_bytes_reached, reached)
            if num_failures >= (
                min(2, retry_policy.max_attempts)
                if isinstance(failure, _ConnectionFailed)
                else retry_policy.max_attempts
            ):
                raise _UrlFailed(str(failure)) from None
            time.sleep(
                max(
                    failure.retry_after,
                    min(retry_policy.initial_backoff * 2 ** (num_failures - 1), 30.0),
                )
            )


def _request_once(
    url: str, part_path: Path, size: int | None, sha256: str | None, timeout: float
) -> dict[str, Any]:
    """One request: continue `part_path` if that is safe, else write it anew. Returns what the server said of the file."""
    import requests
    import urllib3

    state = _read_state(part_path)
    resume_offset = part_path.stat().st_size
    # Without a validator of this very address two versions could be glued together unnoticed; a known sha256 notices.
    validator = state.get("validator") if state.get("url") == url else None
    can_resume = resume_offset > 0 and (validator is not None or sha256 is not None)
    headers = {"Accept-Encoding": "identity", "User-Agent": "babyllama"}
    if can_resume:
        headers["Range"] = f"bytes={resume_offset}-"
        if validator:
            headers["If-Range"] = validator
    try:
        with requests.get(url, headers=headers, stream=True, timeout=timeout) as response:
            start, total = _parse_response_range(
                url, response, resume_offset if can_resume else 0, part_path
            )
            if size is not None and total is not None and total != size:
                raise _UrlFailed(f"offers {total} bytes instead of {size}")
            total = size if total is None else total
            if start and validator and _response_validator(response) not in (validator, None):
                _discard_part(part_path)
                raise _RetryableError("the file changed between two attempts")
            response_info = _write_state(part_path, url, response, is_resumed=start > 0)
            if total is None or start < total:
                _append_body(response.raw, part_path, start, total)
            _check_complete(part_path, total)
            return response_info
    except (
        requests.TooManyRedirects,
        requests.exceptions.InvalidSchema,
        requests.exceptions.InvalidURL,
    ) as error:
        raise _UrlFailed(_summarize_error(error)) from None
    except requests.ConnectionError as error:
        raise _ConnectionFailed(_summarize_error(error)) from None
    except (requests.RequestException, urllib3.exceptions.HTTPError) as error:
        raise _RetryableError(_summarize_error(error)) from None


def _parse_response_range(
    url: str, response: Any, resume_offset: int, part_path: Path
) -> tuple[int, int | None]:
    """What an answer means: the byte it begins at, and the size of the whole file where the server states one."""
    if url.startswith("https:") and not response.url.startswith("https:"):
        raise _UrlFailed(f"leads to an unencrypted address, {response.url}")
    status = response.status_code
    content_range = re.fullmatch(
        r"bytes (?:(\d+)-\d+|\*)/(\d+|\*)", response.headers.get("Content-Range", "").strip()
    )
    if status in TRANSIENT_STATUS_CODES:
        wait = response.headers.get("Retry-After", "")
        raise _RetryableError(
            f"HTTP {status}", retry_after=min(float(wait), 60.0) if wait.isdigit() else 0.0
        )
    if status == 416 and resume_offset:
        if content_range and content_range[2] == str(resume_offset):
            return resume_offset, resume_offset  # the part was already whole
        _discard_part(part_path)
        raise _RetryableError("HTTP 416: the file there is shorter than the part here")
    if status not in (200, 206):
        raise _UrlFailed(f"HTTP {status}")
    if response.headers.get("Content-Type", "").lower().startswith("text/html"):
        raise _UrlFailed("answers with a web page instead of the file")
    if status == 200:
        length = response.headers.get("Content-Length", "")
        return 0, int(length) if length.isdigit() else None
    if not content_range or content_range[1] != str(resume_offset):
        _discard_part(part_path)
        raise _RetryableError("the server sent another range than the one it was asked for")
    return resume_offset, int(content_range[2]) if content_range[2].isdigit() else None


def _append_body(raw: Any, part_path: Path, offset: int, total: int | None) -> None:
    """Append the answer's body to the first `offset` bytes of `part_path`."""
    free = shutil.disk_usage(part_path.parent).free
    if total is not None and total - offset > free:
        raise OSError(
            errno.ENOSPC, f"{total - offset} bytes are still to come and the disk has {free} left"
        )
    name = part_path.name.removeprefix(".").removesuffix(".part")
    with part_path.open("r+b") as file, progress_bar(name, total, "B", initial=offset) as bar:
        file.seek(offset)
        file.truncate()
        # As the server sends it: a .gz must not arrive unpacked because a server calls that its encoding.
        while block := raw.read(CHUNK_BYTES, decode_content=False):
            offset += file.write(block)
            bar.update(len(block))
            if total is not None and offset > total:
                raise _UrlFailed(f"sends more than the {total} bytes it should")


def _check_complete(part_path: Path, total: int | None) -> None:
    actual_size = part_path.stat().st_size
    if total is not None and actual_size < total:
        raise _RetryableError(f"broke off after {actual_size} of {total} bytes")
    with part_path.open("rb") as file:
        begins = file.read(64).lstrip().lower()
    if begins.startswith(HTML_PREFIXES):
        _discard_part(part_path)
        raise _UrlFailed("answers with a web page instead of the file")
    if not actual_size:
        raise _RetryableError("sent nothing")


def _state_path(part_path: Path) -> Path:
    return part_path.with_name(part_path.name + ".json")


def _read_state(part_path: Path) -> dict[str, Any]:
    path = _state_path(part_path)
    if not path.exists():
        return {}
    value = read_json(path)
    return value if isinstance(value, dict) else {}


def _response_validator(response: Any) -> str | None:
    etag = response.headers.get("ETag")
    # If-Range does not take weak tags: they promise the same meaning, not the same bytes.
    return etag if etag and not etag.startswith("W/") else response.headers.get("Last-Modified")


def _write_state(part_path: Path, url: str, response: Any, *, is_resumed: bool) -> dict[str, Any]:
    """Note, before any byte of the body, which version of which address `part_path` is going to hold."""
    write_json(_state_path(part_path), {"url": url, "validator": _response_validator(response)})
    digests = [
        step.headers.get("X-Linked-ETag", "").strip('"') for step in [*response.history, response]
    ]
    return {
        "resumed": is_resumed,
        "sha256": next((digest for digest in digests if SHA256_PATTERN.fullmatch(digest)), None),
    }


def _discard_part(part_path: Path) -> None:
    os.truncate(part_path, 0)
    _state_path(part_path).unlink(missing_ok=True)


def _publish(part_path: Path, target: Path, source: dict[str, Any]) -> None:
    fsync(part_path)
    # The lock first: whatever takes the target's name from here on is compared with it.
    write_json(_lock_path(target), source)
    os.replace(part_path, target)
    _state_path(part_path).unlink(missing_ok=True)
    fsync(target.parent)


def _summarize_error(error: Exception) -> str:
    """The cause inside an HTTP library's nested error, in one short line."""
    inner = error.args[0] if error.args and isinstance(error.args[0], Exception) else error
    text = " ".join(str(getattr(inner, "reason", inner)).split())
    text = re.sub(r"^HTTPS?Connection(Pool)?\([^)]*\): ", "", text)
    return text if len(text) <= 160 else text[:160] + "…"
