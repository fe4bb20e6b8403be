"""A paper's claims against the committed records: each part of a method against what is left without it, and the floor.

    .venv/bin/python benchmarks/claims.py eager_llm [--results results] [--dataset ml-100k] [--keep-seen]
    .venv/bin/python benchmarks/claims.py agrec
    .venv/bin/python benchmarks/claims.py rsllm [--scale base]

Paired over users, seeds averaged per user first; Holm's correction over all claims that the records can judge.
"""

import argparse
from pathlib import Path

from tabulate import tabulate

from genrec_bench.benchmark import standings, statistics
from genrec_bench.benchmark.compare import compare
from genrec_bench.datasets.errors import InputError

EAGER_LLM = (
    ("two sources (DKI) beat a random index", "eager_llm unit", "eager_llm random"),
    ("the contrast (GCT) helps", "eager_llm unit+GCT", "eager_llm unit"),
    ("the adapter (AAT) helps", "eager_llm unit+GCT+AAT", "eager_llm unit+GCT"),
    ("the whole beats a random index", "eager_llm unit+GCT+AAT", "eager_llm random"),
    ("unit beats semantic", "eager_llm unit", "eager_llm semantic"),
    ("unit beats behavior", "eager_llm unit", "eager_llm behavior"),
    ("semantic beats random", "eager_llm semantic", "eager_llm random"),
    ("behavior beats random", "eager_llm behavior", "eager_llm random"),
    ("the whole beats tiger-decoder", "eager_llm unit+GCT+AAT", "tiger-decoder"),
    ("the whole beats sasrec", "eager_llm unit+GCT+AAT", "sasrec"),
    ("the whole beats markov", "eager_llm unit+GCT+AAT", "markov"),
    ("a random index beats markov", "eager_llm random", "markov"),
    ("din beats markov", "din", "markov"),
)
AGREC = (
    ("the graph helps letter_lc_rec", "agrec", "agrec w/o graph"),
    ("the language model helps the graph", "agrec", "lightgcn"),
    ("SGL helps letter_lc_rec", "agrec sgl", "agrec w/o graph"),
    ("the language model helps SGL", "agrec sgl", "sgl"),
    ("XSimGCL helps letter_lc_rec", "agrec xsimgcl", "agrec w/o graph"),
    ("the language model helps XSimGCL", "agrec xsimgcl", "xsimgcl"),
    ("neighbours (item_knn) help letter_lc_rec", "agrec item_knn", "agrec w/o graph"),
    ("the graph helps tiger", "agrec over tiger", "agrec w/o graph, tiger"),
    ("the graph helps eager_llm", "agrec over eager_llm", "agrec w/o graph, eager_llm"),
    ("the released code's mixing helps", "agrec official", "agrec w/o graph, vocabulary"),
    ("the paper's mixing beats the code's", "agrec n=10, vocabulary", "agrec official"),
    ("100 suggestions beat 10", "agrec", "agrec n=10"),
    ("the best item's score beats the sum", "agrec", "agrec sum"),
    ("validation edges help", "agrec", "agrec, training edges"),
    ("SGL beats LightGCN as a guide", "agrec sgl", "agrec"),
    ("XSimGCL beats LightGCN as a guide", "agrec xsimgcl", "agrec"),
)
RSLLM = (
    ("RSLLM beats LLaRA", "rsllm SASRec", "llara SASRec"),
    ("RSLLM beats TALLRec", "rsllm SASRec", "tallrec"),
    ("LLaRA beats TALLRec", "llara SASRec", "tallrec"),
    ("RSLLM beats the model as it is", "rsllm SASRec", "llm_zero_shot"),
    ("LLaRA beats the model as it is", "llara SASRec", "llm_zero_shot"),
    ("TALLRec beats the model as it is", "tallrec", "llm_zero_shot"),
    ("RSLLM beats the adapted model", "rsllm SASRec", "llm_zero_shot adapted history alone"),
    ("LLaRA beats the adapted model", "llara SASRec", "llm_zero_shot adapted history alone"),
    ("TALLRec beats the adapted model", "tallrec", "llm_zero_shot adapted history alone"),
    ("the adaptation helps", "llm_zero_shot adapted history alone", "llm_zero_shot history alone"),
    ("RSLLM beats sasrec", "rsllm SASRec", "sasrec"),
    ("RSLLM beats popularity", "rsllm SASRec", "popularity"),
    ("titles help", "rsllm SASRec", "rsllm w/o textual feature"),
    ("the item's identity helps", "rsllm SASRec", "rsllm w/o item ID"),
    ("[IID k] in stage 1 helps", "rsllm SASRec", "rsllm w/o IID tokens"),
    ("a trained item table helps", "rsllm SASRec", "rsllm w/o pre-loading"),
    ("the contrast of items helps", "rsllm SASRec", "rsllm U-I only"),
    ("the contrast of users helps", "rsllm SASRec", "rsllm I-I only"),
    ("the contrasts help", "rsllm SASRec", "rsllm w/o contrast"),
    ("stage 2 helps", "rsllm SASRec", "rsllm stage 1 only"),
    ("stage 1 helps", "rsllm SASRec", "rsllm stage 2 only"),
    ("vectors beat numbers", "rsllm SASRec", "rsllm numeric index"),
    ("vectors with titles beat vectors alone", "rsllm SASRec", "rsllm behaviour token"),
)
CLAIMS = {"eager_llm": EAGER_LLM, "agrec": AGREC, "rsllm": RSLLM}
JUDGED = {"full": ("ndcg@10", "NDCG@10"), "cand20": ("hitratio@1", "HitRatio@1")}  # metric, and how it is written


