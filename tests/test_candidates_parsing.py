"""Which candidate an answer names: every trap of the protocol, under both rules."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from genrec_bench.methods.candidates.parsing import longest, official, pick

ALIENS = ["Alien", "Aliens", "Alien Resurrection", "Heat"]
LONG = "very long title " * 125  # 2,000 characters

# answer, titles, official, longest
TRAPS = {
    "exact": ("Heat", ALIENS, 3, 3),
    "case": ("hEAT", ALIENS, 3, 3),
    "in a sentence": ("You should watch Heat next.", ALIENS, 3, 3),
    "none": ("Jaws", ALIENS, -1, -1),
    "nothing": ("", ALIENS, -1, -1),
    "spaces only": (" \n\t ", ALIENS, -1, -1),
    "two titles": ("Heat or Alien", ALIENS, -1, -1),
    "one title twice": ("Heat. Yes, Heat!", ALIENS, 3, 3),
    "nested in letters": ("Aliens", ALIENS, -1, 1),  # the official rule also finds "Alien"
    "shortest of the nested": ("Alien", ALIENS, 0, 0),
    "nested in words": ("Alien Resurrection", ALIENS, -1, 2),
    "nested, in a sentence": ("I recommend Alien Resurrection.", ALIENS, -1, 2),
    "longer one beside the shorter": ("Alien Resurrection, not Alien", ALIENS, -1, 2),
    "longer ones of the nested": ("Aliens and Alien Resurrection", ALIENS, -1, -1),
    "later lines do not count": ("Heat\nAlien\nAliens", ALIENS, 3, 3),
    "empty lines before": ("\n\n  Heat\r\nAlien", ALIENS, 3, 3),
    "first line is talk": ("Sure:\nHeat", ALIENS, -1, -1),
    "accident in a word": ("Cheating is wrong", ALIENS, 3, -1),
    "short title in a word": ("Item 12", ["It", "Antz"], 0, -1),
    "quoted": ('"Heat"', ALIENS, 3, 3),
    "curly quotes": ("“Heat”", ALIENS, 3, 3),
    "starred": ("**Heat**", ALIENS, 3, 3),
    "numbered": ("4. Heat", ALIENS, 3, 3),
    "marked": ("Heat [DSR] [IID 3]", ALIENS, 3, 3),
    "double space": ("Alien  Resurrection", ALIENS, 0, 2),
    "no-break space": ("Alien\u00a0Resurrection", ALIENS, 0, 2),
    "hyphen for a space": ("Alien-Resurrection", ALIENS, 0, 2),
    "apostrophe": ("Schindler’s List (1993)", ["Schindler's List (1993)", "Heat"], -1, 0),
    "no apostrophe": ("Schindlers List (1993)", ["Schindler's List (1993)", "Heat"], -1, 0),
    "accent apart": ("Ame\u0301lie", ["Am\u00e9lie", "Heat"], -1, 0),
    "no accent": ("Amelie", ["Am\u00e9lie", "Heat"], -1, -1),
    "full width": ("Ｈｅａｔ", ALIENS, -1, 3),
    "ligature": ("The ﬁrm", ["The Firm", "Heat"], -1, 0),
    "sharp s": ("DAS WEISSE BAND", ["Das weiße Band", "Heat"], -1, 0),
    "left out punctuation": ("Mission Impossible", ["Mission: Impossible", "Heat"], -1, 0),
    "added punctuation": ("Mission: Impossible!", ["Mission Impossible", "Heat"], -1, 0),
    "differ in punctuation only": ("Up!", ["Up", "Up!"], -1, 1),
    "differ in punctuation, vague": ("up?", ["Up.", "Up!"], -1, -1),
    "brackets": ("[REC]", ["[Rec]", "Rec 2"], 0, 0),
    "brackets left out": ("rec", ["[Rec]", "Rec 2"], -1, 0),
    "year in brackets": ("Heat (1995)", ["Heat (1995)", "Heat (1986)"], 0, 0),
    "year left out": ("Heat", ["Heat (1995)", "Jaws (1975)"], -1, -1),
    "only punctuation": ("!!!", ["!!!", "Muse"], 0, 0),
    "only punctuation, in a sentence": ("Listen to !!!", ["!!!", "Muse"], 0, 0),
    "only punctuation, not meant": ("Muse!", ["!!!", "Muse"], 1, 1),
    "plus and a number": ("+44", ["+44", "44"], -1, 0),
    "emoji": ("🎬 Heat", ["🎬", "🎬 Heat"], -1, 1),
    "emoji alone": ("I pick 🦈!", ["🦈", "Heat"], 0, 0),
    "emoji as a picture": ("I pick ☺\ufe0f", ["☺", "☺☺"], 0, 0),
    "joined emoji": ("👩\u200d🚀", ["👩\u200d🚀", "🚀"], -1, 0),
    "right to left": ("אני ממליץ על ואלס עם באשיר", ["ואלס עם באשיר", "עם"], -1, 0),
    "direction marks": ("\u200fואלס\u200f", ["ואלס", "Heat"], 0, 0),
    "arabic": ("فيلم وجدة", ["وجدة", "Heat"], 0, 0),
    "no spaces between words": ("我推荐霸王别姬", ["霸王别姬", "霸王"], -1, 0),
    "kana": ("次は「となりのトトロ」です", ["となりのトトロ", "Heat"], 0, 0),
    "devanagari": ("मैं दंगल देखूँ", ["दंगल", "द"], -1, 0),
    "empty title": ("Heat", ["", "Heat"], 1, 1),
    "empty answer, empty title": ("", ["", "Heat"], -1, -1),
    "blank title": ("Heat", ["  ", "Heat"], 1, 1),
    "equal titles": ("Heat", ["Jaws", "Heat", "Heat"], -1, 1),
    "equal but for the case": ("Watch Heat", ["HEAT", "Heat"], -1, 0),
    "2,000 characters": (f"I pick {LONG}", [LONG, "very long"], -1, 0),
    "2,000 characters of nothing": ("no " * 666, ALIENS, -1, -1),
    "cut title": ("Very long ti…", ["Very long ti…", "Very long"], -1, 0),
    "regular expression": ("a.b", ["a.b", "acb"], 0, 0),
}  # fmt: skip


@pytest.mark.parametrize("trap", TRAPS)
def test_traps(trap):
    answer, titles, by_official, by_longest = TRAPS[trap]
    assert (pick(answer, titles, "official"), pick(answer, titles, "longest")) == (by_official, by_longest)


@given(st.text(max_size=40), st.lists(st.text(max_size=12), max_size=6))
def test_any_text_gives_a_candidate_or_none(answer, titles):
    for rule in (official, longest):
        picked = rule(answer, titles)
        assert -1 <= picked < len(titles)
        assert picked == -1 or titles[picked].strip()


@given(st.lists(st.text("ab !'é界", min_size=1, max_size=6), min_size=1, max_size=6), st.data())
def test_a_title_spelt_out_names_itself(titles, data):
    """Whatever stands beside it; the first of those that only differ in what is not seen."""
    number = data.draw(st.integers(0, len(titles) - 1))
    if titles[number].strip():
        picked = longest(titles[number], titles)
        assert titles[picked].split() == titles[number].split()
