"""Where methods are found: ours by name without importing them, outside ones by decorator, file or entry point."""

import hashlib
import importlib
import importlib.util
import sys
from collections.abc import Callable, Mapping
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import TypeVar

from pydantic import ValidationError

from genrec_bench.datasets.errors import InputError, unknown
from genrec_bench.methods.base import Method, MethodConfig

# Name -> "module:Class": `genrec-bench methods` answers without importing torch.
BUILT_IN = {
    "agrec": "genrec_bench.methods.agrec:AGRec",
    "caser": "genrec_bench.methods.caser:Caser",
    "din": "genrec_bench.methods.din:DIN",
    "eager_llm": "genrec_bench.methods.eager_llm:EagerLLM",
    "gru4rec": "genrec_bench.methods.gru4rec:GRU4Rec",
    "item_knn": "genrec_bench.methods.item_knn:ItemKNN",
    "lc_rec": "genrec_bench.methods.lc_rec:LCRec",
    "letter_lc_rec": "genrec_bench.methods.letter_lc_rec:LetterLCRec",
    "letter_tiger": "genrec_bench.methods.letter_tiger:LetterTiger",
    "lightgcn": "genrec_bench.methods.encoders.lightgcn:LightGCN",
    "llara": "genrec_bench.methods.llara:LLaRA",
    "llm_api": "genrec_bench.methods.llm_api:LLMApi",
    "llm_zero_shot": "genrec_bench.methods.llm_zero_shot:ZeroShot",
    "markov": "genrec_bench.methods.markov:Markov",
    "morec": "genrec_bench.methods.morec:MoRec",
    "p5_cid": "genrec_bench.methods.p5_cid:P5CID",
    "popularity": "genrec_bench.methods.popularity:Popularity",
    "rsllm": "genrec_bench.methods.rsllm:RSLLM",
    "sasrec": "genrec_bench.methods.sasrec:SASRec",
    "sgl": "genrec_bench.methods.encoders.sgl:SGL",
    "tallrec": "genrec_bench.methods.tallrec:TALLRec",
    "tiger": "genrec_bench.methods.tiger:Tiger",
    "xsimgcl": "genrec_bench.methods.encoders.xsimgcl:XSimGCL",
}
ENTRY_POINT_GROUP = "genrec_bench.methods"

_registered: dict[str, type[Method]] = {}
M = TypeVar("M", bound=type[Method])


def register(name: str) -> Callable[[M], M]:
    """Class decorator: makes a method known under ``name``."""

    def decorate(cls: M) -> M:
        taken = _registered.get(name)
        if name in BUILT_IN or (taken is not None and _origin(taken) != _origin(cls)):
            raise InputError(f"Method name '{name}' is taken by {BUILT_IN.get(name) or taken}: choose another")
        _registered[name] = cls
        return cls

    return decorate


def _origin(cls: type) -> tuple[str | None, str]:
    """File and name of a class: registering the same one again (an edited file, a notebook cell) replaces it."""
    return getattr(sys.modules.get(cls.__module__), "__file__", None), cls.__qualname__


def names() -> list[str]:
    """All known method names, sorted."""
    return sorted({*BUILT_IN, *_registered, *(point.name for point in entry_points(group=ENTRY_POINT_GROUP))})


def get(name: str) -> type[Method]:
    """The method class called ``name``."""
    if name in _registered:
        return _registered[name]
    if name in BUILT_IN:
        module, _, cls = BUILT_IN[name].partition(":")
        found: type[Method] = getattr(importlib.import_module(module), cls)
        return found
    for point in entry_points(group=ENTRY_POINT_GROUP):
        if point.name == name:
            return _of_package(point)
    raise unknown("method", name, names())


def _of_package(point: EntryPoint) -> type[Method]:
    """The class that an installed package offers; an InputError names the package that has none there."""
    package = f"{point.dist.name} {point.dist.version}" if point.dist else "unknown"
    try:
        found = point.load()
    except (Exception, SystemExit) as error:
        raise InputError(f"Method '{point.name}' of package {package}: {type(error).__name__}: {error}") from error
    if not (isinstance(found, type) and issubclass(found, Method)):
        raise InputError(f"Method '{point.name}' of package {package}: {point.value} is no subclass of Method")
    return found


def load_plugin(path: str | Path) -> dict[str, str]:
    """Import a Python file that registers methods; returns ``{method name: sha256 of the file}``.

    Raises InputError where the file is missing, fails to import, or registers nothing.
    """
    path = Path(path).resolve()
    if not path.is_file():
        raise InputError(f"Plugin {path}: no such file")
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    module_name = f"genrec_bench_plugin_{digest[:12]}"
    before = dict(_registered)
    if module_name not in sys.modules:
        spec = importlib.util.spec_from_file_location(module_name, path)
        if spec is None or spec.loader is None:
            raise InputError(f"Plugin {path}: not a Python file")
        module = importlib.util.module_from_spec(spec)
        sys.modules[module_name] = module
        try:
            spec.loader.exec_module(module)
        except (Exception, SystemExit) as error:
            del sys.modules[module_name]
            _registered.clear()
            _registered.update(before)
            if isinstance(error, InputError):
                raise
            raise InputError(f"Plugin {path}: {type(error).__name__}: {error}") from error
    found = {name: digest for name, cls in _registered.items() if cls.__module__ == module_name}
    if not found:
        del sys.modules[module_name]
        raise InputError(f"Plugin {path}: registers no method; decorate its class with @register('name')")
    return found


def configure(name: str, values: dict[str, object]) -> MethodConfig:
    """The method's config from plain values; unknown keys and wrong types are one clear InputError.

    So is ``sharding`` for a method that trains in one process, where it would do nothing.
    """
    method = get(name)
    config = checked(name, method.Config, values)
    if not method.parallel and (key := _sharding(config.model_dump(mode="json"))) is not None:
        raise InputError(
            f"{name}.{key}=true: {name} trains in one process, also under torchrun: nothing is there to share "
            "(docs/multi_gpu.md)"
        )
    return config


def _sharding(values: Mapping[str, object]) -> str | None:
    """The key of the setting ``sharding`` where it is on, dots leading into groups."""
    for key, value in values.items():
        if key == "sharding" and value is True:
            return key
        if isinstance(value, dict) and (found := _sharding(value)) is not None:
            return f"{key}.{found}"
    return None


def checked(name: str, config: type[MethodConfig], values: Mapping[str, object]) -> MethodConfig:
    """`configure` for the config class of something that is called ``name`` but need not be registered."""
    try:
        return config(**values)
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(str(part) for part in first["loc"])
        if first["type"] == "extra_forbidden":
            fields = config.model_fields
            for part in first["loc"][:-1]:  # the key may belong to a group of settings
                fields = getattr(fields[str(part)].annotation, "model_fields", fields)
            raise unknown(
                f"setting of {'.'.join(map(str, (name, *first['loc'][:-1])))}", str(first["loc"][-1]), fields
            ) from None
        where = f"{name}.{key} = {first['input']!r}" if key else name
        raise InputError(f"{where}: {first['msg'].removeprefix('Value error, ')}") from None
