"""Resumable downloads with verification.

Bytes go to `.NAME.part` beside the target. The partial file is renamed to the target when it is
complete and its sha256 matches. The expected sha256 comes from the caller, from the hub
(`X-Linked-ETag` header of Hugging Face) or from the lock file `.NAME.lock`, which pins the sha256
of the first download, like the lock file of a package manager.

Servers may break off, ignore ranges, send a wrong length, change the file between attempts or
answer with an error page. Each of these ends in the correct file or in a one-line error.

`hf_hub_download` would serve less than half of the mirrors, and it compares sizes, not checksums.
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
# Temporary failures of a server, after which the same URL is tried again.
TRANSIENT_STATUS_CODES = frozenset({408, 425, 429, 500, 502, 503, 504})
SHA256_PATTERN = re.compile(r"[0-9a-f]{64}")
HTML_PREFIXES = (b"<!doctype html", b"<html")


@dataclass(frozen=True)
class RetryPolicy:
    """Retry settings of a download."""

    max_attempts: int = 4
    """Attempts at each URL in a row without progress."""
    initial_backoff: float = 1.0
    """Seconds before the second attempt; doubled after each failure."""
    timeout: float = 30.0
    """Seconds of the socket timeout."""


class DownloadError(UserError):
    """All URLs of a file failed."""


class _RetryableError(Exception):
    """This attempt failed; another at the same URL may succeed."""

    def __init__(self, reason: str, retry_after: float = 0.0) -> None:
        super().__init__(reason)
        self.retry_after = retry_after


class _ConnectionFailed(_RetryableError):
    """The server could not be reached.

    Only one more attempt follows, so that a machine without a network does not wait for minutes.
    """


class _UrlFailed(Exception):
    """This URL cannot provide the file; another attempt would not help."""


def download(
    urls: Sequence[str],
    target: Path,
    *,
    size: int | None = None,
    sha256: str | None = None,
    retry_policy: RetryPolicy | None = None,
) -> Path:
    """Download `target` from the first of `urls` (mirrors) that works, and return `target`.

    An existing target is verified without using the network. `size` (bytes) and `sha256` (hex) are
    checked if given. Raises DownloadError if all URLs fail, and UserError if the existing file is
    wrong, the disk is full or another process downloads the same file.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    expected_sha256 = sha256 or _read_pinned_sha256(target)
    if target.exists():
        _verify_existing(target, size, sha256, expected_sha256)
        return target
    failures = []
    with _lock_part_file(target) as part_path:
        for url in urls:
            # Another process may have finished the file before this one got the lock.
            if target.exists():
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
                    f"cannot write {part_path}: {error.strerror}; free some space, then run "
                    "again (the partial file is kept)"
                ) from None
    # The sha256 of a lock file is outdated if the publisher has replaced the file.
    lock_advice = ""
    if expected_sha256 and not sha256:
        lock_advice = f", delete {_lock_path(target)} if it was published anew"
    raise DownloadError(
        f"cannot download {target.name}: {'; '.join(failures)}. "
        f"Try again later (the download will resume){lock_advice}, "
        f"or download it by hand and save it as {target}"
    )


def _read_pinned_sha256(target: Path) -> str | None:
    """Return the sha256 in the lock file of `target`, or None without a lock file.

    Raises UserError if the lock file does not name a sha256.
    """
    lock_file = _lock_path(target)
    if not lock_file.exists():
        return None
    value = read_json(lock_file)
    digest = value.get("sha256") if isinstance(value, dict) else None
    if not isinstance(digest, str) or not SHA256_PATTERN.fullmatch(digest):
        raise UserError(f"{lock_file} does not name a sha256: delete it and run again")
    return digest


def _lock_path(target: Path) -> Path:
    # The name is hidden because corpus readers skip hidden files.
    return target.with_name(f".{target.name}.lock")


def _verify_existing(
    target: Path, size: int | None, sha256: str | None, expected_sha256: str | None
) -> None:
    """Check the size and sha256 of a file that exists, and pin its sha256 if nothing else does.

    `sha256` comes from the caller; `expected_sha256` is that or, without one, the pinned one.
    Raises UserError if the file differs.
    """
    actual_size = target.stat().st_size
    if size is not None and actual_size != size:
        raise UserError(
            f"{target} has {actual_size} bytes instead of {size}: delete it and run again"
        )
    digest = sha256_file(target)
    if expected_sha256 is not None and digest != expected_sha256:
        origin = "the download list" if sha256 else f"its first download, {_lock_path(target).name}"
        raise UserError(
            f"{target} has sha256 {digest} instead of {expected_sha256} ({origin}): "
            "delete it and run again"
        )
    # A file that the user saved by hand has no lock file.
    if _read_pinned_sha256(target) is None:
        write_json(_lock_path(target), {"sha256": digest, "bytes": actual_size, "url": None})


