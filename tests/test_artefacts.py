"""Shared stages: built once by whoever comes first, whole or absent, found by what determines them."""

import json
import subprocess
import sys
import threading
import time

import pytest

from genrec_bench.methods.artefacts import ArtefactCache, canonical_hash

BUILDER = """
import sys, time
from pathlib import Path
from genrec_bench.methods.artefacts import ArtefactCache
root, log = Path(sys.argv[1]), Path(sys.argv[2])
def build(folder):
    with log.open("a") as file: file.write("built\\n")
    time.sleep(0.5)
    (folder / "vectors.txt").write_text("1 2 3")
print("ready", flush=True); sys.stdin.readline()
print((ArtefactCache(root).get("text", {"model": "m"}, build) / "vectors.txt").read_text())
"""


def test_hash_is_of_the_content_not_its_spelling():
    assert canonical_hash({"b": 1, "a": [1, "é"]}) == canonical_hash({"a": [1, "é"], "b": 1})
    assert canonical_hash({"a": 1}) != canonical_hash({"a": "1"}) != canonical_hash({"a": 1.5})
    assert canonical_hash({}) == "44136fa355b3678a1146ad16f7e8649e94fb4fc21fe77e8310c060f61caaff8a"  # sha256 of "{}"
    with pytest.raises(ValueError, match="Out of range"):
        canonical_hash({"a": float("nan")})


def test_built_once_and_found_again(tmp_path):
    cache, built = ArtefactCache(tmp_path), []

    def build(folder):
        built.append(folder)
        (folder / "x").write_text("content")

    first = cache.get("index", {"k": 256, "seed": 0}, build)
    assert cache.get("index", {"seed": 0, "k": 256}, build) == first
    assert (first / "x").read_text() == "content"
    assert json.loads((first / "key.json").read_text()) == {"k": 256, "seed": 0}
    assert cache.get("index", {"k": 256, "seed": 1}, build) != first
    assert cache.get("text", {"k": 256, "seed": 0}, build) != first
    assert len(built) == 3
    assert not any(folder.exists() for folder in built)  # written beside its place, then renamed


def test_a_failed_build_leaves_nothing(tmp_path):
    cache = ArtefactCache(tmp_path)

    def fail(folder):
        (folder / "half").write_text("x")
        raise RuntimeError("no")

    with pytest.raises(RuntimeError, match="no"):
        cache.get("index", {"k": 1}, fail)
    assert [path for path in tmp_path.rglob("*") if path.suffix != ".lock" and path.name != "index"] == []
    assert (cache.get("index", {"k": 1}, lambda folder: (folder / "x").touch()) / "x").exists()


def test_what_a_killed_build_left_is_never_taken_for_finished(tmp_path):
    cache = ArtefactCache(tmp_path)
    code = (
        "import os, sys; from pathlib import Path; from genrec_bench.methods.artefacts import ArtefactCache\n"
        "def build(folder): (folder / 'half').touch(); os._exit(1)\n"
        "ArtefactCache(Path(sys.argv[1])).get('index', {'k': 1}, build)"
    )
    assert subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=False).returncode == 1
    assert list(tmp_path.rglob("half"))
    folder = cache.get("index", {"k": 1}, lambda folder: (folder / "whole").touch())
    assert sorted(path.name for path in folder.iterdir()) == ["key.json", "seconds.json", "whole"]


def test_two_processes_build_once(tmp_path):
    log = tmp_path / "log"
    both = [
        subprocess.Popen(
            [sys.executable, "-c", BUILDER, str(tmp_path / "cache"), str(log)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )
        for _ in range(2)
    ]  # fmt: skip
    for one in both:
        assert one.stdout.readline() == "ready\n"
    answers = []
    for one in both:
        one.stdin.write("\n")
        one.stdin.flush()
    for one in both:
        answers.append(one.communicate(timeout=60)[0])
    assert answers == ["1 2 3\n"] * 2
    assert log.read_text() == "built\n"


def test_two_threads_build_once(tmp_path):
    cache, built, found = ArtefactCache(tmp_path), [], []

    def build(folder):
        built.append(folder)
        time.sleep(0.2)
        (folder / "x").touch()

    threads = [threading.Thread(target=lambda: found.append(cache.get("s", {"k": 1}, build))) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(built) == 1
    assert found == [found[0]] * 3


def test_what_others_built_is_counted(tmp_path):
    def build(folder):
        time.sleep(0.05)

    first, second = ArtefactCache(tmp_path), ArtefactCache(tmp_path)
    first.get("stage", {"a": 1}, build)
    first.get("stage", {"a": 2}, build)
    second.get("stage", {"a": 1}, build)
    assert second.spared_s == pytest.approx(0.05, abs=0.04)
    assert first.spared_s == 0.0
    second.get("outer", {"a": 1}, lambda folder: second.get("stage", {"a": 2}, build))
    third = ArtefactCache(tmp_path)
    third.get("outer", {"a": 1}, build)  # costs what its parts cost, whoever made them
    assert third.spared_s == pytest.approx(0.05, abs=0.04)
    second = ArtefactCache(tmp_path)
    second.get("other", {"a": 1}, build)  # built by itself: its own clock runs
    assert second.spared_s == 0.0
