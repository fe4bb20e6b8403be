"""Language models under the candidate protocol: our answers, likelihoods and steps against the plain way, in one run.

    .venv/bin/python benchmarks/candidates.py --dataset ml-100k --scale base --rows 16 --batch 8

Prints processor seconds (all threads) of each pair and their ratio: free answers against ``generate`` of transformers
(64 new tokens, first line, prompts in the protocol's order, same batch size, with and without a stop at line breaks);
likelihoods of 20 candidates against a whole pass for each of them, and against one pass over the prompts; RSLLM's step
of stage 2 against the same step without contrast. Answers and best candidates must be the same.
"""

import argparse
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from tabulate import tabulate

from genrec_bench.benchmark.protocols import protocol
from genrec_bench.datasets import store
from genrec_bench.methods.artefacts import ArtefactCache
from genrec_bench.methods.base import Context
from genrec_bench.methods.candidates import inference
from genrec_bench.methods.candidates.prompts import NOTHING, TITLES, Row, joined, padded
from genrec_bench.methods.candidates.tuning import AnswerLoss, ExampleMaker, PooledBatch
from genrec_bench.methods.checkpoint import Checkpoint
from genrec_bench.methods.rsllm import RSLLM, RSLLMConfig, style_of


def timed(work: Callable[[], Any]) -> tuple[float, Any]:
    """Processor seconds of ``work``, and what it gave."""
    started = time.process_time()
    found = work()
    return time.process_time() - started, found


def made(arguments: argparse.Namespace) -> tuple[RSLLM, Any]:
    """RSLLM with a random item table and no training, and the protocol's test rows."""
    data = store.load(arguments.dataset)
    split = protocol("cand20", False).split(data)
    context = Context(0, "cpu", arguments.scale, Checkpoint(None), ArtefactCache("unused"), lambda m, users=0: 0.0)
    method = RSLLM(RSLLMConfig(kind="movies", titles="spoken", vary=False))
    table = np.random.default_rng(0).standard_normal((data.num_items, 64))
    method.make_model(split.train, context, table)
    return method, split


def free(method: RSLLM, rows: list[Row], batch: int) -> list[list[Any]]:
    """Free answers: ours, and generate's."""
    tokenizer, limit, longest = method.backbone.tokenizer, 64, max(len(row.tokens) for row in rows)

    def plainly(**stop: Any) -> list[str]:
        texts = []
        for start in range(0, len(rows), batch):
            tokens, kinds = padded(rows[start : start + batch], 0, left=True)
            with torch.inference_mode():
                found = method.model.get_base_model().generate(
                    torch.from_numpy(tokens), attention_mask=torch.from_numpy((kinds != NOTHING).astype(np.int64)),
                    max_new_tokens=limit, do_sample=False, pad_token_id=tokenizer.pad_token_id, **stop,
                )  # fmt: skip
            texts += tokenizer.batch_decode(found[:, tokens.shape[1] :], skip_special_tokens=True)
        return [text.strip().partition("\n")[0].strip() for text in texts]

    def ours() -> list[str]:
        budget = batch * (longest + limit)
        answers = inference.written(method.model, rows, method.stops, limit, budget)
        texts = [tokenizer.decode(answer, skip_special_tokens=True) for answer in answers]
        return [text.strip().partition("\n")[0].strip() for text in texts]

    ours_s, own = timed(ours)
    naive_s, theirs = timed(plainly)
    stopped_s, _ = timed(lambda: plainly(stop_strings=["\n"], tokenizer=tokenizer))
    same = f"{sum(a == b for a, b in zip(own, theirs, strict=True))} of {len(rows)} the same"
    return [
        ["free answers", "generate, 64 tokens", ours_s, naive_s, naive_s / ours_s, same],
        ["free answers", "generate, stopped at the line's end", ours_s, stopped_s, stopped_s / ours_s, ""],
    ]


