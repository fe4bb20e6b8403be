"""Index files and the one entry: bad input, the cache, the gate."""

import gzip
import hashlib
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from conftest import make_data
from pydantic import ValidationError

from genrec_bench.datasets.errors import InputError
from genrec_bench.datasets.readers.letter import write_index
from genrec_bench.datasets.splits import leave_one_out
from genrec_bench.methods.artefacts import ArtefactCache
from genrec_bench.methods.base import Context
from genrec_bench.methods.checkpoint import Checkpoint
from genrec_bench.methods.indexing.build import BUILDERS, build_index
from genrec_bench.methods.indexing.config import IndexConfig
from genrec_bench.methods.indexing.files import read_item_index, write_item_index
from genrec_bench.methods.indexing.index import ItemIndex, level_tokens
from genrec_bench.methods.indexing.quality import PoorIndex

PUBLISHED = sorted((Path(__file__).parents[2] / "shared" / "data").glob("*/codes.json.gz"))
TINY_NETWORK = {"hidden": (16,), "dim": 8, "epochs": 2, "codes": 16, "levels": 3}


@pytest.fixture
def train(tiny):
    return leave_one_out(tiny).train


@pytest.fixture
def context(tmp_path):
    events = []
    made = Context(
        3, "cpu", "tiny", Checkpoint(None), ArtefactCache(tmp_path), lambda method: 0.0, lambda **v: events.append(v)
    )
    made.events = events
    return made


def write(folder, content, name="x.index.json"):
    path = folder / name
    text = content if isinstance(content, str) else json.dumps(content)
    if name.endswith(".gz"):
        path.write_bytes(gzip.compress(text.encode()))
    else:
        path.write_text(text)
    return path


IDS = ["i0", "i1", "i2"]


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ({"0": ["<a_1>"], "1": ["<a_2>"]}, r"2 items; the data set has 3\) has no code for 1 items, such as '2'"),
        ({str(i): ["<a_1>"] for i in range(5)}, "has codes for 2 items that are not in it, such as '3'"),
        ({"0": ["<a_1>", "<b_1>"], "1": ["<a_2>"], "2": ["<a_1>", "<b_1>"]}, "'i1' has 1 tokens, others have 2"),
        ({"0": ["<a_1>"], "1": ["<b_2>"], "2": ["<a_1>"]}, "'i1': token '<b_2>' is not <a_NUMBER>"),
        ({"0": ["<a_1>"], "1": ["<a_01>"], "2": ["<a_1>"]}, "'<a_01>' is not"),
        ({"0": ["<a_1>"], "1": ["<a_9999999>"], "2": ["<a_1>"]}, "'<a_9999999>' is not"),
        ({"0": ["<CI 1>"], "1": ["<a_1>"], "2": ["<CI 1>"]}, "'<a_1>' is not <CI NUMBER>"),
        ({"0": ["a"], "1": ["b"], "2": ["c"]}, "'a' is not <a_NUMBER>"),
        ({"0": ["<a_1>"], "1": "<a_1>", "2": ["<a_1>"]}, "item '1' must have a list of code tokens"),
        ({"0": ["<a_1>"], "1": [], "2": ["<a_1>"]}, "at least one"),
        ('{"0": ["<a_1>"], "0": ["<a_2>"], "2": ["<a_1>"]}', "item '0' has two entries"),
        ('{"0": ["<a_1>"], "1": ["<a_2>"], "01": ["<a_1>"]}', "same item number"),
        ({"x": ["<a_1>"]}, "'x' is not an item number"),
        ([1, 2], "JSON object"),
        ('{"0": ', "not usable JSON"),
        ("", "is empty"),
    ],
)
def test_bad_files_say_what_is_wrong(content, says, tmp_path):
    with pytest.raises(InputError, match=says):
        read_item_index(write(tmp_path, content), IDS)


def test_a_file_that_is_not_there(tmp_path):
    with pytest.raises(InputError, match="does not exist"):
        read_item_index(tmp_path / "none.index.json", IDS)


