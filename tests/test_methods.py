"""Counting methods by hand on five items, learned ones against popularity, the registry and plugins."""

import math

import numpy as np
import pytest
import torch
from conftest import make_data, make_histories
from test_contract_methods import TINY as CONTRACT

from genrec_bench.benchmark.evaluate import evaluate, validation_ranks
from genrec_bench.benchmark.protocols import Full, selection_value
from genrec_bench.benchmark.tuning import nested
from genrec_bench.datasets import store, synthetic
from genrec_bench.datasets.errors import InputError
from genrec_bench.datasets.interactions import TrainView
from genrec_bench.datasets.splits import leave_one_out
from genrec_bench.methods import registry
from genrec_bench.methods.artefacts import ArtefactCache
from genrec_bench.methods.base import Context, Method
from genrec_bench.methods.checkpoint import Checkpoint

TINY = {
    **{name: {"dim": 8, "epochs": 2, "max_length": 8} for name in ("sasrec", "gru4rec", "din", "caser")},
    **{name: CONTRACT[name] for name in ("agrec", "morec")},
    **{name: values for name, values in CONTRACT.items() if "index" in values},  # the generative ones
}
ROWS = [[0, 1, 2], [0, 1], [3, 1, 2]]


def view_of(rows, num_items=5) -> TrainView:
    data = make_data(rows, num_items=num_items)
    return TrainView(data.num_users, data.items, data.sequences)


def fitted(name: str, train: TrainView, validate=lambda method, users=0: 0.5, **config) -> Method:
    method = registry.get(name)(registry.configure(name, config))
    torch.manual_seed(0)
    method.fit(train, Context(0, "cpu", "tiny", Checkpoint(None), ArtefactCache(store.home() / "artefacts"), validate))
    return method


def test_markov_by_hand():
    """0 is followed by 1 twice, 1 by 2 twice, 3 by 1 once; shares are 2, 3, 2, 1, 0 of 8."""
    method = fitted("markov", view_of(ROWS), backoff=2.0, skip=0.0)
    share = np.array([2, 3, 2, 1, 0]) / 8
    after_0, after_1 = (2 * share + [0, 2, 0, 0, 0]) / 4, (2 * share + [0, 0, 2, 0, 0]) / 4
    scores = method.score(make_histories([[0, 1], [2], [], [1, 0]]))
    assert scores == pytest.approx(np.stack([after_1, share, share, after_0]))
    assert scores[0, 2] == pytest.approx(0.625)
    skipping = fitted("markov", view_of(ROWS), backoff=2.0, skip=0.5, order=2)
    assert skipping.score(make_histories([[3, 0, 1]]))[0] == pytest.approx(after_1 + 0.5 * after_0)  # 3 is out of order


def test_item_knn_by_hand():
    """User sets: 0 in {a, b}, 1 in all, 2 in {a, c}, 3 in {c}; similarity n_ij / (sqrt(n_i n_j) + 1)."""
    s01 = s12 = 2 / (math.sqrt(6) + 1)
    s02, s13 = 1 / 3, 1 / (math.sqrt(3) + 1)
    method = fitted("item_knn", view_of(ROWS), shrink=1.0, decay=0.5)
    scores = method.score(make_histories([[0, 1], [1, 0], []]))
    assert scores[0] == pytest.approx([s01, 0.5 * s01, s12 + 0.5 * s02, s13, 0.0], abs=1e-5)
    assert scores[1] == pytest.approx([0.5 * s01, s01, s02 + 0.5 * s12, 0.5 * s13, 0.0], abs=1e-5)
    assert np.argsort(-scores[2], kind="stable").tolist() == [1, 0, 2, 3, 4]  # nobody's neighbours: popularity
    nearest = fitted("item_knn", view_of(ROWS), shrink=1.0, decay=0.5, neighbours=1)
    # item 1 is as near to 0 as to 2 and keeps the lower number; item 0 keeps 1
    assert nearest.score(make_histories([[0, 1]]))[0] == pytest.approx([s01, 0.5 * s01, 0, 0, 0], abs=1e-5)


def test_item_knn_counts_users_not_repeats():
    method = fitted("item_knn", view_of([[0, 0, 1], [0, 2]]), shrink=0.0)
    assert method.score(make_histories([[1]]))[0, 0] == pytest.approx(1 / math.sqrt(2), abs=1e-5)


def test_item_knn_in_blocks_of_items(monkeypatch):
    from genrec_bench.methods import item_knn

    train = leave_one_out(synthetic.generate(num_users=50, num_items=30, seed=1)).train
    whole = fitted("item_knn", train, neighbours=4).similarity.toarray()
    monkeypatch.setattr(item_knn, "ROWS", 7)
    assert np.array_equal(fitted("item_knn", train, neighbours=4).similarity.toarray(), whole)
    assert ((whole > 0).sum(1) <= 4).all()
    assert (np.diag(whole) == 0).all()


