"""Finding and opening source files, and turning what can be wrong with them into one clear line."""

import gzip
import json
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, cast

from genrec_bench.datasets.errors import InputError


def find(folder: Path, *names: str, suffixes: tuple[str, ...] = ("", ".gz")) -> Path | None:
    """The first of ``names`` in ``folder``, as it is or compressed."""
    candidates = (folder / f"{name}{suffix}" for name in names for suffix in suffixes)
    return next((path for path in candidates if path.is_file()), None)


def required(folder: Path, *names: str, what: str) -> Path:
    """As `find`, but InputError when there is none."""
    found = find(folder, *names)
    if found is None:
        raise InputError(f"{folder}: no {what} file; expected {' or '.join(names)} (also as .gz)")
    return found


def folder_of(path: Path) -> Path:
    """The folder to look in when the person named either the folder or a file in it."""
    return path if path.is_dir() else path.parent


@contextmanager
def opened(path: Path, encoding: str = "utf-8") -> Iterator[IO[str]]:
    """The text of a plain or gzip file; InputError for an empty, truncated, binary or wrongly encoded one."""
    with _faults_named(path, encoding):
        opener = gzip.open if path.suffix == ".gz" else open
        with opener(path, "rt", encoding=encoding, newline="\n") as stream:
            yield cast(IO[str], stream)


def blocks(path: Path, size: int) -> Iterator[bytes]:
    """The bytes of a plain or gzip file in pieces of whole lines, about ``size`` bytes each."""
    with _faults_named(path, "utf-8"), (gzip.open if path.suffix == ".gz" else open)(path, "rb") as stream:
        rest = b""
        while piece := stream.read(size):
            whole, newline, tail = piece.rpartition(b"\n")
            if newline:
                yield rest + whole + newline
                rest = tail
            else:
                rest += piece
        if rest:
            yield rest


@contextmanager
def _faults_named(path: Path, encoding: str) -> Iterator[None]:
    try:
        if path.stat().st_size == 0:
            raise InputError(f"{path} is empty")
        yield
    except EOFError as error:
        raise InputError(f"{path} ends in the middle of its compressed data: half a download?") from error
    except (gzip.BadGzipFile, zlib.error) as error:
        raise InputError(f"{path} is named .gz but is not valid gzip data ({error})") from error
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror or error}") from error
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is not {encoding} text (byte 0x{error.object[error.start]:02x}): binary?") from error


def lines(path: Path, encoding: str = "utf-8") -> Iterator[tuple[int, str]]:
    """(line number from 1, line without its end) of each line that is not blank."""
    with opened(path, encoding) as stream:
        for line_number, line in enumerate(stream, start=1):
            if line.strip():
                yield line_number, line.rstrip("\r\n")


def load_json(path: Path) -> Any:
    """A whole JSON file; InputError with line and column where it is not JSON."""
    with opened(path) as stream:
        try:
            return json.load(stream)
        except json.JSONDecodeError as error:
            raise InputError(f"{path}:{error.lineno}: not valid JSON ({error.msg}, column {error.colno})") from error
        except UnicodeDecodeError:
            raise
        except (ValueError, RecursionError) as error:  # a number of thousands of digits, endless nesting
            raise InputError(f"{path} is not usable JSON ({error})") from error
