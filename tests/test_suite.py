"""From YAML and options to cells: every mistake is one message that names the file, the key and the nearest name."""

import pickle
from pathlib import Path

import pytest
from conftest import ROOT

from genrec_bench.benchmark import records
from genrec_bench.benchmark.execute import run_id
from genrec_bench.benchmark.suite import cells, make_suite, parse_settings, read_suite, rows, seconds
from genrec_bench.datasets import catalogue
from genrec_bench.datasets.errors import InputError

MINIMAL = "methods: [popularity]\ndatasets: [tiny]\n"
PLUGIN = """
from genrec_bench.methods.popularity import Popularity
from genrec_bench.methods.base import MethodConfig
from genrec_bench.methods.registry import register
class MineConfig(MethodConfig):
    depth: int = 1
@register("mine")
class Mine(Popularity):
    Config = MineConfig
"""


def written(folder: Path, text: str | bytes) -> Path:
    path = folder / "my.yaml"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def grid(text: str, folder: Path, **settings):
    return cells(read_suite(written(folder, text)), settings or None)


OURS = [(path, tier) for path in sorted((ROOT / "suites").glob("*.yaml")) for tier in (None, *read_suite(path).tiers)]


@pytest.mark.parametrize(("path", "tier"), OURS, ids=lambda part: getattr(part, "name", part))
def test_our_suites_make_cells(path, tier):
    suite = read_suite(path)
    found = cells(suite.model_copy(update={"scale": tier}) if tier else suite)
    assert suite.name == path.stem
    assert len({(cell.label, cell.dataset, cell.rules, cell.seed) for cell in found}) == len(found)
    assert {cell.dataset for cell in found} <= set(catalogue.names())
    assert set(suite.tuned) <= set(catalogue.names())  # some for --dataset
    if suite.time_budget:
        assert seconds(suite.time_budget) > 0


def test_a_row_may_be_of_some_tiers(tmp_path):
    text = "methods: [popularity, {method: sasrec, scales: [base, paper]}]\ndatasets: [a]\n"
    assert {cell.method for cell in grid(text, tmp_path)} == {"popularity"}
    assert {cell.method for cell in grid(text + "scale: base\n", tmp_path)} == {"popularity", "sasrec"}
    with pytest.raises(InputError, match="scale=tiny: the rows asked for are of tier base, paper alone"):
        grid(text.replace("popularity, ", ""), tmp_path)
    with pytest.raises(InputError, match="scales"):
        grid(text.replace("paper", "huge"), tmp_path)


def test_the_released_sampler_can_be_chosen(tmp_path):
    text = "methods: [popularity]\ndatasets: [a]\nexclude: window\n"
    (cell,) = grid(text + "protocols: [cand20]\n", tmp_path)
    assert cell.rules.exclude == "window"
    with pytest.raises(InputError, match="exclude=window is of protocol cand20, which is not part of this run"):
        grid(text, tmp_path)


def test_cells_of_a_suite(tmp_path):
    found = grid("methods: [popularity, {method: sasrec, label: bce, config: {loss: bce}}]\ndatasets: [a, b]\n"
                 "protocols: [full, cand20]\nseeds: [0, 5]\nscale: base\nmask_seen: true\n", tmp_path)  # fmt: skip
    assert len(found) == 2 * 2 * 2 * 2
    assert [str(cell) for cell in found[:3]] == [
        "popularity · a · full · seed 0", "popularity · a · full · seed 5", "bce · a · full · seed 0",
    ]  # fmt: skip
    assert {cell.rules.mask_seen for cell in found if cell.rules.name == "full"} == {True}
    assert {cell.rules.mask_seen for cell in found if cell.rules.name == "cand20"} == {False}
    assert {cell.rules.exclude for cell in found if cell.rules.name == "cand20"} == {"sequence"}
    assert {cell.scale for cell in found} == {"base"}
    assert found[2].config.loss == "bce"
    assert read_suite(tmp_path / "my.yaml").name == "my"


def test_methods_without_choose_stay_out_of_the_candidate_protocol(tmp_path):
    (tmp_path / "ranks.py").write_text(
        PLUGIN + "\n    choose = __import__('genrec_bench.methods.base').methods.base.Method.choose\n"
    )
    text = "methods: [mine, popularity]\ndatasets: [a]\nprotocols: [full, cand20]\nplugins: [ranks.py]\n"
    assert [(cell.method, cell.rules.name) for cell in grid(text, tmp_path)] == [
        ("mine", "full"), ("popularity", "full"), ("popularity", "cand20"),
    ]  # fmt: skip


