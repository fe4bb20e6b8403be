"""Searches: on validation alone, the same effort for all, resumable, recorded, and their result is a suite."""

import csv
import io
import json
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import yaml
from conftest import rows_of

from genrec_bench.benchmark import pruning, records, tuning
from genrec_bench.benchmark.progress import Progress
from genrec_bench.benchmark.runner import lock_of, run_grid
from genrec_bench.benchmark.standings import render
from genrec_bench.benchmark.suite import cells, make_suite, read_suite
from genrec_bench.benchmark.tuning_records import behind, read, read_all
from genrec_bench.benchmark.tuning_report import write_suite
from genrec_bench.datasets import store
from genrec_bench.datasets.errors import InputError
from genrec_bench.datasets.interactions import InteractionData
from genrec_bench.datasets.splits import leave_one_out

pytest.importorskip("optuna", reason="the extra `ray` is not installed")

SUITE = make_suite({"methods": ["item_knn"], "datasets": ["tiny"]})


def search(results: Path, trials: int = 4, budget_s: float | None = None, suite=SUITE, settings=None, seed=0):
    return tuning.tune(suite, settings or {}, results, Progress(quiet=True), trials, budget_s, seed)


def told(study) -> list[tuple]:
    return [(one.number, one.values, one.state, one.value, one.curve) for one in study.finished]


def poisoned(data: InteractionData) -> InteractionData:
    """The same data with other test targets."""
    rng = np.random.default_rng(0)
    last = data.sequences.offsets[1:] - 1
    items = data.sequences.items.copy()
    items[last] = (items[last] + rng.integers(1, data.num_items, len(last))) % data.num_items
    other = replace(data, sequences=replace(data.sequences, items=items), sha256="")
    before, after = leave_one_out(data), leave_one_out(other)
    assert (before.test.targets != after.test.targets).all()
    assert rows_of(before.train.sequences) == rows_of(after.train.sequences)
    return other


def test_a_search_reads_validation_only(stored, tiny, tmp_path):
    """With every test target poisoned, nothing that it tries, measures or chooses changes."""
    (clean,) = search(tmp_path / "clean")
    store.save(poisoned(tiny))
    (dirty,) = search(tmp_path / "dirty")
    assert dirty.dataset_sha256 != clean.dataset_sha256
    assert told(dirty) == told(clean)
    assert dirty.best.number == clean.best.number


def test_a_search_that_was_stopped_goes_on_to_the_same_end(stored, tmp_path):
    (whole,) = search(tmp_path / "whole", trials=5)
    search(tmp_path / "parts", trials=2)
    (parts,) = search(tmp_path / "parts", trials=5)
    assert told(parts) == told(whole)
    assert parts.identity == whole.identity
    assert whole.finished[0].values == {"neighbours": 200, "shrink": 10.0, "decay": 0.5}  # the method's own
    values = [tuple(trial.values.items()) for trial in whole.finished]
    assert len(set(values)) == 5
    assert told(search(tmp_path / "other", trials=3, seed=1)[0])[1:] != told(whole)[1:3]
    assert told(search(tmp_path / "whole", trials=5)[0]) == told(whole)  # nothing is left to do