def test_collisions_are_allowed_and_sizes_do_not_depend_on_the_index(tmp_path):
    index = read_item_index(write(tmp_path, {"0": ["<a_1>"], "1": ["<a_7>"], "2": ["<a_7>"]}), IDS)
    assert index.codes.tolist() == [[1], [7], [7]]
    assert index.level_sizes == (256,)
    large = read_item_index(write(tmp_path, {"0": ["<a_1>"], "1": ["<a_300>"], "2": ["<a_7>"]}), IDS)
    assert large.level_sizes == (301,)


def test_files_by_item_id(tmp_path):
    content = {"i2": ["<a_2>", "<b_0>"], "i0": ["<a_0>", "<b_9>"], "i1": ["<a_1>", "<b_0>"]}
    for name in ("codes.json", "codes.json.gz"):
        assert read_item_index(write(tmp_path, content, name), IDS).codes.tolist() == [[0, 9], [1, 0], [2, 0]]
    with pytest.raises(InputError, match="has no code for 1 items, such as 'i7'"):
        read_item_index(write(tmp_path, content, "codes.json"), ["i0", "i1", "i2", "i7"])


def test_shared_tokens_come_in_several_lengths(tmp_path):
    content = {"0": ["<CI 3>", "<CI 3>"], "1": ["<CI 4>"], "2": ["<CI 3>"]}
    path = write(tmp_path, content)
    index = read_item_index(path, IDS)
    assert index.variable
    assert index.tokens[0] is index.tokens[1]
    assert len(index.vocabulary) == 500
    before = path.read_bytes()
    write_item_index(path, index)
    assert path.read_bytes() == before


@pytest.mark.skipif(not PUBLISHED, reason="published index files are not here")
@pytest.mark.parametrize("path", PUBLISHED, ids=lambda path: path.parent.name)
def test_published_files_round_trip(path, tmp_path):
    content = json.loads(gzip.decompress(path.read_bytes()))
    index = read_item_index(path, list(content))
    assert index.num_distinct == {12_101: 12_088, 9_922: 9_897}[index.num_items]
    assert index.level_sizes == (256,) * 4
    published = tmp_path / "published.index.json"
    write_index(published, dict(enumerate(content.values())))
    again = tmp_path / "again.index.json"
    write_item_index(again, read_item_index(published, list(content)))
    assert again.read_bytes() == published.read_bytes()


@pytest.mark.parametrize("builder", sorted(BUILDERS))
def test_every_builder_goes_through_cache_and_report(builder, train, context, tmp_path, monkeypatch):
    vectors = np.random.default_rng(0).normal(size=(train.num_items, 8)).astype(np.float32)
    monkeypatch.setattr("genrec_bench.methods.encoders.behaviour.behaviour_vectors", lambda *a, **k: vectors[:, :8])
    path = tmp_path / "given.index.json"
    write_item_index(path, ItemIndex(np.arange(train.num_items)[:, None], level_tokens((256,))))
    own = {"file": {"path": str(path)}, "dual": {"levels": 4}}.get(builder, {})
    config = IndexConfig(builder=builder, **{**TINY_NETWORK, **own})
    index = build_index(train, context, config, Checkpoint(tmp_path / "own"), vectors)
    assert index.num_items == train.num_items
    assert index.num_distinct == train.num_items
    report = context.events[-1]
    assert report["stage"] == "index"
    assert report["builder"] == builder
    assert report["distinct"] == train.num_items
    assert report["neighbours_first_token"] >= 0
    monkeypatch.setitem(BUILDERS, builder, replace(BUILDERS[builder], build=None))  # built once
    assert build_index(train, context, config, None, vectors).sha256 == index.sha256


def test_the_cache_is_asked_by_what_matters(train, context):
    vectors = np.random.default_rng(0).normal(size=(train.num_items, 8)).astype(np.float32)

    def built():
        return len([path for path in (context.artefacts.root / "index").iterdir() if path.is_dir()])

    config = IndexConfig(builder="residual", codes=16, levels=3)
    first = build_index(train, context, config, vectors=vectors)
    for unrelated in ({"epochs": 7}, {"clusters": 3}, {"max_collision_rate": 0.5}):
        build_index(train, context, config.model_copy(update=unrelated), vectors=vectors)
    context.seed = 99  # one index for all seeds of a method
    assert build_index(train, context, config, vectors=vectors).sha256 == first.sha256
    assert built() == 1
    build_index(train, context, config.model_copy(update={"seed": 1}), vectors=vectors)
    build_index(train, context, config, vectors=vectors * 2)
    assert built() == 3


