"""Models that were kept, and what they recommend: what the method does, in the data set's ids, or one clear line."""

import json
import os
import shlex
from pathlib import Path

import numpy as np
import pytest
from test_architecture import python
from test_runner import files_of, plugin, run

from genrec_bench.benchmark import models, records
from genrec_bench.benchmark.execute import execute
from genrec_bench.benchmark.protocols import Full
from genrec_bench.benchmark.recommend import load_run
from genrec_bench.benchmark.suite import cells, make_suite
from genrec_bench.datasets import store, synthetic
from genrec_bench.datasets.errors import InputError, unknown
from genrec_bench.methods import registry
from genrec_bench.methods.artefacts import ArtefactCache
from genrec_bench.methods.base import Context
from genrec_bench.methods.checkpoint import Checkpoint

MARKOV = {"method": "markov", "config": {"skip": 0.7}}
SMALL = {"bf16": False, "layers": 1, "width": 16, "heads": 1, "feedforward": 32, "epochs": 1, "max_history": 4}
TIGER = {
    "method": "tiger",
    "config": {**SMALL, "architecture": "decoder_only", "index": {"builder": "random", "levels": 2, "codes": 16}},
}


@pytest.fixture
def kept(stored, tmp_path) -> Path:
    """Records of popularity and markov with their models; returns the results folder."""
    assert run(tmp_path / "results", ["popularity", MARKOV], keep_models=True).done == 2
    return tmp_path / "results"


def id_of(results: Path, method: str) -> str:
    (folder,) = (results / "tiny" / method).iterdir()
    return folder.name


def trained(name: str, config: dict, data) -> object:
    """The method as it is before it is saved: trained here, outside the benchmark."""
    method = registry.get(name)(registry.configure(name, config))
    context = Context(0, "cpu", "tiny", Checkpoint(None), ArtefactCache(store.home()), lambda method, users=0: 0.0)
    method.fit(Full().split(data).train, context)
    return method


def test_a_kept_run_answers_as_its_method(kept, tiny):
    loaded = load_run(id_of(kept, "markov")[:6], kept)
    users, histories = ["user3", "user50"], [["item4", "item9", "item4"], []]
    asked = loaded.asked(users, histories)
    assert asked.users.tolist() == [3, 50, 60, 60]
    assert asked.row(0).tolist() == tiny.sequences.row(3).tolist()  # validation and test items included
    assert [asked.row(b).tolist() for b in (2, 3)] == [[4, 9, 4], []]
    assert not asked.mask_seen
    ranking = trained("markov", MARKOV["config"], tiny).recommend(asked, 5)
    answers = loaded.recommend(users, histories, k=5)
    assert [[int(line.item.removeprefix("item")) for line in lines] for lines in answers] == ranking.items.tolist()
    assert [[line.score for line in lines] for lines in answers] == ranking.scores.tolist()
    titles = dict(zip(tiny.items["item_id"], tiny.items["title"], strict=True))
    assert all(line.title == titles[line.item] and line.code is None for lines in answers for line in lines)
    assert [line.rank for line in answers[0]] == [1, 2, 3, 4, 5]

    seen = {f"item{item}" for item in tiny.sequences.row(3)}
    (masked,) = loaded.recommend(["user3"], k=40, mask_seen=True)
    assert {line.item for line in masked} == {f"item{i}" for i in range(40)} - seen
    assert len(loaded.recommend(histories=[["item0"]], k=99)[0]) == 40  # no more than there are


def test_many_users_are_asked_in_one_call(kept, tiny, monkeypatch):
    loaded = load_run(id_of(kept, "markov"), kept)
    recommend, calls = loaded.method.recommend, []
    monkeypatch.setattr(loaded.method, "recommend", lambda *asked: (calls.append(asked), recommend(*asked))[1])
    answers = loaded.recommend(tiny.user_ids.tolist(), k=3)
    assert [len(answer) for answer in answers] == [3] * tiny.num_users
    assert len(calls) == 1


