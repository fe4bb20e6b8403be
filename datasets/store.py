"""Prepared data sets on disk: one folder each under `home()/datasets`, written whole or not at all.

`load` is what the benchmark calls. It checks the sha256 of each stored file (a few megabytes, milliseconds), so that a
damaged file is told from a bad result.
"""

import json
import os
import re
import shutil
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from filelock import FileLock

from genrec_bench.datasets import catalogue, fetch, filters, synthetic
from genrec_bench.datasets.catalogue import Card, Form
from genrec_bench.datasets.download import Progress, disk_error, file_sha256
from genrec_bench.datasets.errors import InputError, unknown
from genrec_bench.datasets.interactions import ITEM_COLUMNS, Histories, InteractionData
from genrec_bench.datasets.readers import read

FORMAT_VERSION = 1
META = "dataset.json"


def home() -> Path:
    """$GENREC_BENCH_HOME, or the folder `genrec-bench` in the user's cache folder."""
    if os.environ.get("GENREC_BENCH_HOME"):
        return Path(os.environ["GENREC_BENCH_HOME"]).expanduser().absolute()
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Caches" / "genrec-bench"
    if sys.platform == "win32":
        return Path(os.environ.get("LOCALAPPDATA", Path.home() / "AppData" / "Local")) / "genrec-bench"
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "genrec-bench"


def prepare(
    name: str, source_dir: Path | str | None = None, progress: Progress | None = None, form: str | None = None
) -> InteractionData:
    """Fetch, read, filter and save a data set of the catalogue; an earlier one of that name is replaced.

    ``source_dir`` holds files the person has already; ``form`` picks one of the card's forms. Raises InputError when
    files are missing or damaged, or when the result has other counts than the card's.
    """
    card = catalogue.card(name)
    cache = home() / "downloads" / name
    if source_dir is not None:
        chosen, folder = _from_dir(card, Path(source_dir), cache, form)
    else:
        chosen = card.form(form) if form else _first_ready(card, cache)
        folder = fetch.fetch(card, chosen, cache / chosen.name, progress)
    data = _build(card, chosen, folder)
    save(data, form=chosen.name)
    return data


def load(name: str) -> InteractionData:
    """A prepared data set, fast; one of the catalogue that can be fetched without help is prepared first.

    Raises InputError if it is unknown, not prepared, or damaged on disk, with the command that mends it.
    """
    folder = _folder(name)
    if not (folder / META).is_file():
        if name not in catalogue.names():
            raise unknown("data set", name, {*catalogue.names(), *list_prepared()})
        if folder.exists():
            raise _damaged(name, folder / META, "it is missing")
        if not any(form.fetchable for form in catalogue.card(name).forms):
            raise InputError(fetch.help_text(catalogue.card(name)))
        prepare(name)
    return _read_folder(name, folder)


def save(data: InteractionData, form: str = "") -> None:
    """Store a data set under its name, replacing an earlier one; written under a temporary name, then renamed."""
    folder = _folder(data.name)
    # '~' is in no data set name, so one data set's temporary folders never look like another's.
    mark = f".{data.name}~"
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(folder.parent / f".{data.name}.lock"):
            try:
                fresh = Path(tempfile.mkdtemp(prefix=mark, dir=folder.parent))
                _write_folder(data, form, fresh)
                if folder.exists():
                    folder.rename(Path(tempfile.mkdtemp(prefix=mark, dir=folder.parent)) / "old")
                fresh.rename(folder)
            finally:  # also what a killed run left
                for left in folder.parent.glob(f"{mark}*"):
                    shutil.rmtree(left, ignore_errors=True)
    except OSError as error:
        raise disk_error(error, folder / META) from error


def import_dataset(
    path: Path | str,
    format: str,
    name: str,
    filter_steps: Sequence[Mapping[str, Mapping[str, Any]]] = (),
    **options: Any,
) -> InteractionData:
    """Read a person's own files and save them as data set ``name``.

    ``filter_steps`` is ``[{filter: options}, ...]``; the other options are the reader's. Raises InputError for a name
    that is not allowed or belongs to the catalogue, and for anything wrong in the files.
    """
    _folder(name)
    if name in catalogue.names():
        raise InputError(f"The name '{name}' belongs to the catalogue; choose another name for your own data set")
    data = filters.apply(read(path, format, **options), filter_steps).to_data(name)
    save(data)
    return data


def list_prepared() -> list[str]:
    """Names of the data sets that are ready to load, sorted."""
    return sorted(meta.parent.name for meta in (home() / "datasets").glob(f"[!.]*/{META}"))


