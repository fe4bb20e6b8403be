"""Content-addressed stages: text vectors, indices, trained encoders. Built once, shared by all methods and runs.

The key is everything that determines a stage's content (inputs' hashes, config, version of the stage's code), so a
changed quantiser gets a new key and leaves what comes before it untouched.
"""

import hashlib
import json
import os
import shutil
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, Protocol

from filelock import FileLock

from genrec_bench.methods import distributed


def canonical_hash(value: Any) -> str:
    """sha256 of a JSON value in canonical form (sorted keys, no spaces)."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()


class Others(Protocol):
    """The caches of other machines, where no folder is shared with them. A name is ``<stage>/<key>``."""

    def fetch(self, name: str) -> bool:
        """Whether the folder has been copied here from where it was built, after waiting for whoever is building it.

        False: nobody has it, and nobody builds it until this process offers it, or ends.
        """

    def offer(self, name: str) -> None:
        """Give the others what was built here."""


class ArtefactCache:
    """Folders under ``root/<stage>/<key>``, each complete or absent.

    ``spared_s`` counts the seconds that other runs spent on what this one found there: a method's training costs the
    same whoever came first.
    """

    def __init__(self, root: Path, others: Others | None = None):
        self.root = Path(root)
        self._others = others
        self.spared_s = 0.0

    def get(self, stage: str, key: Mapping[str, Any], build: Callable[[Path], None]) -> Path:
        """The folder of this stage and key; ``build(folder)`` fills it if nobody has. Other processes wait.

        A build that fails or is killed leaves nothing that a later call could take for finished.
        """
        with distributed.in_turn():
            return self._get(stage, key, build)

    def _get(self, stage: str, key: Mapping[str, Any], build: Callable[[Path], None]) -> Path:
        folder = self.root / stage / canonical_hash(dict(key))[:24]
        if folder.exists():
            return self._found(folder)
        folder.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{folder}.lock"):
            name = f"{stage}/{folder.name}"
            if folder.exists() or (self._others is not None and self._others.fetch(name)):
                return self._found(folder)
            started, spared_before = time.monotonic(), self.spared_s
            unfinished = folder.with_name(f"{folder.name}.tmp{os.getpid()}")
            shutil.rmtree(unfinished, ignore_errors=True)
            unfinished.mkdir()
            try:
                build(unfinished)
                (unfinished / "key.json").write_text(json.dumps(dict(key), indent=1, sort_keys=True))
                # with what the parts cost that this build found made already
                seconds = time.monotonic() - started + self.spared_s - spared_before
                (unfinished / "seconds.json").write_text(json.dumps(round(seconds, 3)))
                unfinished.rename(folder)
            finally:
                shutil.rmtree(unfinished, ignore_errors=True)
            if self._others is not None:
                self._others.offer(name)
        return folder

    def _found(self, folder: Path) -> Path:
        with suppress(OSError, ValueError):  # the figure is for the record only
            self.spared_s += float(json.loads((folder / "seconds.json").read_text()))
        return folder