def test_methods_without_recommend_stay_out_of_the_full_protocol(tmp_path):
    (tmp_path / "picks.py").write_text(
        PLUGIN + "\n    recommend = __import__('genrec_bench.methods.base').methods.base.Method.recommend\n"
    )
    text = "methods: [mine, popularity]\ndatasets: [a]\nprotocols: [full, cand20]\nplugins: [picks.py]\n"
    assert [(cell.method, cell.rules.name) for cell in grid(text, tmp_path)] == [
        ("popularity", "full"), ("mine", "cand20"), ("popularity", "cand20"),
    ]  # fmt: skip


def test_incidental_settings_make_no_other_run(tmp_path):
    (tmp_path / "cheap.py").write_text(
        PLUGIN + "\n    class Config(__import__('genrec_bench.methods.base').methods.base.MethodConfig):\n"
        "        depth: int = 1\n        price: float = 0.0\n        incidental = frozenset({'price'})\n"
    )
    row = "{{method: mine, label: {}, config: {{depth: {}, price: {}}}}}"
    rows = [row.format("a", 1, 0.0), row.format("b", 1, 2.5), row.format("c", 2, 0.0)]
    text = "methods: [{}]\ndatasets: [a]\nplugins: [cheap.py]\n"
    ids = [run_id(grid(text.format(one), tmp_path)[0], "x") for one in rows]
    assert ids[0] == ids[1] != ids[2]
    with pytest.raises(InputError, match="'a' and 'b' are the same run"):
        grid(text.format(", ".join(rows)), tmp_path)


def test_a_setting_added_later_leaves_old_runs_their_ids(tmp_path):
    base = "__import__('genrec_bench.methods.base').methods.base.MethodConfig"
    before = f"\n    class Config({base}):\n        depth: int = 1\n"
    ids = []
    for fields in (before, before + "        width: float = 2.0\n        added = {'width': 2.0}\n"):
        (tmp_path / "grows.py").write_text(PLUGIN + fields)
        cell = grid("methods: [mine]\ndatasets: [a]\nplugins: [grows.py]\n", tmp_path)[0]
        ids.append(cell.config.identity())
    assert ids[0] == ids[1] == {"depth": 1}
    assert cell.config.model_copy(update={"width": 3.0}).identity() == {"depth": 1, "width": 3.0}


def test_some_rows_of_a_suite(tmp_path, command, stored):
    """By label or method, with their own config; a method that is no row stands with its own settings."""
    text = (
        "methods: [popularity, {method: item_knn, label: fast, config: {decay: 0.9}}, {method: item_knn, label: slow}]"
    )
    path = written(tmp_path, f"{text}\ndatasets: [tiny]\n")
    suite = read_suite(path)
    assert [row.label for row in rows(suite, ["slow", "item_knn"])] == ["slow", "fast"]
    assert [(row.method, row.label) for row in rows(suite, ["markov"])] == [("markov", None)]
    code, said, _ = command("run", path, "--method=fast", "--method=markov", "--results", tmp_path, "--quiet")
    assert code == 0
    assert [name for name in ("fast", "slow", "markov", "popularity") if f"\n{name} " in said] == ["fast", "markov"]
    (record,) = [one for one in records.read_all(tmp_path)[0] if one.label == "fast"]
    assert record.overrides == {"decay": 0.9}


def test_eager_llms_suites_train_alike():
    """The same values for each data set and tier, and one label for a row that they share."""
    suites = [read_suite(path) for path in sorted((ROOT / "suites").glob("eager_*.yaml"))]
    assert len(suites) == 3
    assert all((suite.tuned, suite.tiers) == (suites[0].tuned, suites[0].tiers) for suite in suites)
    labels: dict[str, set[str]] = {}
    for suite in suites:
        for cell in cells(suite):
            labels.setdefault(cell.method + cell.config.model_dump_json(), set()).add(cell.label)
    assert all(len(names) == 1 for names in labels.values())


def test_rsllms_suites_train_alike():
    """A method has the same values in each of them, and a run that they share one label."""
    suites = [read_suite(path) for path in sorted((ROOT / "suites").glob("rsllm_*.yaml"))]
    assert len(suites) == 5
    known: dict[tuple[str, str], dict[str, object]] = {}
    labels: dict[str, set[str]] = {}
    for suite in suites:
        for place, values in {**suite.tuned, **suite.tiers}.items():
            for method, own in values.items():
                assert known.setdefault((place, method), own) == own
        for cell in cells(suite):
            labels.setdefault(cell.method + cell.config.model_dump_json(), set()).add(cell.label)
    assert {"llm_zero_shot", "tallrec", "llara", "rsllm"} <= {method for _, method in known}
    assert all(len(names) == 1 for names in labels.values())


