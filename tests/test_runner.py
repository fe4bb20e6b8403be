"""Grids: idempotent, and whatever one cell does to itself, its reason is kept and the others go on."""

import json
import os
import re
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import make_data

from genrec_bench.benchmark import records, runner, storage
from genrec_bench.benchmark.execute import execute
from genrec_bench.benchmark.process import usable_cores
from genrec_bench.benchmark.progress import Progress
from genrec_bench.benchmark.runner import Outcome, default_jobs, run_grid
from genrec_bench.benchmark.suite import cells, make_suite
from genrec_bench.datasets import store
from genrec_bench.datasets.errors import InputError

SASREC = {"method": "sasrec", "config": {"dim": 8, "feedforward": 16, "epochs": 2, "max_length": 8}}


def grid_of(methods=("popularity",), **more):
    return cells(make_suite({"methods": list(methods), "datasets": ["tiny"], **more}))


def run(
    results: Path,
    methods=("popularity",),
    budget: float | None = None,
    force=False,
    jobs=2,
    keep_models=False,
    **more,
) -> Outcome:
    return run_grid(grid_of(methods, **more), results, Progress(quiet=True), budget, force, jobs, keep_models)


def files_of(results: Path) -> dict[str, tuple[bytes, int]]:
    return {
        str(path.relative_to(results)): (path.read_bytes(), path.stat().st_mtime_ns)
        for path in sorted(results.rglob("*"))
        if path.is_file()
    }


def plugin(folder: Path, name: str, body: str, base: str = "Popularity") -> str:
    """A file with one method whose class body is ``body``."""
    path = folder / f"{name}.py"
    indented = "\n".join(f"    {line}" for line in body.strip("\n").splitlines())
    path.write_text(
        "import gc, os, resource, signal, subprocess, sys, time\nfrom pathlib import Path\n"
        "import numpy as np\nimport torch\n"
        "from genrec_bench.methods.popularity import Popularity\nfrom genrec_bench.methods.registry import register\n"
        f"\n\n@register({name!r})\nclass {name.capitalize()}({base}):\n{indented}\n"
    )
    return str(path)


