"""What `genrec-bench methods` prints."""

import inspect
import io
import tokenize
from collections.abc import Container, Iterator
from textwrap import dedent
from types import UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel
from tabulate import tabulate

from genrec_bench.datasets.errors import InputError
from genrec_bench.methods import registry

WIDEST = [None, 26, 16, 22, 42]  # letters of a column, then lines break
BODY = 4  # columns that a class's fields are indented by


def list_methods() -> str:
    """One line a method: name, family, what it is, or why an installed package's cannot be had."""
    rows = []
    for name in registry.names():
        try:
            cls = registry.get(name)
        except InputError as error:
            rows.append([name, "-", "-", str(error)])
            continue
        protocols = [*["full"] * cls.full_protocol(), *["cand20"] * cls.candidate_protocol()]
        rows.append([name, cls.family, ", ".join(protocols), _first_line(cls.__doc__)])
    return tabulate(rows, headers=["method", "family", "protocols", "what it is"])


def show_method(name: str) -> str:
    """A method's config, keys as ``--set`` takes them: types, defaults, what a search may try, and what they mean."""
    cls = registry.get(name)
    space, defaults = cls.Config.search_space, cls.Config.model_construct()  # an outside one may want values
    rows = [[*row, _span(space.get(row[0], [])), meaning] for *row, meaning in _settings(cls.Config, defaults)]
    listed = {row[0] for row in rows}  # settings of a method within this one are not, but those that are searched
    rows += [[key, "", _default(defaults, key), _span(space[key]), ""] for key in space if key not in listed]
    headers = ["key", "type", "default", "search", "what it is"]
    table = tabulate(rows, headers=headers, disable_numparse=True, maxcolwidths=WIDEST)
    return f"{name}: {_first_line(cls.__doc__)}\n\n{table if rows else 'no settings'}"


def _settings(model: type[BaseModel], values: BaseModel | None, above: str = "") -> Iterator[list[str]]:
    """Key, type, default and meaning of each field, those of nested settings with the path to them.

    ``values`` are the defaults; None where the whole block is off by default: then its fields' own defaults.
    """
    meanings = _meanings(model)
    for name, field in model.model_fields.items():
        key, meaning = f"{above}{name}", field.description or meanings.get(name, "")
        own = "required" if field.is_required() else field.get_default(call_default_factory=True)
        default = getattr(values, name, own)
        block = _block(field.annotation)
        if block is None:
            yield [key, _type(field.annotation), _shortened(default), meaning]
            continue
        if type(None) in get_args(field.annotation):
            yield [key, "block or null", "null" if default is None else "as below", meaning]
        yield from _settings(block, default if isinstance(default, BaseModel) else None, f"{key}.")


def _meanings(model: type[BaseModel]) -> dict[str, str]:
    """The comment behind or above each field; of one that a class declares anew without any, the base's."""
    found: dict[str, str] = {}
    for cls in reversed(model.__mro__):
        if issubclass(cls, BaseModel) and cls is not BaseModel:
            try:
                found |= _comments(dedent(inspect.getsource(cls)), cls.__annotations__)
            except (OSError, TypeError):  # an installed method without its source
                continue
    return found


def _comments(source: str, fields: Container[str]) -> dict[str, str]:
    """The comments of ``fields`` in a class's ``source``: behind the declaration, else on the lines right above."""
    found: dict[str, str] = {}
    field, above = "", ""
    for kind, text, (_, column), _, line in tokenize.generate_tokens(io.StringIO(source).readline):
        if kind == tokenize.NAME and column == BODY and text in fields:
            field = text
            if above:
                found[field] = above
        elif kind == tokenize.COMMENT:
            words = text.lstrip("# ").replace("None", "null")
            if field:
                found[field] = words
            elif column == BODY:
                above = f"{above} {words}".strip()
        if kind == tokenize.NEWLINE or not line.strip():
            field, above = "", ""
    return found


def _default(values: Any, key: str) -> str:
    """The default at a dotted key; nothing where its group is left out, or has no such setting."""
    for part in key.split("."):
        values = values.get(part) if isinstance(values, dict) else getattr(values, part, None)
    return "" if values is None else _shortened(values)


def _block(annotation: Any) -> type[BaseModel] | None:
    """The model of a nested block of settings, optional or not."""
    for one in (annotation, *get_args(annotation)):
        if isinstance(one, type) and issubclass(one, BaseModel):
            return one
    return None


def _shortened(value: Any) -> str:
    """A default in a cell of the table; settings of another method only by their number."""
    if isinstance(value, dict) and value:
        return f"{len(value)} settings"
    if value is None:
        return "null"
    if isinstance(value, (tuple, list)):
        return f"[{', '.join(map(str, value))}]"
    return str(value).lower() if isinstance(value, bool) else str(value)


def _span(space: list[Any] | tuple[float, float]) -> str:
    """What a search may try, in a cell of the table."""
    return f"{space[0]:g} .. {space[1]:g} (log)" if isinstance(space, tuple) else ", ".join(map(str, space))


def _type(annotation: Any) -> str:
    """A field's type as a person writes its values."""
    if annotation is type(None):
        return "null"
    origin, inner = get_origin(annotation), get_args(annotation)
    if origin is Literal:
        return " | ".join(str(value) for value in inner)
    if origin is Annotated:
        return _type(inner[0])
    if origin in (Union, UnionType):
        return " | ".join(map(_type, inner))
    if origin in (tuple, list):
        return f"list of {' | '.join(dict.fromkeys(_type(one) for one in inner if one is not Ellipsis))}"
    return getattr(origin or annotation, "__name__", str(annotation))


def _first_line(text: str | None) -> str:
    return (text or "").strip().partition("\n")[0]