def test_popularity_by_hand():
    method = fitted("popularity", view_of([[1, 1, 0], [1, 0, 3], [1, 3, 0, 2]]))
    ranking = method.recommend(make_histories([[4], []]), 5)
    assert ranking.scores.tolist() == [[4, 3, 2, 1, 0]] * 2
    assert ranking.items.tolist() == [[1, 0, 3, 2, 4]] * 2
    assert method.parameters() == (5, 5)


@pytest.mark.parametrize("name", [name for name in registry.BUILT_IN if registry.get(name).full_protocol()])
def test_empty_histories_and_unseen_items_give_finite_answers(name):
    method = fitted(name, view_of([[0, 1, 2, 0], [2, 1], []], num_items=6), **TINY.get(name, {}))
    ranking = method.recommend(make_histories([[], [5], [0, 1, 2, 3, 4, 5] * 20]), 6)
    assert np.isfinite(ranking.scores).all()
    assert sorted(ranking.items[0].tolist()) == list(range(6))
    alone = method.recommend(make_histories([[]]), 6)
    assert np.allclose(alone.scores[0], ranking.scores[0], atol=1e-6)


@pytest.fixture(scope="module")
def learnable():
    """Popularity, and how well any method does after a short training, on data with something to learn."""
    data = synthetic.generate(num_users=200, num_items=60, seed=5)
    split = leave_one_out(data)

    def ndcg(name: str, **config) -> float:
        def validate(method, users=0):
            return selection_value(Full(), validation_ranks(method, split.valid, Full(), 60))

        method = fitted(name, split.train, validate, **config)
        return selection_value(Full(), evaluate(method, split.test, Full(), 60).ranks)

    return ndcg("popularity"), ndcg


@pytest.mark.parametrize(
    ("name", "config"),
    [
        ("markov", {}),
        ("item_knn", {}),
        (
            "sasrec",
            {"dim": 32, "feedforward": 64, "epochs": 10, "learning_rate": 5e-3, "dropout": 0.1, "averaging": 0.9},
        ),
        (
            "sasrec",
            {
                "dim": 32,
                "feedforward": 64,
                "epochs": 10,
                "learning_rate": 5e-3,
                "dropout": 0.1,
                "averaging": 0.9,
                "loss": "bce",
            },
        ),
        ("gru4rec", {"dim": 32, "hidden": 32, "epochs": 10, "learning_rate": 1e-2, "dropout": 0.1}),
        (
            "gru4rec",
            {"dim": 32, "hidden": 32, "epochs": 10, "learning_rate": 1e-2, "dropout": 0.1, "loss": "sampled_ce"},
        ),
        ("caser", {"dim": 32, "epochs": 10, "learning_rate": 1e-2, "dropout": 0.1, "batch_positions": 256}),
        (
            "caser",
            {"dim": 32, "epochs": 10, "learning_rate": 1e-2, "dropout": 0.1, "batch_positions": 256, "targets": 3},
        ),
        (
            "din",
            {
                "dim": 16,
                "hidden": [32, 16],
                "epochs": 12,
                "learning_rate": 1e-2,
                "averaging": 0.9,
                "batch_positions": 128,
                "max_length": 3,
            },
        ),
    ],
)
def test_learned_methods_beat_popularity(learnable, name, config):
    popularity, ndcg = learnable
    assert ndcg(name, **config) > 1.5 * popularity


def test_a_method_without_settings_says_so():
    with pytest.raises(InputError, match=r"Unknown setting of popularity 'foo': there are none$"):
        registry.configure("popularity", {"foo": 1})


def test_unknown_names_and_keys():
    with pytest.raises(InputError, match=r"Unknown method 'sasrek'\. Did you mean: sasrec"):
        registry.get("sasrek")
    with pytest.raises(InputError, match=r"Unknown setting of sasrec 'blokcs'\. Did you mean: blocks"):
        registry.configure("sasrec", {"blokcs": 2})
    with pytest.raises(InputError, match=r"sasrec.epochs = 'many'"):
        registry.configure("sasrec", {"epochs": "many"})
    with pytest.raises(InputError, match=r"^sasrec: heads=3 must divide dim=64$"):
        registry.configure("sasrec", {"heads": 3})


@pytest.mark.parametrize(
    ("name", "key", "value"),
    [
        *[("sasrec", key, 0) for key in ("dim", "max_length", "epochs", "patience", "batch_positions", "blocks")],
        ("sasrec", "dropout", 1.0), ("gru4rec", "dropout", -0.1), ("sasrec", "learning_rate", 0.0),
        ("sasrec", "learning_rate", math.inf), ("gru4rec", "weight_decay", math.nan), ("item_knn", "shrink", math.nan),
        ("item_knn", "shrink", math.inf), ("markov", "backoff", 0.0), ("item_knn", "decay", 0.0),
    ],
)  # fmt: skip
def test_settings_out_of_range_are_refused(name, key, value):
    with pytest.raises(InputError, match=rf"{name}.{key} = "):
        registry.configure(name, {key: value})


