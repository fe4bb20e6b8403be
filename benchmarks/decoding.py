"""Beam search over an item trie against Hugging Face ``generate``, the decoder of most published methods.

    .venv/bin/python benchmarks/decoding.py [--model tiny-llama|tiger|smollm2] [--users 32,64,128] [--ragged]
    .venv/bin/python benchmarks/decoding.py --trie

Random weights: time does not depend on what a model has learned. Codes are those of ``--codes`` (an index as LETTER
publishes it, one list of names like ``<a_183>`` an item) where the file is there, random ones of the same size
otherwise; histories are of 20 items, or with ``--ragged`` of the lengths in ``--interactions`` (at most 20). The rivals
take turns and the medians of ``--repeats`` turns count. "differ" counts users whose ordered list of codes is not that
of ``generate`` with the callback. "peak" is memory beyond what was held before the call: on the CPU the process's,
read every few milliseconds in the first turn, which is not timed. The floor is one forward over prompt and beams'
tokens, no search.
"""

import argparse
import ctypes
import gzip
import json
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import psutil
import torch
from tabulate import tabulate
from torch import Tensor

from genrec_bench.methods.decoding.beam import beam_search
from genrec_bench.methods.decoding.causal import CausalTokens
from genrec_bench.methods.decoding.ranking import decode
from genrec_bench.methods.decoding.seq2seq import Seq2SeqTokens
from genrec_bench.methods.decoding.tokens import Prompt
from genrec_bench.methods.decoding.trie import ItemTrie
from genrec_bench.methods.indexing.index import ItemIndex, level_tokens

LEVELS, CODES, SPECIALS, HISTORY = 4, 256, 3, 20
BEAUTY = Path(__file__).resolve().parents[2] / "shared" / "data" / "amazon2014-beauty"
CALLBACK = "generate + callback"
Found = tuple[np.ndarray, np.ndarray]  # codes (B, W, L), -1 where short; scores (B, W)


def llama(hidden: int, ff: int, layers: int, heads: int, kv_heads: int, vocabulary: int) -> Any:
    from transformers import LlamaConfig, LlamaForCausalLM

    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=vocabulary, hidden_size=hidden, intermediate_size=ff, num_hidden_layers=layers,
            num_attention_heads=heads, num_key_value_heads=kv_heads, pad_token_id=0, bos_token_id=1, eos_token_id=None,
            initializer_range=0.1,
        )
    )  # fmt: skip


def tiger(vocabulary: int) -> Any:
    from transformers import T5Config, T5ForConditionalGeneration

    shape: dict[str, Any] = {
        "d_model": 128,
        "d_kv": 64,
        "d_ff": 1024,
        "num_layers": 4,
        "num_decoder_layers": 4,
        "num_heads": 6,
    }
    tokens: dict[str, Any] = {"pad_token_id": 0, "decoder_start_token_id": 0, "eos_token_id": None}
    return T5ForConditionalGeneration(T5Config(vocab_size=vocabulary, **shape, **tokens))


SEMANTIC = SPECIALS + LEVELS * CODES
MODELS: dict[str, tuple[Callable[[], Any], int]] = {  # and the first vocabulary id of the codes
    "tiny-llama": (lambda: llama(128, 512, 4, 4, 4, SEMANTIC), SPECIALS),
    "tiger": (lambda: tiger(SEMANTIC), SPECIALS),
    "smollm2": (lambda: llama(576, 1536, 30, 9, 3, 49_152 + LEVELS * CODES), 49_152),  # the shape of SmolLM2-135M
}


def load_index(path: Path, items: int) -> ItemIndex:
    """The published codes, or random ones where the file is missing."""
    if path.exists():
        with gzip.open(path, "rt") as file:
            published = json.load(file)
        codes = np.array([[int(name.strip("<>").split("_")[1]) for name in names] for names in published.values()])
    else:
        codes = np.random.default_rng(0).integers(0, CODES, (items, LEVELS))
    return ItemIndex(codes, level_tokens([CODES] * LEVELS))


def load_lengths(path: Path) -> np.ndarray:
    """Items of each user's history, without the last and at most 20; made up where the file is missing."""
    if not path.exists():
        return np.minimum(4 + np.random.default_rng(0).geometric(0.2, 10_000), HISTORY)
    with gzip.open(path, "rt") as file:
        users = np.array([line.split("\t", 1)[0] for line in file][1:])
    return np.minimum(np.unique(users, return_counts=True)[1] - 1, HISTORY)