def test_the_gpt_4_row_is_asked_as_the_others_of_its_table():
    table, gpt4 = (read_suite(ROOT / "suites" / f"rsllm_{name}.yaml") for name in ("table2", "gpt4"))
    assert (gpt4.protocols, gpt4.datasets, gpt4.scale) == (table.protocols, table.datasets, table.scale)
    for dataset, values in table.tuned.items():
        asked = gpt4.tuned[dataset]["llm_api"]
        assert {key: value for key, value in asked.items() if key != "budget_requests"} == values["llm_zero_shot"]
    (cell,) = cells(gpt4)
    assert (cell.method, cell.seed) == ("llm_api", 0)


def test_the_released_codes_rate_on_another_data_set_can_be_set():
    """As the comments of RSLLM's suites say: the one that stands there is of MovieLens."""
    suite = read_suite(ROOT / "suites" / "rsllm_table2.yaml").model_copy(update={"scale": "paper"})
    other = parse_settings(["llara.learning_rate=0.0005"])
    rates = [{one.config.learning_rate for one in cells(suite, to) if one.method == "llara"} for to in ({}, other)]
    assert rates == [{0.0008}, {0.0005}]


def test_a_row_may_have_seeds_of_its_own(tmp_path):
    suite = grid("methods: [popularity, {method: markov, seeds: [7]}]\ndatasets: [a]\nseeds: [1, 2]\n", tmp_path)
    assert [(cell.method, cell.seed) for cell in suite] == [("popularity", 1), ("popularity", 2), ("markov", 7)]


def test_a_tiers_values_win_over_tuned_ones_and_yield_to_the_entry(tmp_path):
    text = (
        "methods: [sasrec, {method: sasrec, label: wide, config: {dim: 64}}]\ndatasets: [a]\n"
        "tuned: {a: {sasrec: {dim: 16, dropout: 0.1}}}\ntiers: {base: {sasrec: {dim: 32}}}\n"
    )
    assert [(cell.config.dim, cell.config.dropout) for cell in grid(text, tmp_path)] == [(16, 0.1), (64, 0.1)]
    base = grid(text + "scale: base\n", tmp_path)
    assert [(cell.config.dim, cell.config.dropout) for cell in base] == [(32, 0.1), (64, 0.1)]


def test_tuned_values_yield_to_the_entry_and_to_set(tmp_path):
    text = (
        "methods: [sasrec, {method: sasrec, label: own, config: {dropout: 0.2}}]\ndatasets: [a, b]\n"
        "tuned: {a: {sasrec: {dropout: 0.1, dim: 32}}}\n"
    )
    values = {(c.label, c.dataset): (c.config.dropout, c.config.dim, c.config.epochs) for c in grid(text, tmp_path)}
    plain = grid("methods: [sasrec]\ndatasets: [b]\n", tmp_path)[0].config
    default = (plain.dropout, plain.dim, plain.epochs)
    assert values == {
        ("sasrec", "a"): (0.1, 32, default[2]), ("own", "a"): (0.2, 32, default[2]),
        ("sasrec", "b"): default, ("own", "b"): (0.2, *default[1:]),
    }  # fmt: skip
    with pytest.raises(InputError, match="'sasrec' and 'own' are the same run of sasrec"):
        grid(text, tmp_path, sasrec={"dropout": 0.7})
    found = grid(
        "methods: [sasrec]\ndatasets: [a]\ntuned: {a: {sasrec: {dim: 32, epochs: 3}}}\n", tmp_path, sasrec={"dim": 16}
    )
    assert (found[0].config.dim, found[0].config.epochs) == (16, 3)


def test_plugins_are_found_beside_the_suite(tmp_path, monkeypatch):
    (tmp_path / "mine.py").write_text(PLUGIN)
    monkeypatch.chdir("/")
    (cell,) = grid("methods: [{method: mine, config: {depth: 3}}]\ndatasets: [a]\nplugins: [mine.py]\n", tmp_path)
    assert cell.plugin == str(tmp_path / "mine.py")
    assert cell.config.depth == 3
    again = pickle.loads(pickle.dumps(cell))  # as it travels to its process
    assert (str(again), again.config.depth, run_id(again, "x")) == (str(cell), 3, run_id(cell, "x"))
    (tmp_path / "mine.py").write_text(PLUGIN + "# new")
    (other,) = grid("methods: [{method: mine, config: {depth: 3}}]\ndatasets: [a]\nplugins: [mine.py]\n", tmp_path)
    assert run_id(other, "x") != run_id(cell, "x")


