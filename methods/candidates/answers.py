"""Answers of a language model on disk, by what was asked: a table rebuilds without asking again.

The key of an answer is the hash of the request's body (model, messages, parameters), whatever address it was sent to.
"""

import json
import os
import threading
from pathlib import Path

from pydantic import JsonValue, ValidationError

from genrec_bench.methods.artefacts import canonical_hash
from genrec_bench.methods.candidates.endpoint import Reply


class AnswerStore:
    """One file an answer under ``root``, each complete or absent; processes and threads may share it."""

    def __init__(self, root: Path):
        self.root = Path(root)

    def get(self, body: dict[str, JsonValue]) -> Reply | None:
        """The answer, None where there is none; a damaged file, or one of another request, is none."""
        try:
            content = json.loads(self._path(body).read_text(encoding="utf-8"))
            return Reply.model_validate(content["reply"]) if content["request"] == body else None
        except (OSError, ValueError, KeyError, TypeError, ValidationError):
            return None

    def put(self, body: dict[str, JsonValue], reply: Reply) -> None:
        """Keep an answer, on the disk before this returns."""
        path = self._path(body)
        path.parent.mkdir(parents=True, exist_ok=True)
        unfinished = path.with_name(f".{path.name}.{os.getpid()}.{threading.get_ident()}")
        content = {"request": body, "reply": reply.model_dump()}
        with unfinished.open("w", encoding="utf-8") as file:
            json.dump(content, file, indent=1, sort_keys=True)
            file.flush()
            os.fsync(file.fileno())
        os.replace(unfinished, path)

    def _path(self, body: dict[str, JsonValue]) -> Path:
        key = canonical_hash(body)
        return self.root / key[:2] / f"{key}.json"