@dataclass
class Problem:
    """One batch of prompts, and what every rival needs."""

    model: Any
    index: ItemIndex
    trie: ItemTrie
    token_ids: list[Tensor]
    histories: list[np.ndarray]
    width: int
    checked: bool = True  # generate gives scores only with a copy of each step's logits, which a timed turn is spared

    def __post_init__(self) -> None:
        base = int(self.token_ids[0][0])
        tokens = [(self.index.codes[items] + base + CODES * np.arange(LEVELS)).ravel() for items in self.histories]
        self.offsets = np.concatenate([[0], np.cumsum([len(row) for row in tokens])])
        self.tokens = np.concatenate(tokens)
        longest = max(len(row) for row in tokens)
        table = np.zeros((len(tokens), longest), dtype=np.int64)
        for row, line in zip(tokens, table, strict=True):
            line[longest - len(row) :] = row
        device = next(self.model.parameters()).device
        mask = torch.from_numpy(np.arange(longest) >= longest - np.array([[len(row)] for row in tokens]))
        self.prompt = Prompt(torch.from_numpy(table).to(device), None if mask.all() else mask.to(device))
        self.start = 1 if self.model.config.is_encoder_decoder else longest
        self.adapter = (Seq2SeqTokens if self.model.config.is_encoder_decoder else CausalTokens)(self.model)

    def generate(self, **options: Any) -> Found:
        assert self.prompt.tokens is not None
        mask = torch.ones_like(self.prompt.tokens) if self.prompt.mask is None else self.prompt.mask.long()
        with torch.inference_mode():
            out = self.model.generate(
                self.prompt.tokens, attention_mask=mask, num_beams=self.width, num_return_sequences=self.width,
                max_new_tokens=LEVELS, length_penalty=0.0, early_stopping="never", do_sample=False, pad_token_id=0,
                return_dict_in_generate=True, output_scores=self.checked, **options,
            )  # fmt: skip
        names = out.sequences[:, self.start :].view(len(self.histories), self.width, LEVELS).cpu().numpy()
        codes = names - int(self.token_ids[0][0]) - CODES * np.arange(LEVELS)
        codes[(codes < 0) | (codes >= CODES)] = -1
        scores = out.sequences_scores if self.checked else torch.zeros(len(out.sequences))
        return codes, scores.view(len(self.histories), self.width).cpu().numpy()

    def with_callback(self) -> Found:
        return self.generate(prefix_allowed_tokens_fn=self.callback)

    def with_processor(self) -> Found:
        from genrec_bench.methods.decoding.processor import TrieLogitsProcessor

        return self.generate(logits_processor=[TrieLogitsProcessor(self.trie, self.token_ids, self.start)])

    def ours(self) -> Found:
        beams = beam_search(self.adapter, self.prompt, self.trie, self.token_ids, self.width)
        item = self.trie.items[self.trie.starts[-1][beams.leaves.clamp(min=0)]].cpu().numpy()
        codes = np.where(beams.leaves.cpu().numpy()[..., None] >= 0, self.index.codes[item], -1)
        return codes, beams.scores.cpu().numpy()

    def grouped(self) -> Found:
        """`decode`: prompts of similar length together, items as the answer."""
        items, scores = decode(
            self.adapter, self.offsets, self.tokens, self.trie, self.token_ids, self.width, width=self.width
        )
        return np.where(items[..., None] >= 0, self.index.codes[items], -1), scores

    def unconstrained(self) -> Found:
        trie: Any = EveryCode(self.trie.device)
        beams = beam_search(self.adapter, self.prompt, trie, self.token_ids, self.width)
        return trie.codes_of(beams.leaves).cpu().numpy(), beams.scores.cpu().numpy()

    def floor(self) -> Found:
        tree = self.width * (LEVELS - 1)
        with torch.inference_mode():
            prompt = self.prompt.tokens
            assert prompt is not None
            beams = prompt[:, :1].expand(-1, tree)
            if self.model.config.is_encoder_decoder:
                self.model(prompt, attention_mask=self.prompt.mask, decoder_input_ids=beams, use_cache=False)
            else:
                read = torch.cat([prompt, beams], dim=1)
                mask = self.prompt.mask
                mask = None if mask is None else torch.nn.functional.pad(mask, (0, tree), value=True)
                self.model(read, attention_mask=mask, logits_to_keep=1, use_cache=False)
        return np.zeros((0, 0, LEVELS)), np.zeros((0, 0))

    def callback(self, _row: int, tokens: Tensor) -> list[int]:
        """A walk of nested dicts, as LC-Rec, LETTER and others do it."""
        node = self.dict_trie
        for token in tokens[self.start :].tolist():
            node = node[token]
        return list(node)

    @property
    def dict_trie(self) -> dict[int, Any]:
        if not hasattr(self, "_dict_trie"):
            self._dict_trie: dict[int, Any] = {}
            for path in (self.index.codes + int(self.token_ids[0][0]) + CODES * np.arange(LEVELS)).tolist():
                node = self._dict_trie
                for token in path:
                    node = node.setdefault(token, {})
        return self._dict_trie