def test_the_command_line_says_what_python_says(kept, command):
    identity = id_of(kept, "markov")
    code, out, err = command("recommend", "--run", identity[:6], "--user", "user3", "--k=3", "--results", kept)
    assert (code, err) == (0, "")
    (lines,) = load_run(identity, kept).recommend(["user3"], k=3)
    known = len(load_run(identity, kept).asked(["user3"]).items)
    head, _, names, _, *rows = out.splitlines()
    assert head == f"markov · tiny · seed 0 · user user3 · after {known} items · seen items kept"
    assert names.split() == ["rank", "item", "title", "score"]
    assert [row.split() for row in rows] == [
        [str(line.rank), line.item, *line.title.split(), f"{line.score:.5g}"] for line in lines
    ]
    where = ("--run", kept / "tiny" / "markov" / identity / "run.json", "--format=json", "--k=2", "--mask-seen")
    said = json.loads(command("recommend", *where, "--history", "item4, item9")[1])
    (lines,) = load_run(identity, kept).recommend(histories=[["item4", "item9"]], k=2, mask_seen=True)
    assert said == {
        "run": identity, "method": "markov", "dataset": "tiny", "user": None, "history": ["item4", "item9"],
        "mask_seen": True,
        "items": [{"rank": one.rank, "item": one.item, "title": one.title, "score": one.score} for one in lines],
    }  # fmt: skip
    seen = ",".join(f"item{i}" for i in range(39))
    code, out, err = command("recommend", *where, "--history", seen)
    assert ([line["item"] for line in json.loads(out)["items"]], code) == (["item39"], 0)
    assert err == "The method names 1 items here, not 2\n"


def test_the_runs_protocol_decides_on_seen_items(stored, tmp_path, command):
    run(tmp_path, mask_seen=True, keep_models=True)
    where = ("recommend", "--run", id_of(tmp_path, "popularity"), "--history=item1", "--results", tmp_path)
    assert "seen items left out" in command(*where)[1]
    assert "seen items kept" in command(*where, "--keep-seen")[1]
    code, out, _ = command("recommend", "--results", tmp_path)
    assert code == 0
    assert out.splitlines()[2].split() == [id_of(tmp_path, "popularity"), "popularity", "tiny", "full", "tiny", "0"]


def test_a_run_under_the_candidate_protocol_ranks_the_catalogue(stored, tmp_path):
    run(tmp_path, protocols=["cand20"], keep_models=True)
    (answer,) = load_run(id_of(tmp_path, "popularity"), tmp_path).recommend(["user0"], k=40)
    assert len(answer) == 40


def test_a_generative_method_shows_its_codes(stored, tmp_path, tiny, command):
    pytest.importorskip("transformers")
    run(tmp_path, [TIGER], keep_models=True)
    identity = id_of(tmp_path, "tiger")
    loaded = load_run(identity, tmp_path)
    answers = loaded.recommend(["user7"], [["item1", "item2"]], k=5)
    ranking = loaded.method.recommend(loaded.asked(["user7"], [["item1", "item2"]]), 5)
    assert [[int(line.item.removeprefix("item")) for line in lines] for lines in answers] == ranking.items.tolist()
    assert [[line.score for line in lines] for lines in answers] == ranking.scores.tolist()
    assert all(line.code == loaded.method.index.strings(int(line.item[4:])) for lines in answers for line in lines)
    rows = records.read_rankings(tmp_path / "tiny" / "tiger" / identity)[1]  # as the record has it
    test = Full().split(tiny).test.histories
    again = loaded.method.recommend(test, rows.items.shape[1])
    assert np.array_equal(again.items, rows.items)
    assert np.allclose(again.scores, rows.scores, atol=1e-5)
    where = ("recommend", "--run", identity, "--user=user7", "--k=5", "--results", tmp_path)
    out = command(*where)[1].splitlines()
    assert out[2].split()[-1] == "code"
    assert out[4].endswith(" ".join(answers[0][0].code))
    said = json.loads(command(*where, "--format=json")[1])
    assert [line["code"] for line in said["items"]] == [line.code for line in answers[0]]
    assert said["user"] == "user7"


