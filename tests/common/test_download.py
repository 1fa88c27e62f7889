"""Tests of downloads from a faulty loopback server: a complete file, or a one-line error."""

import contextlib
import hashlib
import http.server
import io
import json
import os
import re
import resource
import stat
import threading
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from common.archive import extract_zip
from common.download import RetryPolicy, _is_number, download
from common.errors import UserError

QUICK = RetryPolicy(max_attempts=3, initial_backoff=0.01, timeout=2.0)
DATA = bytes(range(256)) * 4096  # 1 MiB
SHA = hashlib.sha256(DATA).hexdigest()
OTHER = DATA[::-1]


class Server:
    """A scripted HTTP server: each request takes the next handler; the last one is repeated."""

    def __init__(self) -> None:
        self.data, self.etag = DATA, '"one"'
        self.script: list[Callable[[Any], None]] = []
        self.requests: list[dict[str, str]] = []
        outer = self

        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                outer.requests.append(dict(self.headers) | {"path": self.path})
                self.close_connection = True
                step = outer.script.pop(0) if len(outer.script) > 1 else outer.script[0]
                with contextlib.suppress(BrokenPipeError, ConnectionResetError):
                    step(self)  # the client may give up

            def log_message(self, *arguments: object) -> None:
                pass

        self.http = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.http.server_address[1]}/file.bin"

    def good(
        self, request: Any, *, ranges: bool = True, stop: int | None = None, validator: bool = True
    ) -> None:
        """Serve ranges, If-Range and 416 correctly; break off after `stop` bytes of the body."""
        range_match = None
        if ranges:
            range_match = re.fullmatch(r"bytes=(\d+)-", request.headers.get("Range", ""))
        is_same_version = request.headers.get("If-Range", self.etag) == self.etag
        start = int(range_match[1]) if range_match and is_same_version else 0
        if start >= len(self.data) and start:
            send(request, 416, b"", {"Content-Range": f"bytes */{len(self.data)}"})
            return
        body = self.data[start:]
        headers = {"Content-Length": str(len(body))} | ({"ETag": self.etag} if validator else {})
        if start:
            headers["Content-Range"] = f"bytes {start}-{len(self.data) - 1}/{len(self.data)}"
        send(request, 206 if start else 200, body[:stop], headers)


def send(request: Any, status: int, body: bytes, headers: dict[str, str]) -> None:
    request.send_response(status)
    for name, value in (
        {"Content-Length": str(len(body)), "Connection": "close"} | headers
    ).items():
        if value:
            request.send_header(name, value)
    request.end_headers()
    request.wfile.write(body)


def status(code: int, body: bytes = b"no", **headers: str) -> Callable[[Any], None]:
    return lambda request: send(
        request, code, body, {name.replace("_", "-"): value for name, value in headers.items()}
    )


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    server = Server()
    server.script = [server.good]
    thread = threading.Thread(
        target=server.http.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True
    )
    thread.start()
    yield server
    server.http.shutdown()
    server.http.server_close()


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_download_is_complete_and_locked_without_partial_file(
    server: Server, tmp_path: Path
) -> None:
    target = download([server.url], tmp_path / "f", retry_policy=QUICK)
    assert target.read_bytes() == DATA
    assert names(tmp_path) == [".f.lock", "f"]
    assert json.loads((tmp_path / ".f.lock").read_text()) == {
        "sha256": SHA,
        "bytes": len(DATA),
        "url": server.url,
    }


def test_existing_file_needs_no_network(tmp_path: Path) -> None:
    (tmp_path / "f").write_bytes(DATA)
    download(["http://127.0.0.1:9/none"], tmp_path / "f", sha256=SHA, retry_policy=QUICK)


@pytest.mark.slow
def test_interrupted_download_resumes(server: Server, tmp_path: Path) -> None:
    """Prevents downloading from the start after every break.

    The breaks outnumber the attempts: a download that progresses must not give up.
    """
    stops = [lambda request: server.good(request, stop=150_000)] * 6
    server.script = [*stops, server.good]
    assert download([server.url], tmp_path / "f", retry_policy=QUICK).read_bytes() == DATA
    starts = [int(re.sub(r"\D", "", each.get("Range", "0"))) for each in server.requests]
    assert starts == sorted(starts) and len(set(starts)) == 7, starts


