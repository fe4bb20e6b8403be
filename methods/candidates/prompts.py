"""Questions as sequences of tokens, in which an item may be a title, a marker, a number or a vector.

Numbers from 0 on are the model's own tokens. Those below 0 are no text, and no text turns into them, so no title can
forge one: they have embeddings of their own (`genrec_bench.methods.candidates.inputs`). The tokenizer reads a question
line by line, which gives a title the same tokens in the history, among the candidates and as an answer.

Source: RSLLM (section 4.1): text-ID and hybrid prompts; LLaRA's released code for its [PH].
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import numpy as np
import pandas as pd

from genrec_bench.datasets.errors import InputError
from genrec_bench.methods.candidates.wording import HISTORY_ALONE, CandidatesConfig, Question, QuestionWriter

MARKER, PLACEHOLDER = -1, -2  # RSLLM's [DSR], LLaRA's [PH]
TEXT, HISTORY, CANDIDATE, ANSWER, END, NOTHING = range(6)  # what a position belongs to; NOTHING is padding
PLACE = "\x1aquestion\x1a"  # for what a chat template is to repeat
BETWEEN = "\n"  # after a question: the answer begins a line, as the titles do


def identifier(item: int) -> int:
    """The number that stands for [IID item]."""
    return -3 - 2 * item


def vector(item: int) -> int:
    """The number that stands for the item's projected vector."""
    return -4 - 2 * item


@dataclass(frozen=True)
class Style:
    """How a prompt shows an item."""

    named: bool = True  # its title, or its number where that is its name
    marker: bool = False  # [DSR] after the name
    identity: Literal["none", "token", "digits", "vector", "placeholder"] = "none"  # and what follows


TITLES = Style()
HYBRID = Style(marker=True, identity="vector")
LLARA = Style(identity="vector")
LLARA_TEXT = Style(identity="placeholder")


class Row(NamedTuple):
    """One sequence: ``tokens`` (n,) int64, and what each belongs to, ``kinds`` (n,) int8."""

    tokens: np.ndarray
    kinds: np.ndarray


class PromptWriter:
    """Writes questions in a style, for one tokenizer.

    ``chat`` puts a question into the model's own chat template, and ends an answer as that does. Lengths in ``config``
    are in tokens, ``marker_size`` of them after each title. ``ends`` are the model's (`Backbone.ends`); afterwards they
    hold the token that ends an answer to a question, too.
    """

    def __init__(
        self,
        tokenizer: Any,
        items: pd.DataFrame,
        config: CandidatesConfig,
        marker_size: int = 0,
        chat: bool = False,
        ends: Sequence[int] = (),
    ):
        self.tokenizer = tokenizer
        self._lines: dict[str, list[int]] = {}
        self._newline = tokenizer(BETWEEN, add_special_tokens=False)["input_ids"]
        before, after = _chat_template(tokenizer) if chat else ("", BETWEEN)
        special = not chat  # a chat template writes its own beginning of the text
        self._before = tokenizer(before, add_special_tokens=special)["input_ids"]
        if special and self._before[-1:] == [tokenizer.eos_token_id]:
            self._before = self._before[:-1]
        self._after = tokenizer(after, add_special_tokens=False)["input_ids"]
        end = _turn_end(tokenizer, ends) if chat else tokenizer.eos_token_id
        self.ends = tuple(dict.fromkeys([tokenizer.eos_token_id, *ends, end]))
        # of a list, the answer is a line as the others are
        self._end = self._newline if config.template == HISTORY_ALONE else [end]
        self.questions = QuestionWriter(items, config, self.size, marker_size)

    @property
    def around(self) -> int:
        """Tokens before and after every question."""
        return len(self._before) + len(self._after)

    @property
    def end_size(self) -> int:
        """Tokens that end an answer."""
        return len(self._end)

    def size(self, text: str) -> int:
        """Tokens of a text."""
        return len(self.ids(text))

    def ids(self, text: str) -> list[int]:
        """Tokens of a text, read line by line."""
        first, *others = text.split("\n")
        found = list(self._line(first))
        for line in others:
            found += self._newline
            found += self._line(line)
        return found

    def prompt(self, question: Question, style: Style) -> Row:
        """All that the model reads before it answers."""
        tokens, kinds = list(self._before), [TEXT] * len(self._before)
        for piece in question.pieces:
            if isinstance(piece, str):
                found, kind = self.ids(piece), TEXT
            else:
                found, kind = self._item(piece.item, piece.title, style), CANDIDATE if piece.candidate else HISTORY
            tokens += found
            kinds += [kind] * len(found)
        return _row(tokens + self._after, kinds + [TEXT] * len(self._after))

    def answer(self, title: str) -> Row:
        """A title as an answer, with what ends it."""
        ids = self.ids(title)
        return _row([*ids, *self._end], [ANSWER] * len(ids) + [END] * len(self._end))

    def alone(self, item: int, style: Style) -> Row:
        """An item by itself, as a prompt shows it."""
        ids = self._item(item, self.questions.title(item), style)
        return _row([*self._before, *ids], [TEXT] * len(self._before) + [ANSWER] * len(ids))

    def _item(self, item: int, title: str, style: Style) -> list[int]:
        tokens = self.ids(title) if style.named else []
        if style.marker:
            tokens.append(MARKER)
        if style.identity == "token":
            tokens.append(identifier(item))
        elif style.identity == "vector":
            tokens.append(vector(item))
        elif style.identity == "placeholder":
            tokens.append(PLACEHOLDER)
        elif style.identity == "digits":
            tokens += self.ids(digits(item))
        return tokens

    def _line(self, line: str) -> list[int]:
        if (known := self._lines.get(line)) is None:
            # a title is text to its last letter, whatever the model's special tokens look like
            known = self.tokenizer(line, add_special_tokens=False, split_special_tokens=True)["input_ids"]
            self._lines[line] = known
        return known


