"""Our own methods keep the contract, each with a tiny config."""

import pytest

from genrec_bench.benchmark import contract
from genrec_bench.benchmark.contract import check_method
from genrec_bench.methods import registry

SMALL_INDEX = {"codes": 8, "hidden": [16], "dim": 8, "epochs": 2}
SMALL_MODEL = {
    "bf16": False,
    "layers": 1,
    "width": 16,
    "heads": 1,
    "feedforward": 32,
    "epochs": 3,
    "max_history": 4,
    "batch_tokens": 20_000,
}
SMALL_ANSWERS = {
    "bf16": False,
    "layers": 1,
    "width": 16,
    "heads": 1,
    "feedforward": 32,
    "epochs": 3,
    "batch": 16,
    "examples": 1,
    "decode": "loglik",  # what so small a model writes names no candidate, and tells nothing apart
}
TINY = {
    "llm_zero_shot": {
        name: value for name, value in SMALL_ANSWERS.items() if name in ("layers", "width", "heads", "decode")
    },
    "tallrec": SMALL_ANSWERS,
    "llara": {**SMALL_ANSWERS, "encoder": "svd", "encoder_dim": 8},
    "rsllm": {**SMALL_ANSWERS, "encoder": "svd", "encoder_dim": 8, "stage1": {"epochs": 2}},
    "tiger": {**SMALL_MODEL, "index": SMALL_INDEX, "rows": 2048},
    "letter_tiger": {
        **SMALL_MODEL,
        "architecture": "decoder_only",
        "index": {**SMALL_INDEX, "groups": 2, "behaviour": "svd"},
    },
    "p5_cid": {**SMALL_MODEL, "architecture": "decoder_only", "index": {"clusters": 4, "cluster_limit": 10}},
    "lc_rec": {**SMALL_MODEL, "index": SMALL_INDEX, "text_examples": 50},
    "letter_lc_rec": {**SMALL_MODEL, "index": {**SMALL_INDEX, "groups": 2, "behaviour": "svd"}, "examples": "prefix"},
    "eager_llm": {
        **SMALL_MODEL,
        "index": {"builder": "dual", "codes": 12, "behaviour": "svd", "dim": 8, "min_first_level_use": 0.0},
        "cit": {"reconstruction": 20, "preference": 20},
        "aat": {"learning_rate": 0.01},
    },
    "agrec": {
        "lm": {
            "method": "tiger",
            "settings": {**SMALL_MODEL, "architecture": "decoder_only", "loss_over": "trie", "index": SMALL_INDEX},
        },
        "graph": {"encoder": "lightgcn", "settings": {"dim": 8, "epochs": 3}},
        "n": 5,
        "alpha": 0.4,
    },
    **{name: {"dim": 8, "epochs": 5, "batch_size": 512} for name in ("lightgcn", "sgl", "xsimgcl")},
    "din": {"dim": 8, "hidden": [8, 4], "epochs": 5, "max_length": 8},
    "caser": {"dim": 8, "epochs": 5, "max_length": 3, "horizontal": 2, "vertical": 2},
    "morec": {"source": "tfidf_svd", "dim": 8, "feedforward": 16, "epochs": 5, "max_length": 8},
    "sasrec": {"dim": 8, "feedforward": 16, "epochs": 5, "max_length": 8},
    "gru4rec": {"dim": 8, "hidden": 8, "epochs": 5, "max_length": 8},
}

UNTRAINED = {"popularity", "item_knn", "markov", "llm_zero_shot", "llm_api"}  # nothing to kill


@pytest.mark.parametrize("name", registry.BUILT_IN)
def test_our_methods_keep_the_contract(name, request, monkeypatch):
    if name == "llm_api":
        request.getfixturevalue("api")
    kills: list[str] = []
    killed = type("Killed", (contract._Killed,), {"__init__": lambda self: kills.append(name)})
    monkeypatch.setattr(contract, "_Killed", killed)
    lines: list[str] = []
    passed = check_method(registry.get(name), name, lines.append, registry.configure(name, TINY.get(name, {})))
    assert passed, "\n".join(lines)
    cls = registry.get(name)
    assert len(lines) == 6 + 2 * cls.full_protocol() + cls.candidate_protocol() + 1
    assert all(line.startswith("ok ") for line in lines[:-1])
    assert lines[-1].startswith(f"{name} passes the contract suite")
    assert bool(kills) == (name not in UNTRAINED)
