"""Training examples of LC-Rec's and EAGER-LLM's tasks, built for a whole epoch at a time from ragged token sequences.

Six tasks of LC-Rec (Zheng et al., ICDE 2024, arXiv 2311.09049, section 3.3): the next item's code from codes
(sequence), code from text and text from code, the next item across the two (fusion), code from a query (search), and a
text of what a user likes (preference). EAGER-LLM's semantic reconstruction asks for title and details apart. Deviation:
LC-Rec has GPT-3.5 write queries and preferences; here a query is words of the item's own text, and a preference is the
commonest categories (or title words) of the user's training items.
"""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import pandas as pd

from genrec_bench.datasets.interactions import Histories
from genrec_bench.methods.language import prompts
from genrec_bench.methods.language.codes import ItemTokens, training_prefixes, training_windows
from genrec_bench.methods.language.prompts import Wording
from genrec_bench.methods.language.sequences import TEXT, TokenSequences, join, stack

Task = Literal[
    "sequence", "item_to_code", "code_to_item", "code_to_title", "code_to_details", "code_to_description", "fusion",
    "search", "preference",
]  # fmt: skip

_OfItems = Callable[[np.ndarray, np.random.Generator], TokenSequences]
_OfRows = Callable[[Histories, np.random.Generator], TokenSequences]

PREFERENCE_TERMS = 5  # terms of a preference text
QUERY_SHARE = 0.5  # words of an item's text that make a query


class Wordings:
    """The wordings of one task as tokens."""

    def __init__(self, before: Sequence[Sequence[int]], after: Sequence[Sequence[int]]):
        self.before, self.after = TokenSequences.of(before), TokenSequences.of(after)

    def __len__(self) -> int:
        return len(self.before)

    def ask(self, given: TokenSequences, which: np.ndarray) -> TokenSequences:
        """Row b's input in wording ``which[b]``."""
        return join(self.before.select(which), given, self.after.select(which))