def alive(pid: int) -> bool:
    """Whether a process runs (a zombie does not)."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_a_grid_is_idempotent(stored, tmp_path, home):
    methods = ["popularity", SASREC]
    first = run(tmp_path, methods, protocols=["full", "cand20"])
    assert (first.done, first.already, first.failed) == (4, 0, {})
    before = files_of(tmp_path)
    assert len([name for name in before if name.endswith("run.json")]) == 4
    again = run(tmp_path, methods, protocols=["full", "cand20"])
    assert (again.done, again.already) == (0, 4)
    assert files_of(tmp_path) == before
    assert again.run_ids == first.run_ids
    assert len(set(first.run_ids)) == 4
    assert [path for path in (home / "runs").iterdir() if path.suffix != ".lock"] == []  # no checkpoint is left
    assert os.listdir(tmp_path / ".work") == []


def test_what_a_record_says(stored, tmp_path, tiny):
    run(tmp_path, [SASREC, "popularity"], seeds=[3])
    found, problems = records.read_all(tmp_path)
    assert problems == []
    popularity, sasrec = found
    assert (sasrec.seed, sasrec.tier, sasrec.family, sasrec.published_as) == (3, "tiny", "sequential", "SASRec")
    assert sasrec.overrides == {"dim": 8, "feedforward": 16, "epochs": 2, "max_length": 8}
    assert sasrec.config["loss"] == "ce"
    assert sasrec.evaluated_users == sasrec.dataset.users == 60
    assert sasrec.dataset.sha256 == tiny.sha256
    assert sasrec.validation.metric == "ndcg@10"
    assert 0 <= sasrec.validation.value <= 1
    assert popularity.overrides == {}
    assert (popularity.cost.parameters, popularity.cost.device) == (40, "cpu")
    assert sasrec.cost.train_seconds > 0
    assert sasrec.provenance.versions["torch"]
    folder = records.run_folder(tmp_path, "tiny", "sasrec", sasrec.run_id)
    epochs = [json.loads(line) for line in (folder / "events.jsonl").read_text().splitlines()]
    assert [line["epoch"] for line in epochs if "epoch" in line] == [1, 2]
    users, _ = records.read_ranks(folder)
    assert users.tolist() == list(range(60))


@pytest.mark.parametrize("damage", ["folder", "run.json", "ranks.parquet"])
def test_a_lost_or_corrupt_record_is_run_again_alone(stored, tmp_path, damage):
    outcome = run(tmp_path, seeds=[0, 1])
    before = files_of(tmp_path)
    folder = records.run_folder(tmp_path, "tiny", "popularity", outcome.run_ids[1])
    if damage == "folder":
        for path in folder.iterdir():
            path.unlink()
        folder.rmdir()
    else:
        (folder / damage).write_bytes((folder / damage).read_bytes()[:40])
    again = run(tmp_path, seeds=[0, 1])
    assert (again.done, again.already) == (1, 1)
    after = files_of(tmp_path)
    assert set(after) == set(before)
    changed = {name for name in after if after[name] != before[name]}
    assert all(outcome.run_ids[1] in name for name in changed)
    ranks = f"tiny/popularity/{outcome.run_ids[1]}/ranks.parquet"
    assert after[ranks][0] == before[ranks][0]


def test_force_runs_again(stored, tmp_path):
    run(tmp_path)
    before = files_of(tmp_path)
    assert run(tmp_path, force=True).done == 1
    assert {name for name in before if name.endswith("run.json") and files_of(tmp_path)[name] != before[name]}


BAD = {
    "raises": (
        "def fit(self, train, context): raise KeyError('lost\\nkey')",
        r"fit raised KeyError: .*lost.* \(raises.py:\d+\)",
    ),
    "ranks": (
        "def recommend(self, histories, k): return self.nothing",
        r"recommend raised AttributeError: .*\(ranks.py:\d+\)",
    ),
    "born": (
        "def __init__(self, config): raise OSError('no model')",
        r"__init__ raised OSError: no model \(born.py:\d+\)",
    ),
    "counts": ("def parameters(self): return 1 / 0", "parameters raised ZeroDivisionError"),
    "nan": (
        "def score(self, histories): return super().score(histories) * np.nan",
        "score returned NaN during validation",
    ),
    "leaves": ("def fit(self, train, context): os._exit(3)", "its process ended with code 3"),
    "quits": ("def fit(self, train, context): sys.exit(0)", "its process ended with code 0|SystemExit"),
    "shoots": ("def fit(self, train, context): os.kill(os.getpid(), signal.SIGKILL)", "its process ended by signal 9"),
    "segfaults": (
        "def fit(self, train, context): os.kill(os.getpid(), signal.SIGSEGV)",
        "its process ended by signal 11",
    ),
    "eats": ("def fit(self, train, context): self.popularity = np.ones(10**15)", "out of memory"),
    "odd": ("def fit(self, train, context): context.log(model=self)", "fit raised TypeError: .*not JSON"),
    "unpicklable": (
        "def fit(self, train, context): raise type('Local', (Exception,), {})('no')",
        "fit raised Local: no",
    ),
}


def test_every_way_to_fail_leaves_its_reason(stored, tmp_path):
    """One grid with all of them: the good methods before and after get their records."""
    plugins = [plugin(tmp_path, name, body) for name, (body, _) in BAD.items()]
    results = tmp_path / "results"
    outcome = run(results, ["popularity", *BAD, "markov"], plugins=plugins)
    assert outcome.done == 2
    assert {record.method for record in records.read_all(results)[0]} == {"popularity", "markov"}
    reasons = {failure.method: failure.reason for failure in records.read_failures(results)[0]}
    assert set(reasons) == set(BAD)
    assert set(outcome.failed.values()) == set(reasons.values())
    for name, (_, expected) in BAD.items():
        assert re.search(expected, reasons[name]), (name, reasons[name])
        assert "\n" not in reasons[name]
        assert len(reasons[name]) < 500


HANGS = {
    "sleeps": "def fit(self, train, context): time.sleep(600)",
    "spins": "def fit(self, train, context):\n    while True: pass",
    "chats": "def fit(self, train, context):\n    while True: context.log(x=1.0)",
    "deaf": "def fit(self, train, context):\n    signal.signal(signal.SIGTERM, signal.SIG_IGN)\n    time.sleep(600)",
}


def test_hanging_cells_end_with_their_budget(stored, tmp_path):
    plugins = [plugin(tmp_path, name, body) for name, body in HANGS.items()]
    started = time.monotonic()
    outcome = run(tmp_path / "results", [*HANGS, "popularity"], budget=2.0, jobs=4, plugins=plugins)
    assert outcome.done == 1
    assert set(outcome.failed.values()) == {"stopped after its time budget of 2 s"}
    assert len(outcome.failed) == 4
    assert time.monotonic() - started < 40


def test_processes_that_a_cell_started_end_with_it(stored, tmp_path):
    """They hold the pipe open and outlive their parent: the grid must neither wait for them nor leave them."""
    pids = tmp_path / "pids"
    body = f"""