def test_collision_policies(train, context):
    vectors = np.repeat(np.eye(4, dtype=np.float32), train.num_items // 4, axis=0)  # four texts for forty items
    config = IndexConfig(builder="residual", codes=16, levels=2, max_collision_rate=1.0)

    def distinct(**change):
        return build_index(train, context, config.model_copy(update=change), vectors=vectors).num_distinct

    assert distinct(collisions="keep") == 4
    assert distinct(separate_identical=False) == 4  # Sinkhorn cannot tell the same vector apart
    assert distinct() == distinct(collisions="nearest") == train.num_items
    counted = build_index(train, context, config.model_copy(update={"collisions": "counter"}), vectors=vectors)
    assert counted.level_sizes == (16, 16, 10)
    assert counted.num_distinct == train.num_items
    with pytest.raises(PoorIndex, match=r"collision rate of 90.0%"):
        distinct(collisions="keep", max_collision_rate=0.2)


def test_used_vocabulary(train, context):
    index = build_index(train, context, IndexConfig(builder="random", vocabulary="used"))
    assert all(set(range(size)) == set(column) for size, column in zip(index.level_sizes, index.codes.T, strict=True))


def test_a_token_for_each_prefix_is_another_index(train, context):
    shared, own = (
        build_index(train, context, IndexConfig(builder="collaborative", clusters=4, cluster_limit=8, vocabulary=words))
        for words in ("full", "prefix")
    )
    assert np.array_equal(shared.codes >= 0, own.codes >= 0)
    assert len(own.vocabulary) == len(
        {row[: depth + 1] for row in map(tuple, shared.codes) for depth in range(len(row)) if row[depth] >= 0}
    )


def test_a_catalogue_larger_than_the_code_space(train, context):
    vectors = np.ones((train.num_items, 4), np.float32)
    for builder in ("random", "residual", "rqvae", "hierarchical"):
        with pytest.raises(InputError, match=r"40 items|has 40"):
            build_index(train, context, IndexConfig(builder=builder, codes=3, levels=3), vectors=vectors)
    few = IndexConfig(builder="residual", codes=3, levels=3, collisions="counter", min_first_level_use=0)
    assert build_index(train, context, few, vectors=vectors).num_distinct == train.num_items  # the counter has room


def test_items_without_text(context):
    data = make_data([[0, 1, 2, 3], [3, 2, 1, 0]], titles=["", "", "", ""])
    with pytest.raises(InputError, match="random, collaborative, file"):
        build_index(leave_one_out(data).train, context, IndexConfig())


def test_a_file_is_found_by_name_and_known_by_its_hash(train, context, home):
    """Also where the index of that very file is in the cache already."""
    path = home / "indices" / "letter.index.json"
    path.parent.mkdir()
    write(path.parent, {str(item): [f"<a_{item}>"] for item in range(train.num_items)}, path.name)
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    named = IndexConfig(builder="file", path=path.name)
    index = build_index(train, context, named)
    assert build_index(train, context, named.model_copy(update={"sha256": digest})).sha256 == index.sha256
    with pytest.raises(InputError, match=f"has sha256 {digest}, but index.sha256 is 00: it is another file"):
        build_index(train, context, named.model_copy(update={"sha256": "00"}))


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"builder": "file"}, "path is for builder=file"),
        ({"path": "x.index.json"}, "path is for builder=file"),
        ({"builder": "random", "collisions": "keep"}, "never collide"),
        ({"builder": "file", "path": "x", "collisions": "sinkhorn"}, "choose from keep, counter"),
        ({"clusters": 9, "cluster_limit": 8}, "must not exceed"),
        ({"builder": "kmeans"}, "builder"),
        ({"epoch": 3}, "epoch"),
    ],
)
def test_config_rejects(fields, says):
    with pytest.raises(ValidationError, match=says):
        IndexConfig(**fields)
