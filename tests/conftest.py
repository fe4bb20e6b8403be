"""What all tests share: a home of their own, one torch thread, a tiny data set, the command line in this process."""

import os
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from api_stub import Stub
from hypothesis import settings

from genrec_bench.benchmark import cli
from genrec_bench.datasets import store, synthetic
from genrec_bench.datasets.events import item_table
from genrec_bench.datasets.interactions import Histories, InteractionData
from genrec_bench.methods import registry

ROOT = Path(__file__).parents[1]

settings.register_profile("repeatable", derandomize=True, deadline=None, database=None)
settings.load_profile("repeatable")
torch.set_num_threads(1)
os.environ["CUDA_VISIBLE_DEVICES"] = ""  # inherited by every process that a test starts


@pytest.fixture(autouse=True)
def home(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty $GENREC_BENCH_HOME."""
    folder = tmp_path_factory.mktemp("home")
    monkeypatch.setenv("GENREC_BENCH_HOME", str(folder))
    return folder


@pytest.fixture(autouse=True)
def _registry_as_before() -> Iterator[None]:
    """What a test registers is forgotten after it."""
    before = dict(registry._registered)
    yield
    registry._registered.clear()
    registry._registered.update(before)
    for name in [name for name in sys.modules if name.startswith("genrec_bench_plugin_")]:
        del sys.modules[name]


@pytest.fixture(scope="session")
def tiny() -> InteractionData:
    """60 users, 40 items with structure: enough for every protocol, trained on in a fraction of a second."""
    return synthetic.generate(num_users=60, num_items=40, seed=3, min_length=6, max_length=12, name="tiny")


@pytest.fixture
def stored(tiny: InteractionData, home: Path) -> str:
    """`tiny` as a prepared data set; returns its name."""
    store.save(tiny)
    return tiny.name


def make_data(
    rows: Sequence[Sequence[int]],
    num_items: int | None = None,
    timestamps: Sequence[Sequence[int]] | None = None,
    titles: Sequence[str] | None = None,
    name: str = "hand",
) -> InteractionData:
    """A data set from item numbers written out."""
    flat = [item for row in rows for item in row]
    count = num_items if num_items is not None else max(flat, default=-1) + 1
    items = item_table(
        [f"i{i}" for i in range(count)], list(titles) if titles is not None else [f"title {i}" for i in range(count)]
    )
    times = None if timestamps is None else np.array([t for row in timestamps for t in row], dtype=np.int64)
    return InteractionData(
        name, np.array([f"u{u}" for u in range(len(rows))], dtype=object), items, make_histories(rows), times
    )


def make_histories(rows: Sequence[Sequence[int]], users: Sequence[int] | None = None) -> Histories:
    """Ragged histories from lists."""
    offsets = np.concatenate([[0], np.cumsum([len(row) for row in rows])]).astype(np.int64)
    items = np.array([item for row in rows for item in row], dtype=np.int32)
    return Histories(np.arange(len(rows)) if users is None else np.array(users, dtype=np.int64), offsets, items)


def rows_of(histories: Histories) -> list[list[int]]:
    """The lists that `make_histories` would be given."""
    return [histories.row(b).tolist() for b in range(len(histories))]


@pytest.fixture
def api(monkeypatch: pytest.MonkeyPatch) -> Iterator[Stub]:
    """A local endpoint for language models, and the environment that names it."""
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.setenv("GENREC_BENCH_API_MODEL", "stub-1")
    monkeypatch.setenv("GENREC_BENCH_API_KEY", Stub.KEY)
    with Stub() as stub:
        monkeypatch.setenv("GENREC_BENCH_API_URL", stub.url)
        yield stub


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    """``command("run", ...)`` runs the command line in this process; returns exit code, stdout, stderr."""

    def run(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["genrec-bench", *map(str, arguments)])
        capsys.readouterr()
        try:
            cli.main()
            code = 0
        except SystemExit as stop:
            code = stop.code if isinstance(stop.code, int) else int(stop.code is not None)
        said = capsys.readouterr()
        return code, said.out, said.err

    return run