def test_what_is_left_behind(stored, tmp_path, home):
    (study,) = search(tmp_path, settings={"item_knn": {"decay": 0.7}})
    (path,) = tmp_path.glob("tiny/item_knn/tuning-*.json")
    content = json.loads(path.read_text())
    assert (content["schema"], content["budget_trials"], content["metric"]) == (1, 4, "ndcg@10")
    assert content["fixed"] == {"decay": 0.7}
    assert set(content["space"]) == {"neighbours", "shrink"}
    assert content["best_value"] == max(trial["value"] for trial in content["trials"])
    assert content["spent_seconds"] > 0
    assert not list(tmp_path.rglob("run.json"))  # nothing was tested
    assert [path for path in (home / "runs").iterdir() if path.suffix != ".lock"] == []

    suite = tmp_path / "tuned.yaml"
    write_suite([study], suite, SUITE)
    written = yaml.safe_load(suite.read_text())
    assert written["tuned"]["tiny"]["item_knn"] == study.best.values
    assert written["methods"] == [{"method": "item_knn", "label": "item_knn, searched", "config": {"decay": 0.7}}]
    assert run_grid(cells(read_suite(suite)), tmp_path, Progress(quiet=True)).done == 1
    (record,), _ = records.read_all(tmp_path)
    (behind_it,) = read_all(tmp_path)
    assert behind([behind_it], record) == behind_it
    assert behind([behind_it], record.model_copy(update={"config": {}})) is None
    spent = f"{content['spent_seconds']:.0f} s (tuning-{study.identity}.json)"
    effort = f"settings searched on validation, 4 of 4 trials, {spent}"
    assert effort in render(tmp_path, "md")
    assert render(tmp_path, "html").count(effort) == 2  # under the table, and where a number's origin is shown
    (row,) = json.loads(render(tmp_path, "json"))
    assert row["tuning"] == {
        "study": study.identity, "trials": 4, "budget_trials": 4, "budget_seconds": None,
        "spent_seconds": content["spent_seconds"], "best_value": content["best_value"], "engine": "local",
    }  # fmt: skip
    lines = csv.DictReader(io.StringIO(render(tmp_path, "csv")))
    assert {(line["search"], line["search_trials"]) for line in lines} == {(study.identity, "4")}


def test_a_network_is_searched_with_its_curve(stored, tmp_path):
    small = {"dim": 8, "feedforward": 16, "epochs": 4, "max_length": 8, "blocks": 1}
    suite = make_suite({"methods": [{"method": "sasrec", "config": small}], "datasets": ["tiny"]})
    (study,) = search(tmp_path, trials=3, suite=suite)
    assert "dim" not in study.space  # it was given
    first = study.finished[0]
    assert (first.state, len(first.curve)) == ("done", 4)
    assert first.curve == sorted(first.curve)
    assert first.value == pytest.approx(first.curve[-1])
    assert {trial.state for trial in study.finished} <= {"done", "pruned"}


def test_a_trial_that_was_killed_goes_on_with_its_curve_and_its_time(stored, tmp_path, monkeypatch):
    config = {"dim": 8, "feedforward": 16, "epochs": 4, "max_length": 8, "blocks": 1}
    suite = make_suite({"methods": [{"method": "sasrec", "config": config}], "datasets": ["tiny"]})
    (whole,) = search(tmp_path / "whole", trials=1, suite=suite)

    class Killed(Exception):
        pass

    def killed_after_two(identity):
        curve = original(identity)
        if len(curve) >= 2:
            raise Killed
        return curve

    original = tuning.curve_of
    with monkeypatch.context() as patch:
        patch.setattr(tuning, "curve_of", killed_after_two)
        with pytest.raises(Killed):
            search(tmp_path / "parts", trials=1, budget_s=600.0, suite=suite)
    (path,) = tmp_path.glob("parts/tiny/sasrec/tuning-*.json")
    content = json.loads(path.read_text())
    spent = content["spent_seconds"]
    assert spent > 0
    assert content.pop("running") == [whole.defaults]
    with monkeypatch.context() as patch:
        patch.setattr(tuning, "suggest", lambda study, number: pytest.fail("another trial is begun"))
        (parts,) = search(tmp_path / "parts", trials=1, budget_s=600.0, suite=suite)
    assert told(parts) == told(whole)
    assert parts.spent_s > spent
    assert json.loads(path.read_text())["running"] == []
    path.write_text(json.dumps(content))  # as records were that said nothing of this
    assert told(search(tmp_path / "parts", trials=1, budget_s=600.0, suite=suite)[0]) == told(whole)


def test_a_curve_is_told_once_and_without_stages(home):
    events = home / "runs" / "one" / "events.jsonl"
    events.parent.mkdir(parents=True)
    told = [
        {"stage": "index", "epoch": 1, "validation": 0.9},
        {"epoch": 1, "loss": 3.0, "validation": 0.1},
        {"epoch": 2, "loss": 2.0, "validation": 0.3},
        {"epoch": 2, "loss": 2.0, "validation": 0.3},  # again, after a kill
        {"epoch": 3, "loss": 1.5, "validation": 0.2},
    ]
    events.write_text("\n".join(json.dumps(one) for one in told) + '\n{"epoch": 4, "lo')
    assert pruning.curve_of("one") == [0.1, 0.3, 0.3]
    of_parts = [{"stage": "tiger", "leads": True} | event for event in told[1:]] + [told[0] | {"stage": "lightgcn"}]
    (home / "runs" / "parts").mkdir()
    (home / "runs" / "parts" / "events.jsonl").write_text("\n".join(json.dumps(one) for one in of_parts))
    assert pruning.curve_of("parts") == [0.1, 0.3, 0.3]
    assert pruning.curve_of("none") == []


