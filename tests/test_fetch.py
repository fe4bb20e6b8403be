"""Fetching against a server on this machine that misbehaves in every way we could think of."""

import errno
import hashlib
import io
import ssl
import threading
import urllib.error
import zipfile
from collections.abc import Iterator
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from genrec_bench.datasets import download as download_module
from genrec_bench.datasets.catalogue import Card, Form, SourceFile, parse
from genrec_bench.datasets.download import ATTEMPTS, download
from genrec_bench.datasets.errors import InputError
from genrec_bench.datasets.fetch import extract, fetch, from_folder

CONTENT = bytes(range(256)) * 4096  # 1 MiB: several chunks
SHA256 = hashlib.sha256(CONTENT).hexdigest()
get = partial(download, sleep=lambda seconds: None)


class Server(ThreadingHTTPServer):
    """Serves `content` with a list of faults, one a request; afterwards it behaves."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.content = CONTENT
        self.etag: str | None = '"v1"'
        self.faults: list[str] = []
        self.ranges: list[str | None] = []  # the Range header of each request
        self.ignore_range = False

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/data.bin"


class Handler(BaseHTTPRequestHandler):
    server: Server
    protocol_version = "HTTP/1.1"

    def log_message(self, *args: Any) -> None:
        """Quiet."""

    def do_GET(self) -> None:
        server = self.server
        wanted = self.headers.get("Range")
        server.ranges.append(wanted)
        fault = server.faults.pop(0) if server.faults else ""
        if fault.isdigit():
            self.send_error(int(fault))
            return
        if fault == "redirect to file":
            self.send_response(302)
            self.send_header("Location", "file:///etc/hostname")
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        start = 0
        if wanted and not server.ignore_range and self.headers.get("If-Range") == server.etag:
            start = int(wanted.removeprefix("bytes=").rstrip("-"))
        body = server.content[start:]
        if fault == "wrong bytes":
            body = bytes(len(body))
        self.send_response(206 if start else 200)
        if start:
            shown = start + 7 if fault == "wrong range" else start
            self.send_header("Content-Range", f"bytes {shown}-{len(server.content) - 1}/{len(server.content)}")
        if server.etag:
            self.send_header("ETag", server.etag)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body[: len(body) // 2] if fault == "drop" else body)
        if fault == "drop":
            self.close_connection = True


@pytest.fixture
def server() -> Iterator[Server]:
    running = Server()
    thread = threading.Thread(target=running.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    yield running
    running.shutdown()
    running.server_close()
    thread.join()


def leftovers(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_plain_download_reports_progress(server: Server, tmp_path: Path) -> None:
    seen: list[tuple[str, int, int | None]] = []
    get(server.url, tmp_path / "data.bin", SHA256, lambda *report: seen.append(report))
    assert (tmp_path / "data.bin").read_bytes() == CONTENT
    assert leftovers(tmp_path) == ["data.bin"]
    assert seen[-1] == ("data.bin", len(CONTENT), len(CONTENT))
    assert len(seen) > 1


def test_dropped_connections_are_resumed(server: Server, tmp_path: Path) -> None:
    server.faults = ["drop", "drop", "503", "drop"]
    get(server.url, tmp_path / "data.bin", SHA256)
    assert (tmp_path / "data.bin").read_bytes() == CONTENT
    assert server.ranges == [None, "bytes=524288-", "bytes=786432-", "bytes=786432-", "bytes=917504-"]


def test_server_without_ranges_starts_again(server: Server, tmp_path: Path) -> None:
    server.ignore_range, server.faults = True, ["drop"]
    get(server.url, tmp_path / "data.bin")
    assert (tmp_path / "data.bin").read_bytes() == CONTENT


def test_without_a_mark_nothing_is_resumed(server: Server, tmp_path: Path) -> None:
    server.etag, server.faults = None, ["drop"]
    get(server.url, tmp_path / "data.bin")
    assert server.ranges == [None, None]
    assert (tmp_path / "data.bin").read_bytes() == CONTENT


def test_wrong_range_is_not_glued_on(server: Server, tmp_path: Path) -> None:
    server.faults = ["drop", "wrong range"]
    get(server.url, tmp_path / "data.bin")
    assert (tmp_path / "data.bin").read_bytes() == CONTENT


def test_half_a_download_of_an_earlier_run_is_continued(server: Server, tmp_path: Path) -> None:
    server.faults = ["drop", "404"]
    with pytest.raises(InputError, match="404"):
        get(server.url, tmp_path / "data.bin", SHA256)
    assert leftovers(tmp_path) == ["data.bin.part", "data.bin.part.json"]  # nothing that looks finished
    get(server.url, tmp_path / "data.bin", SHA256)
    assert server.ranges[-1] == "bytes=524288-"
    assert (tmp_path / "data.bin").read_bytes() == CONTENT


def test_half_a_download_of_another_version_is_not_continued(server: Server, tmp_path: Path) -> None:
    server.faults = ["drop", "404"]
    with pytest.raises(InputError):
        get(server.url, tmp_path / "data.bin")
    server.content, server.etag = CONTENT[::-1], '"v2"'
    get(server.url, tmp_path / "data.bin")
    assert (tmp_path / "data.bin").read_bytes() == CONTENT[::-1]


def test_damaged_half_is_fetched_anew(server: Server, tmp_path: Path) -> None:
    server.faults = ["drop", "404"]
    with pytest.raises(InputError):
        get(server.url, tmp_path / "data.bin", SHA256)
    part = tmp_path / "data.bin.part"
    part.write_bytes(bytes(part.stat().st_size))
    get(server.url, tmp_path / "data.bin", SHA256)
    assert (tmp_path / "data.bin").read_bytes() == CONTENT


def test_part_longer_than_the_file_is_thrown_away(server: Server, tmp_path: Path) -> None:
    (tmp_path / "data.bin.part").write_bytes(CONTENT * 2)
    (tmp_path / "data.bin.part.json").write_text('{"mark": "\\"v1\\""}')
    server.faults = ["416"]
    get(server.url, tmp_path / "data.bin", SHA256)
    assert (tmp_path / "data.bin").read_bytes() == CONTENT


def test_wrong_bytes_are_refused(server: Server, tmp_path: Path) -> None:
    server.faults = ["wrong bytes"]
    with pytest.raises(InputError, match=f"wrong checksum. Expected sha256 {SHA256}, found"):
        get(server.url, tmp_path / "data.bin", SHA256)
    assert leftovers(tmp_path) == []


def test_attempts_end(server: Server, tmp_path: Path) -> None:
    server.faults = ["500"] * (ATTEMPTS + 1)
    waits: list[float] = []
    with pytest.raises(InputError, match="could not be fetched in 5 attempts: the server answers 500"):
        download(server.url, tmp_path / "data.bin", sleep=waits.append)
    assert waits == [0.5, 1, 2, 4]
    server.faults = ["404"]
    with pytest.raises(InputError, match="the server answers 404"):
        get(server.url, tmp_path / "data.bin")
    assert leftovers(tmp_path) == []


def test_a_server_that_refuses_names_the_way_without_it(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.faults = ["403"]
    card, form = card_of(SourceFile(name="a.txt", url=server.url))
    by_hand = ". By hand: get a.txt from https://nowhere, then run: genrec-bench data prepare toy --from DIR"
    with pytest.raises(InputError) as refused:
        fetch(card, form, tmp_path)
    assert str(refused.value) == f"{server.url}: the server answers 403 Forbidden{by_hand}"

    reason = ssl.SSLCertVerificationError(1, "certificate verify failed: self-signed certificate")

    def untrusted(*request: object) -> None:
        raise urllib.error.URLError(reason)

    monkeypatch.setattr(download_module, "_attempt", untrusted)
    with pytest.raises(InputError) as refused:
        fetch(card, form, tmp_path)
    assert str(refused.value) == f"{server.url}: {reason}{by_hand}"
    assert leftovers(tmp_path) == []


def test_nobody_listens(server: Server, tmp_path: Path) -> None:
    url = server.url
    server.shutdown()
    server.server_close()
    with pytest.raises(InputError, match="could not be fetched in 5 attempts"):
        get(url, tmp_path / "data.bin")
    assert leftovers(tmp_path) == []


def test_full_disk(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_space(stream: object, chunk: bytes) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(download_module, "write", no_space)
        with pytest.raises(InputError, match=r"No space left on the disk of .* while writing data\.bin"):
            get(server.url, tmp_path / "data.bin", SHA256)
    assert "data.bin" not in leftovers(tmp_path)
    get(server.url, tmp_path / "data.bin", SHA256)
    assert (tmp_path / "data.bin").read_bytes() == CONTENT


@pytest.mark.parametrize("url", ["file:///etc/passwd", "ftp://127.0.0.1/x", "/etc/passwd", "data:,x"])
def test_other_addresses_are_refused(url: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="only http and https"):
        get(url, tmp_path / "x")


def test_redirect_to_a_local_file_is_not_followed(server: Server, tmp_path: Path) -> None:
    server.faults = ["redirect to file"]
    with pytest.raises(InputError):
        get(server.url, tmp_path / "x")
    assert leftovers(tmp_path) == []


def zip_bytes(members: dict[str, bytes]) -> bytes:
    target = io.BytesIO()
    with zipfile.ZipFile(target, "w") as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return target.getvalue()


@pytest.mark.parametrize("member", ["../evil", "/etc/evil", "a/../../evil", "..\\evil"])
def test_members_outside_the_archive_are_refused(member: str, tmp_path: Path) -> None:
    (tmp_path / "a.zip").write_bytes(zip_bytes({member: b"x"}))
    with pytest.raises(InputError, match="points outside the archive"):
        extract(tmp_path / "a.zip", member, tmp_path / "out")
    with pytest.raises(ValueError, match="inside the archive"):
        SourceFile(name="x", url="https://127.0.0.1/a.zip", member=member)


def card_of(*files: SourceFile) -> tuple[Card, Form]:
    form = Form(name="raw", files=list(files), reader="plain")
    return Card(name="toy", title="", sources=["https://nowhere"], terms="", citation="", forms=[form]), form


def test_members_of_a_fetched_zip(server: Server, tmp_path: Path) -> None:
    server.content = zip_bytes({"in/a.txt": b"A", "in/b.txt": b"B"})
    sums = {name: hashlib.sha256(name.upper().encode()).hexdigest() for name in "ab"}
    files = [SourceFile(name=f"{n}.txt", url=server.url, member=f"in/{n}.txt", sha256=sums[n]) for n in "ab"]
    card, form = card_of(*files)
    assert fetch(card, form, tmp_path / "cache") == tmp_path / "cache"
    assert (tmp_path / "cache" / "b.txt").read_text() == "B"
    assert len(server.ranges) == 1  # one zip for both
    fetch(card, form, tmp_path / "cache")
    assert len(server.ranges) == 1  # all in the cache
    # the same zip in a folder of the person
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "data.bin").write_bytes(server.content)
    assert (from_folder(card, form, tmp_path / "mine", tmp_path / "other") / "a.txt").read_text() == "A"


def test_damaged_cache_and_zip_are_named(server: Server, tmp_path: Path) -> None:
    card, form = card_of(SourceFile(name="a.txt", url=server.url, member="in/a.txt", sha256="0" * 64))
    server.content = b"no zip at all"
    with pytest.raises(InputError, match="is not a whole zip file"):
        fetch(card, form, tmp_path)
    (tmp_path / "data.bin").write_bytes(zip_bytes({"in/b.txt": b""}))
    with pytest.raises(InputError, match=r"has no member 'in/a\.txt'"):
        fetch(card, form, tmp_path)
    (tmp_path / "data.bin").write_bytes(zip_bytes({"in/a.txt": b"x"}))
    with pytest.raises(InputError, match=r"a.txt: wrong checksum"):
        fetch(card, form, tmp_path)
    assert leftovers(tmp_path) == ["data.bin"]
    (tmp_path / "a.txt").write_bytes(b"rotten")
    with pytest.raises(InputError, match=r"a.txt: wrong checksum"):
        fetch(card, form, tmp_path)
    assert leftovers(tmp_path) == ["data.bin"]


def test_files_of_the_person(tmp_path: Path) -> None:
    wanted = SourceFile(name="a.txt", sha256=hashlib.sha256(b"A").hexdigest())
    card, form = card_of(wanted, SourceFile(name="extra.txt", optional=True))
    with pytest.raises(InputError, match=r"lacks a.txt"):
        from_folder(card, form, tmp_path, tmp_path / "cache")
    (tmp_path / "a.txt").write_bytes(b"A")
    assert from_folder(card, form, tmp_path, tmp_path / "cache") == tmp_path
    (tmp_path / "a.txt").write_bytes(b"B")
    with pytest.raises(InputError, match="wrong checksum"):
        from_folder(card, form, tmp_path, tmp_path / "cache")
    with pytest.raises(InputError, match=r"must be fetched by hand: get a\.txt from https://nowhere"):
        fetch(card, form, tmp_path / "cache")


@pytest.mark.parametrize("value", ["file:///etc/passwd", "ftp://x/y"])
def test_cards_with_other_addresses_are_refused(value: str) -> None:
    source = f"{{name: a, url: '{value}'}}"
    form = f"{{name: f, reader: plain, files: [{source}]}}"
    text = f"{{name: x, title: t, sources: [], terms: t, citation: c, forms: [{form}]}}"
    with pytest.raises(InputError, match=r"forms.0.files.0.url"):
        parse(text, "x.yaml")
