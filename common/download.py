"""Downloads that end whole and verified, or leave a part behind that the next attempt continues.

The bytes go to `.NAME.part` beside the target and take its name only when they are complete and their sha256 is the one
that is known: from the caller, from the hub that serves the file (the `X-Linked-ETag` of a Hugging Face hub), or from
the first download, which is recorded in `.NAME.lock`. A server may break off, ignore ranges, lie about lengths, change
the file between attempts or answer with an error page; every one of these ends in the right file or in one clear line.
"""

import errno
import fcntl
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
from common.progress import progress

BLOCK = 1 << 16
# What a server's own trouble looks like: worth another try at the same address.
TRANSIENT = frozenset({408, 425, 429, 500, 502, 503, 504})
SHA256 = re.compile(r"[0-9a-f]{64}")
HTML = (b"<!doctype html", b"<html")


@dataclass(frozen=True)
class Effort:
    """How hard a download tries: attempts at each address without progress, first pause and socket timeout (s)."""

    attempts: int = 4
    pause: float = 1.0
    timeout: float = 30.0


class NotDownloaded(UserError):
    """No address gave the file."""


class _Retry(Exception):
    """This attempt failed; another at the same address may succeed."""

    def __init__(self, reason: str, wait: float = 0.0) -> None:
        super().__init__(reason)
        self.wait = wait


class _NoAnswer(_Retry):
    """Nothing answered at this address: a second try is enough, or a machine without a network waits for minutes."""


class _GiveUp(Exception):
    """This address will not give the file."""


