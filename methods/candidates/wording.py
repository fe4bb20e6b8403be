"""What a language model is asked under the candidate protocol, in our own words, and how items are written into it.

A question is made of pieces: text, and mentions of items. A mention is a title that some method lets a marker follow
(RSLLM's ``[DSR]`` and item vector), so pieces are joined as late as possible. Each title has a line to itself, and
`plain` leaves in it neither a line break nor a bracket: no title can pass for a marker or fill more than its line. One
that is spelt as a line of a template reads as that line.

Source: RSLLM (section 4.1, examples 4.1 and 4.2), which asks LLaRA's question.
Deviation: LLaRA's templates say "10 titles" where 20 are shown, and RSLLM's parts titles by commas, which titles
contain; these are our own, title by line.
"""

import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
import pandas as pd
from pydantic import Field, NonNegativeInt, PositiveInt

from genrec_bench.datasets.errors import InputError
from genrec_bench.datasets.splits import normalised_title
from genrec_bench.methods.base import MethodConfig
from genrec_bench.methods.candidates.parsing import Match, pick

Kind = Literal["items", "movies", "artists", "games", "products"]


class Nouns(NamedTuple):
    """What a template calls the items and those who take them."""

    one: str
    many: str
    person: str
    took: str
    take: str


NOUNS: dict[Kind, Nouns] = {
    "items": Nouns("item", "items", "user", "chose", "choose"),
    "movies": Nouns("movie", "movies", "viewer", "watched", "watch"),
    "artists": Nouns("artist", "artists", "listener", "listened to", "listen to"),
    "games": Nouns("game", "games", "player", "played", "play"),
    "products": Nouns("product", "products", "customer", "bought", "buy"),
}

# Before the history, between it and the candidates, after them; the answer follows. Template 0 is the one used at test.
TEMPLATES: tuple[tuple[str, str, str], ...] = (
    (
        "A {person} {took} these {many}, oldest first:",
        "The next {one} is one of these:",
        "Which {one} will the {person} {take} next? Answer with its title alone, exactly as it stands above.\nTitle:",
    ),
    (
        "These are the {many} that a {person} {took}, the latest last:",
        "One {one} of this list comes next:",
        "Write the title of that {one}, spelt as in the list, and nothing else.\nAnswer:",
    ),
    (
        "History of a {person}, in order of time:",
        "Candidates for the next {one}:",
        "Choose the candidate that the {person} is most likely to {take} now. Give only its title.\nThe title is:",
    ),
    (
        "Somebody {took} the following {many} one after the other:",
        "What should be recommended? Choose from:",
        "Name one {one} of the choices, copied letter by letter.\nRecommended {one}:",
    ),
    (
        "Recommend one {one}. So far this {person} {took}:",
        "You may recommend one of these {many}:",
        "Reply with one title of the second list and no other word.\nReply:",
    ),
)
# Two lists that the answer goes on with, after their numbers: the candidates before the history, and the history alone.
CONTINUED: dict[int, tuple[str, ...]] = {
    5: (
        "A {person} will {take} one of these {many} next:",
        "This is what the {person} {took} so far, oldest first. Continue with the title of that {one}:",
    ),
    6: ("A {person} {took} these {many}, oldest first:",),
}
HISTORY_ALONE = 6
NO_HISTORY = "(nothing yet)"
MARK = "…"  # where the end of a title was cut off

_BRACKETS = {"[": "(", "]": ")", "<": "‹", ">": "›"}
_JOINERS = "\u200c\u200d"  # of letters and of emoji
_SKIN_TONES = "".join(map(chr, range(0x1F3FB, 0x1F400)))
_FLAG_LETTERS = "".join(map(chr, range(0x1F1E6, 0x1F200)))  # two of them are a flag