def test_models_are_kept_outside_the_results_and_only_when_asked_for(stored, tmp_path, home):
    first = run(tmp_path, ["popularity", MARKOV])
    assert not (home / "models").exists()
    before = files_of(tmp_path)
    again = run(tmp_path, ["popularity", MARKOV], keep_models=True)  # a record without its model runs again
    assert (again.done, again.already, again.run_ids) == (2, 0, first.run_ids)
    assert {path.name for path in (home / "models").iterdir()} == set(first.run_ids)
    after = files_of(tmp_path)
    assert set(after) == set(before)
    assert all(after[name][0] == before[name][0] for name in after if name.endswith("ranks.parquet"))
    assert run(tmp_path, ["popularity", MARKOV], keep_models=True).already == 2
    assert files_of(tmp_path) == after
    assert run(tmp_path, ["popularity", MARKOV]).already == 2


def test_a_suite_may_ask_for_models(stored, tmp_path, home, command):
    (tmp_path / "mine.yaml").write_text("methods: [popularity]\ndatasets: [tiny]\nkeep_models: true\n")
    assert command("run", tmp_path / "mine.yaml", "--results", tmp_path)[0] == 0
    assert models.exists(id_of(tmp_path, "popularity"))


@pytest.mark.parametrize("damage", ["lost file", "half a file", "no manifest", "other manifest"])
def test_a_model_that_is_not_whole_is_none(kept, damage, command):
    identity = id_of(kept, "popularity")
    folder = models.folder(identity)
    file, manifest = folder / "popularity.npy", folder / models.MANIFEST
    if damage == "lost file":
        file.unlink()
    elif damage == "half a file":
        os.truncate(file, 20)
    elif damage == "no manifest":
        manifest.unlink()
    else:
        manifest.write_text("[]")
    assert not models.exists(identity)
    code, _, err = command("recommend", "--run", identity, "--user=user3", "--results", kept)
    assert code == 2
    assert f"Run {identity} has no model in" in err
    assert run(kept, keep_models=True).done == 1
    assert load_run(identity, kept).recommend(["user3"])


KEEPS = {
    "killed": ("os.kill(os.getpid(), signal.SIGKILL)", "its process ended by signal 9"),
    "raises": ("raise ValueError('no way')", r"save raised ValueError: no way (raises.py:14)"),
}


@pytest.mark.parametrize("how", KEEPS)
def test_a_save_that_breaks_off_costs_no_record_and_leaves_no_half_model(stored, tmp_path, home, how):
    flag, (step, reason) = tmp_path / "flag", KEEPS[how]
    body = f"""
def save(self, folder):
    super().save(folder)
    if not os.path.exists({str(flag)!r}):
        {step}
"""
    file, results = plugin(tmp_path, how, body), tmp_path / "results"
    outcome = run(results, [how], plugins=[file], keep_models=True)
    assert list(outcome.failed.values()) == [reason]
    (identity,) = outcome.run_ids
    assert records.exists(results, "tiny", how, identity)
    assert not models.exists(identity)
    assert not models.folder(identity).exists()
    assert records.read_failures(results) == ([], [])
    flag.touch()
    assert run(results, [how], plugins=[file], keep_models=True).done == 1
    assert [path.name for path in (home / "models").iterdir()] == [identity]
    loaded = load_run(identity, results, [file])
    assert loaded.recommend(["user1"])