@contextmanager
def _lock_part_file(target: Path) -> Iterator[Path]:
    """Hold an exclusive lock on the partial file of `target` while the block runs; yield its path.

    Raises UserError if another process holds it.
    """
    part_path = target.with_name(f".{target.name}.part")
    busy_message = f"{target} is being downloaded by another process: wait for it to end"
    with exclusive_lock(part_path, busy_message):
        try:
            yield part_path
        finally:
            # Locking creates the file: delete it again if nothing was downloaded.
            if part_path.exists() and not part_path.stat().st_size:
                _state_path(part_path).unlink(missing_ok=True)
                part_path.unlink()


def _fetch_with_retries(
    url: str, part_path: Path, size: int | None, sha256: str | None, retry_policy: RetryPolicy
) -> dict[str, Any]:
    """Download the whole file into `part_path`; return its sha256, size and URL.

    Raises _UrlFailed if the URL cannot provide the file.
    """
    num_failures = 0
    max_part_size = -1  # bytes
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
            # The two halves may come from two versions of the file, so start again from zero.
            raise _RetryableError(problem)
        except _RetryableError as failure:
            # Only failures without progress count, so a slow but moving download never gives up.
            part_size = part_path.stat().st_size
            num_failures = 1 if part_size > max_part_size else num_failures + 1
            max_part_size = max(max_part_size, part_size)
            max_attempts = retry_policy.max_attempts
            if isinstance(failure, _ConnectionFailed):
                max_attempts = min(2, max_attempts)
            if num_failures >= max_attempts:
                raise _UrlFailed(str(failure)) from None
            backoff = min(retry_policy.initial_backoff * 2 ** (num_failures - 1), 30.0)
            time.sleep(max(failure.retry_after, backoff))


def _request_once(
    url: str, part_path: Path, size: int | None, sha256: str | None, timeout: float
) -> dict[str, Any]:
    """Send one request, which resumes `part_path` if that is safe and otherwise starts it anew.

    Returns whether it resumed, and the sha256 that the server stated or None, under the keys
    `resumed` and `sha256`. Raises _RetryableError or _UrlFailed if the file is not complete.
    """
    # Imported here because most commands download nothing.
    import requests
    import urllib3

    state = _read_state(part_path)
    resume_offset = part_path.stat().st_size
    # Resuming without a validator (ETag or date) of this URL could join two versions of the file.
    # Only a known sha256 would detect that.
    validator = state.get("validator") if state.get("url") == url else None
    can_resume = resume_offset > 0 and (validator is not None or sha256 is not None)
    # "identity": sizes and ranges have to count the bytes of the file, not compressed ones.
    headers = {"Accept-Encoding": "identity", "User-Agent": "babyllama"}
    if can_resume:
        headers["Range"] = f"bytes={resume_offset}-"
        if validator:
            # The server sends the range if the file is unchanged, otherwise the whole file.
            headers["If-Range"] = validator
    try:
        with requests.get(url, headers=headers, stream=True, timeout=timeout) as response:
            start, total = _parse_response_range(
                url, response, resume_offset if can_resume else 0, part_path
            )
            if size is not None and total is not None and total != size:
                raise _UrlFailed(f"offers {total} bytes instead of {size}")
            total = size if total is None else total
            # Some servers ignore If-Range.
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
        raise _UrlFailed(summarize_error(error)) from None
    except requests.ConnectionError as error:
        raise _ConnectionFailed(summarize_error(error)) from None
    except (requests.RequestException, urllib3.exceptions.HTTPError) as error:
        raise _RetryableError(summarize_error(error)) from None


def _parse_response_range(
    url: str, response: Any, resume_offset: int, part_path: Path
) -> tuple[int, int | None]:
    """Return the offset of the response body in the file, and the size of the whole file or None.

    `resume_offset` is the start of the requested range, or 0 if the whole file was requested.
    Raises _RetryableError for temporary failures and _UrlFailed for others.
    """
    if url.startswith("https:") and not response.url.startswith("https:"):
        raise _UrlFailed(f"leads to an unencrypted address, {response.url}")
    status = response.status_code
    # "bytes 100-199/200"; "bytes */200" if the range does not exist; the size may be "*".
    content_range = re.fullmatch(
        r"bytes (?:(\d+)-\d+|\*)/(\d+|\*)", response.headers.get("Content-Range", "").strip()
    )
    if status in TRANSIENT_STATUS_CODES:
        wait = response.headers.get("Retry-After", "")
        raise _RetryableError(
            f"HTTP {status}", retry_after=min(float(wait), 60.0) if _is_number(wait) else 0.0
        )
    # 416 Range Not Satisfiable: nothing follows `resume_offset`.
    if status == 416 and resume_offset:
        if content_range and content_range[2] == str(resume_offset):
            return resume_offset, resume_offset  # the partial file was already complete
        _discard_part(part_path)
        raise _RetryableError("HTTP 416: the file on the server is shorter than the partial file")
    if status not in (200, 206):
        raise _UrlFailed(f"HTTP {status}")
    if response.headers.get("Content-Type", "").lower().startswith("text/html"):
        raise _UrlFailed("answers with a web page instead of the file")
    # 200 is the whole file, even if a range was requested; 206 is a part of it.
    if status == 200:
        length = response.headers.get("Content-Length", "")
        return 0, int(length) if _is_number(length) else None
    if not content_range or content_range[1] != str(resume_offset):
        _discard_part(part_path)
        raise _RetryableError("the server sent a different range than requested")
    return resume_offset, int(content_range[2]) if content_range[2].isdigit() else None


