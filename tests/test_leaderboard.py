"""Tables from hand-made records: four users, ranks of 0 and 1, so that every number can be worked by hand.

A mean of n equal values out of four users has a binomial bootstrap distribution: 3 of 4 gives .25 to 1, 2 of 4 gives 0
to 1 (each end has more than 2.5%).
"""

import csv
import io
import json
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from test_records import make_failure, make_record, make_users

from genrec_bench.benchmark import leaderboard, metrics, published, records, standings, statistics
from genrec_bench.datasets.errors import InputError
from genrec_bench.methods.candidates.wording import HISTORY_ALONE

BEAUTY = {"name": "amazon2014-beauty", "sha256": "00ff", "users": 22363, "items": 12101, "interactions": 198502}
FULL = {"name": "full", "mask_seen": False, "parameters": {}, "hash": "aaaaaaaaaaaa"}
CAND20 = {"name": "cand20", "mask_seen": False, "parameters": {}, "hash": "cccccccccccc"}


def add(results: Path, label: str, seed: int, ranks: list[int], method: str = "sasrec", **changes: Any) -> None:
    """Store a run whose id is made of what makes it different."""
    protocol = changes.get("protocol", FULL)
    array = np.array(ranks)
    record = make_record(
        f"run{len(list(results.rglob('run.json')))}", array, method=method, label=label, seed=seed,
        **{"dataset": BEAUTY, "protocol": protocol,
           "metrics": statistics.bootstrap(metrics.per_user(array, protocol["name"])), **changes},
    )  # fmt: skip
    records.write(results, record, array, None, make_users(len(ranks)))


def fail(results: Path, label: str, seed: int, reason: str, method: str = "tiger") -> None:
    failure = make_failure(f"failed{seed}", reason).model_copy(
        update={"label": label, "method": method, "dataset": BEAUTY["name"], "seed": seed,
                "protocol": records.Protocol.model_validate(FULL)}
    )  # fmt: skip
    records.write_failure(results, failure)


@pytest.fixture
def results(tmp_path: Path) -> Path:
    """alpha: 3 of 4 found. beta over two seeds: .5 .5 0 0, mean .25. tiger: failed."""
    add(tmp_path, "beta", 0, [1, 0, 0, 0])
    add(tmp_path, "beta", 1, [0, 1, 0, 0])
    add(tmp_path, "alpha", 0, [1, 1, 1, 0], method="eager", published_as="EAGER-LLM")
    fail(tmp_path, "tiger", 0, "out of memory")
    return tmp_path


def rows(results: Path, **options: Any) -> dict[str, dict[str, Any]]:
    return {row["name"]: row for row in json.loads(standings.render(results, "json", **options))}


def test_text_golden(results):
    title, *lines = standings.render(results, "text").splitlines()
    assert title == (
        "Amazon 2014 Beauty · full ranking · seen items kept · tier tiny · 4 users · 1-2 seeds"
        "   (best **, * tied with best)"
    )
    assert [[cell.strip() for cell in line.split("  ") if cell] for line in lines] == [
        ["method", "Recall@10", "NDCG@10", "params", "train", "users/s", "peak MiB", "paper Recall@10"],
        ["alpha", *["0.7500 [.2500,1.0000]**"] * 2, "10", "2 s", "40", "100", "0.0830 higher"],
        ["beta", *["0.2500 [.0000,.5000]*"] * 2, "10", "2 s", "40", "100", "-"],
        ["tiger", "- missing: out of memory"],
    ]
    assert lines[0].index("NDCG@10") == lines[1].index("0.", 30) == lines[2].index("0.", 30)  # columns stand in line


def test_the_best_is_bold_on_a_terminal(results):
    line = standings.render(results, "text", bold=True).splitlines()[2]
    assert line.startswith("alpha     \x1b[1m0.7500 [.2500,1.0000]\x1b[0m    \x1b[1m0.7500")