def fit(self, train, context):
    child = subprocess.Popen(['sleep', '600'], close_fds=False)
    with open({str(pids)!r}, 'a') as file:
        print(child.pid, file=file)
"""
    plugins = [
        plugin(tmp_path, "orphans", body + "    os._exit(1)"),
        plugin(tmp_path, "parents", body + "    time.sleep(600)"),
    ]
    outcome = run(tmp_path / "results", ["orphans", "parents"], budget=2.5, plugins=plugins)
    ends = ["its process ended with code 1", "stopped after its time budget of 2.5 s"]
    assert sorted(outcome.failed.values()) == ends
    started = [int(line) for line in pids.read_text().split()]
    assert len(started) == 2
    deadline = time.monotonic() + 5
    while any(map(alive, started)) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not any(map(alive, started))


def test_methods_may_use_worker_processes(stored, tmp_path):
    body = """
def fit(self, train, context):
    super().fit(train, context)
    assert len(list(torch.utils.data.DataLoader(torch.arange(4), num_workers=1))) == 4
"""
    assert run(tmp_path / "results", ["loads"], plugins=[plugin(tmp_path, "loads", body)]).failed == {}


def test_all_libraries_of_a_cell_use_its_threads(stored, tmp_path):
    """Sums depend on their number: NumPy's and SciPy's BLAS too, whatever the environment says, or is loaded late."""
    body = """
def fit(self, train, context):
    super().fit(train, context)
    import scipy.linalg, sklearn.cluster, threadpoolctl
    found = {one['filepath']: one['num_threads'] for one in threadpoolctl.threadpool_info()}
    assert found and set(found.values()) == {torch.get_num_threads()}, found
"""
    assert run(tmp_path / "results", ["counts"], jobs=2, plugins=[plugin(tmp_path, "counts", body)]).failed == {}


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="Linux tells a process its cores")
def test_jobs_share_the_cores_that_are_ours():
    """On a cluster's node, or under taskset, the machine has more: as many threads would wait for each other."""
    ours = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(ours)})
    try:
        assert (usable_cores(), default_jobs()) == (1, torch.cuda.device_count() or 1)
    finally:
        os.sched_setaffinity(0, ours)
    assert usable_cores() <= len(ours)


