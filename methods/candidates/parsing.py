"""Which candidate a free-text answer names: the rules of the 20-candidate protocol.

``official`` is what LLaRA's released code does and RSLLM's figures follow: first line, lower case, valid where exactly
one candidate's title is a substring. So "Alien" beside "Aliens" makes the correct answer "Aliens" invalid, and a title
of two letters is found by accident.

``longest`` reads as a person does: a title that is the whole answer wins; else the titles that stand in the answer as
whole words, without those that are part of a longer one that stands there, and the answer is valid where one is left.
Case, spaces, punctuation, quotes and Unicode's several ways of writing the same letter make no difference, unless two
candidates differ in nothing else ("Up", "Up!"): then only the exact spelling names one.

Both look at the first line that is not empty. Titles are those that the prompt showed. An empty title is never named.
"""

import re
import unicodedata
from collections.abc import Callable, Sequence
from typing import Literal

Match = Literal["official", "longest"]

_QUOTES = str.maketrans(dict.fromkeys("‘’‚‛ʼ´`′＇", "'") | dict.fromkeys("“”„‟″«»＂", '"'))
# Written without spaces between words, so that each letter counts as one: Thai to Lao, Burmese, Khmer, kana, Chinese.
_UNSPACED = re.compile(
    "[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff\U00020000-\U0003ffff]"
)
_VARIATION = re.compile("[\ufe00-\ufe0f]")  # "☺" as text or as a picture


def pick(answer: str, titles: Sequence[str], match: Match) -> int:
    """The number of the title that ``answer`` names, -1 where it names none or several."""
    return RULES[match](_first_line(answer), titles)


def official(answer: str, titles: Sequence[str]) -> int:
    """LLaRA's rule; two candidates of the same title are two titles found.

    Deviation: an empty title, a substring of everything, would make every answer of its row invalid; it is passed over.
    """
    answer = answer.lower()
    shown = [title.lower().strip() for title in titles]
    found = [number for number, title in enumerate(shown) if title and title in answer]
    return found[0] if len(found) == 1 else -1


def longest(answer: str, titles: Sequence[str]) -> int:
    """Our rule; of candidates that share a title, the first."""
    spelt = [_spelling(title) for title in titles]
    if (exact := _spelling(answer)) and exact in spelt:
        return spelt.index(exact)
    said = {marks: _words(exact, marks) for marks in (False, True)}
    # A title of nothing but punctuation ("!!!") has no other words than those marks.
    words = [_words(title, False) or _words(title, True) for title in spelt]
    found = [
        number
        for number, (title, own) in enumerate(zip(spelt, words, strict=True))
        if own and spelt.index(title) == number and _within(own, said[not _words(title, False)])
    ]
    whole = [number for number in found if words[number] in said.values()]
    named = whole or [
        number
        for number in found
        if not any(len(words[other]) > len(words[number]) and _within(words[number], words[other]) for other in found)
    ]
    return named[0] if len(named) == 1 else -1


RULES: dict[Match, Callable[[str, Sequence[str]], int]] = {"official": official, "longest": longest}


def _first_line(answer: str) -> str:
    return answer.strip().partition("\n")[0].strip()


def _spelling(text: str) -> str:
    """Compatibility form, lower case, straight quotes, single spaces; without marks that are not seen."""
    text = unicodedata.normalize("NFKC", text.translate(_QUOTES)).casefold().translate(_QUOTES)
    text = "".join(letter for letter in _VARIATION.sub("", text) if unicodedata.category(letter) != "Cf")
    return " ".join(unicodedata.normalize("NFKC", text).split())


def _words(spelling: str, marks: bool) -> tuple[str, ...]:
    """Words, numbers and single symbols (emoji among them); punctuation marks too where ``marks``.

    An apostrophe joins ("schindler's" is one word); any other mark separates.
    """
    words, current = [], ""
    for letter in spelling:
        kind = unicodedata.category(letter)[0]
        if kind in "LNM" and not _UNSPACED.match(letter):
            current += letter
            continue
        if letter == "'" and not marks:
            continue
        if current:
            words.append(current)
            current = ""
        if kind in "LNMS" or (marks and kind == "P"):
            words.append(letter)
    return (*words, current) if current else tuple(words)


def _within(part: tuple[str, ...], whole: tuple[str, ...]) -> bool:
    """Whether ``part`` stands in ``whole`` in one piece."""
    count = len(part)
    return any(whole[start : start + count] == part for start in range(len(whole) - count + 1))