def test_markdown_golden(results):
    told, _, found = standings.render(results, "md").partition("\n\n##")
    lines = f"##{found}".splitlines()
    assert told.startswith("# Leaderboard\n\nEach table is")
    for verdict in published.VERDICTS:
        assert verdict in told
    assert lines[0] == "## Amazon 2014 Beauty · full ranking · seen items kept · tier tiny · 4 users · 1-2 seeds"
    cells = [[cell.strip() for cell in line.split("|")[1:-1]] for line in lines[4:]]
    assert cells[0][:5] == ["method", "users", "seeds", "Recall@5", "Recall@10"]
    best, tied = r"**0.7500** \[0.2500, 1.0000\]", r"0.2500\* \[0.0000, 0.5000\]"
    printed = "Recall@5 0.0548 higher; Recall@10 0.0830 higher; NDCG@5 0.0369 higher; NDCG@10 0.0459 higher"
    assert cells[2] == ["alpha", "4", "1", *[best] * 4, "10", "2 s", "40", "100", f"{printed} (EAGER-LLM 2)"]
    assert cells[3] == ["beta", "4", "2", *[tied] * 4, "10", "2 s", "40", "100", "-"]
    assert cells[4] == ["tiger", *[""] * 10, "missing: out of memory"]


def test_json_golden(results):
    found = json.loads(standings.render(results, "json"))
    assert [row["name"] for row in found] == ["alpha", "beta", "tiger"]
    alpha, beta, tiger = found
    assert alpha["metrics"]["recall@10"] == {
        "mean": 0.75, "low": 0.25, "high": 1.0, "sd": None, "best": True, "tied_with_best": False,
    }  # fmt: skip
    assert alpha["published"]["ndcg@10"] == {
        "value": 0.0459, "paper": "EAGER-LLM", "table": "2", "verdict": "higher",
    }  # fmt: skip
    assert beta["metrics"]["recall@10"]["mean"] == 0.25
    assert beta["metrics"]["recall@10"]["tied_with_best"]
    assert beta["metrics"]["recall@10"]["sd"] == 0.0  # each seed found one of four
    assert beta["list_metrics"] == {"coverage@10": 0.5}
    assert tiger["list_metrics"] == {}
    assert beta["seeds"] == [0, 1]
    assert len(beta["runs"]) == 2
    assert beta["cost"]["train_seconds"] == 1.5
    for row in found:
        assert row["schema"] == 1
        expected = ("amazon2014-beauty", "full", "tiny", False)
        assert (row["dataset"], row["protocol"], row["tier"], row["mask_seen"]) == expected
    assert tiger["metrics"] == {}
    assert tiger["cost"] is None
    assert tiger["reason_missing"] == "out of memory"


def test_csv_has_a_line_a_metric_and_one_for_an_empty_cell(results):
    lines = list(csv.DictReader(io.StringIO(standings.render(results, "csv"))))
    assert len(lines) == 10 + 10 + 1
    coverage = next(line for line in lines if (line["label"], line["metric"]) == ("beta", "coverage@10"))
    assert (coverage["mean"], coverage["low"], coverage["best"]) == ("0.5", "", "")
    recall = next(line for line in lines if (line["label"], line["metric"]) == ("beta", "recall@10"))
    assert (recall["mean"], recall["low"], recall["high"], recall["sd_over_seeds"]) == ("0.25", "0.0", "0.5", "0.0")
    assert (recall["seeds"], recall["tied_with_best"]) == ("0 1", "True")
    assert (lines[-1]["label"], lines[-1]["reason_missing"]) == ("tiger", "out of memory")


def test_metrics_of_lists_are_means_over_seeds(tmp_path):
    add(tmp_path, "m", 0, [1, 0, 0, 0], list_metrics={"coverage@10": 0.5, "novelty@10": 3.0})
    add(tmp_path, "m", 1, [1, 0, 0, 0], list_metrics={"coverage@10": 0.25})
    assert rows(tmp_path)["m"]["list_metrics"] == {"coverage@10": 0.375}
    assert leaderboard(tmp_path)["coverage@10"].tolist() == [0.375]


def test_latex_golden(results):
    text = standings.render(results, "latex")
    assert r"\textbf{0.7500} {\scriptsize [0.2500, 1.0000]}" in text
    assert r"\underline{0.2500}$^\dagger$ {\scriptsize [0.0000, 0.5000]}" in text
    assert r"tiger & \multicolumn{11}{l}{missing: out of memory} \\" in text
    for rule in (r"\toprule", r"\midrule", r"\bottomrule"):
        assert text.count(rule) == 1


HOSTILE = "a|b_c&d<e>%$#{}~^\\*[x]`\n\x1b[31m"


