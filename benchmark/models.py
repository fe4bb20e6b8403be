"""Trained methods that were kept: ``home()/models/<run id>``, whole or absent, never among the records."""

import errno
import json
import os
import shutil
from pathlib import Path

from genrec_bench.benchmark import storage
from genrec_bench.datasets import store
from genrec_bench.datasets.errors import InputError
from genrec_bench.methods.base import Method

MANIFEST = "kept.json"  # the files of a model and their sizes
FULL_BYTES = 2**20  # a disk with less than this left is why a save failed


def folder(run_id: str) -> Path:
    """Where the model of a run is kept."""
    return store.home() / "models" / run_id


def exists(run_id: str) -> bool:
    """Whether the run's model is there, each file in the size that was written: copies break off."""
    try:
        files = json.loads((folder(run_id) / MANIFEST).read_text(encoding="utf-8"))["files"]
        return all((folder(run_id) / name).stat().st_size == size for name, size in files.items())
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return False


def check_writable() -> None:
    """Raise InputError before anything is trained where models could not be kept."""
    parent = store.home() / "models"
    try:
        parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(
            f"Cannot write in {parent}: {error.strerror}; point $GENREC_BENCH_HOME at a writable folder"
        ) from None


def keep(method: Method, run_id: str) -> Path:
    """Save a trained method, in the place of an earlier one of that run; whoever calls holds the run's lock."""
    place = folder(run_id)
    unfinished = place.with_name(f".{run_id}.unfinished")
    shutil.rmtree(unfinished, ignore_errors=True)  # what a killed run left
    unfinished.mkdir(parents=True)
    try:
        method.save(unfinished)
        sizes = {}
        for path in sorted(path for path in unfinished.rglob("*") if path.is_file()):
            sizes[path.relative_to(unfinished).as_posix()] = path.stat().st_size
            _sync(path)
        storage.write_bytes(unfinished / MANIFEST, json.dumps({"format_version": 1, "files": sizes}).encode())
        if place.exists():
            shutil.rmtree(place)
        storage.publish(unfinished, place)
    except Exception as error:
        if _disk_is_full(error, place.parent):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)) from error
        raise
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
    return place


def _disk_is_full(error: Exception, where: Path) -> bool:
    """Libraries have errors of their own for it: torch leaves a full disk, safetensors Rust's words and no file."""
    said = any(f"os error {number})" in str(error) for number in (errno.ENOSPC, errno.EDQUOT))
    return said or shutil.disk_usage(where).free < FULL_BYTES


def _sync(path: Path) -> None:
    """Wait until the disk has a file: the rename must not become durable before it."""
    with path.open("rb+") as file:
        os.fsync(file.fileno())
