"""What `genrec-bench methods` prints."""

from typing import Any, Literal, get_args, get_origin

from tabulate import tabulate

from genrec_bench.datasets.errors import InputError
from genrec_bench.methods import registry


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
    """A method's config: fields, types, defaults, and what a search may try."""
    cls = registry.get(name)
    rows = []
    for key, field in cls.Config.model_fields.items():
        span = _span(cls.Config.search_space.get(key, []))
        rows.append([key, _type(field.annotation), str(field.get_default(call_default_factory=True)), span])
    for key in [key for key in cls.Config.search_space if "." in key]:
        rows.append([key, "", "", _span(cls.Config.search_space[key])])
    table = tabulate(rows, headers=["key", "type", "default", "search"], disable_numparse=True)
    return f"{name}: {_first_line(cls.__doc__)}\n\n{table if rows else 'no settings'}"


def _span(space: list[Any] | tuple[float, float]) -> str:
    """What a search may try, in a cell of the table."""
    return f"{space[0]:g} .. {space[1]:g} (log)" if isinstance(space, tuple) else ", ".join(map(str, space))


def _type(annotation: Any) -> str:
    """A field's type as a person writes its values."""
    if get_origin(annotation) is Literal:
        return " | ".join(str(value) for value in get_args(annotation))
    return getattr(annotation, "__name__", None) or str(annotation).replace("typing.", "")


def _first_line(text: str | None) -> str:
    return (text or "").strip().partition("\n")[0]