def download(
    urls: Sequence[str], target: Path, *, size: int | None = None, sha256: str | None = None,
    effort: Effort | None = None,
) -> Path:
    """Make sure that `target` holds the file that any of `urls` (mirrors, tried in order) gives; return `target`.

    A target that is there already is verified and nothing is fetched, so this works without a network. `size` (bytes)
    and `sha256` (hex) are given only where they are known. Raises UserError naming the addresses and the cure:
    `NotDownloaded` where none of them gives the file.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    known = sha256 or _locked_sha256(target)
    if target.exists():
        _verify_present(target, size, sha256, known)
        return target
    failures = []
    with _only_one(target) as part:
        for url in urls:
            if target.exists():  # another process ended it while this one opened the part
                return target
            try:
                source = _fetch(url, part, size, known, effort or Effort())
                _finish(part, target, source)
                return target
            except _GiveUp as failure:
                failures.append(f"{url} ({failure})")
            except OSError as error:
                raise UserError(
                    f"cannot write {part}: {error.strerror}; free some space, then run again (the part is kept)"
                ) from None
    anew = "" if sha256 or not known else f", delete {_lock(target)} if it was published anew"
    raise NotDownloaded(
        f"cannot download {target.name}: {'; '.join(failures)}. Try again later (a broken download is continued)"
        f"{anew}, or download it by hand and save it as {target}"
    )


def _locked_sha256(target: Path) -> str | None:
    lock = _lock(target)
    if not lock.exists():
        return None
    value = read_json(lock)
    digest = value.get("sha256") if isinstance(value, dict) else None
    if not isinstance(digest, str) or not SHA256.fullmatch(digest):
        raise UserError(f"{lock} does not name a sha256: delete it and run again")
    return digest


def _lock(target: Path) -> Path:
    # Hidden names are left out by whatever reads a whole folder as a corpus.
    return target.with_name(f".{target.name}.lock")


def _verify_present(target: Path, size: int | None, sha256: str | None, known: str | None) -> None:
    found = target.stat().st_size
    if size is not None and found != size:
        raise UserError(f"{target} has {found} bytes instead of {size}: delete it and run again")
    digest = sha256_file(target)
    if known is not None and digest != known:
        origin = "the download list" if sha256 else f"its first download, {_lock(target).name}"
        raise UserError(f"{target} has sha256 {digest} instead of {known} ({origin}): delete it and run again")
    if _locked_sha256(target) is None:
        write_json(_lock(target), {"sha256": digest, "bytes": found, "url": None})


@contextmanager
def _only_one(target: Path) -> Iterator[Path]:
    part = target.with_name(f".{target.name}.part")
    with part.open("ab") as holder:
        try:
            fcntl.flock(holder, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise UserError(f"{target} is being downloaded by another process: wait for it to end") from None
        try:
            yield part
        finally:
            if part.exists() and not part.stat().st_size:
                _state_path(part).unlink(missing_ok=True)
                part.unlink()


def _fetch(url: str, part: Path, size: int | None, sha256: str | None, effort: Effort) -> dict[str, Any]:
    """Bring the whole file into `part`; return where it came from and its digest. `_GiveUp` when this address fails."""
    failed, furthest = 0, -1
    while True:
        try:
            facts = _attempt(url, part, size, sha256, effort.timeout)
            digest = sha256_file(part)
            expected = sha256 or facts.get("sha256")
            if expected is None or digest == expected:
                return {"sha256": digest, "bytes": part.stat().st_size, "url": url}
            _restart(part)
            problem = f"wrong content: sha256 {digest} instead of {expected}"
            if not facts["resumed"]:
                raise _GiveUp(problem)
            # The two halves may be of two versions of the file: once more, from the start.
            raise _Retry(problem)
        except _Retry as failure:
            reached = part.stat().st_size
            failed = 1 if reached > furthest else failed + 1
            furthest = max(furthest, reached)
            if failed >= (min(2, effort.attempts) if isinstance(failure, _NoAnswer) else effort.attempts):
                raise _GiveUp(str(failure)) from None
            time.sleep(max(failure.wait, min(effort.pause * 2 ** (failed - 1), 30.0)))


def _attempt(url: str, part: Path, size: int | None, sha256: str | None, timeout: float) -> dict[str, Any]:
    """One request: continue `part` if that is safe, else write it anew. Returns what the server said of the file."""
    import requests
    import urllib3

    state = _state(part)
    have = part.stat().st_size
    # Without a validator of this very address two versions could be glued together unnoticed; a known sha256 notices.
    validator = state.get("validator") if state.get("url") == url else None
    resume = have > 0 and (validator is not None or sha256 is not None)
    headers = {"Accept-Encoding": "identity", "User-Agent": "babyllama"}
    if resume:
        headers["Range"] = f"bytes={have}-"
        if validator:
            headers["If-Range"] = validator
    try:
        with requests.get(url, headers=headers, stream=True, timeout=timeout) as answer:
            start, total = _judge(url, answer, have if resume else 0, part)
            if size is not None and total is not None and total != size:
                raise _GiveUp(f"offers {total} bytes instead of {size}")
            total = size if total is None else total
            if start and validator and _validator(answer) not in (validator, None):
                _restart(part)
                raise _Retry("the file changed between two attempts")
            facts = _remember(part, url, answer, resumed=start > 0)
            if total is None or start < total:
                _receive(answer.raw, part, start, total)
            _check_whole(part, total)
            return facts
    except (requests.TooManyRedirects, requests.exceptions.InvalidSchema, requests.exceptions.InvalidURL) as error:
        raise _GiveUp(_plain(error)) from None
    except requests.ConnectionError as error:
        raise _NoAnswer(_plain(error)) from None
    except (requests.RequestException, urllib3.exceptions.HTTPError) as error:
        raise _Retry(_plain(error)) from None


def _judge(url: str, answer: Any, have: int, part: Path) -> tuple[int, int | None]:
    """What an answer means: the byte it begins at, and the size of the whole file where the server states one."""
    if url.startswith("https:") and not answer.url.startswith("https:"):
        raise _GiveUp(f"leads to an unencrypted address, {answer.url}")
    status = answer.status_code
    stated = re.fullmatch(r"bytes (?:(\d+)-\d+|\*)/(\d+|\*)", answer.headers.get("Content-Range", "").strip())
    if status in TRANSIENT:
        wait = answer.headers.get("Retry-After", "")
        raise _Retry(f"HTTP {status}", wait=min(float(wait), 60.0) if wait.isdigit() else 0.0)
    if status == 416 and have:
        if stated and stated[2] == str(have):
            return have, have  # the part was already whole
        _restart(part)
        raise _Retry("HTTP 416: the file there is shorter than the part here")
    if status not in (200, 206):
        raise _GiveUp(f"HTTP {status}")
    if answer.headers.get("Content-Type", "").lower().startswith("text/html"):
        raise _GiveUp("answers with a web page instead of the file")
    if status == 200:
        length = answer.headers.get("Content-Length", "")
        return 0, int(length) if length.isdigit() else None
    if not stated or stated[1] != str(have):
        _restart(part)
        raise _Retry("the server sent another range than the one it was asked for")
    return have, int(stated[2]) if stated[2].isdigit() else None


def _receive(raw: Any, part: Path, start: int, total: int | None) -> None:
    """Append the answer's body to the first `start` bytes of `part`."""
    free = shutil.disk_usage(part.parent).free
    if total is not None and total - start > free:
        raise OSError(errno.ENOSPC, f"{total - start} bytes are still to come and the disk has {free} left")
    name = part.name.removeprefix(".").removesuffix(".part")
    with part.open("r+b") as file, progress(name, total, "B", initial=start) as bar:
        file.seek(start)
        file.truncate()
        # As the server sends it: a .gz must not arrive unpacked because a server calls that its encoding.
        while block := raw.read(BLOCK, decode_content=False):
            start += file.write(block)
            bar.update(len(block))
            if total is not None and start > total:
                raise _GiveUp(f"sends more than the {total} bytes it should")