def test_killed_download_resumes(server: Server, tmp_path: Path) -> None:
    server.script = [lambda request: server.good(request, stop=400_000), status(404)]
    with pytest.raises(UserError):
        download([server.url], tmp_path / "f", retry_policy=QUICK)
    assert names(tmp_path) == [".f.part", ".f.part.json"]
    server.script = [server.good]
    assert download([server.url], tmp_path / "f", retry_policy=QUICK).read_bytes() == DATA
    assert server.requests[-1]["Range"] != "bytes=0-" and server.requests[-1]["If-Range"] == '"one"'


def test_server_without_range_support_restarts_download(server: Server, tmp_path: Path) -> None:
    """Prevents appending a 200 response to the partial file."""
    server.script = [
        lambda request: server.good(request, stop=400_000),
        lambda request: server.good(request, ranges=False),
    ]
    assert download([server.url], tmp_path / "f", retry_policy=QUICK).read_bytes() == DATA


def test_shorter_file_discards_longer_partial_file(server: Server, tmp_path: Path) -> None:
    (tmp_path / ".f.part").write_bytes(OTHER)
    server.data = DATA[:1000]
    assert download([server.url], tmp_path / "f", retry_policy=QUICK).read_bytes() == DATA[:1000]


def test_changed_file_is_not_resumed(server: Server, tmp_path: Path) -> None:
    def change(request: Any) -> None:
        server.good(request, stop=400_000)
        server.data, server.etag = OTHER, '"two"'

    server.script = [change, server.good]
    assert download([server.url], tmp_path / "f", retry_policy=QUICK).read_bytes() == OTHER


def test_changed_file_is_detected_without_if_range_support(server: Server, tmp_path: Path) -> None:
    def change(request: Any) -> None:
        server.good(request, stop=400_000)
        server.data, server.etag = OTHER, '"two"'

    def ignore_if_range(request: Any) -> None:
        del request.headers["If-Range"]
        server.good(request)

    server.script = [change, ignore_if_range]
    assert download([server.url], tmp_path / "f", retry_policy=QUICK).read_bytes() == OTHER


def test_download_without_validator_or_sha256_is_not_resumed(
    server: Server, tmp_path: Path
) -> None:
    """Prevents joining two versions of a file that nothing could tell apart."""
    server.script = [
        lambda request: server.good(request, stop=400_000, validator=False),
        server.good,
    ]
    assert download([server.url], tmp_path / "f", retry_policy=QUICK).read_bytes() == DATA
    assert all("Range" not in headers for headers in server.requests)


def test_known_sha256_allows_resume_from_another_mirror(server: Server, tmp_path: Path) -> None:
    server.script = [lambda request: server.good(request, stop=400_000), status(403), server.good]
    mirrors = [server.url, server.url + "?mirror"]
    assert download(mirrors, tmp_path / "f", sha256=SHA, retry_policy=QUICK).read_bytes() == DATA
    assert server.requests[-1]["Range"] != "bytes=0-" and server.requests[-1]["path"].endswith(
        "?mirror"
    )


def test_corrupted_partial_file_is_downloaded_again(server: Server, tmp_path: Path) -> None:
    """Prevents a damaged partial file from failing every later attempt."""
    (tmp_path / ".f.part").write_bytes(OTHER[:500_000])
    assert (
        download([server.url], tmp_path / "f", sha256=SHA, retry_policy=QUICK).read_bytes() == DATA
    )


@pytest.mark.parametrize("length", [len(DATA), len(DATA) + 777])
def test_full_length_partial_file_is_finished_or_replaced(
    server: Server, tmp_path: Path, length: int
) -> None:
    """Prevents an endless loop after a 416 response, and accepting too long a partial file."""
    (tmp_path / ".f.part").write_bytes((DATA + DATA)[:length])
    assert (
        download([server.url], tmp_path / "f", sha256=SHA, retry_policy=QUICK).read_bytes() == DATA
    )
    assert len(server.requests) == (1 if length == len(DATA) else 2)


