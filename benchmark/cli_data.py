"""`genrec-bench data`: get, import, show and audit data sets. Heavy imports stay inside the commands."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from genrec_bench.datasets.errors import InputError

if TYPE_CHECKING:
    from genrec_bench.datasets.catalogue import Card
    from genrec_bench.datasets.download import Progress

app = typer.Typer(no_args_is_help=True, pretty_exceptions_enable=False)
MIB = 2**20


@app.command("list")
def list_() -> None:
    """The data sets of the catalogue and those imported."""
    from tabulate import tabulate

    from genrec_bench.datasets import catalogue, store

    prepared = store.list_prepared()
    rows = []
    for name in catalogue.names():
        card = catalogue.card(name)
        rows.append((name, card.title, "yes" if name in prepared else "no", _origin(card)))
    own = [name for name in prepared if name not in catalogue.names()]
    rows += [(name, "imported", "yes", "") for name in own]
    typer.echo(tabulate(rows, headers=["name", "title", "prepared", "files"], disable_numparse=True))


@app.command()
def prepare(
    name: str,
    source: Annotated[Path | None, typer.Option("--from", help="Folder with the files, if you have them.")] = None,
    form: Annotated[str | None, typer.Option("--form", help="Which of the card's forms; see data show.")] = None,
) -> None:
    """Fetch, read, filter and store a data set of the catalogue."""
    from genrec_bench.datasets import store

    data = store.prepare(name, source, _progress(), form)
    typer.echo(f"{name}: {data.num_users:,} users, {data.num_items:,} items, {data.num_interactions:,} interactions")


@app.command("import")
def import_(
    path: Annotated[Path, typer.Argument(help="Folder of the files, or the file of interactions.")],
    format: Annotated[str, typer.Option("--format", help="plain, letter, recbole, s3rec, amazon2014, ...")],
    name: Annotated[str, typer.Option("--name", help="Name to store it under.")],
    column: Annotated[list[str] | None, typer.Option("--column", help="ROLE=COLUMN (plain), such as user=uid.")] = None,
    option: Annotated[list[str] | None, typer.Option("--option", help="KEY=VALUE, an option of the format.")] = None,
    k_core: Annotated[int, typer.Option("--k-core", min=0, help="Keep users and items with K interactions.")] = 0,
    drop_repeats: Annotated[bool, typer.Option("--drop-repeats", help="Keep the first of a user-item pair.")] = False,
) -> None:
    """Read your own files and store them as a data set.

    Format plain: interactions.tsv (or .csv, .parquet, .tsv.gz) with columns
    user_id, item_id, and timestamp (seconds) or order, else the lines are in
    order; if there, items.tsv with item_id, title, description and categories
    (joined by |). For other names: --column user=uid.
    """
    from genrec_bench.datasets import store

    options: dict[str, Any] = _pairs(option or [], "--option")
    if column:
        options["columns"] = _pairs(column, "--column")
    steps: list[dict[str, dict[str, Any]]] = [{"first_of_pair": {}}] if drop_repeats else []
    if k_core:
        steps.append({"k_core": {"users": k_core, "items": k_core}})
    data = store.import_dataset(path, format, name, steps, **options)
    typer.echo(f"{name}: {data.num_users:,} users, {data.num_items:,} items, {data.num_interactions:,} interactions")


@app.command()
def show(name: str) -> None:
    """A data set in numbers, beside the numbers that papers print, with its terms and forms."""
    from tabulate import tabulate

    from genrec_bench.datasets import catalogue, store
    from genrec_bench.datasets.describe import describe

    card = catalogue.card(name) if name in catalogue.names() else None
    ready = name in store.list_prepared()
    if card is None and not ready:
        store.load(name)  # raises the error with the nearest names
    rows: list[tuple[str, ...]] = []
    facts: dict[str, float] = {}
    if ready:
        data = store.load(name)
        facts = describe(data)
        rows.append(("here", *(f"{facts.pop(key):,}" for key in ("users", "items", "interactions"))))
    if card is not None:
        typer.echo(f"{card.title}\nterms: {card.terms}\ncite: {card.citation}")
        for label, text in (("from", ", ".join(card.sources)), ("note", card.note)):
            if text:
                typer.echo(f"{label}: {text}")
        rows += [(p.source, f"{p.users:,}", f"{p.items:,}", f"{p.interactions:,}") for p in card.published]
        for form in card.forms:
            files = ", ".join(file.name for file in form.files) or "generated"
            how = " (fetched)" if form.fetchable else f" (--form {form.name})" if form.on_request else " (--from DIR)"
            typer.echo(f"form {form.name}{how if form.files else ''}: {files}{'. ' + form.note if form.note else ''}")
    if rows:
        typer.echo("\n" + tabulate(rows, headers=["counts", "users", "items", "interactions"], stralign="right"))
    if facts:
        shown = [("sha256", data.sha256)]
        shown += [(key.replace("_", " "), f"{value:.4g}") for key, value in facts.items()]
        typer.echo("\n" + tabulate(shown, disable_numparse=True, tablefmt="plain"))
    if not ready:
        typer.echo(f"\nNot prepared yet. Run: genrec-bench data prepare {name}")


@app.command()
def audit(name: str) -> None:
    """Look for faults; exit code 1 if one of them breaks the protocols."""
    from genrec_bench.datasets import store
    from genrec_bench.datasets.audit import audit as findings_of
    from genrec_bench.datasets.audit import has_errors

    findings = findings_of(store.load(name))
    for finding in findings:
        typer.echo(f"{finding.severity}: {finding.name}: {finding.message}")
        for sample in finding.samples:
            typer.echo(f"    {sample}")
    if not findings:
        typer.echo(f"{name}: nothing found")
    if has_errors(findings):
        raise typer.Exit(1)


def _origin(card: "Card") -> str:
    """How the files of a card are had."""
    by_hand, fetched = card.forms[0].name, next((form for form in card.forms if form.fetchable), None)
    if fetched is None:
        return "by hand, prepare --from DIR"
    if not fetched.files:
        return "generated"
    return (
        "prepare fetches them"
        if fetched is card.forms[0]
        else f"prepare fetches form {fetched.name}; {by_hand} by hand"
    )


def _pairs(values: list[str], flag: str) -> dict[str, str]:
    pairs = {}
    for value in values:
        key, equals, rest = value.partition("=")
        if not key or not equals or not rest:
            raise InputError(f"{flag} {value}: expected KEY=VALUE")
        pairs[key] = rest
    return pairs


def _progress() -> "Progress | None":
    """A line on stderr that counts megabytes; nothing where stderr is not a terminal."""
    if not sys.stderr.isatty():
        return None

    def report(name: str, done: int, total: int | None) -> None:
        of = f" of {total / MIB:,.0f}" if total else ""
        end = "\n" if done == total else ""
        print(f"\r{name}: {done / MIB:,.0f}{of} MiB", end=end, file=sys.stderr, flush=True)

    return report