def test_names_and_reasons_are_escaped_in_every_form(tmp_path):
    add(tmp_path, HOSTILE, 0, [1, 0, 0, 0])
    add(tmp_path, "=1+1", 0, [1, 1, 0, 0])
    fail(tmp_path, "tiger", 0, "a | b\nc")
    forms = {name: standings.render(tmp_path, name) for name in ("text", "md", "csv", "latex", "json")}
    assert r"a\|b\_c&amp;d&lt;e&gt;%$\#{}".replace("{}", r"\{\}") + r"\~^\\\*\[x\]\`" in forms["md"]
    assert len({line.replace(r"\|", "").count("|") for line in forms["md"].splitlines() if line.startswith("|")}) == 1
    escaped = r"a\textbar{}b\_c\&d\textless{}e\textgreater{}\%\$\#\{\}\textasciitilde{}\textasciicircum{}"
    assert escaped + r"\textbackslash{}*[x]" in forms["latex"]
    assert "\x1b" not in forms["text"] + forms["md"] + forms["latex"] + forms["csv"]
    assert {line["label"] for line in csv.DictReader(io.StringIO(forms["csv"]))} >= {"'=1+1"}
    assert {row["label"] for row in json.loads(forms["json"])} == {HOSTILE, "=1+1", "tiger"}
    assert "missing: a | b c" in forms["text"]


def test_text_fits_120_columns(results):
    add(results, "a method with a very long name " * 4, 0, [0, 0, 0, 0], published_as="TIGER")
    add(
        results,
        "long" * 20,
        0,
        [1, 1, 1, 0],
        published_as="TIGER",
        protocol={**FULL, "mask_seen": True, "hash": "bbbbbbbbbbbb"},
        cost={**make_record().cost.model_dump(), "users_per_second": 123_456.0, "train_seconds": 7000.0},
    )
    fail(results, "tiger", 1, "something long " * 20)
    lines = standings.render(results, "text").splitlines()
    assert "0.0648 other rules" in lines[-1]
    assert max(len(line) for line in lines if not line.startswith("note: ")) <= 120


def test_the_same_records_give_the_same_bytes(results, tmp_path_factory):
    copy = tmp_path_factory.mktemp("copy")
    for path in sorted((path for path in results.rglob("*") if path.is_file()), reverse=True):
        target = copy / path.relative_to(results)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, target)
        os.utime(target, (0, 0))
    for form in ("text", "md", "csv", "latex", "json"):
        assert standings.render(results, form) == standings.render(copy, form)


def test_tables_never_mix_data_protocols_seen_items_or_tiers(results):
    add(results, "alpha", 1, [1, 1, 1, 1], tier="base")
    add(results, "alpha", 2, [1, 1, 1, 1], dataset={**BEAUTY, "sha256": "11ee"})
    add(results, "alpha", 3, [1, 1, 1, 1], protocol={**FULL, "mask_seen": True, "hash": "bbbbbbbbbbbb"})
    add(results, "alpha", 4, [1, 1, 0, 2], protocol=CAND20)
    text = standings.render(results, "text")
    titles = [line.split("   ")[0] for line in text.splitlines() if "Beauty" in line]
    assert titles == [
        "Amazon 2014 Beauty · 20 candidates · tier tiny · 4 users · 1 seed",
        "Amazon 2014 Beauty · full ranking · seen items kept · tier tiny · 4 users · 1-2 seeds",
        "Amazon 2014 Beauty · full ranking · seen items kept · tier tiny · 4 users · 1 seed",
        "Amazon 2014 Beauty · full ranking · seen items kept · tier base · 4 users · 1 seed",
        "Amazon 2014 Beauty · full ranking · seen items removed · tier tiny · 4 users · 1 seed",
    ]
    assert "2 different contents of amazon2014-beauty; this table is of the one with sha256 11ee" in text


def test_seen_items_removed_is_another_protocol_than_the_papers(tmp_path):
    add(tmp_path, "eager", 0, [1, 0, 0, 0], published_as="EAGER-LLM",
        protocol={**FULL, "mask_seen": True, "hash": "bbbbbbbbbbbb"})  # fmt: skip
    assert rows(tmp_path)["eager"]["published"]["recall@10"]["verdict"] == "different protocol"