def test_corrupted_download_never_gets_final_name(server: Server, tmp_path: Path) -> None:
    server.data = OTHER
    with pytest.raises(
        UserError,
        match=f"wrong content: sha256 {hashlib.sha256(OTHER).hexdigest()} instead of {SHA}",
    ):
        download([server.url], tmp_path / "f", sha256=SHA, retry_policy=QUICK)
    assert names(tmp_path) == []
    assert len(server.requests) == 1


def test_mirror_with_wrong_bytes_is_skipped(server: Server, tmp_path: Path) -> None:
    def choose(request: Any) -> None:
        server.data = DATA if request.path.endswith("?good") else OTHER
        server.good(request)

    server.script = [choose]
    download(
        [server.url, server.url + "?good"],
        tmp_path / "f",
        sha256=SHA,
        size=len(DATA),
        retry_policy=QUICK,
    )
    assert (tmp_path / "f").read_bytes() == DATA


def test_hub_sha256_is_verified(server: Server, tmp_path: Path) -> None:
    """Prevents accepting a first download that was damaged on the way from the hub."""
    server.data = OTHER
    hub = status(302, b"", Location=server.url + "?storage", X_Linked_ETag=f'"{SHA}"')
    server.script = [hub, server.good]
    with pytest.raises(UserError, match="wrong content"):
        download([server.url], tmp_path / "f", retry_policy=QUICK)
    server.data, server.script = DATA, [hub, server.good]
    assert download([server.url], tmp_path / "f", retry_policy=QUICK).read_bytes() == DATA


def test_wrong_content_length_is_detected(server: Server, tmp_path: Path) -> None:
    def claim_length(length: int) -> Callable[[Any], None]:
        return lambda request: send(request, 200, DATA, {"Content-Length": str(length)})

    server.script = [claim_length(len(DATA) + 10)]
    with pytest.raises(UserError, match=r"more expected|broke off"):
        download([server.url], tmp_path / "long", retry_policy=QUICK)
    with pytest.raises(UserError, match=f"offers {len(DATA) - 10} bytes instead of {len(DATA)}"):
        server.script = [claim_length(len(DATA) - 10)]
        download([server.url], tmp_path / "short", size=len(DATA), retry_policy=QUICK)
    assert not (tmp_path / "long").exists() and not (tmp_path / "short").exists()


def test_truncation_without_content_length_is_detected_by_known_size(
    server: Server, tmp_path: Path
) -> None:
    server.script = [
        lambda request: send(request, 200, DATA[:1000], {"Content-Length": ""}),
        server.good,
    ]
    assert (
        download([server.url], tmp_path / "f", size=len(DATA), retry_policy=QUICK).read_bytes()
        == DATA
    )


def test_download_beyond_known_size_is_aborted(server: Server, tmp_path: Path) -> None:
    """Prevents an endless response from filling the disk."""
    server.script = [lambda request: send(request, 200, DATA * 3, {"Content-Length": ""})]
    with pytest.raises(UserError, match=f"sends more than the {len(DATA)} bytes"):
        download([server.url], tmp_path / "f", size=len(DATA), retry_policy=QUICK)


@pytest.mark.parametrize(
    ("kind", "page"),
    [
        ("text/html; charset=utf-8", b"please log in"),
        ("application/octet-stream", b"\n<!DOCTYPE html><html>please log in</html>"),
    ],
)
def test_html_error_page_is_rejected(
    server: Server, tmp_path: Path, kind: str, page: bytes
) -> None:
    """Prevents saving a captive portal or login page, sent with status 200, as the data."""
    server.script = [status(200, page, Content_Type=kind)]
    with pytest.raises(UserError, match="web page instead of the file"):
        download([server.url], tmp_path / "f", retry_policy=QUICK)
    assert names(tmp_path) == []


def test_empty_response_is_rejected(server: Server, tmp_path: Path) -> None:
    server.script = [status(200, b"")]
    with pytest.raises(UserError, match="sent nothing"):
        download([server.url], tmp_path / "f", retry_policy=QUICK)
    assert names(tmp_path) == []


