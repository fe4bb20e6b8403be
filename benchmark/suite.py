"""A suite: which methods x data sets x protocols x seeds make a table. Read from YAML or made from options.

methods: [popularity, sasrec, {method: sasrec, label: sasrec-bce, config: {loss: bce}}]
datasets: [ml-100k]
protocols: [full, cand20]
seeds: [0, 1, 2]
tuned: {ml-100k: {sasrec: {dropout: 0.3}}}     # values chosen on validation, for one data set
tiers: {base: {lc_rec: {lora: {r: 16}}}}       # what another tier's language model needs
keep_models: true                              # for `genrec-bench recommend`
"""

import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

import genrec_bench.suites as suites
from genrec_bench.benchmark.protocols import PROTOCOLS, Exclude, ProtocolRules, protocol
from genrec_bench.datasets import catalogue, store
from genrec_bench.datasets.errors import InputError, nearest, unknown
from genrec_bench.methods import registry
from genrec_bench.methods.artefacts import canonical_hash
from genrec_bench.methods.base import Method, MethodConfig, Scale

Seeds = Annotated[list[Annotated[int, Field(ge=0, lt=2**32)]], Field(min_length=1)]  # as far as NumPy's generator goes


class MethodEntry(BaseModel):
    """One row of the table: a method, possibly under another config and label, with seeds and tiers of its own."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    method: str
    label: str | None = None
    config: dict[str, Any] = Field(default_factory=dict)
    seeds: Seeds | None = None  # None: the suite's
    scales: list[Scale] | None = None  # None: at any tier


class Suite(BaseModel):
    """The cells of a table and how long one may take."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str = "suite"
    methods: list[MethodEntry] = Field(min_length=1)
    datasets: list[str] = Field(min_length=1)
    protocols: list[str] = Field(["full"], min_length=1)
    seeds: Seeds = [0]
    scale: Literal["tiny", "base", "paper"] = "tiny"
    mask_seen: bool = False
    exclude: Exclude = "sequence"  # what negatives of cand20 are not drawn from; window is LLaRA's sampler
    time_budget: str | None = None  # of one cell, e.g. 90s, 25m, 2h
    keep_models: bool = False  # under $GENREC_BENCH_HOME/models
    tuned: dict[str, dict[str, dict[str, Any]]] = Field(default_factory=dict)  # data set -> method -> config values
    tiers: dict[Scale, dict[str, dict[str, Any]]] = Field(default_factory=dict)  # tier -> method -> config values
    plugins: list[str] = []  # files that register methods

    @field_validator("methods", mode="before")
    @classmethod
    def _names_are_entries(cls, value: Any) -> Any:
        return [{"method": one} if isinstance(one, str) else one for one in value] if isinstance(value, list) else value

    @field_validator("time_budget", mode="before")
    @classmethod
    def _budget_is_a_time(cls, value: Any) -> Any:
        text = str(value) if isinstance(value, int | float) else value
        if isinstance(text, str):
            seconds(text)
        return text

    @field_validator("protocols")
    @classmethod
    def _known_protocols(cls, value: list[str]) -> list[str]:
        for name in value:
            if name not in PROTOCOLS:
                raise ValueError(str(unknown("protocol", name, PROTOCOLS)))
        return value


@dataclass(frozen=True, eq=False)
class Cell:
    """One run: everything that determines its result, but the data set's content."""

    method: str
    label: str
    config: MethodConfig
    dataset: str
    rules: ProtocolRules
    seed: int
    scale: Scale
    plugin: str | None = None  # file that registers the method
    plugin_sha256: str | None = None
    # `MethodConfig.contents` when the command began; they travel with the cell to machines that may lack the files
    contents: Mapping[str, str] | None = None

    def __post_init__(self) -> None:
        if self.contents is None:
            object.__setattr__(self, "contents", self.config.contents())

    def __reduce__(self) -> tuple[Any, ...]:
        # A plugin's config class exists only where the plugin has been loaded: travel as plain values.
        values = {**vars(self), "config": self.config.model_dump(mode="json")}
        return _restore, (values,)

    def __str__(self) -> str:
        return f"{self.label} · {self.dataset} · {self.rules.name} · seed {self.seed}"