def digits(item: int) -> str:
    """[IID item] in ordinary text."""
    return f"[IID {item}]"


def joined(*rows: Row) -> Row:
    """One after the other."""
    return Row(np.concatenate([row.tokens for row in rows]), np.concatenate([row.kinds for row in rows]))


def padded(rows: list[Row], pad: int, left: bool) -> tuple[np.ndarray, np.ndarray]:
    """``tokens`` (B, longest) int64 and ``kinds`` (B, longest) int8, NOTHING where padded."""
    longest = max(len(row.tokens) for row in rows)
    tokens = np.full((len(rows), longest), pad, dtype=np.int64)
    kinds = np.full((len(rows), longest), NOTHING, dtype=np.int8)
    for b, row in enumerate(rows):
        count = len(row.tokens)
        at = slice(longest - count, None) if left else slice(count)
        tokens[b, at], kinds[b, at] = row.tokens, row.kinds
    return tokens, kinds


def _row(tokens: list[int], kinds: list[int]) -> Row:
    return Row(np.array(tokens, dtype=np.int64), np.array(kinds, dtype=np.int8))


def _chat_template(tokenizer: Any) -> tuple[str, str]:
    """What a chat model reads before a question and between it and the answer."""
    if not getattr(tokenizer, "chat_template", None):
        raise InputError("chat=true: this model has no chat template; use chat=false")
    text = tokenizer.apply_chat_template(
        [{"role": "user", "content": PLACE}], tokenize=False, add_generation_prompt=True
    )
    before, found, after = text.partition(PLACE)
    if not found:
        raise InputError("chat=true: this model's chat template does not repeat the question; use chat=false")
    return before, after


def _turn_end(tokenizer: Any, ends: Sequence[int]) -> int:
    """The token that ends the model's turn in its chat template; of a text, where the template does not tell."""
    turns = [{"role": "user", "content": "?"}, {"role": "assistant", "content": PLACE}]
    try:
        text = tokenizer.apply_chat_template(turns, tokenize=False)
    except Exception:  # a template may refuse what it likes
        text = ""
    after = tokenizer(text.partition(PLACE)[2], add_special_tokens=False)["input_ids"]
    special = {token for token, added in tokenizer.added_tokens_decoder.items() if added.special}
    known = ({tokenizer.eos_token_id, *ends} | special) - {tokenizer.bos_token_id}
    return next((token for token in after if token in known), int(tokenizer.eos_token_id))
