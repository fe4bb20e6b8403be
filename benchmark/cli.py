"""The command line. Heavy libraries are imported inside the commands, so that ``--help`` answers at once.

Bad input ends in exit code 2 and one message; an interrupted run in 130; a run with empty cells in 1.
"""

import sys
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from genrec_bench.benchmark import engines
from genrec_bench.benchmark.cli_data import app as data_app
from genrec_bench.datasets.errors import InputError, unknown
from genrec_bench.methods import distributed

if TYPE_CHECKING:
    from genrec_bench.benchmark.suite import Suite

app = typer.Typer(
    name="genrec-bench",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
app.add_typer(data_app, name="data", help="Get, import, describe and audit data sets.")

SuiteArgument = Annotated[Path | None, typer.Argument(help="Suite file (YAML).", show_default=False)]
MethodOption = Annotated[
    list[str] | None, typer.Option("--method", help="Method, or label of a suite's row; may be repeated.")
]
DatasetOption = Annotated[list[str] | None, typer.Option("--dataset", help="Data set; may be repeated.")]
ScaleOption = Annotated[
    str | None, typer.Option("--scale", help="tiny, base or paper; by default the suite's, or tiny.")
]
ResultsOption = Annotated[Path, typer.Option("--results", help="Folder of the records.")]
PluginOption = Annotated[list[str] | None, typer.Option("--plugin", help="Python file that registers methods.")]
EngineOption = Annotated[str, typer.Option("--engine", help="local, or ray: many GPUs and machines.")]
AddressOption = Annotated[str | None, typer.Option("--address", help="Ray to join (HOST:6379); default: start one.")]
DEFAULT_RESULTS = Path("results")


def _version(asked: bool) -> None:
    if asked:
        print(f"genrec-bench {metadata.version('genrec-bench')}")
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version and stop.")
    ] = False,
) -> None:
    """Generative recommenders and their rivals under one honest protocol."""


@app.command()
def quickstart(
    results: ResultsOption = DEFAULT_RESULTS / "quickstart",  # apart from the published records: it really runs
    quiet: Annotated[bool, typer.Option("--quiet", help="Print the tables only.")] = False,
) -> None:
    """Run the default suite on MovieLens-100K and print its tables."""
    from genrec_bench.benchmark.suite import read_suite, suite_folder

    suite = read_suite(suite_folder() / "quickstart.yaml")
    _run_and_print(suite, results, {}, quiet)