def _is_number(text: str) -> bool:
    """Return whether `int` and `float` take a text; `isdigit` alone is also true of ²."""
    return text.isascii() and text.isdigit()


def _append_body(raw: Any, part_path: Path, offset: int, total: int | None) -> None:
    """Append the response body to the first `offset` bytes of `part_path`.

    Raises OSError if the disk has too little space, _UrlFailed if the body exceeds `total` bytes.
    """
    free = shutil.disk_usage(part_path.parent).free
    if total is not None and total - offset > free:
        raise OSError(
            errno.ENOSPC, f"{total - offset} bytes are still to come and the disk has {free} left"
        )
    name = part_path.name.removeprefix(".").removesuffix(".part")
    with part_path.open("r+b") as file, progress_bar(name, total, "B", initial=offset) as bar:
        file.seek(offset)
        file.truncate()
        # Raw bytes: a server may declare a .gz file as content encoding; it must not be unpacked.
        while block := raw.read(CHUNK_BYTES, decode_content=False):
            offset += file.write(block)
            bar.update(len(block))
            if total is not None and offset > total:
                raise _UrlFailed(f"sends more than the {total} bytes it should")


def _check_complete(part_path: Path, total: int | None) -> None:
    """Raise _RetryableError if bytes are missing, and _UrlFailed if the file is a web page."""
    actual_size = part_path.stat().st_size
    if total is not None and actual_size < total:
        raise _RetryableError(f"broke off after {actual_size} of {total} bytes")
    with part_path.open("rb") as file:
        prefix = file.read(64).lstrip().lower()
    if prefix.startswith(HTML_PREFIXES):
        _discard_part(part_path)
        raise _UrlFailed("answers with a web page instead of the file")
    if not actual_size:
        raise _RetryableError("sent nothing")


def _state_path(part_path: Path) -> Path:
    """Return the file that records the URL and version of a partial file: see `_write_state`."""
    return part_path.with_name(part_path.name + ".json")


def _read_state(part_path: Path) -> dict[str, Any]:
    """Return what `_write_state` recorded, or an empty dict."""
    path = _state_path(part_path)
    if not path.exists():
        return {}
    value = read_json(path)
    return value if isinstance(value, dict) else {}


def _response_validator(response: Any) -> str | None:
    """Return the header value that identifies this version of the file, or None without one.

    It is what a later request sends as If-Range (RFC 9110, section 13.1.5): the ETag or, if there
    is no strong one, the Last-Modified date.
    """
    etag = response.headers.get("ETag")
    # If-Range does not accept weak ETags, which do not guarantee identical bytes.
    return etag if etag and not etag.startswith("W/") else response.headers.get("Last-Modified")


def _write_state(part_path: Path, url: str, response: Any, *, is_resumed: bool) -> dict[str, Any]:
    """Record the URL and version of `part_path`, before the body is written, for later resuming.

    Returns `is_resumed` and the sha256 that the server stated, if any, as `_request_once` does.
    """
    write_json(_state_path(part_path), {"url": url, "validator": _response_validator(response)})
    # Hugging Face sends the sha256 of a file with the redirect to its storage, not with the body.
    digests = [
        hop.headers.get("X-Linked-ETag", "").strip('"') for hop in [*response.history, response]
    ]
    return {
        "resumed": is_resumed,
        "sha256": next((digest for digest in digests if SHA256_PATTERN.fullmatch(digest)), None),
    }


def _discard_part(part_path: Path) -> None:
    """Empty a partial file, so that the next attempt starts from zero."""
    # Truncated, not deleted: this process holds the lock on the file.
    os.truncate(part_path, 0)
    _state_path(part_path).unlink(missing_ok=True)


def _publish(part_path: Path, target: Path, source: dict[str, Any]) -> None:
    """Rename the complete partial file to `target`, and record `source` (sha256, bytes, url)."""
    fsync(part_path)
    # The lock file is written first, so that a target never exists without it.
    write_json(_lock_path(target), source)
    os.replace(part_path, target)
    _state_path(part_path).unlink(missing_ok=True)
    fsync(target.parent)


def summarize_error(error: Exception) -> str:
    """Return the root cause of an exception of `requests` on one line, cut to 160 characters."""
    cause = error.args[0] if error.args and isinstance(error.args[0], Exception) else error
    # The errors of urllib3 hold the underlying one in `reason`.
    text = " ".join(str(getattr(cause, "reason", cause)).split())
    text = re.sub(r"^HTTPS?Connection(Pool)?\([^)]*\): ", "", text)
    return text if len(text) <= 160 else text[:160] + "…"