@pytest.mark.parametrize(
    ("tier", "config", "expected"),
    [
        ("tiny", {"backbone": None}, "other model"),
        ("base", {"backbone": None}, "other model"),
        ("paper", {"backbone": None}, "higher"),
        ("base", {"backbone": "huggyllama/llama-7b"}, "higher"),
        ("tiny", {"lm": {"method": "letter_lc_rec", "settings": {}}}, "other model"),
        ("tiny", {"lm": {"method": "letter_lc_rec", "settings": {"backbone": "llama"}}}, "higher"),
        ("tiny", {"lm": None}, "higher"),
        ("paper", {"source": "minilm"}, "other model"),  # MoRec's encoder is trained
    ],
)
def test_another_model_than_the_papers_is_said_to_be_one(tmp_path, tier, config, expected):
    """Only tier paper has their language models, unless a run names one."""
    add(tmp_path, "eager", 0, [1, 1, 1, 0], published_as="EAGER-LLM", tier=tier, config=config)
    assert rows(tmp_path)["eager"]["published"]["recall@10"] == {
        "value": 0.083, "paper": "EAGER-LLM", "table": "2", "verdict": expected,
    }  # fmt: skip


def test_names_are_cut_where_they_still_differ(tmp_path):
    names = [f"a language model as it is, {kind}" for kind in ("shown the candidates", "shown the history alone")]
    for rank, name in enumerate(names, 1):
        add(tmp_path, name, 0, [rank, 1, 2, 3], protocol=CAND20)
    lines = [line for line in standings.render(tmp_path, "text").splitlines() if line.startswith("a language")]
    assert sorted(line.split("  ")[0] for line in lines) == [names[0][:38] + "…", names[1][:38] + "…"]


def test_answers_that_no_model_wrote_are_said_to_be_so(tmp_path):
    """Valid by construction: no printed ValidRatio is reproduced by them."""
    named = {"method": "tallrec", "published_as": "TALLRec", "protocol": CAND20}
    named["dataset"] = {**BEAUTY, "name": "ml-100k", "users": 943, "items": 1682, "interactions": 100_000}
    add(tmp_path, "likeliest", 0, [1, 2, 3, 1], config={"decode": "loglik", "normalise": False}, **named)
    add(tmp_path, "also, likely", 0, [1, 2, 3, 2], config={"decode": "loglik", "normalise": False}, **named)
    add(tmp_path, "written", 0, [1, 2, 0, 1], config={"decode": "free"}, **named)
    add(tmp_path, "adapted", 0, [1, 2, 0, 2], config={"decode": "free", "adaptation": {"epochs": 1}}, **named)
    add(tmp_path, "unseen", 0, [1, 2, 3, 3], config={"decode": "trie", "template": HISTORY_ALONE}, **named)
    verdicts = {name: row["published"]["validratio"]["verdict"] for name, row in rows(tmp_path).items()}
    refused = dict.fromkeys(("likeliest", "also, likely", "adapted", "unseen"), "different protocol")
    assert verdicts == {**refused, "written": "consistent"}  # four users say little
    told = standings.render(tmp_path, "md")
    assert (
        "- also, likely; likeliest: the answer is the title of the highest likelihood, summed over its tokens" in told
    )
    assert "unseen: the answer is one that it writes greedily among the candidates' titles, and it is not shown" in told
    assert "written: the answer" not in told
    assert standings.HISTORY_ALONE == HISTORY_ALONE


@pytest.mark.parametrize(
    ("name", "counts", "method", "exclude", "expected"),
    [
        ("lastfm", (1090, 3646, 52551), "GRU4Rec", "sequence", "other data"),  # S3-Rec's cut, not the papers'
        ("lastfm", (1220, 4606, 73510), "GRU4Rec", "sequence", "consistent"),
        ("steam", (281_428, 13_044, 3_485_022), "GRU4Rec", "sequence", "other data"),
        ("ml-100k", (943, 1682, 100_000), "GRU4Rec", "sequence", "consistent"),
        ("ml-100k", (943, 1682, 100_000), "GRU4Rec", "window", "different protocol"),
        ("ml-100k", (943, 1682, 100_000), "LLaRA", "window", "consistent"),  # as its released code samples
        ("ml-100k", (943, 1682, 100_000), "LLaRA", "sequence", "different protocol"),
        ("ml-100k", (943, 1349, 99_287), "GRU4Rec", "sequence", "other data"),  # somebody's filter under the same name
    ],
)
def test_only_the_papers_own_data_and_candidates_are_compared(tmp_path, name, counts, method, exclude, expected):
    dataset = {"name": name, "sha256": "00ff", **dict(zip(("users", "items", "interactions"), counts, strict=True))}
    add(tmp_path, "m", 0, [1, 2, 0, 1], published_as=method, dataset=dataset,
        protocol={**CAND20, "parameters": {"exclude": exclude}})  # fmt: skip
    assert rows(tmp_path)["m"]["published"]["hitratio@1"]["verdict"] == expected