def judge(
    method: str, results: Path, dataset: str = "ml-100k", keep_seen: bool = False, scale: str = "tiny"
) -> tuple[str, list[str]]:
    """The claims about ``method`` as a Markdown table, and those that no records can judge."""
    protocol = "cand20" if method == "rsllm" else "full"
    metric, spelt = JUDGED[protocol]
    found, _, load_ranks = standings.load(results)
    wanted = [
        record
        for record in found
        if record.dataset.name == dataset
        and record.tier == scale
        and record.protocol.name == protocol
        and (protocol == "cand20" or record.protocol.mask_seen != keep_seen)
    ]
    judged, absent = [], []
    for claim, a, b in CLAIMS[method]:
        try:
            (row,) = (row for row in compare(wanted, a, b, load_ranks) if row.metric == metric)
        except InputError:
            absent.append(claim)
            continue
        judged.append((claim, row))
    corrected = statistics.holm([row.t_test for _, row in judged])
    rows = []
    for (claim, row), p in zip(judged, corrected, strict=True):
        better = "holds" if row.difference.mean > 0 else "the reverse holds"
        verdict = better if p < statistics.SIGNIFICANCE else "not shown"
        low, high = row.difference.low, row.difference.high
        spread = f"{row.difference.mean:+.4f} [{low:+.4f}, {high:+.4f}]"
        shown = "<.0001" if p < 1e-4 else f"{p:.4f}"
        rows.append([claim, *(f"{mean:.4f}" for mean in row.means), spread, shown, verdict])
    heads = ["claim", "a", "b", f"a - b, {spelt}", "p (Holm)", ""]
    return tabulate(rows, heads, tablefmt="pipe", disable_numparse=True), absent


def parser() -> argparse.ArgumentParser:
    """What the command takes."""
    made = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("method", choices=CLAIMS)
    made.add_argument("--results", type=Path, default=Path("results"))
    made.add_argument("--dataset", default="ml-100k")
    made.add_argument("--keep-seen", action="store_true", help="the records that keep seen items")
    made.add_argument("--scale", default="tiny")
    return made


def main() -> None:
    """Print the table."""
    table, absent = judge(**vars(parser().parse_args()))
    print(table)
    if absent:
        print(f"no records for: {'; '.join(absent)}")


if __name__ == "__main__":
    main()