class EveryCode:
    """Stands in for a trie that allows every code after every prefix: our loop unconstrained."""

    num_levels, level_sizes, variable = LEVELS, (CODES,) * LEVELS, False

    def __init__(self, device: torch.device):
        self.device = device

    def children(self, _level: int, nodes: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        codes = torch.arange(CODES, device=nodes.device).expand(*nodes.shape, CODES)
        return codes, nodes.unsqueeze(-1) * CODES + codes, torch.ones_like(codes, dtype=torch.bool)

    def codes_of(self, nodes: Tensor) -> Tensor:
        return torch.stack([nodes // CODES ** (LEVELS - 1 - level) % CODES for level in range(LEVELS)], dim=-1)


def seconds(rival: Callable[[], Any], device: torch.device) -> float:
    """Wall time of one call; by events where a GPU works on its own."""
    if device.type == "cuda":
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        torch.cuda.synchronize()
        begin.record()
        rival()
        end.record()
        end.synchronize()
        return begin.elapsed_time(end) / 1e3
    started = time.perf_counter()
    rival()
    return time.perf_counter() - started


def with_peak(rival: Callable[[], Found], device: torch.device) -> tuple[Found, float]:
    """What a call answers, and the MiB that it takes beyond what is held before it."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        found = rival()
        return found, (torch.cuda.max_memory_allocated() - before) / 2**20
    ctypes.CDLL(None).malloc_trim(0)  # what earlier calls have freed must not hide what this one takes
    process, done = psutil.Process(), threading.Event()
    before = most = process.memory_info().rss

    def watch() -> None:
        nonlocal most
        while not done.wait(0.002):
            most = max(most, process.memory_info().rss)

    watcher = threading.Thread(target=watch)
    watcher.start()
    found = rival()
    done.set()
    watcher.join()
    return found, (most - before) / 2**20


def compare(problem: Problem, repeats: int, ragged: bool) -> list[list[Any]]:
    """One row a rival."""
    rivals = {
        "generate, unconstrained": problem.generate,
        CALLBACK: problem.with_callback,
        "generate + our processor": problem.with_processor,
        "ours": problem.ours,
        "ours, unconstrained": problem.unconstrained,
        "floor": problem.floor,
    }
    if ragged:
        rivals["ours, decode() by length"] = problem.grouped
    device = problem.trie.device
    found = {name: with_peak(rival, device) for name, rival in rivals.items()}  # also warms up
    spent: dict[str, list[float]] = {name: [] for name in rivals}
    problem.checked = False
    for _ in range(repeats):
        for name, rival in rivals.items():
            spent[name].append(seconds(rival, device))
    real = {tuple(code) for code in problem.index.codes.tolist()}
    reference = found[CALLBACK][0][0]
    took = {name: median(of) for name, of in spent.items()}
    rows = []
    for name, ((codes, scores), peak) in found.items():
        row = [name, len(problem.histories) / took[name], 1e3 * took[name] / LEVELS]
        row += [took[CALLBACK] / took[name], took[name] / took["floor"]]
        if len(codes):
            there = scores > -1e8
            valid = np.array([[tuple(code) in real for code in row] for row in codes.tolist()])
            row += [100 * float((there & ~valid).mean()), 100 * float((~there).mean())]
            row += [int((codes != reference).any((1, 2)).sum()), peak]
        rows.append(row)
    return rows


class Noise:
    """A language model that costs nothing: the search and the trie alone are timed."""

    def __init__(self, vocabulary: int):
        self.vocabulary_size = vocabulary
        self.head = torch.randn(vocabulary, 8, generator=torch.Generator().manual_seed(0))

    def start(self, prompt: Prompt, _room: int) -> tuple[Tensor, Any]:
        assert prompt.tokens is not None
        return self.head[prompt.tokens[:, 0]], None

    def extend(self, _state: Any, tokens: Tensor, _depth: Any, _visible: Tensor) -> Tensor:
        return self.head[tokens]

    def rewind(self, state: Any) -> None: ...

    def logits(self, hidden: Tensor, tokens: Tensor | None) -> Tensor:
        return hidden @ (self.head if tokens is None else self.head[tokens]).T


def scaling(sizes: Sequence[int], model: Any, users: int, width: int, repeats: int) -> list[list[Any]]:
    """Build time and size of tries of random codes, and the time of a step, alone and within a language model's."""
    token_ids = [torch.arange(CODES) + SPECIALS + CODES * level for level in range(LEVELS)]
    prompt = Prompt(torch.randint(SPECIALS, SEMANTIC, (users, HISTORY * LEVELS)))
    noise, adapter = Noise(SEMANTIC), CausalTokens(model)
    built = {}
    for size in sizes:
        index = ItemIndex(np.random.default_rng(0).integers(0, CODES, (size, LEVELS)), level_tokens([CODES] * LEVELS))
        started = time.perf_counter()
        trie = ItemTrie.from_index(index)
        built[size] = (trie, time.perf_counter() - started)
    spent: dict[int, list[tuple[float, float]]] = {size: [] for size in sizes}
    for turn in range(repeats + 1):
        for size, (trie, _) in built.items():
            alone = seconds(partial(beam_search, noise, prompt, trie, token_ids, width), trie.device)
            whole = seconds(partial(beam_search, adapter, prompt, trie, token_ids, width), trie.device)
            if turn:  # the first turn warms up
                spent[size].append((alone, whole))
    rows = []
    base: list[float] = []
    for size, (trie, build) in built.items():
        step = [1e3 * median(of) / LEVELS for of in zip(*spent[size], strict=True)]
        base = base or step
        ratios = [now / first for now, first in zip(step, base, strict=True)]
        fan_out = "/".join(map(str, trie.fan_out))
        rows.append([f"{size:,}", fan_out, build, trie.nbytes / 1e6, step[0], ratios[0], step[1], ratios[1]])
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=list(MODELS), default="tiny-llama")
    parser.add_argument("--users", default="32,64,128", help="batch sizes")
    parser.add_argument("--width", type=int, default=20, help="beams")
    parser.add_argument("--ragged", action="store_true", help="histories of real lengths, left-padded")
    parser.add_argument("--codes", type=Path, default=BEAUTY / "codes.json.gz")
    parser.add_argument("--interactions", type=Path, default=BEAUTY / "interactions.tsv.gz")
    parser.add_argument("--items", type=int, default=12_088, help="items where codes are random")
    parser.add_argument("--trie", action="store_true", help="build and step times of tries of growing size instead")
    parser.add_argument("--sizes", default="10_000,1_000_000,10_000_000", help="items for --trie")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    build, base = MODELS[options.model]
    model = build().eval().to(device)
    users = [int(count) for count in options.users.split(",")]
    print(f"{options.model}, {options.width} beams, {device}, {options.threads} threads, float32")
    if options.trie:
        rows = scaling([int(n) for n in options.sizes.split(",")], model, users[0], options.width, options.repeats)
        headers = ["items", "most children", "build s", "MB", "step ms", "ratio", "step with model ms", "ratio"]
        print(f"{users[0]} users; a step of the search and trie alone, and with {options.model}'s forward")
        print(tabulate(rows, headers, floatfmt=("", "", ".2f", ".1f", ".2f", ".2f", ".1f", ".2f")))
        return
    index = load_index(options.codes, options.items)
    trie = ItemTrie.from_index(index).to(device)
    token_ids = [torch.arange(CODES) + base + CODES * level for level in range(LEVELS)]
    rng = np.random.default_rng(0)
    lengths = load_lengths(options.interactions) if options.ragged else np.array([HISTORY])
    source = "published codes" if options.codes.exists() else "random codes"
    for count in users:
        histories = [rng.integers(0, index.num_items, length) for length in rng.choice(lengths, count)]
        problem = Problem(model, index, trie, token_ids, histories, options.width)
        rows = compare(problem, options.repeats, options.ragged)
        mean = np.mean([len(items) for items in histories])
        print(f"\n{count} users, {index.num_items} items with {source}, {mean:.1f} items a history")
        headers = [
            "", "users/s", "ms a step", "times callback", "of floor", "invalid %", "short %", "differ", "peak MiB",
        ]  # fmt: skip
        print(tabulate(rows, headers, floatfmt=("", ".1f", ".1f", ".1f", ".2f", ".1f", ".1f", "", ".0f")))


if __name__ == "__main__":
    main()