def test_run_ids_name_what_determines_a_result(tmp_path):
    def identity(text="", data="x", **settings):
        return run_id(grid(MINIMAL.replace("popularity", "sasrec") + text, tmp_path, **settings)[0], data)

    base = identity()
    assert identity("seeds: [0]\nname: other\ntime_budget: 3h\n") == base
    assert identity("tuned: {tiny: {sasrec: {dim: 64}}}\n") == base  # the default, spelt out
    others = [
        identity("seeds: [1]\n"), identity("mask_seen: true\n"), identity("protocols: [cand20]\n"),
        identity("scale: base\n"), identity(data="y"), identity(sasrec={"dim": 32}),
    ]  # fmt: skip
    assert len({base, *others}) == 7


WRONG = [
    ("methods: [popularity\n", r"my\.yaml: not YAML: while parsing a flow sequence"),
    (b"\xff\xfe\x00", r"my\.yaml: not YAML: .*"),
    ("- popularity\n", r"my\.yaml: expected keys name, methods, .*, got list"),
    ("", r"my\.yaml: expected keys name, methods, .*, got NoneType"),
    (MINIMAL + "sedes: [1]\n", r"my\.yaml: Unknown key 'sedes'\. Did you mean: seeds"),
    ("methods: [{method: sasrec, lable: x}]\ndatasets: [a]\n", r"Unknown key 'lable'\. Did you mean: label"),
    ("datasets: [a]\n", r"my\.yaml: methods: Field required"),
    ("method: [popularity]\ndatasets: [a]\n", r"my\.yaml: Unknown key 'method'\. Did you mean: methods"),
    ("methods: []\ndatasets: [a]\n", r"my\.yaml: methods: List should have at least 1 item"),
    ("methods: popularity\ndatasets: [a]\n", r"my\.yaml: methods: Input should be a valid list"),
    ("methods: [popularity]\ndatasets: a\n", r"my\.yaml: datasets: Input should be a valid list"),
    (MINIMAL + "seeds: [one]\n", r"my\.yaml: seeds\.0: Input should be a valid integer"),
    (MINIMAL + "seeds: [0, -1]\n", r"my\.yaml: seeds\.1: Input should be greater than or equal to 0"),
    (MINIMAL + "seeds: [4294967296]\n", r"my\.yaml: seeds\.0: Input should be less than"),
    (MINIMAL + "seeds: []\n", r"my\.yaml: seeds: List should have at least 1 item"),
    (MINIMAL + "scale: huge\n", r"my\.yaml: scale: Input should be 'tiny', 'base' or 'paper'"),
    (MINIMAL + "protocols: [ful]\n", r"my\.yaml: protocols: Unknown protocol 'ful'\. Did you mean: full"),
    (MINIMAL + "protocols: []\n", r"my\.yaml: protocols: List should have at least 1 item"),
    (MINIMAL + "tuned: {a: {popularity: 3}}\n", r"my\.yaml: tuned\.a\.popularity: Input should be a valid dictionary"),
    (MINIMAL + "1: 2\n", r"my\.yaml: .*"),
    (MINIMAL + "seeds: " + "[" * 3000 + "\n", r"my\.yaml: not YAML: .*"),
    (MINIMAL + "time_budget: soon\n", r"my\.yaml: time_budget: Time 'soon': expected a positive number"),
    (MINIMAL + "time_budget: 90\n", None),  # seconds
    (MINIMAL + "plugins: mine.py\n", r"my\.yaml: plugins: Input should be a valid list"),
]


