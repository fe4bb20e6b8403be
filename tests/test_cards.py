"""Every card is valid, complete and usable; a wrong one is refused with the key."""

import pytest

from genrec_bench.datasets import catalogue
from genrec_bench.datasets.errors import InputError
from genrec_bench.datasets.filters import FILTERS
from genrec_bench.datasets.readers import READERS

EXPECTED = {
    "ml-100k", "ml-1m", "ml-latest-small", "amazon2014-beauty", "amazon2014-sports", "amazon2014-toys",
    "amazon2018-instruments", "amazon2018-arts", "amazon2018-games", "yelp", "steam", "lastfm", "synthetic",
}  # fmt: skip

CARD = """
name: toy
title: Toy
sources: []
terms: none
citation: none
forms:
  - name: plain
    reader: plain
    files: [{name: a.tsv}]
"""


def test_all_cards_are_there() -> None:
    assert set(catalogue.names()) == EXPECTED


@pytest.mark.parametrize("name", sorted(EXPECTED))
def test_card(name: str) -> None:
    card = catalogue.card(name)
    assert card.name == name
    assert card.title
    assert card.terms
    assert len({form.name for form in card.forms}) == len(card.forms)
    for form in card.forms:
        assert form.reader in READERS or (form.reader == "synthetic" and not form.files)
        assert {step for steps in form.filters for step in steps} <= set(FILTERS)
        for file in form.files:
            # a wheel is always checked: it was seen when the card was written
            assert file.sha256 or not file.wheel
            assert (file.wheel is None) or file.member
    if name != "synthetic":
        assert card.published
        assert card.sources
        assert card.citation


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("title: Toy", "titel: Toy"), "toy.yaml: unknown card key 'titel'. Did you mean: title"),
        (("reader: plain", "raeder: plain"), "unknown card key 'forms.0.raeder'. Did you mean: reader"),
        (("{name: a.tsv}", "{name: a.tsv, sha265: x}"), "Did you mean: sha256"),
        (("{name: a.tsv}", "{name: a.tsv, sha256: abc}"), "card key 'forms.0.files.0.sha256'"),
        (("{name: a.tsv}", "{name: ../a.tsv}"), "card key 'forms.0.files.0.name'"),
        (("terms: none\n", ""), "card key 'terms'"),
        (("sources: []", "sources: ["), "toy.yaml is not valid YAML"),
        (("name: toy", "name: a b"), "card key 'name'"),
    ],
)
def test_wrong_cards_are_refused(change: tuple[str, str], message: str) -> None:
    assert catalogue.parse(CARD, "toy.yaml").forms[0].reader == "plain"
    with pytest.raises(InputError, match=message):
        catalogue.parse(CARD.replace(*change), "toy.yaml")


def test_unknown_names() -> None:
    with pytest.raises(InputError, match="Did you mean: ml-100k"):
        catalogue.card("ml-100")
    with pytest.raises(InputError, match="Did you mean: official"):
        catalogue.card("ml-100k").form("oficial")


def test_the_card_of_lastfm_says_what_is_not_there() -> None:
    """Its sequences have no times, and some of its artists no name."""
    note = catalogue.card("lastfm").form("plain").note
    assert "without timestamps" in note
    assert "the other 86 have none" in note