def test_server_errors_are_retried_but_404_is_not(server: Server, tmp_path: Path) -> None:
    server.script = [status(500), status(503, Retry_After="0"), server.good]
    assert download([server.url], tmp_path / "f", retry_policy=QUICK).read_bytes() == DATA
    server.requests.clear()
    server.script = [status(404)]
    with pytest.raises(UserError) as caught:
        download([server.url, server.url + "?b"], tmp_path / "g", retry_policy=QUICK)
    line = str(caught.value)
    assert (
        f"{server.url} (HTTP 404); {server.url}?b (HTTP 404)" in line
        and f"save it as {tmp_path / 'g'}" in line
    )
    assert "\n" not in line and len(server.requests) == 2


@pytest.mark.slow
def test_redirects_are_followed_up_to_a_limit(server: Server, tmp_path: Path) -> None:
    server.script = [status(302, b"", Location=server.url + "?elsewhere"), server.good]
    assert download([server.url], tmp_path / "f", retry_policy=QUICK).read_bytes() == DATA
    server.script = [status(302, b"", Location=server.url)]
    with pytest.raises(UserError, match="redirects"):
        download([server.url], tmp_path / "g", retry_policy=QUICK)


def test_no_network_gives_one_line_error_with_url_and_advice(tmp_path: Path) -> None:
    with pytest.raises(UserError) as caught:
        download(["http://127.0.0.1:9/a"], tmp_path / "f", retry_policy=QUICK)
    line = str(caught.value)
    assert (
        "http://127.0.0.1:9/a (" in line
        and "refused" in line
        and f"save it as {tmp_path / 'f'}" in line
    )
    assert "\n" not in line and len(line) < 500


@pytest.mark.slow
def test_silent_server_times_out(server: Server, tmp_path: Path) -> None:
    wait = threading.Event()
    server.script = [lambda request: wait.wait(5)]
    with pytest.raises(UserError, match=r"(?i)timed out"):
        download(
            [server.url],
            tmp_path / "f",
            retry_policy=RetryPolicy(max_attempts=1, initial_backoff=0.01, timeout=0.2),
        )
    wait.set()


def test_gz_file_is_not_decompressed_in_transit(server: Server, tmp_path: Path) -> None:
    """Prevents unpacking a .gz file because a server declares it as content encoding."""
    import gzip

    server.data = gzip.compress(DATA)
    server.script = [lambda request: send(request, 200, server.data, {"Content-Encoding": "gzip"})]
    assert download([server.url], tmp_path / "f.gz", retry_policy=QUICK).read_bytes() == server.data
    assert server.requests[0]["Accept-Encoding"] == "identity"


def test_later_downloads_are_checked_against_locked_digest(server: Server, tmp_path: Path) -> None:
    target = download([server.url], tmp_path / "f", retry_policy=QUICK)
    target.write_bytes(OTHER)
    with pytest.raises(UserError, match=r"its first download, .f.lock"):
        download([server.url], target, retry_policy=QUICK)
    target.unlink()
    server.data = OTHER
    with pytest.raises(UserError, match=r"delete .*f.lock if it was published anew"):
        download([server.url], target, retry_policy=QUICK)
    (tmp_path / ".f.lock").write_text("{}")
    with pytest.raises(UserError, match="does not name a sha256"):
        download([server.url], target, retry_policy=QUICK)
    (tmp_path / ".f.lock").unlink()
    assert download([server.url], target, retry_policy=QUICK).read_bytes() == OTHER


def test_wrong_user_supplied_file_is_not_overwritten(tmp_path: Path) -> None:
    (tmp_path / "f").write_bytes(OTHER)
    with pytest.raises(UserError, match=r"the download list.*delete it and run again"):
        download(["http://127.0.0.1:9/a"], tmp_path / "f", sha256=SHA)
    with pytest.raises(UserError, match=f"has {len(OTHER)} bytes instead of 5"):
        download(["http://127.0.0.1:9/a"], tmp_path / "f", size=5)
    assert (tmp_path / "f").read_bytes() == OTHER


def test_full_disk_gives_one_line_error_and_keeps_partial_file(
    server: Server, tmp_path: Path
) -> None:
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (500_000, before[1]))
    try:
        with pytest.raises(UserError, match=r"cannot write .*\.f\.part: .*free some space"):
            download([server.url], tmp_path / "f", retry_policy=QUICK)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert (tmp_path / ".f.part").stat().st_size >= 400_000
    assert download([server.url], tmp_path / "f", retry_policy=QUICK).read_bytes() == DATA
    assert "Range" in server.requests[-1]