@pytest.mark.parametrize(
    ("curve", "behind_them"),  # the rung at which it falls behind
    [([0.1, 0.1], 0), ([0.1, 0.1, 0.1], 3), ([0.4, 0.4, 0.4], 0), ([0.1, 0.1, 0.5], 0), ([0.1] * 3 + [0.9] * 6, 3)],
)
def test_a_third_of_the_trials_goes_on(curve, behind_them):
    others = [[0.1, 0.2, 0.2], [0.2, 0.3, 0.3], [0.0, 0.4, 0.4, 0.4], [0.9]]
    assert pruning.fallen_behind(curve, others) == behind_them


def test_nobody_is_ended_without_a_rival():
    assert not pruning.fallen_behind([0.0] * 10, [[1.0, 1.0]])
    assert pruning.fallen_behind([0.5] * 30, [[0.4] * 26, [0.4] * 27, [0.6] * 27]) == 27
    assert not pruning.fallen_behind([0.1] * 8, [[0.9] * 9], judged=3)
    assert pruning.fallen_behind([0.1] * 9, [[0.9] * 9], judged=3) == 9
    said = [pruning.why([0.0] * count).rsplit(" ", 1)[1] for count in (2, 3, 8, 9, 26, 27)]
    assert said == ["0", "3", "3", "9", "9", "27"]


LEVELS = """
import time
from typing import ClassVar

from genrec_bench.methods.base import MethodConfig
from genrec_bench.methods.popularity import Popularity
from genrec_bench.methods.registry import register


class LevelsConfig(MethodConfig):
    level: float = 0.9
    search_space: ClassVar = {"level": [0.9, 0.1, 0.2]}


@register("levels")
class Levels(Popularity):
    \"\"\"Nine validations, all of them at its level.\"\"\"

    Config = LevelsConfig

    def fit(self, train, context):
        super().fit(train, context)
        for epoch in range(1, 10):
            context.log(epoch=epoch, loss=1.0, validation=self.config.level)
            with open(FOLDER + "/epochs", "a") as file:
                print(self.config.level, time.time(), file=file)
            time.sleep(PAUSE)
"""


def levels(folder: Path, pause: str):
    """A suite of a method whose worse settings are below its own from the first validation on."""
    (folder / "levels.py").write_text(LEVELS.replace("FOLDER", repr(str(folder))).replace("PAUSE", pause))
    return make_suite({"methods": ["levels"], "datasets": ["tiny"], "plugins": [str(folder / "levels.py")]})


def test_a_trial_that_falls_behind_says_by_which_rule(stored, tmp_path, capsys):
    suite = levels(tmp_path, "0.0 if self.config.level == 0.9 else 0.3")
    (study,) = tuning.tune(suite, {}, tmp_path / "results", Progress(), 5, None)
    assert [trial.state for trial in study.finished] == ["done", "pruned", "pruned"]
    (quick,) = tuning.tune(levels(tmp_path, "0.0"), {}, tmp_path / "quick", Progress(quiet=True), 5, None)
    assert told(quick) == told(study)  # however many validations are seen at a time
    (path,) = tmp_path.glob("results/tiny/levels/tuning-*.json")
    said = capsys.readouterr().err
    for trial in json.loads(path.read_text())["trials"][1:]:
        assert len(trial["curve"]) == 3
        assert trial["reason"] == "below the best third at validation 3"
        assert f"levels: pruned, ndcg@10 {trial['values']['level']:.4f}, {trial['reason']}, " in said