@pytest.mark.parametrize(
    ("name", "values", "key"),
    [
        ("rsllm", {"sharding": True}, "sharding"),
        ("llara", {"sharding": True}, "sharding"),
        ("tallrec", {"sharding": True}, "sharding"),
        ("agrec", {"lm": {"method": "letter_lc_rec", "settings": {"sharding": True}}}, "lm.settings.sharding"),
    ],
)
def test_sharding_is_of_methods_that_train_in_several_processes(name, values, key):
    """Elsewhere rank 0 trains alone, and holds the whole model whatever is set."""
    with pytest.raises(InputError, match=rf"^{name}\.{key}=true: {name} trains in one process"):
        registry.configure(name, values)
    assert registry.configure("lc_rec", {"sharding": True}).sharding


@pytest.mark.parametrize("name", registry.BUILT_IN)
def test_search_spaces_hold_valid_values(name):
    config = registry.get(name).Config
    for key, space in config.search_space.items():
        for value in space:
            found = registry.configure(name, nested({key: value})).model_dump()
            for part in key.split("."):
                found = found[part]
            assert found == value


PLUGIN = """
from genrec_bench.methods.popularity import Popularity
from genrec_bench.methods.registry import register

@register("{name}")
class Mine(Popularity):
    pass
{more}
"""


def test_plugins(tmp_path):
    path = tmp_path / "mine.py"
    path.write_text(PLUGIN.format(name="mine", more=""))
    first = registry.load_plugin(path)
    assert list(first) == ["mine"]
    assert registry.load_plugin(path) == first  # again is the same
    assert "mine" in registry.names()
    path.write_text(PLUGIN.format(name="mine", more="# changed"))
    assert registry.load_plugin(path) != first  # the run id must change with the file


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("x = 1", "registers no method; decorate its class with @register"),
        ("import no_such_module", "ModuleNotFoundError: No module named 'no_such_module'"),
        ("def broken(:", "SyntaxError"),
        ("raise SystemExit(3)", "SystemExit: 3"),
        (PLUGIN.format(name="sasrec", more=""), "Method name 'sasrec' is taken"),
        (PLUGIN.format(name="half", more="1 / 0"), "ZeroDivisionError: division by zero"),
    ],
)
def test_broken_plugins(tmp_path, text, message):
    path = tmp_path / "broken.py"
    path.write_text(text)
    with pytest.raises(InputError, match=message):
        registry.load_plugin(path)
    assert "half" not in registry.names()
    with pytest.raises(InputError, match=message):  # and not better the second time
        registry.load_plugin(path)


def test_missing_and_odd_plugin_files(tmp_path):
    with pytest.raises(InputError, match=r"gone.py: no such file"):
        registry.load_plugin(tmp_path / "gone.py")
    (tmp_path / "notes.txt").write_text("hello")
    with pytest.raises(InputError, match=r"notes.txt: not a Python file"):
        registry.load_plugin(tmp_path / "notes.txt")


def test_two_files_cannot_share_a_name(tmp_path):
    for file in ("a.py", "b.py"):
        (tmp_path / file).write_text(PLUGIN.format(name="mine", more=f"# {file}"))
    registry.load_plugin(tmp_path / "a.py")
    with pytest.raises(InputError, match="Method name 'mine' is taken"):
        registry.load_plugin(tmp_path / "b.py")


@pytest.fixture
def package(tmp_path, monkeypatch) -> None:
    """An installed package that offers a method, and three that cannot be had."""
    (tmp_path / "offered_methods.py").write_text(
        'from genrec_bench.methods.popularity import Popularity\n\n\nclass Mine(Popularity):\n    """From outside."""\n'
    )
    folder = tmp_path / "offered_methods-2.1.dist-info"
    folder.mkdir()
    (folder / "METADATA").write_text("Metadata-Version: 2.1\nName: offered-methods\nVersion: 2.1\n")
    (folder / "entry_points.txt").write_text(
        f"[{registry.ENTRY_POINT_GROUP}]\noffered = offered_methods:Mine\ngone = offered_methods:Gone\n"
        "absent = no_such_module:Mine\nfunction = os.path:join\n"
    )
    monkeypatch.syspath_prepend(tmp_path)


def test_an_installed_packages_method_is_found_by_name(package, stored, tmp_path, command):
    code, shown, _ = command("run", "--method=offered", f"--dataset={stored}", "--results", tmp_path / "results")
    assert code == 0
    assert "offered" in shown
    assert "From outside." in command("methods")[1]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("gone", "Method 'gone' of package offered-methods 2.1: AttributeError"),
        ("absent", "Method 'absent' of package offered-methods 2.1: ModuleNotFoundError: No module named"),
        ("function", "Method 'function' of package offered-methods 2.1: os.path:join is no subclass of Method"),
    ],
)
def test_a_package_without_its_method_is_named_and_harms_no_other(package, name, message, command):
    with pytest.raises(InputError, match=message):
        registry.get(name)
    code, shown, _ = command("methods")
    assert code == 0
    assert message in shown
    assert "sasrec" in shown
