"""Downloading one file over HTTP(S): resumed, retried, checked, and never under its final name before it is whole.

A half download stays as `NAME.part` beside `NAME.part.json`, which keeps the server's mark (ETag or date) of the
version it belongs to: without the same mark the rest of another version could be glued on.
"""

import errno
import hashlib
import http.client
import json
import os
import ssl
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import IO
from urllib.parse import urlsplit

from genrec_bench.datasets.errors import InputError

Progress = Callable[[str, int, int | None], None]  # file name, bytes so far, bytes in all if known

ATTEMPTS = 5
TIMEOUT_S = 30.0
FIRST_WAIT_S = 0.5  # doubled after each failed attempt
CHUNK = 1 << 18
RETRIED_STATUS = (408, 425, 429, 500, 502, 503, 504)
# An opener with these alone cannot follow anything to file:// or ftp://.
_HANDLERS = (
    urllib.request.ProxyHandler,
    urllib.request.HTTPHandler,
    urllib.request.HTTPSHandler,
    urllib.request.HTTPDefaultErrorHandler,
    urllib.request.HTTPRedirectHandler,
    urllib.request.HTTPErrorProcessor,
)


class OutOfReach(InputError):
    """The server does not give the file: there may be other ways to get it."""


class _CutShortError(Exception):
    """The connection ended before the file did; another attempt may bring the rest."""


@dataclass
class _Part:
    """The half download on disk."""

    path: Path

    @property
    def marks(self) -> Path:
        return self.path.with_name(self.path.name + ".json")

    def state(self) -> tuple[int, str | None]:
        """(bytes on disk, mark of their version); no bytes count without a mark."""
        try:
            mark = json.loads(self.marks.read_text())["mark"]
            return self.path.stat().st_size, str(mark)
        except (OSError, ValueError, KeyError, TypeError):
            return 0, None

    def remove(self) -> None:
        self.path.unlink(missing_ok=True)
        self.marks.unlink(missing_ok=True)


def download(
    url: str,
    target: Path,
    sha256: str | None = None,
    progress: Progress | None = None,
    *,
    sleep: Callable[[float], None] = time.sleep,
) -> None:
    """Bring ``url`` to ``target``, resuming what an earlier run left.

    Raises OutOfReach if the server does not give it, InputError if it is not http(s), has another checksum, or does not
    fit on the disk.
    """
    if urlsplit(url).scheme not in ("http", "https"):
        raise InputError(f"{url}: only http and https addresses can be fetched")
    part = _Part(target.with_name(target.name + ".part"))
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        resumed = _with_retries(url, part, progress, sleep)
        if resumed and sha256 and file_sha256(part.path) != sha256:
            part.remove()  # the old half may have been damaged: once more from the start
            _with_retries(url, part, progress, sleep)
        check(part.path, sha256, shown_as=url, remove=part.remove)
        os.replace(part.path, target)
        part.marks.unlink(missing_ok=True)
    except OSError as error:
        raise disk_error(error, target) from error


def check(path: Path, sha256: str | None, *, shown_as: str, remove: Callable[[], None] | None = None) -> None:
    """InputError unless ``path`` has the checksum (no checksum known: nothing to check)."""
    if sha256 is None:
        return
    found = file_sha256(path)
    if found != sha256:
        if remove:
            remove()
        raise InputError(
            f"{shown_as}: wrong checksum. Expected sha256 {sha256}, found {found}: "
            "the file is damaged or another version than the data set's card describes"
        )


def file_sha256(path: Path) -> str:
    """Hex digest of a file."""
    with open(path, "rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def disk_error(error: OSError, target: Path) -> InputError:
    """The clear line for a failed write."""
    if error.errno == errno.ENOSPC:
        return InputError(f"No space left on the disk of {target.parent} while writing {target.name}; free some space")
    return InputError(f"Cannot write {target}: {error.strerror or error}")


def _with_retries(url: str, part: _Part, progress: Progress | None, sleep: Callable[[float], None]) -> bool:
    """Attempt until whole; true if bytes of an earlier run were kept."""
    kept = part.state()[0] > 0
    last = ""
    for attempt in range(ATTEMPTS):
        if attempt:
            sleep(FIRST_WAIT_S * 2 ** (attempt - 1))
        try:
            _attempt(url, part, progress)
            return kept
        except urllib.error.HTTPError as error:
            error.close()
            if error.code == 416:  # what is on disk does not fit the server's file
                part.remove()
            elif error.code not in RETRIED_STATUS:
                raise OutOfReach(f"{url}: the server answers {error.code} {error.reason}") from error
            last = f"the server answers {error.code} {error.reason}"
        except (urllib.error.URLError, http.client.HTTPException, ConnectionError, TimeoutError, ssl.SSLError) as error:
            reason = getattr(error, "reason", error)
            if isinstance(reason, ssl.SSLCertVerificationError):  # as little to be trusted the next time
                raise OutOfReach(f"{url}: {reason}") from error
            last = str(reason) or type(error).__name__
        except _CutShortError as error:
            last = str(error)
    raise OutOfReach(f"{url} could not be fetched in {ATTEMPTS} attempts: {last}")


def _attempt(url: str, part: _Part, progress: Progress | None) -> None:
    size, mark = part.state()
    request = urllib.request.Request(url, headers={"User-Agent": "genrec-bench", "Accept-Encoding": "identity"})
    if size and mark:
        request.add_header("Range", f"bytes={size}-")
        request.add_header("If-Range", mark)
    opener = urllib.request.OpenerDirector()
    for handler in _HANDLERS:
        opener.add_handler(handler())
    with opener.open(request, timeout=TIMEOUT_S) as response:
        starts_at = f"bytes {size}-"
        resumes = response.status == 206 and response.headers.get("Content-Range", "").startswith(starts_at)
        if response.status == 206 and not resumes:
            part.remove()
            raise _CutShortError("the server sent another range than asked for")
        done = size if resumes else 0
        length = response.headers.get("Content-Length")
        total = done + int(length) if length and length.isdigit() else None
        if not resumes:
            part.remove()
            _keep_mark(part, response.headers)
        with open(part.path, "ab") as stream:
            done = _copy(response, stream, done, total, part.path.stem, progress)
    if total is not None and done < total:
        raise _CutShortError(f"the connection ended after {done} of {total} bytes")


def _keep_mark(part: _Part, headers: http.client.HTTPMessage) -> None:
    etag = headers.get("ETag")
    mark = etag if etag and not etag.startswith("W/") else headers.get("Last-Modified")
    if mark:
        part.marks.write_text(json.dumps({"mark": mark}))


def _copy(
    response: http.client.HTTPResponse,
    stream: IO[bytes],
    done: int,
    total: int | None,
    name: str,
    progress: Progress | None,
) -> int:
    while True:
        try:
            chunk = response.read(CHUNK)
        except http.client.IncompleteRead as error:
            chunk = error.partial
            write(stream, chunk)
            raise _CutShortError(f"the connection ended after {done + len(chunk)} bytes") from error
        if not chunk:
            return done
        write(stream, chunk)
        done += len(chunk)
        if progress:
            progress(name, done, total)


def write(stream: IO[bytes], chunk: bytes) -> None:
    """The one place where downloaded bytes go to disk (tests fill the disk here)."""
    stream.write(chunk)