def _folder(name: str) -> Path:
    if not re.fullmatch(catalogue.NAME_PATTERN, name) or len(name) > 100:
        raise InputError(
            f"Data set name '{name}' is not allowed: letters, digits, '-', '_' and '.', "
            "starting with a letter or digit, at most 100 characters"
        )
    return home() / "datasets" / name


def _from_dir(card: Card, source: Path, cache: Path, form: str | None) -> tuple[Form, Path]:
    if not source.is_dir():
        raise InputError(f"{source} is not a folder; --from needs the folder that holds the files of '{card.name}'")
    forms = [card.form(form)] if form else card.forms
    if not any(candidate.files for candidate in forms):
        raise InputError(f"Data set '{card.name}' is generated; run: genrec-bench data prepare {card.name}")
    for candidate in forms:
        if not fetch.missing_files(candidate, source):
            return candidate, fetch.from_folder(card, candidate, source, cache / candidate.name)
    wanted = "; or ".join(f"{', '.join(fetch.missing_files(f, source))} (form '{f.name}')" for f in forms)
    raise InputError(f"{source} does not hold data set '{card.name}'. Missing: {wanted}")


def _first_ready(card: Card, cache: Path) -> Form:
    """A form whose files are in the cache already, else one that can be fetched."""
    for form in card.forms:
        if (
            form.files
            and not form.on_request
            and all((cache / form.name / file.name).is_file() or file.optional for file in form.files)
        ):
            return form
    ready = next((form for form in card.forms if form.fetchable), None)
    if ready is None:
        raise InputError(fetch.help_text(card))
    return ready


def _build(card: Card, form: Form, folder: Path) -> InteractionData:
    if not form.files:
        return synthetic.generate(**form.options, name=card.name)
    data = filters.apply(read(folder, form.reader, **form.options), form.filters).to_data(card.name)
    found = (data.num_users, data.num_items, data.num_interactions)
    if form.counts and found != tuple(form.counts.model_dump().values()):
        expected = "/".join(str(count) for count in form.counts.model_dump().values())
        raise InputError(
            f"Data set '{card.name}' has {'/'.join(map(str, found))} users/items/interactions after reading, "
            f"but its card says {expected}: the files in {folder} are not the ones the card describes"
        )
    return data


def _write_folder(data: InteractionData, form: str, folder: Path) -> None:
    np.save(folder / "offsets.npy", data.sequences.offsets)
    np.save(folder / "sequences.npy", data.sequences.items)
    if data.timestamps is not None:
        np.save(folder / "timestamps.npy", data.timestamps)
    data.items[list(ITEM_COLUMNS)].to_parquet(folder / "items.parquet", index=False)
    pd.DataFrame({"user_id": data.user_ids}).to_parquet(folder / "users.parquet", index=False)
    meta = {
        "format_version": FORMAT_VERSION,
        "name": data.name,
        "sha256": data.sha256,
        "form": form,
        "users": data.num_users,
        "items": data.num_items,
        "interactions": data.num_interactions,
        "files": {path.name: file_sha256(path) for path in sorted(folder.iterdir())},
    }
    (folder / META).write_text(json.dumps(meta, indent=1))


def _read_folder(name: str, folder: Path) -> InteractionData:
    try:
        meta = json.loads((folder / META).read_text())
        version, checksums, content = meta["format_version"], meta["files"], meta["sha256"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise _damaged(name, folder / META, "it cannot be read") from error
    if version != FORMAT_VERSION:
        raise _damaged(name, folder / META, f"it has format version {version}, this program reads {FORMAT_VERSION}")
    for file_name, checksum in checksums.items():
        path = folder / file_name
        if not path.is_file():
            raise _damaged(name, path, "it is missing")
        if file_sha256(path) != checksum:
            raise _damaged(name, path, "its checksum is wrong")
    offsets, items = np.load(folder / "offsets.npy"), np.load(folder / "sequences.npy")
    timestamps = np.load(folder / "timestamps.npy") if "timestamps.npy" in checksums else None
    users = pd.read_parquet(folder / "users.parquet")["user_id"].to_numpy(dtype=object)
    sequences = Histories(np.arange(len(users), dtype=np.int64), offsets, items)
    return InteractionData(name, users, pd.read_parquet(folder / "items.parquet"), sequences, timestamps, content)


def _damaged(name: str, path: Path, why: str) -> InputError:
    known = name in catalogue.names()
    mend = f"genrec-bench data prepare {name}" if known else f"genrec-bench data import PATH --format F --name {name}"
    return InputError(f"Stored data set '{name}' is damaged: {path}: {why}. Make it again: {mend}")