def test_a_kill_while_items_are_ranked_costs_no_training(stored, tmp_path):
    trained, flag = tmp_path / "trained", tmp_path / "flag"
    body = f"""
def fit(self, train, context):
    if context.checkpoint.load() is None:
        with Path({str(trained)!r}).open("a") as file:
            file.write("once ")
        context.checkpoint.save({{"epoch": 1}})
    super().fit(train, context)

def recommend(self, histories, k):
    if not os.path.exists({str(flag)!r}):
        Path({str(flag)!r}).touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return super().recommend(histories, k)
"""
    file, results = plugin(tmp_path, "dies", body), tmp_path / "results"
    assert list(run(results, ["dies"], plugins=[file]).failed.values()) == ["its process ended by signal 9"]
    assert run(results, ["dies"], plugins=[file]).done == 1
    assert trained.read_text() == "once "


def test_a_kill_between_two_states_of_a_model_costs_no_answers(stored, tmp_path):
    asked, flag = tmp_path / "asked", tmp_path / "flag"
    body = f"""
def recommend(self, histories, k):
    with Path({str(asked)!r}).open("a") as file:
        file.write("once ")
    return super().recommend(histories, k)

def variants(self):
    if not os.path.exists({str(flag)!r}):
        Path({str(flag)!r}).touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return {{}}
"""
    file, results = plugin(tmp_path, "ends", body), tmp_path / "results"
    assert list(run(results, ["ends"], plugins=[file]).failed.values()) == ["its process ended by signal 9"]
    assert run(results, ["ends"], plugins=[file]).done == 1
    assert asked.read_text() == "once "
    assert not list((store.home() / "runs").glob("*/answers"))


def test_a_record_takes_the_place_of_its_failure(stored, tmp_path):
    flag = tmp_path / "flag"
    body = f"""
def fit(self, train, context):
    super().fit(train, context)
    assert os.path.exists({str(flag)!r}), 'not yet'
"""
    file, results = plugin(tmp_path, "later", body), tmp_path / "results"
    failed = run(results, ["later"], plugins=[file]).failed
    assert list(failed.values()) == ["fit raised AssertionError: not yet (later.py:13)"]
    flag.touch()
    assert run(results, ["later"], plugins=[file]).done == 1
    assert records.read_failures(results) == ([], [])
    assert not list(results.rglob("*.failed.json"))


def test_a_plugin_edited_while_the_grid_runs_is_noticed(stored, tmp_path):
    """Its run id names the old file: what the new one does must not be recorded under it."""
    file = plugin(tmp_path, "edited", "pass")
    grid = grid_of(["edited"], plugins=[file])
    Path(file).write_text(Path(file).read_text() + "# new")
    with pytest.raises(InputError, match=r"edited\.py was changed while the grid ran"):
        run_grid(grid, tmp_path / "results", Progress(quiet=True))


def test_a_run_that_is_no_longer_the_one_that_was_asked_for(stored, tmp_path, monkeypatch):
    """The data set, or a method's version, became another one after the grid was laid out."""
    with monkeypatch.context() as earlier:
        earlier.setattr(runner, "run_id", lambda cell, sha256: "0123456789abcdef")
        with pytest.raises(InputError, match="The code or a data set changed while the grid ran"):
            run(tmp_path / "results")
    assert run(tmp_path / "results").already == 1  # recorded as what it was


def test_no_test_target_is_in_the_process_while_a_method_learns(stored, tmp_path):
    body = """
def fit(self, train, context):
    super().fit(train, context)
    gc.collect()
    names = ('InteractionData', 'Split', 'HeldOut')
    found = [type(one).__name__ for one in gc.get_objects() if type(one).__name__ in names]
    assert found == ['HeldOut'], found  # the validation targets, behind context.validate
"""
    assert run(tmp_path / "results", ["digs"], plugins=[plugin(tmp_path, "digs", body)]).failed == {}


def test_a_disk_that_fills_up_stops_the_grid(stored, tmp_path):
    """Files may grow to nothing from the end of training on, as on a full disk: no half a record is left."""
    flag = tmp_path / "freed"
    body = f"""
def fit(self, train, context):
    super().fit(train, context)
    if not os.path.exists({str(flag)!r}):
        resource.setrlimit(resource.RLIMIT_FSIZE, (0, resource.RLIM_INFINITY))
"""
    file, results = plugin(tmp_path, "fills", body), tmp_path / "results"
    with pytest.raises(InputError, match=r"File too large"):
        run(results, ["fills", "popularity"], jobs=1, plugins=[file])
    assert not list(results.rglob("run.json"))
    flag.touch()
    assert run(results, ["fills", "popularity"], plugins=[file]).done == 2