class CandidatesConfig(MethodConfig):
    """What all language models under the candidate protocol are asked, and how their answers are read.

    Lengths are in characters where the method has no tokenizer, else in tokens.
    """

    kind: Kind = "items"  # what the data set's items are; it chooses the nouns
    template: NonNegativeInt = Field(default=0, lt=len(TEMPLATES))  # question at test
    match: Match = "longest"  # see `genrec_bench.methods.candidates.parsing`
    titles: Literal["stored", "spoken"] = "stored"  # spoken: as `spoken` gives them
    max_history: PositiveInt = 10  # most recent items shown
    max_title: PositiveInt = 200  # letters of a title, then "…"
    max_prompt: PositiveInt = 8000  # the oldest items of the history are left out until the question fits


class Mention(NamedTuple):
    """An item in a question, by its number and its title as it is shown."""

    item: int
    title: str
    candidate: bool  # else of the history


@dataclass(frozen=True)
class Question:
    """One row of the protocol in words; ``titles`` are the candidates', as they are to be answered."""

    pieces: tuple[str | Mention, ...]
    titles: list[str]

    def text(self, after: Callable[[Mention], str] = lambda mention: "") -> str:
        """The question as one string; ``after`` gives what follows a title."""
        return "".join(piece if isinstance(piece, str) else piece.title + after(piece) for piece in self.pieces)

    def picked(self, answer: str, match: Match) -> int:
        """The column of the candidate that ``answer`` names, -1 for none; it is escaped as the titles were."""
        return pick("\n".join(plain(line) for line in answer.strip().split("\n")), self.titles, match)


class QuestionWriter:
    """Writes rows of the protocol as questions.

    ``size`` measures text (characters, tokens), and ``marker_size`` is what stands after each title in that measure.
    """

    def __init__(
        self,
        items: pd.DataFrame,
        config: CandidatesConfig,
        size: Callable[[str], int] = len,
        marker_size: int = 0,
    ):
        self.config, self.size, self.marker_size = config, size, marker_size
        titles = items["title"].astype(str).tolist()
        self._titles = spoken(titles) if config.titles == "spoken" else titles
        self._shown: dict[int, str] = {}

    def title(self, item: int) -> str:
        """An item's title as it is shown: escaped, cut to size; its number where it has none, so that it has a name."""
        if item not in self._shown:
            title = plain(self._titles[item]) or f"untitled {item}"
            self._shown[item] = shortened(title, self.config.max_title, self.size)
        return self._shown[item]

    def ask(self, history: np.ndarray, candidates: np.ndarray, template: int | None = None) -> Question:
        """The question of one row: ``history`` (length,) and ``candidates`` (C,) are item numbers.

        Raises InputError where that exceeds ``max_prompt`` without any history.
        """
        nouns = NOUNS[self.config.kind]._asdict()
        template = self.config.template if template is None else template
        wording, arranged = (
            (CONTINUED[template], _continued) if template in CONTINUED else (TEMPLATES[template], _joined)
        )
        texts = [part.format(**nouns) for part in wording]
        names = _told_apart([self.title(int(item)) for item in candidates])
        offered = [Mention(int(item), name, True) for item, name in zip(candidates, names, strict=True)]
        taken = [Mention(int(item), self.title(int(item)), False) for item in history[-self.config.max_history :]]
        while True:
            question = Question(arranged(texts, taken, offered), names)
            if self._size(question) <= self.config.max_prompt:
                return question
            if not taken:
                raise InputError(
                    f"Without its history the question of {len(offered)} candidates measures {self._size(question)}, "
                    f"and max_prompt is {self.config.max_prompt}: raise it, or lower max_title (now "
                    f"{self.config.max_title})"
                )
            taken = taken[1:]

    def _size(self, question: Question) -> int:
        mentions = sum(isinstance(piece, Mention) for piece in question.pieces)
        return self.size(question.text()) + mentions * self.marker_size


def _told_apart(titles: list[str]) -> list[str]:
    """``titles``, those that are cut or escaped to the same letters numbered from the second on.

    The protocol draws candidates of different titles; an answer could name the first of such a pair alone.
    """
    found: list[str] = []
    taken: set[str] = set()
    for title in titles:
        name, number = title, 1
        while normalised_title(name) in taken:
            number += 1
            name = f"{title} ({number})"
        taken.add(normalised_title(name))
        found.append(name)
    return found