def test_insufficient_disk_space_is_reported_before_download(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("shutil.disk_usage", lambda path: type("Usage", (), {"free": 1000}))
    with pytest.raises(
        UserError, match=f"{len(DATA)} bytes are still to come and the disk has 1000 left"
    ):
        download([server.url], tmp_path / "f", retry_policy=QUICK)


def test_concurrent_processes_do_not_share_partial_file(server: Server, tmp_path: Path) -> None:
    import fcntl

    with (tmp_path / ".f.part").open("ab") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        with pytest.raises(UserError, match="another process"):
            download([server.url], tmp_path / "f", retry_policy=QUICK)


def make_zip(path: Path, members: dict[str, bytes], mode: int = stat.S_IFREG | 0o644) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as packed:
        for name, content in members.items():
            info = zipfile.ZipInfo(name)
            info.external_attr = mode << 16
            packed.writestr(info, content)
    return path


def test_zip_is_unpacked_again_only_when_changed(tmp_path: Path) -> None:
    archive = make_zip(tmp_path / "a.zip", {"in/语料.txt": DATA, "b": b"x"})
    folder = extract_zip(archive, tmp_path / "out")
    assert (folder / "in" / "语料.txt").read_bytes() == DATA
    first = (folder / "b").stat().st_ino
    assert (extract_zip(archive, folder) / "b").stat().st_ino == first
    make_zip(archive, {"b": b"changed"})
    assert (extract_zip(archive, folder) / "b").read_bytes() == b"changed"
    assert not (folder / "in").exists()


@pytest.mark.parametrize(
    "name", ["../evil", "a/../../evil", "/evil", "..\\evil", "C:evil", "manifest.json"]
)
def test_a_zip_cannot_write_outside_its_folder(tmp_path: Path, name: str) -> None:
    archive = make_zip(tmp_path / "a.zip", {"good": b"x", name: b"evil"})
    with pytest.raises(UserError, match="not unpacked"):
        extract_zip(archive, tmp_path / "in" / "out")
    assert names(tmp_path) == ["a.zip", "in"] and names(tmp_path / "in") == []


def test_zip_with_links_bomb_or_damage_is_refused(tmp_path: Path) -> None:
    link = make_zip(tmp_path / "link.zip", {"a": b"/etc/passwd"}, stat.S_IFLNK | 0o777)
    with pytest.raises(UserError, match="not a plain file"):
        extract_zip(link, tmp_path / "out")
    bomb = make_zip(tmp_path / "bomb.zip", {"a": bytes(1 << 20), "b": bytes(1 << 20)})
    with pytest.raises(UserError, match="holds 2097152 bytes, more than the 2000000 allowed"):
        extract_zip(bomb, tmp_path / "out", max_bytes=2_000_000)
    broken = tmp_path / "broken.zip"
    broken.write_bytes(bomb.read_bytes()[:-40])
    with pytest.raises(UserError, match="not a readable zip"):
        extract_zip(broken, tmp_path / "out")
    whole = bytearray(make_zip(tmp_path / "c.zip", {"a": os.urandom(5000)}).read_bytes())
    whole[2000] ^= 1
    (tmp_path / "c.zip").write_bytes(bytes(whole))
    with pytest.raises(UserError, match="not a readable zip"):
        extract_zip(tmp_path / "c.zip", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_zip_with_understated_size_is_refused(tmp_path: Path) -> None:
    """Prevents a member from passing the limit by unpacking to more than it states."""
    archive = make_zip(tmp_path / "a.zip", {"a": bytes(1 << 20)})
    payload = archive.read_bytes().replace(
        (1 << 20).to_bytes(4, "little"), (10).to_bytes(4, "little")
    )
    archive.write_bytes(payload)
    assert zipfile.ZipFile(io.BytesIO(payload)).infolist()[0].file_size == 10
    with pytest.raises(UserError, match="not a readable zip"):
        extract_zip(archive, tmp_path / "out", max_bytes=1000)


def test_digits_that_are_no_numbers_are_no_lengths() -> None:
    """Prevents a traceback for a header such as `Content-Length: ²`, of which isdigit is true."""
    assert _is_number("100") and not any(map(_is_number, ("²", "١", "", "-1", "1.5")))