@pytest.mark.parametrize(("text", "message"), WRONG)
def test_mistakes_in_the_file(tmp_path, text, message):
    path = written(tmp_path, text)
    if message is None:
        assert seconds(read_suite(path).time_budget) == 90
        return
    with pytest.raises(InputError, match=message) as error:
        read_suite(path)
    assert str(error.value).startswith(f"Suite {path}: ")
    assert "\n" not in str(error.value)
    assert len(str(error.value)) < 600


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("methods: [sasrek]\ndatasets: [a]\n", r"Unknown method 'sasrek'\. Did you mean: sasrec"),
        (MINIMAL + "tuned: {a: {sasrek: {}}}\n", r"Unknown method 'sasrek'\. Did you mean: sasrec"),
        (
            "methods: [{method: sasrec, config: {dimm: 3}}]\ndatasets: [a]\n",
            r"Unknown setting of sasrec 'dimm'\. Did you mean: dim",
        ),
        (
            "methods: [{method: sasrec, config: {dim: big}}]\ndatasets: [a]\n",
            r"sasrec\.dim = 'big': Input should be a valid integer",
        ),
        (MINIMAL + "plugins: [gone.py]\n", r"gone\.py: no such file"),
        ("methods: [popularity, popularity]\ndatasets: [a]\n", "popularity would run seed 0 twice"),
        ("methods: [popularity]\ndatasets: [a, a]\n", "popularity would run seed 0 twice"),
        (MINIMAL + "seeds: [1, 1]\n", "popularity would run seed 1 twice"),
        ("methods: [popularity, {method: popularity, label: b}]\ndatasets: [a]\n", "are the same run of popularity"),
        (MINIMAL + "tuned: {synthetc: {popularity: {}}}\n", "data set in tuned 'synthetc'. Did you mean: synthetic"),
    ],
)
def test_mistakes_that_show_when_cells_are_made(tmp_path, text, message):
    suite = read_suite(written(tmp_path, text))
    with pytest.raises(InputError, match=message):
        cells(suite)


def test_settings_for_a_method_that_is_not_run(tmp_path):
    with pytest.raises(InputError, match="that method is not part of this run"):
        grid(MINIMAL, tmp_path, sasrec={"dim": 8})
    with pytest.raises(InputError, match="Did you mean: sasrec"):
        grid(MINIMAL, tmp_path, sasrecc={"dim": 8})


def test_a_missing_suite_is_told_which_there_are(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # the program's own, from anywhere
    with pytest.raises(InputError, match=r"are in folder .*suites\. Did you mean: quickstart\.yaml, "):
        read_suite("quikstart")
    written(tmp_path, MINIMAL)
    with pytest.raises(InputError, match=r"suites are in folder \.\. Did you mean: my\.yaml\? Available: my\.yaml$"):
        read_suite("myy.yaml")


def test_rows_that_a_suite_lacks_are_told_those_it_has(tmp_path):
    suite = read_suite(written(tmp_path, "methods: [markov, {method: sasrec, label: 'mine, two'}]\ndatasets: [a]\n"))
    with pytest.raises(InputError, match=r"'foo'\. Available: markov; mine, two$"):
        rows(suite, ["foo"])
    with pytest.raises(InputError, match=r"Did you mean: popularity\? Available: markov; mine, two$"):
        rows(suite, ["popularty"])  # any method may be added


def test_missing_file(tmp_path):
    with pytest.raises(InputError, match=r"gone\.yaml: no such file"):
        read_suite(tmp_path / "gone.yaml")
    with pytest.raises(InputError, match="no such file"):
        read_suite(tmp_path)


@pytest.mark.parametrize(
    ("text", "value"), [("90", 90), ("90s", 90), ("1.5s", 1.5), ("25m", 1500), ("2h", 7200), ("1e2", 100)]
)
def test_durations(text, value):
    assert seconds(text) == value


@pytest.mark.parametrize("text", ["", "s", "0", "-3m", "nan", "inf", "1e400", "3 weeks", "10ms"])
def test_durations_that_are_none(text):
    with pytest.raises(InputError, match="expected a positive number with s, m or h"):
        seconds(text)


def test_parse_settings():
    pairs = [
        "sasrec.dropout=0.3",
        "sasrec.loss=bce",
        "markov.skip=0",
        "a.b=",
        "a.c=x=y",
        "a.d=[1, 2]",
        "sasrec.dropout=0.4",
    ]
    assert parse_settings(pairs) == {
        "sasrec": {"dropout": 0.4, "loss": "bce"}, "markov": {"skip": 0}, "a": {"b": None, "c": "x=y", "d": [1, 2]},
    }  # fmt: skip
    for wrong in ("sasrec", "sasrec.dropout", "dropout=1", ".dropout=1", "sasrec.=1", "=", ""):
        with pytest.raises(InputError, match=r"expected METHOD\.KEY=VALUE"):
            parse_settings([wrong])
    with pytest.raises(InputError, match="is not a YAML value"):
        parse_settings(["a.b=[1"])


def test_values_from_options_are_checked_alike():
    with pytest.raises(InputError, match=r"^scale: Input should be 'tiny', 'base' or 'paper'$"):
        make_suite({"methods": ["popularity"], "datasets": ["a"], "scale": "xl"})