def _restore(values: dict[str, Any]) -> Cell:
    if values["plugin"]:
        loaded = registry.load_plugin(values["plugin"])
        if loaded.get(values["method"]) != values["plugin_sha256"]:
            raise InputError(f"Plugin {values['plugin']} was changed while the grid ran: run the same command again")
    config = registry.configure(values["method"], values["config"])
    here = config.contents()
    for field, content in values["contents"].items():  # one that is missing is for the method to say
        if here.get(field, content) != content:
            raise InputError(
                f"{values['method']}.{field}: {value_at(values['config'], field)} is not what it was when the command "
                f"began, or another one on {platform.node()}: make them alike, then run the same command again"
            )
    return Cell(**{**values, "config": config})


def value_at(config: dict[str, Any], field: str) -> Any:
    """A setting of plain values; dots lead into groups."""
    value: Any = config
    for key in field.split("."):
        value = value[key]
    return value


def smaller(cell: Cell) -> Cell | None:
    """The cell with half as much computed at a time, where its config can say so."""
    config = cell.config.less_memory()
    return None if config is None else replace(cell, config=config)


def suite_folder() -> Path:
    """Where this program's own suites are."""
    return Path(next(iter(suites.__path__))).resolve()


def read_suite(path: str | Path) -> Suite:
    """Parse a suite file; every mistake is one InputError with the file and the key."""
    path = Path(path)
    if not path.is_file():
        folder = path.parent if path.suffix and any(path.parent.glob("*.yaml")) else suite_folder()
        names = sorted(one.name for one in folder.glob("*.yaml"))
        near = nearest(path.with_suffix(".yaml").name, names)
        raise InputError(f"Suite {path}: no such file; the suites are in folder {folder}.{near}")
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError) as error:
        raise InputError(f"Suite {path}: not YAML: {' '.join(str(error).split())}") from None
    if not isinstance(content, dict):
        raise InputError(f"Suite {path}: expected keys {', '.join(Suite.model_fields)}, got {type(content).__name__}")
    plugins = content.get("plugins")
    if isinstance(plugins, list):  # relative to the suite file, so that a suite can be started from anywhere
        content = {**content, "plugins": [str(path.parent / str(plugin)) for plugin in plugins]}
    return make_suite({"name": path.stem, **content}, where=f"Suite {path}: ")


def make_suite(values: dict[str, Any], where: str = "") -> Suite:
    """A checked suite from plain values."""
    try:
        return Suite.model_validate(values)
    except ValidationError as error:
        # A misspelt key is also a missing one: the misspelling says more.
        first = min(error.errors(), key=lambda fault: fault["type"] != "extra_forbidden")
        key = ".".join(str(part) for part in first["loc"])
        if first["type"] == "extra_forbidden":
            fields = MethodEntry.model_fields if len(first["loc"]) > 1 else Suite.model_fields
            raise InputError(f"{where}{unknown('key', str(first['loc'][-1]), fields)}") from None
        raise InputError(f"{where}{key}: {first['msg'].removeprefix('Value error, ')}") from None


def rows(suite: Suite, names: Sequence[str]) -> list[MethodEntry]:
    """The suite's rows of these labels or methods, each once; a method that has none stands with its own settings."""
    found = []
    for name in names:
        own = [one for one in suite.methods if name in (one.label, one.method)]
        if not own and name not in registry.names():
            labels = {row.label or row.method for row in suite.methods}
            raise unknown("row of the suite, or method,", name, labels, more=registry.names())
        found += [one for one in own or [MethodEntry(method=name)] if one not in found]
    return found


def left_out(suite: Suite) -> dict[str, list[str]]:
    """Methods that take part in none of the suite's protocols, and those in which they do."""
    return {
        entry.method: [name for name in PROTOCOLS if _takes_part(registry.get(entry.method), name)]
        for entry in suite.methods
        if not any(_takes_part(registry.get(entry.method), name) for name in suite.protocols)
    }