def _joined(texts: Sequence[str], taken: list[Mention], offered: list[Mention]) -> tuple[str | Mention, ...]:
    before, between, after = texts
    return (*_listed(before, taken), *_listed(between, offered), after)


def _continued(texts: Sequence[str], taken: list[Mention], offered: list[Mention]) -> tuple[str | Mention, ...]:
    """Ends with the last item of the history: what stands between a question and its answer is a line's end."""
    *before, head = texts
    *pieces, last = [piece for text in before for piece in _listed(text, offered)] + _listed(head, taken)
    return (*pieces, str(last).removesuffix("\n"))


def _listed(head: str, mentions: list[Mention]) -> list[str | Mention]:
    """A line of text, then a line for each item."""
    pieces: list[str | Mention] = [f"{head}\n"]
    for mention in mentions:
        pieces += [mention, "\n"]
    return pieces if mentions else [f"{head}\n{NO_HISTORY}\n"]


def spoken(titles: Sequence[str]) -> list[str]:
    """MovieLens titles as people say them: "Usual Suspects, The (1995)" is "The Usual Suspects".

    The year goes, the article comes to the front: what LLaRA's released code shows, and RSLLM's examples. A title that
    two items would then share stays as it was.
    Deviation: the released code takes the last seven characters off whatever they are, and an article out of the
    middle of a title.
    """
    short = [_without_year(title) for title in titles]
    often = Counter(short)
    return [new if new and often[new] == 1 else old for old, new in zip(titles, short, strict=True)]


def _without_year(title: str) -> str:
    name = re.sub(r"\s*\(\d{4}\)\s*$", "", title)
    return re.sub(r"^(.+), (The|An?)$", r"\2 \1", name)


def plain(title: str) -> str:
    """A title that can stand in a question: one line, no brackets of markers, no control or direction characters.

    ``[`` and ``]`` become parentheses, ``<`` and ``>`` single guillemets, so that neither our markers ([DSR], [IID 3])
    nor a chat model's own (<|im_end|>, </s>, [INST]) can be written; the same for every character that Unicode's
    compatibility form, which some tokenizers apply, would turn into one of them.
    """
    return " ".join("".join(map(_plain_letter, title)).split())


def _plain_letter(letter: str) -> str:
    kind = unicodedata.category(letter)
    if kind in ("Cc", "Zl", "Zp", "Zs"):
        return " "
    if kind == "Cf":
        return letter if letter in _JOINERS else ""
    if kind == "Cs":  # half a character: it has no UTF-8
        return "\ufffd"
    if letter in _BRACKETS:
        return _BRACKETS[letter]
    form = unicodedata.normalize("NFKC", letter)
    return "".join(_BRACKETS.get(part, part) for part in form) if _BRACKETS.keys() & set(form) else letter


def shortened(title: str, limit: int, size: Callable[[str], int] = len) -> str:
    """``title``, or as much of its beginning as ``size`` says fits ``limit`` together with the mark of the cut.

    No letter is parted from its accents, no emoji from its skin tone or what it is joined to, no half of a flag stays.
    """
    if size(title) <= limit:
        return title
    low, high = 0, len(title)
    while (
        low + 1 < high
    ):  # the longest beginning that fits; a text never measures less than its beginning, or nearly so
        middle = (low + high) // 2
        low, high = (middle, high) if size(title[:middle] + MARK) <= limit else (low, middle)
    while low and (size(title[:low].rstrip() + MARK) > limit or _inseparable(title, low)):
        low -= 1
    return title[:low].rstrip() + MARK


def _inseparable(title: str, at: int) -> bool:
    """Whether a cut before ``title[at]`` would go through something that is read as one."""
    left, right = title[at - 1], title[at]
    if unicodedata.category(right)[0] == "M" or right in _JOINERS + _SKIN_TONES or left in _JOINERS:
        return True
    before = at - len(title[:at].rstrip(_FLAG_LETTERS))  # those of the flags that end here
    return right in _FLAG_LETTERS and before % 2 == 1