@pytest.mark.parametrize(
    "error", ["OSError(28, 'No space left on device')", "RuntimeError('I/O error: full (os error 28)')"]
)
def test_a_full_disk_loses_nothing(stored, tmp_path, home, error):
    """The record is there, and training is not done again: the checkpoint stays until the model is kept."""
    flag, epochs = tmp_path / "flag", tmp_path / "epochs"
    body = f"""
def fit(self, train, context):
    if context.checkpoint.load() is None:
        Path({str(epochs)!r}).open("a").write("epoch ")
        context.checkpoint.save({{"epoch": 1}})
    super().fit(train, context)

def save(self, folder):
    super().save(folder)
    if not os.path.exists({str(flag)!r}):
        raise {error}
"""
    file, results = plugin(tmp_path, "fills", body), tmp_path / "results"
    with pytest.raises(InputError, match=r"No space left under .*: free some, then run the same command again"):
        run(results, ["fills"], plugins=[file], keep_models=True)
    assert len(list(results.rglob("run.json"))) == 1
    assert list((home / "models").iterdir()) == []
    flag.touch()
    assert run(results, ["fills"], plugins=[file], keep_models=True).done == 1
    assert epochs.read_text() == "epoch "
    assert [path for path in (home / "runs").iterdir() if path.suffix != ".lock"] == []


def test_models_that_cannot_be_written_end_before_anything_runs(stored, tmp_path, home):
    (home / "models").write_text("")
    with pytest.raises(InputError, match=r"Cannot write in .*models.*GENREC_BENCH_HOME"):
        run(tmp_path, keep_models=True)
    assert not (home / "runs").exists()


SETTINGS = [
    {"method": "sasrec", "config": {"loss": "bce", "dim": 8, "feedforward": 16, "epochs": 1, "learning_rate": 1e-05}},
    {"method": "tiger", "config": {**TIGER["config"], "normalise": "trie"}},
    # four levels are the default of an index, but not of TIGER's
    {"method": "tiger", "config": {**SMALL, "index": {"levels": 4, "codes": 8, "hidden": [16], "epochs": 1}}},
]