@app.command()
def run(
    suite: SuiteArgument = None,
    method: MethodOption = None,
    dataset: DatasetOption = None,
    protocol: Annotated[
        list[str] | None,
        typer.Option("--protocol", help="full or cand20, may be repeated; by default the suite's, or full."),
    ] = None,
    seeds: Annotated[
        str | None, typer.Option("--seeds", help="Seeds, such as 0,1,2; by default the suite's, or 0.")
    ] = None,
    scale: ScaleOption = None,
    set_: Annotated[list[str] | None, typer.Option("--set", help="METHOD.KEY=VALUE; may be repeated.")] = None,
    mask_seen: Annotated[bool, typer.Option("--mask-seen", help="Leave seen items out of every answer.")] = False,
    exclude: Annotated[
        str | None,
        typer.Option(
            "--exclude",
            help="Negatives of cand20 are none of the user's: sequence (all items), or window (the ten shown; LLaRA).",
        ),
    ] = None,
    results: ResultsOption = DEFAULT_RESULTS,
    time_budget: Annotated[
        str | None, typer.Option("--time-budget", help="Of one run, such as 25m; a bare number is seconds.")
    ] = None,
    plugin: PluginOption = None,
    jobs: Annotated[
        int | None, typer.Option("--jobs", min=1, help="Runs at a time (default: a GPU or core each).")
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Run again what has a record already.")] = False,
    keep_models: Annotated[bool, typer.Option("--keep-models", help="Keep trained models, for recommend.")] = False,
    track: Annotated[
        list[str] | None,
        typer.Option("--track", help="tensorboard, mlflow or wandb, or NAME=PLACE; may be repeated."),
    ] = None,
    engine: EngineOption = "local",
    address: AddressOption = None,
    resources: Annotated[
        list[str] | None, typer.Option("--resources", help="METHOD.cpus=4, .gpus, .memory_mib, .processes (ray).")
    ] = None,
    quiet: Annotated[bool, typer.Option("--quiet", help="Print the tables only.")] = False,
) -> None:
    """Run what is missing of a suite, or of METHODS x DATASETS x SEEDS, and print the tables."""
    from genrec_bench.benchmark.suite import parse_settings

    given: dict[str, Any] = {
        "methods": method,
        "datasets": dataset,
        "protocols": protocol,
        "seeds": _seeds(seeds),
        "scale": scale,
        "mask_seen": mask_seen or None,
        "exclude": exclude,
        "time_budget": time_budget,
        "keep_models": keep_models or None,
        "plugins": plugin,
    }
    chosen = _chosen(suite, given)
    settings, on_ray = parse_settings(set_ or []), _on_ray(engine, address, resources)
    _run_and_print(chosen, results, settings, quiet=quiet, force=force, jobs=jobs, track=track or [], on_ray=on_ray)


def _chosen(path: Path | None, given: dict[str, Any]) -> "Suite":
    """The suite of a file, of options alone (None: an option that was not given), or of both."""
    from genrec_bench.benchmark.suite import make_suite, read_suite, rows

    given = {key: value for key, value in given.items() if value is not None}
    if path is not None:
        whole = read_suite(path)
        if names := given.get("methods"):
            given["methods"] = [row.model_dump() for row in rows(whole, names)]
        return make_suite({**whole.model_dump(), **given})
    if given.get("methods") and given.get("datasets"):
        return make_suite(given)
    raise InputError("Give a suite file, or --method and --dataset")


def _on_ray(engine: str, address: str | None, resources: list[str] | None) -> dict[str, Any] | None:
    """What only the engine ray asks for; None: the local one."""
    from genrec_bench.benchmark.suite import parse_settings

    return engines.on_ray(engine, address, parse_settings(resources or [], "--resources"), dash="--")


def _seeds(text: str | None) -> list[int] | None:
    if text is None:
        return None
    try:
        return [int(part) for part in text.split(",")]
    except ValueError:
        raise InputError(f"--seeds '{text}': expected whole numbers, such as 0,1,2") from None


def _run_and_print(
    suite: "Suite",
    results: Path,
    settings: dict[str, dict[str, Any]],
    quiet: bool,
    force: bool = False,
    jobs: int | None = None,
    track: Sequence[str] = (),
    on_ray: dict[str, Any] | None = None,
) -> None:
    from genrec_bench.benchmark import standings, trackers
    from genrec_bench.benchmark.in_step import run_in_step
    from genrec_bench.benchmark.runner import Interrupted
    from genrec_bench.benchmark.suite import cells, left_out, refuse_unused, seconds

    grid, others = cells(suite, settings), left_out(suite)
    if on_ray is not None:
        refuse_unused(on_ray["resources"], suite, "--resources")
    reasons = [f"{name} takes part in {' and '.join(theirs)} only" for name, theirs in others.items()]
    if not grid:
        raise InputError(f"Nothing to run: {'; '.join(reasons)}: add --protocol {next(iter(others.values()))[0]}")
    together, first = distributed.world_size() > 1, distributed.rank() == 0
    progress = trackers.progress(quiet or not first, track if first else (), results)
    for reason in reasons:
        progress.say(f"left out: {reason}")
    try:
        budget_s = seconds(suite.time_budget) if suite.time_budget else None
        if together:
            if budget_s or jobs:
                progress.say("Under torchrun runs go one after the other, and have no time budget")
            outcome = run_in_step(grid, results, progress, force, suite.keep_models)
        else:
            outcome = engines.run_cells(grid, results, progress, budget_s, force, jobs, suite.keep_models, on_ray)
    except Interrupted as signal_name:
        print(
            f"Stopped by {signal_name}: finished runs are recorded; the same command goes on from here", file=sys.stderr
        )
        raise typer.Exit(130) from None
    progress.say(
        f"{outcome.done} run, {outcome.already} already there, {len(outcome.failed)} failed; records in {results}"
    )
    if suite.keep_models and outcome.done + outcome.already:
        progress.say(f"Models that were kept: genrec-bench recommend --results {results}")
    if first:
        print(standings.render(results, "text", run_ids=outcome.run_ids, bold=sys.stdout.isatty()))
    if outcome.failed:
        raise typer.Exit(1)


@app.command()
def tune(
    suite: SuiteArgument = None,
    method: MethodOption = None,
    dataset: DatasetOption = None,
    trials: Annotated[int, typer.Option("--trials", min=1, help="Of each method on each data set.")] = 20,
    time_budget: Annotated[str | None, typer.Option("--time-budget", help="Of each search, such as 30m.")] = None,
    protocol: Annotated[str | None, typer.Option("--protocol", help="full or cand20.")] = None,
    scale: ScaleOption = None,
    seed: Annotated[int, typer.Option("--seed", min=0, help="Of the search.")] = 0,
    set_: Annotated[list[str] | None, typer.Option("--set", help="METHOD.KEY=VALUE that is not searched.")] = None,
    mask_seen: Annotated[bool, typer.Option("--mask-seen", help="Leave seen items out of every answer.")] = False,
    results: ResultsOption = DEFAULT_RESULTS,
    output: Annotated[
        Path | None, typer.Option("--output", help="Suite with the best settings (default: RESULTS/tuned.yaml).")
    ] = None,
    plugin: PluginOption = None,
    engine: EngineOption = "local",
    address: AddressOption = None,
    resources: Annotated[list[str] | None, typer.Option("--resources", help="As of run (ray).")] = None,
    jobs: Annotated[int | None, typer.Option("--jobs", min=1, help="Trials at a time (ray).")] = None,
    quiet: Annotated[bool, typer.Option("--quiet", help="Print the result only.")] = False,
) -> None:
    """Search methods' settings, or a suite's rows', on validation, with the same trials and time for each."""
    from genrec_bench.benchmark import tuning, tuning_report
    from genrec_bench.benchmark.progress import Progress
    from genrec_bench.benchmark.runner import Interrupted
    from genrec_bench.benchmark.suite import parse_settings, seconds

    given = {"methods": method, "datasets": dataset, "scale": scale, "mask_seen": mask_seen or None, "plugins": plugin}
    chosen = _chosen(suite, {**given, "protocols": [protocol] if protocol else None})
    if distributed.world_size() > 1:
        raise InputError("genrec-bench tune runs without torchrun; --engine ray takes several GPUs")
    settings, on_ray = parse_settings(set_ or []), _on_ray(engine, address, resources)
    if jobs and on_ray is None:
        raise InputError("--jobs is of --engine ray: without it trials go one after the other")
    budget_s = seconds(time_budget) if time_budget else None
    try:
        studies = tuning.tune(chosen, settings, results, Progress(quiet), trials, budget_s, seed, jobs, on_ray)
    except Interrupted as signal_name:
        print(f"Stopped by {signal_name}: finished trials are recorded; the same command goes on", file=sys.stderr)
        raise typer.Exit(130) from None
    path = output or results / "tuned.yaml"
    tuning_report.write_suite(studies, path, chosen)
    print(tuning_report.report(studies))
    print(f"\nThe best settings: genrec-bench run {path}")
    if any(study.best is None for study in studies):
        raise typer.Exit(1)


@app.command()
def recommend(
    run: Annotated[str | None, typer.Option("--run", help="Run id, its beginning, or its folder; none: list.")] = None,
    user: Annotated[str | None, typer.Option("--user", help="A user of the data set.")] = None,
    history: Annotated[str | None, typer.Option("--history", help="Item ids, oldest first: a,b,c.")] = None,
    k: Annotated[int, typer.Option("--k", min=1, help="Items asked for.")] = 10,
    mask_seen: Annotated[
        bool | None, typer.Option("--mask-seen/--keep-seen", help="Leave items of the history out (default: as run).")
    ] = None,
    results: ResultsOption = DEFAULT_RESULTS,
    plugin: PluginOption = None,
    format: Annotated[str, typer.Option("--format", help="text or json.")] = "text",
) -> None:
    """What a kept run recommends to a user, or after a history; without --run, the runs that can be asked."""
    from genrec_bench.benchmark import recommend as kept_runs

    if format not in kept_runs.FORMATS:
        raise unknown("format", format, kept_runs.FORMATS)
    if run is None and user is None and history is None:
        print(kept_runs.list_kept(results))
        return
    if run is None or (user is None) == (history is None):
        raise InputError("Give --run, and either --user or --history")
    users = [] if user is None else [user]
    histories = [] if history is None else [[item.strip() for item in history.split(",")]]
    kept = kept_runs.load_run(run, results, plugin or [])
    (answer,) = kept.recommend(users, histories, k, mask_seen)
    print(kept_runs.render(kept, kept.asked(users, histories, mask_seen), answer, user, format))
    if len(answer) < k:
        print(f"The method names {len(answer)} items here, not {k}", file=sys.stderr)


@app.command()
def analyse(
    run: Annotated[str, typer.Option("--run", help="Id (or its beginning) of a kept run, or its record's folder.")],
    user: Annotated[str | None, typer.Option("--user", help="Show this user in full.")] = None,
    output: Annotated[Path | None, typer.Option("--output", help="Folder for pictures.")] = None,
    results: ResultsOption = DEFAULT_RESULTS,
    plugin: PluginOption = None,
) -> None:
    """Which users each part of a kept run serves, how alike its answers are, what validation chose; on test targets."""
    from genrec_bench.benchmark import recommend as kept_runs
    from genrec_bench.benchmark.analysis import Analysis

    analysis = Analysis(kept_runs.load_run(run, results, plugin or []))
    print(analysis.report(user))
    for path in [] if output is None else analysis.draw(output):
        print(path)


@app.command()
def methods(
    name: Annotated[str | None, typer.Argument(help="Show one method's config.", show_default=False)] = None,
    plugin: PluginOption = None,
) -> None:
    """List the methods, or show one method's config with defaults and search space."""
    from genrec_bench.benchmark.describe_methods import list_methods, show_method
    from genrec_bench.methods import registry

    for path in plugin or []:
        registry.load_plugin(path)
    print(show_method(name) if name else list_methods())


@app.command()
def leaderboard(
    results: ResultsOption = DEFAULT_RESULTS,
    format: Annotated[str, typer.Option("--format", help="text, md, csv, latex, json or html.")] = "text",
    dataset: Annotated[str | None, typer.Option("--dataset", help="Only this data set.")] = None,
    protocol: Annotated[str | None, typer.Option("--protocol", help="Only full, or cand20.")] = None,
    scale: Annotated[str | None, typer.Option("--scale", help="Only tiny, base or paper.")] = None,
    method: Annotated[
        list[str] | None, typer.Option("--method", help="Only this method, or label; repeatable.")
    ] = None,
    output: Annotated[Path | None, typer.Option("--output", help="Write to this file instead of printing.")] = None,
) -> None:
    """Tables of all records: intervals, ties with the best, cost, printed numbers beside measured ones."""
    from genrec_bench.benchmark import standings

    asked = {"protocol": protocol and [protocol], "tier": scale and [scale], "method": method}
    only = {what: names for what, names in asked.items() if names}
    text = standings.render(results, format, dataset=dataset, only=only)
    if output is None:
        print(text)
    else:
        _write(output, text)


@app.command()
def plot(
    output: Annotated[Path, typer.Option("--output", help="Folder of the pictures.")],
    results: ResultsOption = DEFAULT_RESULTS,
    format: Annotated[str, typer.Option("--format", help="png or svg.")] = "png",
    dataset: Annotated[str | None, typer.Option("--dataset", help="Only this data set.")] = None,
) -> None:
    """The report's figures as files: quality against cost, slices, curves, settings, ranks over data sets."""
    from genrec_bench.benchmark import plots

    for path in plots.draw(results, output, format, dataset):
        print(path)


def _write(path: Path, text: str) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text if text.endswith("\n") else text + "\n", encoding="utf-8")
    except OSError as error:
        raise InputError(f"Cannot write {path}: {error.strerror}") from None