def cells(suite: Suite, settings: dict[str, dict[str, Any]] | None = None) -> list[Cell]:
    """All runs of a suite, data set by data set.

    ``settings`` (method -> values, from ``--set``) win over an entry's config, which wins over the values of ``tiers``
    for the suite's tier, and those over ``tuned`` values.
    """
    plugins: dict[str, tuple[str, str]] = {}
    for path in suite.plugins:
        for name, digest in registry.load_plugin(path).items():
            plugins[name] = (str(Path(path).resolve()), digest)
    settings = settings or {}
    refuse_unused(settings, suite)
    known_values = (*suite.tuned.values(), *suite.tiers.values())
    for name in {method for values in known_values for method in values}:
        registry.get(name)  # a misspelt method fails here, not by being silently unused
    for dataset in suite.tuned:
        known = {*catalogue.names(), *store.list_prepared(), *suite.datasets}
        if dataset not in known:
            raise unknown("data set in tuned", dataset, known)
    if suite.exclude != "sequence" and "cand20" not in suite.protocols:
        raise InputError(f"exclude={suite.exclude} is of protocol cand20, which is not part of this run")
    found = [
        Cell(
            method=entry.method,
            label=entry.label or entry.method,
            config=registry.configure(
                entry.method,
                merged(
                    suite.tuned.get(dataset, {}).get(entry.method, {}),
                    suite.tiers.get(suite.scale, {}).get(entry.method, {}),
                    entry.config,
                    settings.get(entry.method, {}),
                ),
            ),
            dataset=dataset,
            rules=protocol(protocol_name, suite.mask_seen, suite.exclude),
            seed=seed,
            scale=suite.scale,
            plugin=plugins.get(entry.method, (None, None))[0],
            plugin_sha256=plugins.get(entry.method, (None, None))[1],
        )
        for dataset in suite.datasets
        for protocol_name in suite.protocols
        for entry in suite.methods
        for seed in entry.seeds or suite.seeds
        if _takes_part(registry.get(entry.method), protocol_name) and suite.scale in (entry.scales or [suite.scale])
    ]
    if not found and (of := sorted({scale for entry in suite.methods for scale in entry.scales or []})):
        raise InputError(f"scale={suite.scale}: the rows asked for are of tier {', '.join(of)} alone")
    _refuse_twins(found)
    return found


def _takes_part(method: type[Method], protocol_name: str) -> bool:
    return method.candidate_protocol() if protocol_name == "cand20" else method.full_protocol()


def merged(*values: dict[str, Any]) -> dict[str, Any]:
    """Settings put together, later ones winning, key by key also within groups such as ``index``."""
    result: dict[str, Any] = {}
    for one in values:
        for key, value in one.items():
            before = result.get(key)
            result[key] = merged(before, value) if isinstance(before, dict) and isinstance(value, dict) else value
    return result


def _refuse_twins(found: list[Cell]) -> None:
    """Two rows that are the same run under two names would share one record."""
    seen: dict[tuple[object, ...], str] = {}
    for cell in found:
        key = (cell.method, canonical_hash(cell.config.identity()), cell.dataset, cell.rules, cell.seed)
        if key in seen and seen[key] == cell.label:
            raise InputError(f"{cell.label} would run seed {cell.seed} twice: give each seed, and each row, once")
        if key in seen:
            raise InputError(
                f"'{seen[key]}' and '{cell.label}' are the same run of {cell.method}: change a config value"
            )
        seen[key] = cell.label


def seconds(duration: str) -> float:
    """``"90s"``, ``"25m"`` or ``"2h"`` in seconds, also ``"90"``."""
    units = {"s": 1, "m": 60, "h": 3600}
    number, unit = (duration[:-1], duration[-1]) if duration and duration[-1] in units else (duration, "s")
    try:
        value = float(number) * units[unit]
    except ValueError:
        value = -1
    if not 0 < value < float("inf"):
        raise InputError(
            f"Time '{duration}': expected a positive number with s, m or h, such as 90s or 25m (alone: seconds)"
        )
    return value


def refuse_unused(settings: Mapping[str, Any], suite: Suite, option: str = "--set") -> None:
    """Raise InputError where a method that is given values is misspelt, or not part of the suite."""
    for name in sorted(settings):
        registry.get(name)
        if name not in {entry.method for entry in suite.methods}:
            raise InputError(f"{option} {name}.…: that method is not part of this run")


def parse_settings(pairs: list[str], option: str = "--set") -> dict[str, dict[str, Any]]:
    """``["sasrec.dropout=0.3"]`` -> ``{"sasrec": {"dropout": 0.3}}``; values are read as YAML."""
    settings: dict[str, dict[str, Any]] = {}
    for pair in pairs:
        target, equals, value = pair.partition("=")
        method, dot, key = target.partition(".")
        if not (equals and dot and method and key):
            example = "sasrec.dropout=0.3" if option == "--set" else "sasrec.cpus=2"
            raise InputError(f"{option} '{pair}': expected METHOD.KEY=VALUE, such as {example}")
        try:
            content = yaml.safe_load(value)
        except yaml.YAMLError:
            raise InputError(f"{option} '{pair}': '{value}' is not a YAML value") from None
        for part in reversed(key.split(".")):  # index.levels=3 -> {"index": {"levels": 3}}
            content = {part: content}
        settings[method] = merged(settings.get(method, {}), content)
    return settings