@pytest.mark.parametrize("entry", SETTINGS, ids=["flat", "another index", "its own index, changed"])
def test_a_run_without_a_model_names_the_command_that_makes_one(stored, tmp_path, command, entry):
    """With every setting, the groups included: the same run id."""
    method, entry = entry["method"], {**entry, "label": "mine"}
    if method == "tiger":
        pytest.importorskip("transformers")
    (cell,) = cells(make_suite({"methods": [entry], "datasets": ["tiny"], "seeds": [4], "mask_seen": True}))
    execute(cell, tmp_path, lambda event: None, threads=1)
    identity = id_of(tmp_path, method)
    ask = ("recommend", "--run", identity, "--user=user3", "--results", tmp_path)
    code, out, err = command(*ask)
    assert (code, out, len(err.splitlines())) == (2, "", 1)
    assert f"Run {identity} has no model in {models.folder(identity).parent}. Make it: genrec-bench run" in err
    again = shlex.split(err.partition("Make it: ")[2])
    assert command(*again[1:], "--quiet")[0] == 0
    assert id_of(tmp_path, method) == identity  # the same run, and no other
    assert command(*ask)[0] == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--run=RUN",), "Give --run, and either --user or --history"),
        (("--user=user3",), "Give --run, and either --user or --history"),
        (("--run=RUN", "--user=user3", "--history=item1"), "Give --run, and either --user or --history"),
        (("--run=RUN", "--user=usr3"), "Unknown user of tiny 'usr3'. Did you mean: user3"),
        (("--run=RUN", "--user="), "Unknown user of tiny ''"),
        (("--run=RUN", "--history=item1,itm9"), "Unknown item of tiny 'itm9'. Did you mean: item9"),
        (("--run=RUN", "--history="), "Unknown item of tiny ''"),
        (("--run=xRUN", "--user=user3"), "Unknown run 'xRUN'. Did you mean: RUN"),
        (("--run=", "--user=user3"), "Run '' may be any of 2: "),
        (("--run=RUN", "--user=user3", "--results=/gone"), "No records in /gone"),
        (("--results=/gone",), "No run in /gone has a model in"),
        (("--run=RUN", "--user=user3", "--format=xml"), "Unknown format 'xml'"),
        (("--run=RUN", "--user=user3", "--plugin=gone.py"), "gone.py: no such file"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
def test_bad_input_is_one_line_and_exit_code_2(kept, command, arguments, message):
    identity = id_of(kept, "popularity")
    given = [one.replace("RUN", identity) for one in arguments]
    if not any(one.startswith("--results") for one in given):
        given += ["--results", str(kept)]
    code, out, err = command("recommend", *given)
    assert (code, out) == (2, "")
    assert len(err.splitlines()) == 1
    assert err.startswith("genrec-bench: ")
    assert message.replace("RUN", identity) in err
    assert len(err) < 500


def test_a_plugins_run_needs_its_file(stored, tmp_path):
    file, results = plugin(tmp_path, "mine", "pass"), tmp_path / "results"
    (identity,) = run(results, ["mine"], plugins=[file], keep_models=True).run_ids
    with pytest.raises(InputError, match=rf"Run {identity} is of a plugin's method, 'mine': give its file with --plug"):
        load_run(identity, results)
    assert load_run(identity, results, [file]).recommend(["user1"])
    Path(file).write_text(Path(file).read_text() + "# new")
    with pytest.raises(InputError, match=f"Run {identity} is not of this plugin: the file has changed since"):
        load_run(identity, results, [file])


def test_what_is_no_longer_as_it_was(kept, monkeypatch):
    identity = id_of(kept, "markov")
    with monkeypatch.context() as newer:
        newer.setattr(registry.get("markov"), "version", 2)
        with pytest.raises(InputError, match=f"Run {identity} is of version 1 of markov, and this is 2"):
            load_run(identity, kept)
    with monkeypatch.context() as broken:
        broken.setattr(registry.get("markov"), "score", lambda self, histories: 1 / 0)
        with pytest.raises(InputError, match=f"Run {identity} of markov: recommend raised ZeroDivisionError: division"):
            load_run(identity, kept).recommend(["user1"])
    np.save(models.folder(identity) / "popularity.npy", np.ones(40, np.float32))  # of the same size
    (models.folder(identity) / "matrix.npz").write_bytes(b"x" * (models.folder(identity) / "matrix.npz").stat().st_size)
    with pytest.raises(InputError, match=f"Run {identity} of markov: load raised"):
        load_run(identity, kept)
    store.save(synthetic.generate(num_users=60, num_items=40, seed=4, max_length=12, name="tiny"))
    with pytest.raises(InputError, match=f"Data set 'tiny' is not what run {identity} learnt from"):
        load_run(identity, kept)


def test_what_python_may_get_wrong(kept):
    loaded = load_run(kept / "tiny" / "markov" / id_of(kept, "markov"), kept)
    with pytest.raises(InputError, match="'user3' where a list was expected, of ids of a user of tiny"):
        loaded.recommend("user3")
    with pytest.raises(InputError, match="'item3' where a list was expected, of ids of an item of tiny"):
        loaded.recommend(histories=["item3"])
    with pytest.raises(InputError, match="k=0: at least one item"):
        loaded.recommend(["user3"], k=0)
    assert loaded.recommend() == []


def test_long_lists_of_names_are_cut():
    few, many = ([f"name{i:02}" for i in range(count)] for count in (20, 21))
    assert str(unknown("thing", "x", few)).endswith("name18, name19")
    assert str(unknown("thing", "x", many)).endswith("name18, name19, ... (21 in all)")


def test_help_imports_nothing_heavy():
    code = (
        "import sys; sys.argv = ['genrec-bench', 'recommend', '--help']\n"
        "from genrec_bench.benchmark import cli\n"
        "try: cli.main()\n"
        "except SystemExit as stop: assert not stop.code\n"
        "print('heavy:', *sorted({'torch', 'pandas', 'numpy', 'pyarrow'} & set(sys.modules)))"
    )
    said = python("-c", code).stdout
    assert "--history" in said
    assert said.splitlines()[-1] == "heavy:"