@app.command()
def compare(
    a: Annotated[str, typer.Argument(help="Method (or label).")],
    b: Annotated[str, typer.Argument(help="Method (or label).")],
    results: ResultsOption = DEFAULT_RESULTS,
) -> None:
    """Paired tests between two methods, over users, on every data set and protocol that both have run."""
    from genrec_bench.benchmark import compare as comparison

    print(comparison.render(results, a, b))


@app.command()
def submit(
    run: Annotated[Path, typer.Argument(help="Folder of a run's record: RESULTS/DATASET/METHOD/RUN.")],
    output: Annotated[Path | None, typer.Option("--output", help="File or folder (default: here).")] = None,
) -> None:
    """Pack a run (rankings, config, provenance) for another leaderboard, once its numbers have been verified."""
    from genrec_bench.benchmark import submission

    print(submission.pack(run, output))


@app.command()
def verify(
    package: Annotated[Path, typer.Argument(help="Package that `submit` wrote, or a run's folder.")],
    add: Annotated[bool, typer.Option("--add", help="Store it among the records, marked as an outside one.")] = False,
    results: ResultsOption = DEFAULT_RESULTS,
) -> None:
    """Recompute a run's metrics from its rankings; refuse other data, other rules or other numbers, with the reason."""
    from genrec_bench.benchmark import submission

    verified = submission.verify(package)
    print(verified)
    if add:
        print(submission.add(verified, results))


@app.command("new-method")
def new_method(
    name: Annotated[str, typer.Argument(help="Name of the method, such as my_method.")],
    folder: Annotated[Path, typer.Option("--folder", help="Where to write.")] = Path("."),
) -> None:
    """Write a runnable method in one file, and its test."""
    from genrec_bench.benchmark.scaffold import write_method

    for path in write_method(name, folder):
        print(path)


@app.command()
def check(
    file: Annotated[Path, typer.Argument(help="Python file that registers a method, or a method's name.")],
) -> None:
    """The contract suite against a method: determinism, no held-out items, valid answers, save and load, resume."""
    from genrec_bench.benchmark.contract import check_methods

    if not check_methods(str(file), print):
        raise typer.Exit(1)


@app.command()
def doctor() -> None:
    """What is installed, which devices, which optional parts are missing and how to get them."""
    from genrec_bench.benchmark.doctor import diagnose

    print(diagnose())


def main() -> None:
    """Entry point: InputError becomes one message and exit code 2."""
    try:
        app()
    except InputError as error:
        if distributed.rank() == 0:
            print(f"genrec-bench: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        sys.exit(130)


if __name__ == "__main__":
    main()
