"""What is in the files and folders that a config names is part of the run's id, on a machine without them as well."""

import json
import os
import pickle
from dataclasses import replace

import numpy as np
import pytest
from test_candidates_language import context, train_view
from test_suite import grid

from genrec_bench.benchmark.attempt import job_of
from genrec_bench.benchmark.execute import run_id
from genrec_bench.benchmark.suite import smaller
from genrec_bench.benchmark.tuning import with_values
from genrec_bench.datasets.errors import InputError
from genrec_bench.methods import checksums, registry, trained
from genrec_bench.methods.base import Resources
from genrec_bench.methods.encoders import behaviour
from genrec_bench.methods.language import sources


@pytest.fixture
def table(tmp_path):
    path = tmp_path / "table.npy"
    np.save(path, np.zeros((3, 2)))
    return path


@pytest.fixture
def folder(tmp_path):
    path = tmp_path / "models" / "mine"
    path.mkdir(parents=True)
    (path / "config.json").write_text("{}")
    (path / "tokenizer.json").write_text("{}")
    (path / "model.safetensors").write_bytes(b"one training")
    return path


def cell(tmp_path, method="rsllm", **config):
    text = f"methods: [{{method: {method}, config: {json.dumps(config)}}}]\ndatasets: [a]\nprotocols: [cand20]\n"
    (found,) = grid(text, tmp_path)
    return found


def test_a_retrained_table_is_another_run(table, tmp_path):
    first = cell(tmp_path, table=str(table))
    assert run_id(cell(tmp_path, table=str(table)), "x") == run_id(first, "x")
    np.save(table, np.ones((3, 2)))
    second = cell(tmp_path, table=str(table))
    assert first.contents.keys() == second.contents.keys() == {"table"}
    assert run_id(second, "x") != run_id(first, "x")
    assert run_id(smaller(second), "x") != run_id(second, "x")
    assert smaller(second).contents == second.contents
    table.unlink()
    assert cell(tmp_path, table=str(table)).contents == {}  # `fit` says what is missing


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", "model.safetensors", "chat_template.jinja"])
def test_a_changed_model_folder_is_another_run(folder, name, tmp_path):
    first = cell(tmp_path, "llm_zero_shot", backbone=str(folder))
    (folder / "README.md").write_text("nothing that is read")
    assert cell(tmp_path, "llm_zero_shot", backbone=str(folder)).contents == first.contents
    (folder / name).write_bytes(b"two training")  # as long as before
    assert run_id(cell(tmp_path, "llm_zero_shot", backbone=str(folder)), "x") != run_id(first, "x")


def test_everything_that_names_a_model_folder(folder):
    path = str(folder)
    for method, config, field in (
        ("tallrec", {"backbone": path}, "backbone"),
        ("lc_rec", {"backbone": path}, "backbone"),
        ("p5_cid", {"backbone": path}, "backbone"),
        ("morec", {"source": path}, "source"),
        ("tiger", {"index": {"vectors": path}}, "index.vectors"),
        ("llara", {"encoder": "morec", "encoder_settings": {"source": path}}, "encoder_settings.source"),
        ("agrec", {"lm": {"method": "lc_rec", "settings": {"backbone": path}}}, "lm.settings.backbone"),
        ("agrec", {"graph": {"encoder": "morec", "settings": {"source": path}}}, "graph.settings.source"),
    ):
        assert registry.configure(method, config).contents() == {field: sources.folder_content(path)}, method


def test_a_saved_part_is_what_its_key_says(tmp_path):
    graph = {"graph": {"encoder": "lightgcn", "saved": str(tmp_path)}}
    assert registry.configure("agrec", graph).contents() == {}
    (tmp_path / "key.json").write_text("{}")
    assert registry.configure("agrec", graph).contents().keys() == {"graph.saved"}


def test_names_of_no_folder_leave_the_id_as_it_was(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("base", "minilm", "sasrec"):
        (tmp_path / name).mkdir()
    for method, config in (
        ("rsllm", {}),
        ("llara", {"encoder": "sasrec", "encoder_settings": {"heads": 3, "epochs": 1}}),
        ("llm_zero_shot", {"backbone": "base"}),
        ("llm_zero_shot", {"backbone": "HuggingFaceTB/SmolLM2-135M-Instruct"}),
        ("morec", {}),
    ):
        one = cell(tmp_path, method, **config)
        assert one.contents == {}
        assert run_id(one, "x") == run_id(replace(one, contents={}), "x")


def test_a_machine_without_the_file_gives_the_run_the_same_id(table, tmp_path):
    here = cell(tmp_path, table=str(table))
    packed, identity = pickle.dumps(here), run_id(here, "x")
    table.unlink()
    there = pickle.loads(packed)
    assert run_id(there, "x") == identity
    tried = {"learning_rate": 0.1}
    assert run_id(with_values(there, tried), "x") == run_id(with_values(here, tried), "x")
    assert job_of(0, there, identity, "x", Resources()).smaller_run_id == run_id(smaller(here), "x")


def test_another_file_of_that_name_is_refused(table, tmp_path):
    packed = pickle.dumps(cell(tmp_path, table=str(table)))
    np.save(table, np.ones((3, 2)))
    with pytest.raises(InputError, match=r"rsllm\.table: .*table\.npy is not what it was when the command began"):
        pickle.loads(packed)


def test_a_search_looks_at_the_files_that_it_tries(table, tmp_path):
    other = tmp_path / "other.npy"
    np.save(other, np.ones((3, 2)))
    tried = with_values(cell(tmp_path, table=str(table)), {"table": str(other)})
    assert tried.contents == cell(tmp_path, table=str(other)).contents


def test_a_stage_that_others_share_is_known_by_them_too(folder):
    config = registry.configure("lc_rec", {"backbone": str(folder)})
    key = trained.identity("lc_rec", config, train_view(), context())
    assert key["contents"] == config.contents()
    assert "contents" not in trained.identity("lc_rec", registry.configure("lc_rec", {}), train_view(), context())
    make, _ = behaviour._of_the_registry("morec", train_view())
    assert make(8, {"source": str(folder)}).settings["contents"].keys() == {"source"}
    assert "contents" not in make(8, {}).settings


def test_a_large_file_is_read_once_until_it_changes(table, monkeypatch):
    read = []
    original = checksums.file_sha256
    monkeypatch.setattr(checksums, "file_sha256", lambda path: read.append(path) or original(path))
    monkeypatch.setattr(checksums, "REMEMBERED_BYTES", 1)
    checksums.remembered_sha256(table)
    first = checksums.remembered_sha256(table)
    assert len(read) == 2  # just written: it may be written again within the clock's tick
    monkeypatch.setattr(checksums, "SETTLED_NS", -1)
    for _ in range(3):
        assert checksums.remembered_sha256(table) == first
    assert len(read) == 3
    stat = table.stat()
    np.save(table, np.ones((3, 2)))
    os.utime(table, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert checksums.remembered_sha256(table) == original(table) != first