def _check_whole(part: Path, total: int | None) -> None:
    found = part.stat().st_size
    if total is not None and found < total:
        raise _Retry(f"broke off after {found} of {total} bytes")
    with part.open("rb") as file:
        begins = file.read(64).lstrip().lower()
    if begins.startswith(HTML):
        _restart(part)
        raise _GiveUp("answers with a web page instead of the file")
    if not found:
        raise _Retry("sent nothing")


def _state_path(part: Path) -> Path:
    return part.with_name(part.name + ".json")


def _state(part: Path) -> dict[str, Any]:
    path = _state_path(part)
    if not path.exists():
        return {}
    value = read_json(path)
    return value if isinstance(value, dict) else {}


def _validator(answer: Any) -> str | None:
    etag = answer.headers.get("ETag")
    # If-Range does not take weak tags: they promise the same meaning, not the same bytes.
    return etag if etag and not etag.startswith("W/") else answer.headers.get("Last-Modified")


def _remember(part: Path, url: str, answer: Any, *, resumed: bool) -> dict[str, Any]:
    """Note, before any byte of the body, which version of which address `part` is going to hold."""
    write_json(_state_path(part), {"url": url, "validator": _validator(answer)})
    digests = [step.headers.get("X-Linked-ETag", "").strip('"') for step in [*answer.history, answer]]
    return {"resumed": resumed, "sha256": next((digest for digest in digests if SHA256.fullmatch(digest)), None)}


def _restart(part: Path) -> None:
    os.truncate(part, 0)
    _state_path(part).unlink(missing_ok=True)


def _finish(part: Path, target: Path, source: dict[str, Any]) -> None:
    fsync(part)
    # The lock first: whatever takes the target's name from here on is compared with it.
    write_json(_lock(target), source)
    os.replace(part, target)
    _state_path(part).unlink(missing_ok=True)
    fsync(target.parent)


def _plain(error: Exception) -> str:
    """The cause inside an HTTP library's nested error, in one short line."""
    inner = error.args[0] if error.args and isinstance(error.args[0], Exception) else error
    text = " ".join(str(getattr(inner, "reason", inner)).split())
    text = re.sub(r"^HTTPS?Connection(Pool)?\([^)]*\): ", "", text)
    return text if len(text) <= 160 else text[:160] + "…"