def test_candidate_ratio_is_correct_answers_over_valid_answers(tmp_path):
    """Seeds: 2 right 1 wrong 1 invalid, then 1 right 3 invalid: 3 right of 4 valid, though the users' means differ."""
    add(tmp_path, "m", 0, [1, 1, 2, 0], protocol=CAND20)
    add(tmp_path, "m", 1, [1, 0, 0, 0], protocol=CAND20)
    found = {name: cell["mean"] for name, cell in rows(tmp_path)["m"]["metrics"].items()}
    assert found == {"hitratio@1": 0.375, "validratio": 0.5, "hitratio@1_given_valid": 0.75}
    assert metrics.check_arithmetic(found) == []


def test_the_spread_over_seeds_is_that_of_a_sample(tmp_path):
    add(tmp_path, "m", 0, [1, 1, 0, 0])
    add(tmp_path, "m", 1, [1, 0, 0, 0])
    assert rows(tmp_path)["m"]["metrics"]["recall@10"]["sd"] == pytest.approx(0.25 / np.sqrt(2), abs=1e-6)


def test_nothing_valid_is_an_empty_cell(tmp_path):
    add(tmp_path, "m", 0, [0, 0, 0, 0], protocol=CAND20)
    assert set(rows(tmp_path)["m"]["metrics"]) == {"hitratio@1", "validratio"}
    assert standings.render(tmp_path, "md").splitlines()[-1].split("|")[6].strip() == ""


def test_a_missing_seed_is_noted_and_a_stale_failure_is_not(results):
    fail(results, "beta", 2, "stopped after 25m", method="sasrec")
    fail(results, "beta", 1, "an earlier try", method="sasrec")
    assert rows(results)["beta"]["missing_seeds"] == {"2": "stopped after 25m"}
    assert standings.render(results, "text").splitlines()[-1] == "note: beta: seed 2 is missing: stopped after 25m"


def test_reasons_that_differ_are_all_shown(tmp_path):
    fail(tmp_path, "tiger", 0, "out of memory")
    fail(tmp_path, "tiger", 1, "no text")
    assert rows(tmp_path)["tiger"]["reason_missing"] == "seed 0: out of memory; seed 1: no text"
    assert "4 users" not in standings.render(tmp_path, "text")


def test_rows_that_share_a_label_are_told_apart(tmp_path):
    add(tmp_path, "m", 0, [1, 0, 0, 0])
    add(tmp_path, "m", 0, [1, 1, 0, 0], overrides={"loss": "bce"})
    add(tmp_path, "m", 0, [1, 1, 1, 0], method_version=2)
    assert set(rows(tmp_path)) == {"m (defaults) [sasrec v1]", "m (loss=bce) [sasrec v1]", "m (defaults) [sasrec v2]"}


def test_of_two_runs_of_one_seed_the_later_counts(tmp_path):
    older = {**make_record().provenance.model_dump(), "created": "2025-01-01T00:00:00+00:00"}
    add(tmp_path, "m", 0, [1, 1, 1, 1])
    add(tmp_path, "m", 0, [0, 0, 0, 0], provenance=older)
    assert rows(tmp_path)["m"]["metrics"]["recall@1"]["mean"] == 1.0


def test_only_the_asked_for(results):
    add(results, "other", 0, [1, 0, 0, 0], dataset={**BEAUTY, "name": "toy"})
    assert set(rows(results, dataset="toy")) == {"other"}
    assert set(rows(results, run_ids={"run2"})) == {"alpha"}
    with pytest.raises(InputError, match="Did you mean: toy"):
        standings.render(results, "text", dataset="tyo")
    with pytest.raises(InputError, match="Did you mean: latex"):
        standings.render(results, "latx")