def test_two_commands_with_one_search(stored, tmp_path, capsys, monkeypatch):
    """The second waits, and finds the trials of the first."""
    (study,) = search(tmp_path, trials=0)
    study.trials = 2
    tried: list[int] = []
    watch = tuning._watch

    def count(study, attempt, number, *more):
        tried.append(number)
        return watch(study, attempt, number, *more)

    monkeypatch.setattr(tuning, "_watch", count)
    found = []
    second = threading.Thread(target=lambda: found.extend(tuning.tune(SUITE, {}, tmp_path, Progress(), 2, None)))
    with study.held(Progress(), lambda: None):
        second.start()
        waits = "item_knn · tiny: waits for another command's same search\n"
        said = ""
        while waits not in said:
            assert second.is_alive()
            said += capsys.readouterr().err
            time.sleep(0.02)
        tuning._search(study, Progress(), lambda: None)
    second.join()
    assert tried == [0, 1]
    assert told(found[0]) == told(study)


PLUGIN = """
import time
from typing import ClassVar

from genrec_bench.methods.base import MethodConfig
from genrec_bench.methods.popularity import Popularity
from genrec_bench.methods.registry import register


class OddConfig(MethodConfig):
    mode: str = "good"
    search_space: ClassVar = {"mode": ["good", "raises", "sleeps"]}


@register("odd")
class Odd(Popularity):
    Config = OddConfig

    def fit(self, train, context):
        super().fit(train, context)
        assert self.config.mode != "raises", "never again"
        if self.config.mode == "sleeps":
            time.sleep(600)
"""


def test_a_failing_trial_and_the_end_of_the_time(stored, tmp_path):
    (tmp_path / "odd.py").write_text(PLUGIN)
    suite = make_suite({"methods": ["odd"], "datasets": ["tiny"], "plugins": [str(tmp_path / "odd.py")]})
    (study,) = search(tmp_path / "results", trials=9, budget_s=12.0, suite=suite)
    assert {trial.values["mode"] for trial in study.finished} <= {"good", "raises"}
    assert all("never again" in trial.reason for trial in study.finished if trial.state == "failed")
    assert study.best.values == {"mode": "good"}
    assert 12.0 <= study.spent_s < 25  # the sleeping one took the rest
    (again,) = search(tmp_path / "results", trials=9, budget_s=12.0, suite=suite)
    assert told(again) == told(study)


def test_more_time_is_noted_also_where_no_trial_is_left(stored, tmp_path):
    (study,) = search(tmp_path, trials=2, budget_s=600.0)
    trials, seconds = told(study), study.spent_s
    (again,) = search(tmp_path, trials=2, budget_s=900.0)
    kept = read(again.path)
    assert (kept.budget_seconds, kept.budget_trials) == (900.0, 2)
    assert told(again) == trials
    assert kept.spent_seconds == pytest.approx(seconds, abs=30)  # what is written is rounded
    before = again.path.read_bytes()
    search(tmp_path, trials=1, budget_s=300.0)
    assert again.path.read_bytes() == before


def test_the_command(command, stored, tmp_path):
    arguments = ["tune", "--method=item_knn", "--method=markov", "--dataset=tiny", "--trials=2", "--results", tmp_path]
    code, said, _ = command(*arguments, "--quiet")
    assert code == 0
    assert "2/2" in said
    assert f"genrec-bench run {tmp_path / 'tuned.yaml'}" in said
    assert command("run", tmp_path / "tuned.yaml", "--results", tmp_path, "--quiet")[0] == 0
    assert [bool(row["tuning"]) for row in json.loads(render(tmp_path, "json"))] == [True, True]


ROWS = """
methods: [popularity, {method: item_knn, label: near, config: {decay: 0.7}}, item_knn, {method: markov, seeds: [0, 1]}]
datasets: [tiny]
protocols: [full, cand20]
seeds: [0, 1, 2]
time_budget: 5m
tuned: {tiny: {item_knn: {shrink: 3.0}}}
"""