def likelihoods(method: RSLLM, rows: list[Row], answers: list[list[Row]], batch: int) -> list[list[Any]]:
    """Likelihoods of all candidates: ours, a pass for each, and a pass over the prompts alone."""
    model, longest = method.model, max(len(row.tokens) for row in rows)
    room = max(sum(len(answer.tokens) for answer in row) for row in answers)

    @torch.inference_mode()
    def plainly() -> np.ndarray:
        flat = [(row, answer) for row, some in zip(rows, answers, strict=True) for answer in some]
        found = []
        for start in range(0, len(flat), batch):
            part = flat[start : start + batch]
            tokens, _ = padded([joined(row, answer) for row, answer in part], 0, left=False)
            logits = model.get_base_model()(torch.from_numpy(tokens), use_cache=False).logits.log_softmax(-1)
            for place, (row, answer) in enumerate(part):
                at = torch.arange(len(row.tokens), len(row.tokens) + len(answer.tokens))
                found.append(float(logits[place, at - 1, torch.from_numpy(answer.tokens)].sum()))
        return np.array(found).reshape(len(rows), -1)

    @torch.inference_mode()
    def prompts() -> None:
        for start in range(0, len(rows), batch):
            tokens, kinds = padded(rows[start : start + batch], 0, left=True)
            mask = torch.from_numpy((kinds != NOTHING).astype(np.int64))
            model.get_base_model().get_decoder()(torch.from_numpy(tokens), attention_mask=mask, use_cache=False)

    ours_s, (own, _) = timed(lambda: inference.log_likelihoods(model, rows, answers, batch * (longest + room)))
    prompt_s, _ = timed(prompts)
    naive_s, theirs = timed(plainly)
    agree, apart = int((own.argmax(1) == theirs.argmax(1)).sum()), abs(own - theirs).max()
    same = f"{agree} of {len(rows)} the same, within {apart:.1e}"
    return [
        ["likelihoods", "a pass for each candidate", ours_s, naive_s, naive_s / ours_s, same],
        ["likelihoods", "one pass over the prompts", ours_s, prompt_s, prompt_s / ours_s, ""],
    ]


def steps(method: RSLLM, train: Any, rows: int, positions: int) -> list[list[Any]]:
    """A step of stage 2: with the contrast, and without."""
    questions, config = method.writer.questions, method.config
    maker = ExampleMaker(train, [questions.title(item) for item in range(train.num_items)], config.max_history, 20)
    places = maker.places(1, 3, np.random.default_rng(0))[:rows]
    pool = method._pool(maker, style_of(config, 2), places, np.random.default_rng(0))

    def step(gamma: float, beta: float) -> Callable[[], None]:
        def work() -> None:
            batch = PooledBatch(lambda: [pool])
            loss = AnswerLoss(method.model, positions=positions, gamma=gamma, beta=beta)
            (loss(batch) / batch.learned).backward()  # type: ignore[no-untyped-call]
            method.model.zero_grad()

        return work

    method.model.train()
    step(0.0, 0.0)()  # the first one allocates
    plain_s, _ = timed(step(0.0, 0.0))
    ours_s, _ = timed(step(0.3, 0.4))
    method.model.eval()
    chunks = len(pool.chunks(positions))
    return [["step of stage 2", f"the same without contrast, in {chunks} parts", ours_s, plain_s, plain_s / ours_s, ""]]


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dataset", default="ml-100k")
    parser.add_argument("--scale", choices=["tiny", "base"], default="base")
    parser.add_argument("--rows", type=int, default=16)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--positions", type=int, default=2048, help="of a training step, computed at a time")
    arguments = parser.parse_args()
    method, split = made(arguments)
    test = split.test.histories.select(slice(0, arguments.rows))
    assert split.test.candidates is not None
    candidates = split.test.candidates[: arguments.rows]
    questions = [method.writer.questions.ask(test.row(b), candidates[b]) for b in range(len(test))]
    rows = [method.writer.prompt(question, TITLES) for question in questions]
    answers = [[method.writer.answer(title) for title in question.titles] for question in questions]
    mean = np.mean([len(row.tokens) for row in rows])
    print(f"{mean:.0f} tokens a prompt, {len(rows)} rows, batches of {arguments.batch}")
    table = [
        *free(method, rows, arguments.batch),
        *likelihoods(method, rows, answers, arguments.batch),
        *steps(method, split.train, arguments.rows, arguments.positions),
    ]
    headers = ["what", "against", "ours, s", "theirs, s", "theirs / ours", ""]
    print(tabulate(table, headers=headers, floatfmt=".2f"))


if __name__ == "__main__":
    main()
