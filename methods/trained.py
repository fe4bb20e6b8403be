"""A trained recommender as a stage that methods made of others share: trained once, read by whoever comes next."""

import hashlib
import inspect
import json
import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from genrec_bench.datasets.errors import InputError
from genrec_bench.datasets.interactions import TrainView
from genrec_bench.methods import registry
from genrec_bench.methods.artefacts import canonical_hash
from genrec_bench.methods.base import Context, Method, MethodConfig
from genrec_bench.methods.seeding import seeded


def trained(
    name: str,
    config: MethodConfig,
    train: TrainView,
    context: Context,
    saved: Path | None = None,
    leads: bool = False,
) -> Method:
    """Method ``name`` as `fit` leaves it under the context's seed, from the cache where somebody has trained it.

    ``saved``: a folder of the cache to read instead. ``leads``: its validation is the whole method's curve, by which a
    search tells early whether settings are worth their time. Raises InputError where the folder holds another method or
    config, or was trained on other data.
    """
    method = registry.get(name)(config)
    key = identity(name, config, train, context)

    def write(folder: Path) -> None:
        def log(**values: Any) -> None:
            if "epoch" in values and "stage" not in values:
                values |= {"stage": name} | ({"leads": True} if leads else {})
            context.log(**values)

        # a cached stage draws no random numbers, so neither may one that is trained
        before = random.getstate(), np.random.get_state()  # noqa: NPY002 - outside methods may use the global generator
        with seeded(context.seed):
            random.seed(context.seed)
            np.random.seed(context.seed)  # noqa: NPY002
            new = registry.get(name)(config)
            new.fit(train, replace(context, checkpoint=context.checkpoint.beside(name), log=log))
        random.setstate(before[0])
        np.random.set_state(before[1])  # noqa: NPY002
        new.save(folder)

    folder = context.artefacts.get("trained", key, write) if saved is None else _checked(saved, key)
    method.load(folder, train, context)
    return method


def identity(name: str, config: MethodConfig, train: TrainView, context: Context) -> dict[str, Any]:
    """All that decides what `trained` gives."""
    cls = registry.get(name)
    source = None if name in registry.BUILT_IN else Path(inspect.getfile(cls)).read_bytes()
    return {
        "method": name,
        "version": cls.version,
        "source": source and hashlib.sha256(source).hexdigest(),  # an outside method's file may change at any time
        "config": config.identity(),
        "seed": context.seed,
        "tier": context.scale,
        "selection": context.selection,
        "data": data_sha256(train),
        **({"contents": contents} if (contents := config.contents()) else {}),
    }


def data_sha256(train: TrainView) -> str:
    """Hash of the training interactions and the items' texts."""
    digest = hashlib.sha256(train.sequences.users.astype("<i8").tobytes())
    digest.update(train.sequences.offsets.astype("<i8").tobytes())
    digest.update(train.sequences.items.astype("<i4").tobytes())
    digest.update(canonical_hash({name: column.tolist() for name, column in train.items.items()}).encode())
    return digest.hexdigest()


def _checked(saved: Path, key: dict[str, Any]) -> Path:
    """``saved``, if what it was trained from is what ``key`` says; its seed may be another."""
    try:
        found = json.loads((saved / "key.json").read_text())
    except (OSError, ValueError) as error:
        raise InputError(
            f"{saved}: no trained method there, which has a key.json beside its weights ({error})"
        ) from None
    for part in ("method", "data", "config", "version", "contents"):
        if found.get(part) != key.get(part):
            what = "on other data" if part == "data" else f"with another {part}"
            theirs, asked = _short(found.get(part)), _short(key.get(part))
            raise InputError(f"{saved} was trained {what}: its {part} is {theirs}, asked for is {asked}")
    return saved


def _short(value: Any) -> str:
    return value[:12] if isinstance(value, str) else json.dumps(value)[:200]