def test_a_full_disk_is_named(stored, tmp_path, monkeypatch):
    cell = grid_of()[0]

    def full(path, content):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(storage, "write_bytes", full)
    with pytest.raises(InputError, match="No space left on device; free some space, then run the same command again"):
        execute(cell, tmp_path, lambda event: None, threads=1)
    with pytest.raises(InputError, match="No space left on device"):
        run(tmp_path)
    assert not list(tmp_path.rglob("*.json"))


def test_results_that_cannot_be_written_end_before_anything_runs(stored, tmp_path, home):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match=r"Cannot write records in .*file.*give --results a writable folder"):
        run(tmp_path / "file" / "results")
    assert not (home / "runs").exists()


def test_a_home_that_cannot_be_written(stored, tmp_path, home):
    (home / "runs").write_text("")
    with pytest.raises(InputError, match=r"Cannot write in .*runs"):
        run(tmp_path)


def test_data_that_break_the_protocols_are_warned_of(tmp_path, command):
    rng = np.random.default_rng(0)
    rows = [rng.permutation(30)[:6].tolist() for _ in range(20)]
    store.save(make_data(rows, num_items=30, name="clean"))
    store.save(make_data([*rows, [1, 2, 3, 4, 4]], num_items=30, name="faulty"))
    code, _, err = command("run", "--method=popularity", "--dataset=clean", "--dataset=faulty", "--results", tmp_path)
    assert code == 0
    assert [line for line in err.splitlines() if line.startswith("warning: ")] == [
        "warning: data set faulty: 1 sequences end in the same item twice; see: genrec-bench data audit faulty",
        "warning: data set faulty: 1 interactions repeat a user-item pair; see: genrec-bench data audit faulty",
    ]


def test_a_data_set_nobody_has(stored, tmp_path):
    with pytest.raises(InputError, match=r"Unknown data set 'tinny'\. Did you mean: tiny"):
        run(tmp_path, datasets=["tiny", "tinny"])
    assert not list(tmp_path.rglob("run.json"))


def test_a_data_set_too_small_for_candidates(tmp_path):
    rng = np.random.default_rng(0)
    store.save(make_data([rng.permutation(12)[:6].tolist() for _ in range(20)], num_items=12, name="tiny"))
    assert run(tmp_path).done == 1  # fewer items than the 20 that are ranked
    with pytest.raises(InputError, match="20 candidates exceed the catalogue of 12 items"):
        run(tmp_path, protocols=["cand20"])


def test_a_relative_results_folder_and_another_home(stored, tmp_path, monkeypatch, home, tmp_path_factory):
    """The server that cells are forked from keeps the folder and environment it was born in: cells must not."""
    run(tmp_path / "warm")
    other = tmp_path_factory.mktemp("other")
    (home / "datasets").rename(other / "datasets")
    monkeypatch.setenv("GENREC_BENCH_HOME", str(other))
    monkeypatch.chdir(tmp_path)
    assert run(Path("here")).done == 1
    assert list((tmp_path / "here").rglob("run.json"))
    assert (other / "runs").is_dir()
    assert run(Path("here")).already == 1


def test_candidates_are_the_same_whatever_asks_and_however_many_work(stored, tmp_path):
    run(tmp_path / "one", ["popularity"], jobs=1, protocols=["cand20"])
    run(tmp_path / "two", ["markov", "item_knn", "popularity"], jobs=2, protocols=["cand20"], seeds=[3, 4])
    one, two = (
        {path.name: path.read_bytes() for path in (tmp_path / name).rglob("candidates-*")} for name in ("one", "two")
    )
    assert len(one) == 1
    assert one == two
