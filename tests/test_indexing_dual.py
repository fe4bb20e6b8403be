"""EAGER-LLM's index of two sources: sizes, distinct codes, sources, moves, what cannot be held."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from genrec_bench.datasets.errors import InputError
from genrec_bench.methods.indexing.config import IndexConfig
from genrec_bench.methods.indexing.dual import dual_index, layout
from genrec_bench.methods.indexing.hierarchical import branching, hierarchical_codes, standardised


def config(**values) -> IndexConfig:
    return IndexConfig(builder="dual", **{"codes": 16, **values})


def sources(items: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    return rng.normal(size=(items, 6)), rng.normal(size=(items, 4))


@settings(max_examples=40)
@given(
    items=st.integers(1, 120),
    mode=st.sampled_from(["unit", "semantic", "behavior", "random"]),
    layout=st.sampled_from(["semantic_first", "alternating", "behavior_first"]),
    leaf=st.sampled_from(["singleton", "coarse"]),
    levels=st.sampled_from([4, 6, 8]),
    distinct=st.integers(1, 120),
)
def test_every_item_has_a_code_of_its_own_and_every_mode_the_same_vocabulary(
    items, mode, layout, leaf, levels, distinct
):
    text, behaviour = (vectors[np.arange(items) % distinct] for vectors in sources(items))  # many items look alike
    index, _ = dual_index(items, text, behaviour, config(mode=mode, layout=layout, leaf=leaf, levels=levels))
    assert index.num_distinct == items
    assert index.level_sizes == (16,) * levels
    assert len(index.vocabulary) == 16 * levels
    again, _ = dual_index(items, text, behaviour, config(mode=mode, layout=layout, leaf=leaf, levels=levels))
    assert np.array_equal(index.codes, again.codes)


@pytest.mark.parametrize("order", ["semantic_first", "alternating", "behavior_first"])
def test_singleton_trees_stand_as_they_are(order):
    text, behaviour = sources(60)
    settings = config(layout=order)
    index, facts = dual_index(60, text, behaviour, settings)
    children = branching(60, 2, 16)
    assert children == 11  # the root of twice the items, rounded up
    trees = {
        letter: hierarchical_codes(standardised(vectors), 2, children, 0)
        for letter, vectors in (("s", text), ("b", behaviour))
    }
    names = layout(settings)
    assert names == {"semantic_first": "ssbb", "alternating": "sbsb", "behavior_first": "bbss"}[order]
    for letter, tree in trees.items():
        of_source = [level for level, name in enumerate(names) if name == letter]
        assert np.array_equal(index.codes[:, of_source], tree)
    assert index.strings(7)[names.index("b")] == f"<b1_{trees['b'][7, 0]}>"
    assert facts == {"moved_to_free": 0}


def test_coarse_leaves_need_both_sources():
    """Neither half names an item; the text half is the tree's own."""
    text, behaviour = sources(100)
    index, facts = dual_index(100, text, behaviour, config(leaf="coarse", leaf_size=8))
    for half in (index.codes[:, :2], index.codes[:, 2:]):
        assert len(np.unique(half, axis=0)) < 40
    children = branching(100, 2, 16, leaf_size=8)
    assert np.array_equal(index.codes[:, :2], hierarchical_codes(standardised(text), 2, children, 0, singletons=False))
    assert facts["moved_to_free"] > 0


@pytest.mark.parametrize("levels", [2, 4, 6, 8])
@pytest.mark.parametrize("distinct", [1, 4])
def test_alike_items_find_a_free_code_at_every_length(levels, distinct):
    """Sixty items of one or four vectors: the moves must reach beyond the leaf's own grandparent."""
    text, behaviour = (vectors[np.arange(60) % distinct] for vectors in sources(60))
    index, facts = dual_index(60, text, behaviour, config(leaf="coarse", levels=levels, codes=64))
    assert index.num_distinct == 60
    assert facts["moved_to_free"] >= 60 - distinct


def test_a_mode_reads_its_own_source_alone():
    text, behaviour = sources(50)
    other_text, other_behaviour = sources(50, seed=1)

    def codes(mode: str, text, behaviour) -> np.ndarray:
        return dual_index(50, text, behaviour, config(mode=mode))[0].codes

    assert np.array_equal(codes("semantic", text, None), codes("semantic", text, other_behaviour))
    assert np.array_equal(codes("behavior", None, behaviour), codes("behavior", other_text, behaviour))
    assert np.array_equal(codes("random", None, None), codes("random", text, behaviour))
    assert not np.array_equal(codes("unit", text, behaviour), codes("unit", text, other_behaviour))


def test_what_the_codes_cannot_hold():
    text, behaviour = sources(300)
    with pytest.raises(InputError, match="300 items: ask for 18 codes a level or more"):
        dual_index(300, text, behaviour, config(levels=4))
    dual_index(300, text, behaviour, config(levels=4, codes=18))
    dual_index(300, text, behaviour, config(levels=4, leaf="coarse"))  # two halves together can
    with pytest.raises(InputError, match=r"4 levels of 4 codes name 256 items at most.* 5 codes or more"):
        dual_index(300, text, behaviour, config(mode="random", codes=4))
    alike = np.zeros_like(text)
    with pytest.raises(InputError, match=r"300 items share the 2 text tokens, and 2 .* of 16 .* ask for 18"):
        dual_index(300, alike, behaviour, config(leaf="coarse"))


def test_both_sources_have_as_many_levels():
    with pytest.raises(ValueError, match="levels=3: mode=unit gives each source half"):
        config(levels=3)
    assert config(levels=3, mode="semantic").levels == 3
