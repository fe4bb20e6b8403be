"""Results from outside: a run packed into one file, and the proof of its numbers from its own rankings.

    genrec-bench submit results/ml-100k/my_method/0ff6c51e0a3b2d44     the person who ran it
    genrec-bench verify my_method-ml-100k-0ff6c51e0a3b2d44.zip --add   the person who keeps the leaderboard

What is verified: the data set's and the protocol's hash, that the users are the test users, that every list keeps the
protocol's rules, and that ranks, metrics and slices follow from the lists. What cannot be: that the lists were made by
the method and config that the record names, its cost, its seed; those stay the sender's word, and the row is marked.
"""

import io
import tempfile
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from genrec_bench.benchmark import metrics, records
from genrec_bench.benchmark.evaluate import Answers, MethodFault, check_ranking, picked_ranks
from genrec_bench.benchmark.protocols import Full, ProtocolRules, protocol
from genrec_bench.benchmark.records import Record
from genrec_bench.benchmark.statistics import Interval
from genrec_bench.benchmark.tables import clean
from genrec_bench.datasets import store
from genrec_bench.datasets.errors import InputError
from genrec_bench.datasets.interactions import InteractionData
from genrec_bench.datasets.splits import HeldOut, Split
from genrec_bench.methods.base import Ranking

LIMITS = {"run.json": 4 * 2**20, "ranks.parquet": 64 * 2**20, "rankings.parquet": 512 * 2**20}  # bytes, unpacked
LONGEST_LIST = 100  # entries of a user in a Parquet file's column: far more than any protocol asks for
ROUNDING = 1e-9
RESAMPLING = 0.25  # of an interval's width: how far its ends may move between versions of the random generator


@dataclass(frozen=True)
class Verified:
    """A run whose numbers follow from its rankings; ``record`` holds our numbers, not the sender's."""

    record: Record
    ranks: np.ndarray  # (U,) int64
    ranking: Ranking
    split: Split

    def __str__(self) -> str:
        record = self.record
        numbers = ", ".join(f"{name} {one.mean:.4f}" for name, one in list(record.metrics.items())[:4])
        return (
            f"Verified: {clean(record.label)}, seed {record.seed}, on {record.dataset.name} ({record.protocol.name}): "
            f"{record.evaluated_users:,} users, {len(record.metrics)} metrics and {len(record.slices)} slices follow "
            f"from the rankings. {numbers}"
        )


def pack(run_dir: Path, output: Path | None = None) -> Path:
    """Verify a run of one's own and write it as one zip file; the same run gives the same bytes.

    ``output`` is a file or a folder, by default the current folder. Raises InputError as `verify` does.
    """
    if not (Path(run_dir) / "run.json").is_file():
        raise InputError(
            f"{run_dir}: not the folder of a run; a run is RESULTS/DATASET/METHOD/RUN, with a run.json in it"
        )
    record = verify(run_dir).record
    name = f"{record.method}-{record.dataset.name}-{record.run_id}.zip"
    path = Path(name) if output is None else output / name if output.is_dir() else output
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as package:
        for each in LIMITS:
            entry = zipfile.ZipInfo(each)  # no date of today's
            entry.compress_type = zipfile.ZIP_DEFLATED
            package.writestr(entry, (Path(run_dir) / each).read_bytes())
    try:
        path.write_bytes(buffer.getvalue())
    except OSError as error:
        raise InputError(f"Cannot write {path}: {error.strerror}") from None
    return path


def verify(package: Path) -> Verified:
    """Recompute what a packed run, or a run's folder, claims; InputError with the reason where it differs."""
    package = Path(package)
    if not package.exists():
        raise InputError(f"{package}: no such file or folder")
    if package.is_dir():
        return _verify(package)
    with tempfile.TemporaryDirectory() as folder:
        for name, content in _unpacked(package).items():
            (Path(folder) / name).write_bytes(content)
        try:
            return _verify(Path(folder))
        except InputError as error:
            raise InputError(str(error).replace(folder, str(package))) from None


