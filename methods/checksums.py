"""Hashes of files and folders that a config names: what is in them is part of a run's identity, as the names are."""

import hashlib
import json
import os
import time
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

from genrec_bench.datasets.download import file_sha256
from genrec_bench.datasets.store import home

REMEMBERED_BYTES = 2**26  # files from here on are read once and not again until they change
SETTLED_NS = 5 * 10**9  # after a change; a second one within a clock's tick would leave no trace


def remembered_sha256(path: Path) -> str:
    """sha256 of a file. A large one's is kept in the home folder, for as long as its size, times and inode stay."""
    stat = path.stat()
    if stat.st_size < REMEMBERED_BYTES:
        return file_sha256(path)
    mark = [stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns, stat.st_ino]
    name = hashlib.sha256(os.fsencode(path.resolve())).hexdigest()[:24]
    note = home() / "checksums" / f"{name}.json"
    with suppress(OSError, ValueError, TypeError, KeyError):
        known = json.loads(note.read_text())
        if known["mark"] == mark:
            return str(known["sha256"])
    found = file_sha256(path)
    if time.time_ns() - max(stat.st_mtime_ns, stat.st_ctime_ns) > SETTLED_NS:
        with suppress(OSError):  # it only saves time
            note.parent.mkdir(parents=True, exist_ok=True)
            unfinished = note.with_suffix(f".tmp{os.getpid()}")
            unfinished.write_text(json.dumps({"mark": mark, "sha256": found}))
            unfinished.replace(note)
    return found


def file_content(path: str | Path) -> str | None:
    """sha256 of the file called ``path``; None where none is there, which whoever reads it will say."""
    return remembered_sha256(Path(path)) if Path(path).is_file() else None


def joint_sha256(paths: Iterable[Path]) -> str:
    """One hash of files and their names, in order of these."""
    digest = hashlib.sha256()
    for path in sorted(paths):
        digest.update(f"{path.name}\0{remembered_sha256(path)}\n".encode())
    return digest.hexdigest()
