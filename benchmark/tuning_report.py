"""What a search ends in: a table of what was spent and found, and the best settings as a suite."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from genrec_bench.benchmark.suite import Suite, merged
from genrec_bench.benchmark.tuning import Study, nested
from genrec_bench.datasets.errors import InputError


def write_suite(studies: Sequence[Study], path: Path, suite: Suite) -> None:
    """The best settings as a suite that `genrec-bench run` takes."""
    tuned: dict[str, dict[str, Any]] = {}
    for study in studies:
        dataset, method = study.cell.dataset, study.cell.method
        known = merged(suite.tuned.get(dataset, {}).get(method, {}), suite.tiers.get(suite.scale, {}).get(method, {}))
        best = {} if study.best is None else nested(study.best.values)
        if found := merged(known, best):
            tuned.setdefault(dataset, {})[method] = found
    fixed = {study.cell.method: study.fixed for study in studies}
    rows = [
        {
            **entry.model_dump(mode="json", exclude_defaults=True, exclude={"config"}),
            "label": f"{entry.label or entry.method}, searched",  # beside the row it began with
            **({"config": given} if (given := fixed[entry.method]) else {}),
        }
        for entry in suite.methods
        if entry.method in fixed
    ]
    content = {
        "name": path.stem,
        "methods": rows,
        **suite.model_dump(mode="json", exclude_none=True, exclude={"name", "methods", "plugins", "tuned", "tiers"}),
        **({"plugins": [str(Path(plugin).resolve()) for plugin in suite.plugins]} if suite.plugins else {}),
        "tuned": tuned,
    }
    notes = [
        f"# {study.cell.method} on {study.cell.dataset}: {_described(study)}, tuning-{study.identity}.json"
        for study in studies
    ]
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("\n".join([*notes, yaml.safe_dump(content, sort_keys=False)]), encoding="utf-8")
    except OSError as error:
        raise InputError(f"Cannot write {path}: {error.strerror}") from None


def report(studies: Sequence[Study]) -> str:
    """A line a study: what was spent, what it gave."""
    from tabulate import tabulate

    rows = []
    for study in studies:
        own = next((trial for trial in study.finished if trial.values == study.defaults), None)
        best = study.best
        settings = [] if best is None else [f"{key}={_short(value)}" for key, value in best.values.items()]
        rows.append([
            study.cell.method, study.cell.dataset, f"{len(study.finished)}/{study.trials}", f"{study.spent_s:.0f} s",
            None if own is None else own.value, None if best is None else best.value, ", ".join(settings),
        ])  # fmt: skip
    metric = studies[0].cell.rules.selection_metric
    headers = ["method", "data set", "trials", "time", f"own {metric}", f"best {metric}", "best settings"]
    return tabulate(rows, headers=headers, floatfmt=".4f", missingval="-")


def _short(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def _described(study: Study) -> str:
    best, metric = study.best, study.cell.rules.selection_metric
    value = "no trial ended well" if best is None else f"validation {metric} {best.value:.4f}"
    return f"{len(study.finished)} trials, {study.spent_s:.0f} s, {value}"