def add(verified: Verified, results_dir: Path) -> Path:
    """Store a verified run among the records, marked as an outside one; returns its folder.

    Its id gets an ending: without, it would stand in the place of a run of ours with the same settings and seed.
    """
    record = verified.record.model_copy(update={"outside": True, "run_id": f"{verified.record.run_id}-outside"})
    if records.exists(results_dir, record.dataset.name, record.method, record.run_id):
        raise InputError(f"{results_dir} has a record of run {record.run_id} already")
    users = records.users_table(verified.split.test, verified.split.train.item_counts())
    return records.write(results_dir, record, verified.ranks, verified.ranking, users)


def _unpacked(package: Path) -> dict[str, bytes]:
    """The package's three files, by name. Nothing is written where an entry says, and no more is read than allowed."""
    try:
        with zipfile.ZipFile(package) as archive:
            names = [entry.filename for entry in archive.infolist()]
            if sorted(names) != sorted(LIMITS):
                listed = ", ".join(repr(name) for name in names[:5]) + (", ..." if len(names) > 5 else "")
                raise InputError(
                    f"{package} holds {listed or 'nothing'}; a package holds {', '.join(LIMITS)}, once each"
                )
            content = {}
            for name, limit in LIMITS.items():
                with archive.open(name) as file:
                    content[name] = file.read(limit + 1)  # the size that an entry states may be a lie
                if len(content[name]) > limit:
                    raise InputError(f"{package}: {name} is larger than {limit // 2**20} MiB")
            return content
    except InputError:
        raise
    except Exception as error:  # zipfile's, zlib's and the system's errors have no common base
        raise InputError(f"{package}: not a package that can be read: {error}") from None


def _verify(folder: Path) -> Verified:
    record = records.read(folder)
    for name in (record.dataset.name, record.method, record.run_id):
        if not records.SAFE_NAME.fullmatch(name):
            raise InputError(f"{folder}: '{name}' cannot name a folder of results")
    rules = _same_rules(record)
    data = _same_data(record)
    split = rules.split(data)
    users, ranking = _rankings(folder, split.test)
    ranks = _ranks(rules, ranking, split.test, data)
    with _readable(folder / "ranks.parquet", len(users)):
        stated_users, stated = records.read_ranks(folder)
    if not np.array_equal(stated_users, users):
        raise InputError(
            f"Refused: ranks.parquet is of other users than rankings.parquet ({len(stated_users)} of them)"
        )
    if not np.array_equal(stated, ranks):
        row = int(np.flatnonzero(stated != ranks)[0])
        raise InputError(
            f"Refused: ranks: user {users[row]} has rank {stated[row]}, but the list gives {ranks[row]} "
            f"({int((stated != ranks).sum())} of {len(ranks)} users differ)"
        )
    full = isinstance(rules, Full)
    summary = metrics.summarise(Answers(ranks, ranking if full else None, 0.0), split, rules.name)
    _same_numbers(record, summary, len(ranks))
    # states of the weights have no rankings here, and stages would be drawn as curves
    kept = record.model_copy(update={**summary, "variants": [], "stages": {}})
    return Verified(kept, ranks, ranking, split)


def _same_rules(record: Record) -> ProtocolRules:
    """Our rules, which must be the run's."""
    window = record.protocol.parameters.get("exclude") == "window"
    rules = protocol(record.protocol.name, record.protocol.mask_seen, "window" if window else "sequence")
    if record.protocol.hash != rules.hash or record.protocol.parameters != rules.model_dump():
        raise InputError(
            f"Refused: protocol: the run has {record.protocol.name} with hash {record.protocol.hash[:12]}, this "
            f"genrec-bench has {rules.hash[:12]}; results compare only under the same rules"
        )
    return rules


def _same_data(record: Record) -> InteractionData:
    """Our data set of that name, whose content must be the run's."""
    data = store.load(record.dataset.name)
    stated = record.dataset
    if stated.sha256 != data.sha256:
        raise InputError(
            f"Refused: data set: the run is of {stated.name} with sha256 {stated.sha256[:12]}, the prepared one has "
            f"{data.sha256[:12]}"
        )
    counts = (stated.users, stated.items, stated.interactions)
    if counts != (data.num_users, data.num_items, data.num_interactions):
        raise InputError(f"Refused: data set: {stated.name} does not have {counts} users, items and interactions")
    return data