def test_the_rows_of_a_suite_are_searched_from_its_values(command, stored, tmp_path):
    (tmp_path / "mine.yaml").write_text(ROWS)
    arguments = ["tune", tmp_path / "mine.yaml", "--trials=2", "--results", tmp_path]
    code, _, said = command(*arguments)
    assert code == 2
    assert "One protocol is searched at a time: add --protocol full" in said
    code, _, said = command(*arguments, "--protocol=full")
    assert code == 2
    assert "One row of item_knn is searched at a time: add --method 'near' or 'item_knn'" in said
    code, _, said = command(*arguments, "--protocol=full", "--method=near", "--method=markov", "--method=popularity")
    assert code == 0
    assert "left out: popularity has nothing to search" in said

    study = next(one for one in read_all(tmp_path) if one.method == "item_knn")
    assert study.fixed == {"decay": 0.7}
    assert study.trials[0].values == {"neighbours": 200, "shrink": 3.0}
    written = yaml.safe_load((tmp_path / "tuned.yaml").read_text())
    assert written["methods"] == [
        {"method": "item_knn", "label": "near, searched", "config": {"decay": 0.7}},
        {"method": "markov", "label": "markov, searched", "seeds": [0, 1]},
    ]
    assert {key: written[key] for key in ("seeds", "protocols", "time_budget")} == {
        "seeds": [0, 1, 2],
        "protocols": ["full"],
        "time_budget": "5m",
    }
    assert written["tuned"]["tiny"]["item_knn"] == study.trials[study.best].values


def test_what_cannot_be_searched(stored, tmp_path):
    with pytest.raises(InputError, match="popularity has nothing to search"):
        search(tmp_path, suite=make_suite({"methods": ["popularity"], "datasets": ["tiny"]}))
    with pytest.raises(InputError, match="Nothing to search"):
        search(tmp_path, suite=make_suite({"methods": ["tallrec"], "datasets": ["tiny"]}))
    with pytest.raises(InputError, match=r"Unknown method 'item_kn'\. Did you mean: item_knn"):
        search(tmp_path, suite=make_suite({"methods": ["item_kn"], "datasets": ["tiny"]}))


def test_a_scale_that_the_own_value_is_not_on(stored, tmp_path):
    suite = make_suite({"methods": ["item_knn"], "datasets": ["tiny"], "tuned": {"tiny": {"item_knn": {"shrink": 0}}}})
    with pytest.raises(InputError, match=r"item_knn: shrink=0\.0 is not on the logarithmic scale 0\.1 \.\. 100"):
        search(tmp_path, suite=suite)
    (study,) = search(tmp_path, trials=1, suite=suite, settings={"item_knn": {"shrink": 0}})
    assert "shrink" not in study.space


CHOOSY = """
from typing import ClassVar

from pydantic import model_validator

from genrec_bench.methods.base import MethodConfig
from genrec_bench.methods.popularity import Popularity
from genrec_bench.methods.registry import register


class ChoosyConfig(MethodConfig):
    layers: int = 3
    chosen: int = 3
    search_space: ClassVar = {"layers": [1, 2, 3], "chosen": [1, 2, 3]}

    @model_validator(mode="after")
    def _fits(self):
        if self.chosen > self.layers:
            raise ValueError("chosen must not exceed layers")
        return self


@register("choosy")
class Choosy(Popularity):
    Config = ChoosyConfig
"""


def test_settings_that_the_config_refuses_are_not_tried(stored, tmp_path):
    (tmp_path / "choosy.py").write_text(CHOOSY)
    suite = make_suite({"methods": ["choosy"], "datasets": ["tiny"], "plugins": [str(tmp_path / "choosy.py")]})
    (study,) = search(tmp_path / "results", trials=9, suite=suite)
    tried = [(trial.values["layers"], trial.values["chosen"]) for trial in study.finished]
    assert sorted(tried) == [(1, 1), (2, 1), (2, 2), (3, 1), (3, 2), (3, 3)]


def test_a_training_state_is_left_to_whoever_has_it(home):
    state = home / "runs" / "one"
    state.mkdir(parents=True)
    with lock_of("one"):
        assert not tuning.forget("one")
        assert state.exists()
    assert tuning.forget("one")
    assert not state.exists()


def test_a_search_without_its_library(stored, tmp_path, monkeypatch):
    """It says so before anything is trained."""
    monkeypatch.setitem(sys.modules, "optuna", None)
    with pytest.raises(InputError, match=r"needs Optuna: pip install 'genrec-bench\[tune\]'"):
        search(tmp_path)
    assert not list(tmp_path.rglob("tuning-*.json"))


def test_dots_lead_into_groups():
    assert tuning.nested({"lm.settings.dropout": 0.1, "lm.method": "tiger", "n": 5}) == {
        "lm": {"settings": {"dropout": 0.1}, "method": "tiger"},
        "n": 5,
    }