@dataclass(eq=False)
class ExampleWriter:
    """Writes the examples of each task. ``items`` are codes in vocabulary ids; texts are those of the item table."""

    tokenizer: Any
    table: pd.DataFrame  # (N, 4), as in InteractionData
    items: ItemTokens
    max_history: int
    max_text: int  # tokens of one item's text
    window: int | None = None  # items of a training sequence that is one example; None: max_history
    thinning: float = 0.0  # highest share of its items left out
    open_sequence_wordings: Sequence[Wording] = ()  # without: those of `prompts.OPEN_SEQUENCE`

    def __post_init__(self) -> None:
        bos = self.tokenizer.bos_token_id
        self.start = [] if bos is None else [bos]
        self.end = TokenSequences.of([[self.tokenizer.eos_token_id]], TEXT)
        # words of byte-pair vocabularies such as SmolLM2's carry the space before them
        glued = self.tokenizer.decode([token for row in self.encode(["a", "b"]) for token in row]) == "ab"
        self.space = " " if glued else ""
        self.separator = TokenSequences.of(self.encode([","]))
        titles = self.table["title"].to_numpy(dtype=str)
        categories = self.table["categories"].to_numpy(dtype=str)
        descriptions = self.table["description"].to_numpy(dtype=str)
        details = [
            ", ".join(filter(None, [title, *kinds.split("|"), description]))
            for title, kinds, description in zip(titles, categories, descriptions, strict=True)
        ]
        self.titles = self._texts(titles.tolist()).cut(self.max_text)
        self.details = self._texts(details).cut(self.max_text)
        self.descriptions = self._texts(descriptions.tolist()).cut(self.max_text)
        self.forms = [self.titles, self.details]  # texts that an item is told by
        if len(self.descriptions.tokens):
            self.forms.append(self.descriptions)
        words = [text.replace(",", " ").split()[: self.max_text] for text in details]
        self.words = self._texts([word for row in words for word in row]).given()
        self.word_offsets = np.concatenate([[0], np.cumsum([len(row) for row in words])]).astype(np.int64)
        self.described = np.flatnonzero(np.diff(self.word_offsets))  # items with any text
        self.terms = [
            kinds.split("|") if kinds else title.split() for title, kinds in zip(titles, categories, strict=True)
        ]

        def worded(wordings: Sequence[Wording]) -> Wordings:
            before, after = zip(*wordings, strict=True)
            return Wordings([self.start + row for row in self.encode(before)], self._following(after))

        self.sequence, self.open_sequence = (
            worded(prompts.SEQUENCE),
            worded(self.open_sequence_wordings or prompts.OPEN_SEQUENCE),
        )
        self.to_code, self.to_item = worded(prompts.ITEM_TO_CODE), worded(prompts.CODE_TO_ITEM)
        self.to_title, self.to_details = worded(prompts.CODE_TO_TITLE), worded(prompts.CODE_TO_DETAILS)
        self.to_description = worded(prompts.CODE_TO_DESCRIPTION)
        self.titles_to_code, self.codes_to_title = worded(prompts.TITLES_TO_CODE), worded(prompts.CODES_TO_TITLE)
        self.search, self.preference = worded(prompts.SEARCH), worded(prompts.PREFERENCE)

    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        """Vocabulary ids of each text, nothing added around it; special tokens that it spells are plain text."""
        if not texts:  # tokenizers refuse an empty list
            return []
        ids: list[list[int]] = self.tokenizer(list(texts), add_special_tokens=False, split_special_tokens=True)[
            "input_ids"
        ]
        return ids

    def prompt(self, histories: Histories, open_end: bool) -> TokenSequences:
        """What is asked at test: wording 0."""
        which = np.zeros(len(histories), dtype=np.int64)
        return (self.open_sequence if open_end else self.sequence).ask(self._codes(histories), which)

    def epoch(
        self,
        sequences: Histories,
        tasks: Mapping[Task, int],
        open_end: bool,
        rng: np.random.Generator,
        asides: bool = False,
    ) -> TokenSequences:
        """Every example of an epoch: all of the sequence task, at most ``tasks[task]`` of any other.

        ``open_end``: the sequence task learns all items of a history in one example. ``asides``: see `sequences`.
        """
        parts = [self.sequences(sequences, open_end, rng, asides)] if tasks.get("sequence") else []
        of_items: tuple[tuple[Task, _OfItems], ...] = (
            ("item_to_code", self.items_to_codes), ("code_to_item", self.codes_to_items),
            ("code_to_title", self.codes_to_titles), ("code_to_details", self.codes_to_details),
            ("code_to_description", self.codes_to_descriptions),
            ("search", self.queries),
        )  # fmt: skip
        for task, write in of_items:
            if cap := tasks.get(task):
                parts.append(write(rng.permutation(self.described)[:cap], rng))
        of_rows: tuple[tuple[Task, _OfRows], ...] = (("fusion", self.fusion), ("preference", self.preferences))
        for task, crossed in of_rows:
            if cap := tasks.get(task):
                rows = training_prefixes(sequences, self.max_history)
                parts.append(crossed(rows.select(rng.permutation(len(rows))[:cap]), rng))
        return stack(*parts)

    def sequences(
        self, sequences: Histories, open_end: bool, rng: np.random.Generator, asides: bool = False
    ) -> TokenSequences:
        """Sequential recommendation: codes to code; with ``asides``, one after the token that ends each target."""
        if open_end:
            rows = training_windows(sequences, self.window or self.max_history, rng, self.thinning)
            which = rng.integers(0, len(self.open_sequence), len(rows))
            codes = self.items.histories(rows, learn=True, separator=self.separator, asides=asides)
            return self.open_sequence.ask(codes, which)
        rows = training_prefixes(sequences, self.max_history)
        which = rng.integers(0, len(self.sequence), len(rows))
        return self._answered(self.sequence.ask(self._codes(rows.without_last(1)), which), rows, asides)

    def longest(self, sequences: Histories, open_end: bool) -> TokenSequences:
        """One example a user, as `prompt` asks: the last item is the target."""
        return self._answered(self.prompt(sequences.without_last(1).last(self.max_history), open_end), sequences)

    def items_to_codes(self, items: np.ndarray, rng: np.random.Generator) -> TokenSequences:
        """An item's text to its code."""
        which = rng.integers(0, len(self.to_code), len(items))
        return join(self.to_code.ask(self._text(items, rng).given(), which), self.items.learned.select(items))

    def codes_to_items(self, items: np.ndarray, rng: np.random.Generator) -> TokenSequences:
        """An item's code to its text."""
        which = rng.integers(0, len(self.to_item), len(items))
        return join(self.to_item.ask(self.items.read.select(items), which), self._text(items, rng), self._ends(items))

    def codes_to_titles(self, items: np.ndarray, rng: np.random.Generator) -> TokenSequences:
        """An item's code to its title."""
        return self._told(self.to_title, items[self.titles.lengths[items] > 0], self.titles, rng)

    def codes_to_details(self, items: np.ndarray, rng: np.random.Generator) -> TokenSequences:
        """An item's code to its title, categories and description."""
        return self._told(self.to_details, items, self.details, rng)

    def codes_to_descriptions(self, items: np.ndarray, rng: np.random.Generator) -> TokenSequences:
        """An item's code to its description."""
        return self._told(self.to_description, items[self.descriptions.lengths[items] > 0], self.descriptions, rng)

    def title_prompt(self, items: np.ndarray) -> TokenSequences:
        """What asks for an item's title: wording 0."""
        return self.to_title.ask(self.items.read.select(items), np.zeros(len(items), dtype=np.int64))

    def queries(self, items: np.ndarray, rng: np.random.Generator) -> TokenSequences:
        """Some words of an item's text, in any order, to its code."""
        counts = np.diff(self.word_offsets)[items]
        offsets = np.concatenate([[0], np.cumsum(counts)])
        row = np.repeat(np.arange(len(items)), counts)
        word = np.arange(offsets[-1]) - np.repeat(offsets[:-1] - self.word_offsets[items], counts)
        chance = rng.random(len(row))
        kept = (chance < QUERY_SHARE) | (chance == np.minimum.reduceat(chance, offsets[:-1])[row])  # at least one
        order = np.lexsort((rng.random(len(row)), row))
        order = order[kept[order]]
        offsets = np.concatenate([[0], np.cumsum(np.bincount(row[order], minlength=len(items)))]).astype(np.int64)
        query = self.words.select(word[order]).grouped(offsets).cut(self.max_text)
        which = rng.integers(0, len(self.search), len(items))
        return join(self.search.ask(query, which), self.items.learned.select(items))

    def fusion(self, rows: Histories, rng: np.random.Generator) -> TokenSequences:
        """The next item across the two languages: titles to code for half of the rows, codes to title for the rest."""
        half = len(rows) // 2
        first, second = rows.select(slice(0, half)), rows.select(slice(half, None))
        known = first.without_last(1)
        pieces = self.titles.given().select(known.items)
        named = join(pieces, self.separator.repeated(len(pieces))).grouped(known.offsets)
        asked = self.titles_to_code.ask(named, rng.integers(0, len(self.titles_to_code), len(first)))
        to_code = join(asked, self.items.learned.select(first.last(1).items))
        second = second.select(self.titles.lengths[second.last(1).items] > 0)
        asked = self.codes_to_title.ask(
            self._codes(second.without_last(1)), rng.integers(0, len(self.codes_to_title), len(second))
        )
        targets = second.last(1).items
        return stack(to_code, join(asked, self.titles.select(targets), self._ends(targets)))

    def preferences(self, rows: Histories, rng: np.random.Generator) -> TokenSequences:
        """A history to the commonest terms of its items."""
        known = rows.without_last(1)
        texts = []
        for b in range(len(known)):
            counts = Counter(term for item in known.row(b) for term in self.terms[item])
            texts.append(", ".join(term for term, _ in counts.most_common(PREFERENCE_TERMS)))
        answers = self._texts(texts).cut(self.max_text)
        asked = self.preference.ask(self._codes(known), rng.integers(0, len(self.preference), len(known)))
        return join(asked, answers, self._ends(known.users))

    def _following(self, texts: Sequence[str]) -> list[list[int]]:
        """As `encode`, of texts that stand after others."""
        return self.encode([self.space + text if text else text for text in texts])

    def _texts(self, texts: Sequence[str]) -> TokenSequences:
        return TokenSequences.of(self._following(texts), TEXT)

    def _codes(self, rows: Histories) -> TokenSequences:
        return self.items.histories(rows, separator=self.separator)

    def _answered(self, asked: TokenSequences, rows: Histories, asides: bool = False) -> TokenSequences:
        """Each row's last item as the answer; with ``asides``, the end token and an aside follow."""
        items = rows.last(1).items
        parts = [asked, self.items.learned.select(items)]
        if asides:
            parts += [self._ends(items).given(), self.items.asides.select(items)]
        return join(*parts)

    def _told(
        self, wordings: Wordings, items: np.ndarray, texts: TokenSequences, rng: np.random.Generator
    ) -> TokenSequences:
        which = rng.integers(0, len(wordings), len(items))
        return join(wordings.ask(self.items.read.select(items), which), texts.select(items), self._ends(items))

    def _text(self, items: np.ndarray, rng: np.random.Generator) -> TokenSequences:
        """Title, title with categories and description, or description, at random."""
        form = rng.integers(0, len(self.forms), len(items))
        lengths = np.stack([texts.lengths for texts in self.forms])
        form[lengths[form, items] == 0] = 1  # details hold whatever there is
        return stack(*self.forms).select(items + len(self.titles) * form)

    def _ends(self, rows: np.ndarray) -> TokenSequences:
        return self.end.repeated(len(rows))