def _rankings(folder: Path, test: HeldOut) -> tuple[np.ndarray, Ranking]:
    """The lists in the order of ``test``'s rows, and their users."""
    if not (folder / "rankings.parquet").exists():
        raise InputError(
            f"{folder} has no rankings.parquet: a run is verified from its lists. Run it again with --force"
        )
    with _readable(folder / "rankings.parquet", len(test.targets)):
        users, ranking = records.read_rankings(folder)
    expected = test.histories.users
    if not np.array_equal(users, np.sort(expected)):
        raise InputError(f"Refused: users: the lists are of {len(users)} users, not of the {len(expected)} test users")
    rows = np.searchsorted(users, expected)
    if len(rows) and not np.array_equal(rows, np.arange(len(rows))):
        ranking = Ranking(ranking.items[rows], ranking.scores[rows], ranking.ordered)
    return expected, ranking


@contextmanager
def _readable(path: Path, rows: int) -> Iterator[None]:
    """Refuse a table that is not of ``rows`` users, or too large, before it is read; and one that cannot be read."""
    try:
        footer = pq.read_metadata(path)
        groups = [footer.row_group(place) for place in range(footer.num_row_groups)]
        # not bytes: encoded, a long list may be a few of them
        columns = [[one.column(place).num_values for one in groups] for place in range(footer.num_columns)]
        entries = max(map(sum, columns), default=0)
        if footer.num_rows != rows or entries > rows * LONGEST_LIST:
            raise InputError(
                f"Refused: {path.name} has {footer.num_rows:,} rows of {entries:,} entries, expected {rows:,} users "
                f"with at most {LONGEST_LIST} each"
            )
        yield
    except InputError:
        raise
    except (OSError, ValueError, TypeError, pa.ArrowException) as error:
        raise InputError(f"{path}: not the table it should be: {error}") from None


def _ranks(rules: ProtocolRules, ranking: Ranking, test: HeldOut, data: InteractionData) -> np.ndarray:
    """(U,) ranks that follow from the lists, once these keep the rules."""
    try:
        if not isinstance(rules, Full):
            return picked_ranks(ranking, test)
        check_ranking(ranking, test, min(rules.max_rank + 1, data.num_items), data.num_items, rules.mask_seen)
    except MethodFault as error:
        raise InputError(f"Refused: rankings: {error}".replace("recommend returned", "a list holds")) from None
    return metrics.target_ranks(ranking.items, ranking.scores, test.targets, rules.max_rank, ranking.ordered)


def _same_numbers(record: Record, summary: dict[str, Any], users: int) -> None:
    """Refuse a record that states other numbers than follow from the rankings."""
    if record.evaluated_users != users:
        raise InputError(f"Refused: the record states {record.evaluated_users} users, the lists are of {users}")
    _same_intervals("", record.metrics, summary["metrics"])
    for name, value in {**record.list_metrics, **summary["list_metrics"]}.items():
        found, stated = summary["list_metrics"].get(name), record.list_metrics.get(name)
        if found is None or stated is None or abs(found - stated) > ROUNDING * max(1.0, abs(value)):
            raise InputError(f"Refused: {name} is {stated}, but the rankings give {found}")
    if set(record.slices) != set(summary["slices"]):
        raise InputError(
            f"Refused: slices {', '.join(record.slices)}; this genrec-bench has {', '.join(summary['slices'])}"
        )
    for name, one in summary["slices"].items():
        if record.slices[name].users != one.users:
            raise InputError(f"Refused: slice {name} has {record.slices[name].users} users, the data set {one.users}")
        _same_intervals(f"{name}: ", record.slices[name].metrics, one.metrics)


def _same_intervals(where: str, stated: dict[str, Interval], found: dict[str, Interval]) -> None:
    if set(stated) != set(found):
        odd = sorted(set(stated) ^ set(found))
        raise InputError(f"Refused: {where}{', '.join(odd)} stated or computed, but not both")
    for name, one in found.items():
        claimed = stated[name]
        if abs(claimed.mean - one.mean) > ROUNDING:
            raise InputError(f"Refused: {where}{name} is {claimed.mean}, but the rankings give {one.mean}")
        slack = RESAMPLING * (one.high - one.low) + ROUNDING
        if abs(claimed.low - one.low) > slack or abs(claimed.high - one.high) > slack:
            raise InputError(
                f"Refused: {where}{name} has the interval {claimed.low:.6f} to {claimed.high:.6f}, but the rankings "
                f"give {one.low:.6f} to {one.high:.6f}"
            )