def test_only_a_protocol_a_tier_some_methods(results):
    """The marks are among those shown, as of a run's own tables."""
    add(results, "other", 0, [1, 0, 0, 0], tier="base")
    add(results, "picks", 0, [1, 0, 0, 2], protocol=CAND20)
    assert set(rows(results, only={"protocol": ["cand20"]})) == {"picks"}
    assert set(rows(results, only={"tier": ["base"]})) == {"other"}
    assert set(rows(results, only={"tier": ["tiny"], "method": ["beta", "tiger"]})) == {"beta", "tiger"}
    assert set(rows(results, only={"method": ["sasrec"]})) == {"beta", "other", "picks"}
    assert rows(results, only={"method": ["beta"]})["beta"]["metrics"]["recall@10"]["best"]
    assert "beta" in standings.render(results, "html", only={"method": ["beta"]})
    with pytest.raises(InputError, match=r"Unknown method in .* 'betta'\. Did you mean: beta"):
        standings.render(results, "text", only={"method": ["betta"]})


def test_no_records_is_a_clear_error(tmp_path):
    for folder in (tmp_path, tmp_path / "absent"):
        with pytest.raises(InputError, match="holds no records"):
            standings.render(folder, "text")


def test_unreadable_records_are_reported_and_the_others_shown(results, capsys):
    (results / "amazon2014-beauty/eager/run2/ranks.parquet").unlink()
    (results / "amazon2014-beauty/sasrec/run1/run.json").write_text("{")
    reported: list[str] = []
    assert set(rows(results, report=reported.append)) == {"beta", "tiger"}
    assert [("ranks.parquet" in line, "not JSON" in line) for line in reported] == [(False, True), (True, False)]
    standings.render(results, "csv")
    assert capsys.readouterr().err.count("left out: ") == 2


def test_a_record_that_contradicts_its_ranks_is_left_out(results):
    path = results / "amazon2014-beauty/eager/run2/run.json"
    content = json.loads(path.read_text())
    content["metrics"]["recall@10"]["mean"] = 0.76
    path.write_text(json.dumps(content))
    reported: list[str] = []
    assert set(rows(results, report=reported.append)) == {"beta", "tiger"}
    assert "recall@10 is 0.76, but the ranks give 0.75" in reported[0]


def test_states_of_the_same_weights_stand_in_a_grid_of_their_own(results):
    """Means over the seeds, of what every seed has measured."""
    for seed, found in ((0, 0.5), (1, 0.25)):
        metrics_of = {"recall@10": {"mean": found, "low": 0.0, "high": 1.0}}
        variants = [
            {"name": "adapter on", "metrics": metrics_of, "text": {"exact_match": 0.5, "token_f1": 0.75}},
            {"name": "adapter off", "metrics": metrics_of, "text": {}},
        ]
        add(results, "two_states", seed, [1, 0, 0, 0], variants=variants)
    lines = standings.render(results, "text").splitlines()
    at = next(number for number, line in enumerate(lines) if line.split()[:2] == ["method", "state"])
    assert lines[at].split() == ["method", "state", "Recall@10", "NDCG@10", "title", "exact", "title", "F1"]
    assert lines[at + 2].split() == ["two_states", "adapter", "on", "0.3750", "0.5000", "0.7500"]
    assert lines[at + 3].split() == ["two_states", "adapter", "off", "0.3750"]
    assert "| two\\_states | adapter off | 0.3750" in standings.render(results, "md")


def test_a_state_that_some_seeds_lack_names_those_that_have_it(tmp_path):
    metrics_of = {"recall@10": {"mean": 0.5, "low": 0.0, "high": 1.0}}
    for seed, names in enumerate((["free"], ["free", "trie", "strict"], ["free", "trie"])):
        variants = [{"name": name, "metrics": metrics_of, "text": {}} for name in names]
        add(tmp_path, "written", seed, [1, 0, 0, 0], variants=variants)
    board, _ = standings.read(tmp_path)
    assert [state.name for state in board.tables[0].states] == ["free", "trie (seeds 1, 2)", "strict (seed 1)"]


def test_a_step_of_a_papers_ladder_stands_beside_its_own_figure(tmp_path):
    add(tmp_path, "step", 0, [1, 1, 1, 0], published_as="EAGER-LLM", published_variant="DKI+GCT")
    add(tmp_path, "other", 0, [1, 1, 0, 0], published_as="EAGER-LLM", published_variant="not printed")
    lines = standings.render(tmp_path, "text").splitlines()
    assert "0.0781 higher" in lines[2]
    assert lines[3].rstrip().endswith(" -")
