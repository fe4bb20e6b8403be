"""A language model behind an endpoint that fails, stalls and talks nonsense: nothing lost, nothing asked twice."""

import json
import os
import random
import threading
import time
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from urllib.parse import urlsplit

import numpy as np
import pytest
from api_stub import Stub, candidates, number, some_candidate
from conftest import make_data, make_histories

from genrec_bench.benchmark import records
from genrec_bench.benchmark.execute import MethodFault, execute, run_id
from genrec_bench.benchmark.suite import cells, make_suite
from genrec_bench.datasets.errors import InputError
from genrec_bench.datasets.interactions import TrainView
from genrec_bench.methods import registry
from genrec_bench.methods.artefacts import ArtefactCache
from genrec_bench.methods.base import Context
from genrec_bench.methods.candidates import endpoint
from genrec_bench.methods.candidates.endpoint import EndpointError, checked_key, checked_url
from genrec_bench.methods.checkpoint import Checkpoint

QUICK = {"wait_s": 0.01, "timeout_s": 1.0, "tries": 6, "concurrency": 4}
ITEMS = 60


class Bench:
    """A method ready to choose, and what it logged."""

    def __init__(self, root, seed=0, titles=None, **config):
        self.method = registry.get("llm_api")(registry.configure("llm_api", {**QUICK, **config}))
        self.events, self.root = [], root
        data = make_data([[0]], num_items=ITEMS, titles=titles or [f"Title {i:02d}" for i in range(ITEMS)])
        self.train = TrainView(1, data.items, data.sequences)
        self.method.fit(
            self.train,
            Context(
                seed, "cpu", "tiny", Checkpoint(None), ArtefactCache(root / "artefacts"),
                validate=lambda method, users=0: 0.0, log=lambda **values: self.events.append(values),
            ),
        )  # fmt: skip

    def choose(self, rows):
        return self.method.choose(*questions(rows)).picked.tolist()

    @property
    def report(self):
        return self.events[-1]


def questions(rows):
    """Row b's history is one item, and its 20 candidates depend on b."""
    drawn = [np.random.default_rng(b).permutation(ITEMS)[:20] for b in range(rows)]
    return make_histories([[b % ITEMS] for b in range(rows)]), np.array(drawn)


def column(prompt):
    return candidates(prompt).index(some_candidate(prompt))


def thirty_in_a_hundred(prompt, attempt):
    """Faults of every kind at 30% of the questions, some of them twice."""
    kinds = ("500", "503", "429 Retry-After 0.02", "429", "drop", "half", "nonsense", "empty", "408", "stall")
    sort = number(f"fault {prompt}") % 100
    return kinds[sort // 3] if sort < 30 and attempt <= sort % 2 else None


def test_a_hundred_questions_with_faults_at_thirty_lose_nothing(api, tmp_path, monkeypatch):
    api.fault = thirty_in_a_hundred
    online = Bench(tmp_path, price_prompt=2.0, price_completion=10.0)
    picked = online.choose(100)
    first = api.prompts[:]
    expected = [column(prompt) for prompt in dict.fromkeys(prompts_of(online, 100))]
    assert picked == expected
    faulty = sum(thirty_in_a_hundred(prompt, 0) is not None for prompt in set(first))
    assert 20 <= faulty <= 40
    report = online.report
    assert online.events[:-1] == [{"answered": 50, "of": 100}, {"answered": 100, "of": 100}]
    retries = sum(thirty_in_a_hundred(p, k) is not None for p in set(first) for k in range(2))
    assert (report["answers"], report["asked"], report["retries"]) == (100, 100, retries)
    assert report["requests"] == len(first) == 100 + retries
    assert report["prompt_tokens"] == sum(len(prompt.split()) for prompt in set(first))
    assert report["completion_tokens"] == 2 * 100
    assert report["cost_usd"] == pytest.approx((2.0 * report["prompt_tokens"] + 10.0 * 200) / 1e6)
    assert report["valid"] == {"official": 100, "longest": 100}
    assert report["hosts"] == [urlsplit(os.environ["GENREC_BENCH_API_URL"]).netloc]
    assert api.authorised

    for name in ("KEY", "URL"):
        monkeypatch.delenv(f"GENREC_BENCH_API_{name}")
    offline = Bench(tmp_path, price_prompt=2.0, price_completion=10.0, offline=True)
    assert offline.choose(100) == picked
    assert len(api.prompts) == len(first)
    assert offline.report == {**report, "asked": 0, "requests": 0, "retries": 0}
    with pytest.raises(InputError, match="offline: 3 of 103 answers are missing"):
        offline.choose(103)
    nowhere(Stub.KEY, tmp_path, online.events)


def prompts_of(bench, rows):
    histories, drawn = questions(rows)
    return [bench.method.writer.ask(histories.row(b), drawn[b]).text() for b in range(rows)]


def nowhere(secret, folder, *others):
    """``secret`` stands in no file of the folder and in nothing else."""
    files = [path for path in folder.rglob("*") if path.is_file()]
    assert files
    assert not [path for path in files if secret in path.name or secret.encode() in path.read_bytes()]
    assert secret not in json.dumps(others, default=str)


def test_what_is_asked(api, tmp_path):
    Bench(tmp_path, kind="movies", parameters={"top_p": 0.5}).choose(1)
    body = api.bodies[0]
    assert body["messages"][0]["content"].startswith("A viewer watched these movies, oldest first:\nTitle 00\n")
    del body["messages"]
    assert body == {"model": "stub-1", "temperature": 0.0, "max_tokens": 64, "top_p": 0.5}
    Bench(tmp_path, seed=7, temperature=0.5, max_tokens=None).choose(1)
    assert (api.bodies[1]["seed"], "max_tokens" in api.bodies[1]) == (7, False)
    Bench(tmp_path, seed=8, temperature=None).choose(1)  # the endpoint's own temperature may be any
    assert (api.bodies[2]["seed"], "temperature" in api.bodies[2]) == (8, False)


def test_no_more_at_once_than_allowed(api, tmp_path):
    lock, under_way, most = threading.Lock(), 0, 0

    def answer(prompt):
        nonlocal under_way, most
        with lock:
            under_way += 1
            most = max(most, under_way)
        time.sleep(0.02)
        with lock:
            under_way -= 1
        return ""

    api.answer = answer
    Bench(tmp_path, concurrency=3).choose(30)
    assert 2 <= most <= 3


def test_equal_questions_are_asked_once(api, tmp_path):
    bench = Bench(tmp_path)
    histories, drawn = questions(1)
    twice = np.zeros(5, dtype=np.int64)
    picked = bench.method.choose(histories.select(twice), drawn[twice]).picked
    assert len(set(picked.tolist())) == len(api.prompts) == 1
    assert bench.method.choose(make_histories([]), np.empty((0, 20), np.int64)).picked.shape == (0,)


@pytest.mark.parametrize(
    "text",
    [
        "",
        None,
        "As a language model I cannot say.",
        " or ".join(f"Title {i:02d}" for i in range(ITEMS)),
        "\x00\ufffd" * 900,
    ],
)
def test_an_answer_that_names_no_candidate_is_invalid(api, tmp_path, text):
    api.answer = lambda prompt: text
    assert Bench(tmp_path).choose(2) == [-1, -1]


def test_a_refused_prompt_is_an_invalid_answer(api, tmp_path):
    api.fault = lambda prompt, attempt: "400 content_filter"
    bench = Bench(tmp_path)
    assert bench.choose(2) == [-1, -1]
    assert (bench.report["answers"], bench.report["answers_without_count"]) == (2, 2)


def test_the_rules_differ_and_the_other_is_a_variant(api, tmp_path):
    api.answer = lambda prompt: "Aliens"
    titles = ["Alien", "Aliens", *(f"Title {i}" for i in range(ITEMS - 2))]
    bench = Bench(tmp_path, titles=titles)
    histories, drawn = make_histories([[5]]), np.arange(20)[None]
    assert bench.method.choose(histories, drawn).picked.tolist() == [1]
    ((name, other),) = bench.method.variants().items()
    assert (name, other.choose(histories, drawn).picked.tolist()) == ("match official", [-1])
    assert bench.method.config.match == "longest"
    assert len(api.prompts) == 1
    assert bench.report["valid"] == {"official": 0, "longest": 1}


def test_a_quota_that_ends_in_the_middle_keeps_what_was_answered(api, tmp_path):
    asked = prompts_of(Bench(tmp_path), 30)
    api.fault = lambda prompt, attempt: "429 insufficient_quota" if prompt not in asked[:10] else None
    bench = Bench(tmp_path, concurrency=1)
    with pytest.raises(InputError, match=r"quota is exceeded: HTTP 429 .* 10 of 30 answers are kept; .* other 20$"):
        bench.choose(30)
    assert (len(api.prompts), bench.report["answers"], bench.report["retries"]) == (11, 10, 0)
    api.fault = lambda prompt, attempt: None
    again = Bench(tmp_path)
    assert again.choose(30) == [column(prompt) for prompt in asked]
    assert sorted(api.prompts[11:]) == sorted(asked[10:])
    assert (again.report["answers"], again.report["asked"]) == (30, 20)


def test_budgets(api, tmp_path):
    with pytest.raises(InputError, match=r"budget of 7 requests is used up\. 7 of 20 answers are kept"):
        Bench(tmp_path, budget_requests=7).choose(20)
    assert len(api.prompts) == 7
    with pytest.raises(InputError, match=r"budget of 1 tokens is used up \(\d+ so far\)\. 8 of 20 answers are kept"):
        Bench(tmp_path, budget_tokens=1, concurrency=1).choose(20)
    assert Bench(tmp_path, budget_requests=12).choose(20) == [column(p) for p in prompts_of(Bench(tmp_path), 20)]


@pytest.mark.parametrize(
    ("fault", "requests", "message"),
    [
        ("503", 3, r"HTTP 503 .* \(3 tries\)\. 0 of 1 answers"),
        ("stall", 3, r"TimeoutError: .* \(3 tries\)"),
        ("nonsense", 3, r"answered with no chat completion: <html>Welcome"),
        ("401", 1, r"the key is refused: HTTP 401 .*401 for \*\*\*"),
        ("404", 1, "no such address or model"),
        ("402", 1, "the account's quota is exceeded"),
        ("400", 1, "refuses the request: HTTP 400"),
        ("429 Retry-After 500", 1, "asks to wait 500 s"),
    ],
)
def test_faults_that_stay_end_the_run_with_their_reason(api, tmp_path, fault, requests, message):
    api.fault = lambda prompt, attempt: fault
    bench = Bench(tmp_path, tries=3, timeout_s=0.2)
    with pytest.raises(InputError, match=message) as error:
        bench.choose(1)
    assert len(api.prompts) == requests
    assert Stub.KEY not in str(error.value)


def test_a_key_in_an_answer_is_not_kept(api, tmp_path):
    api.answer = lambda prompt: f"{Stub.KEY} {some_candidate(prompt)}"
    bench = Bench(tmp_path)
    assert bench.choose(3) == [column(prompt) for prompt in prompts_of(bench, 3)]
    nowhere(Stub.KEY, tmp_path, bench.events)


def test_a_redirect_is_not_followed(api, tmp_path):
    with Stub() as elsewhere:
        api.fault = lambda prompt, attempt: f"307 Location {elsewhere.url}/chat/completions"
        with pytest.raises(InputError, match="redirects, which is not followed"):
            Bench(tmp_path).choose(1)
        assert elsewhere.prompts == []


def test_nobody_is_there(api, tmp_path):
    with pytest.raises(InputError, match=r"ConnectionRefusedError.*\(2 tries\)\. 0 of 1"):
        Bench(tmp_path, url="http://127.0.0.1:9/v1", tries=2).choose(1)


@pytest.mark.parametrize(
    ("name", "message"),
    [("KEY", r"no key: set \$GENREC_BENCH_API_KEY"), ("URL", r"set llm_api.url or \$GENREC_BENCH_API_URL")],
)
def test_what_is_not_set_is_named_and_kept_answers_need_none(api, tmp_path, monkeypatch, name, message):
    before = Bench(tmp_path).choose(2)
    monkeypatch.setenv(f"GENREC_BENCH_API_{name}", " " if name == "KEY" else "")
    assert Bench(tmp_path).choose(2) == before
    with pytest.raises(InputError, match=message + r".*2 of 3 answers are kept"):
        Bench(tmp_path).choose(3)


def test_no_model_and_no_titles(api, tmp_path, monkeypatch):
    monkeypatch.delenv("GENREC_BENCH_API_MODEL")
    with pytest.raises(InputError, match=r"no model to ask: set llm_api.model or \$GENREC_BENCH_API_MODEL"):
        Bench(tmp_path)
    with pytest.raises(InputError, match="none of the 60 items has a title"):
        Bench(tmp_path, model="stub-1", titles=[""] * ITEMS)


def test_a_wait_that_is_asked_for_is_kept_by_all(api, tmp_path):
    api.fault = lambda prompt, attempt: "429 Retry-After 0.5" if len(api.prompts) == 1 else None
    started = time.monotonic()
    bench = Bench(tmp_path, concurrency=1, timeout_s=5)
    bench.choose(2)
    assert time.monotonic() - started >= 0.5
    assert bench.report["requests"] == 3


def test_retry_after():
    soon = format_datetime(datetime.now(UTC) + timedelta(seconds=60), usegmt=True)
    assert endpoint._retry_after_s("2") == 2.0
    assert 55 < endpoint._retry_after_s(soon) <= 60
    assert [endpoint._retry_after_s(value) for value in ("-3", "soon", "nan", None)] == [0.0, None, None, None]


def test_waits_double_and_are_random(api):
    meter = endpoint.Meter()
    asked = endpoint.Endpoint(
        api.url, "k", meter, timeout_s=1, tries=9, wait_s=1.0, longest_wait_s=5.0, rng=random.Random(0)
    )
    waits = np.array([[asked._delay(attempt, None, "") for attempt in range(5)] for _ in range(200)])
    assert np.allclose(waits.max(0), [1, 2, 4, 5, 5], rtol=0.05)
    assert np.allclose(waits.mean(0), [0.5, 1, 2, 2.5, 2.5], rtol=0.15)


def test_damaged_answers_are_asked_for_again(api, tmp_path):
    before = Bench(tmp_path).choose(3)
    first, second, _ = sorted((tmp_path / "artefacts" / "answers").rglob("*.json"))
    first.write_text("{")
    second.write_text(second.read_text().replace("stub-1", "stub-2"))
    bench = Bench(tmp_path)
    assert bench.choose(3) == before
    assert bench.report["asked"] == 2


@pytest.mark.parametrize(
    "url",
    ["ftp://host/v1", "file:///etc/passwd", "host/v1", "", "http://", "http://a:b@host/v1", "http://host/v1?key=1",
     "http://host/#a", "http://host:port/v1"],
)  # fmt: skip
def test_addresses_that_are_refused(url):
    with pytest.raises(ValueError, match=r"an endpoint's address"):
        checked_url(url)
    with pytest.raises(InputError, match=r"llm_api\.url"):
        registry.configure("llm_api", {"url": url})


def test_addresses_and_keys():
    for url in ("https://host:1/v1", "https://host:1/v1/", " https://host:1/v1/chat/completions "):
        assert checked_url(url) == "https://host:1/v1/chat/completions"
    assert checked_key(" sk-1\n") == "sk-1"
    for key in ("sk-1\nsk-2", "sk 1", "sk-ü"):
        with pytest.raises(EndpointError, match="characters that no key has") as error:
            checked_key(key)
        assert key not in str(error.value)
    for name in ("messages", "temperature"):
        with pytest.raises(InputError, match=f"'{name}' is set by the method itself"):
            registry.configure("llm_api", {"parameters": {name: 1}})


def the_cell(stored, **config):
    row = {"method": "llm_api", "config": {**QUICK, **config}}
    (cell,) = cells(make_suite({"methods": [row], "datasets": [stored], "protocols": ["full", "cand20"]}))
    return cell


def test_from_cell_to_record_and_back_offline(api, stored, tmp_path, home, monkeypatch):
    api.fault = thirty_in_a_hundred
    cell, events = the_cell(stored), []
    execute(cell, tmp_path, events.append, 1)
    (record,), problems = records.read_all(tmp_path)
    assert problems == []
    assert record.config["model"] == "stub-1"
    assert record.stages["api"]["answers"] == 2 * record.evaluated_users  # validation and test
    assert record.metrics["validratio"].mean == 1.0
    assert [variant.name for variant in record.variants] == ["match official"]
    for name in ("KEY", "URL"):
        monkeypatch.delenv(f"GENREC_BENCH_API_{name}")
    again = the_cell(stored, offline=True)
    assert run_id(again, "x") == run_id(cell, "x") != run_id(the_cell(stored, model="stub-2"), "x")
    execute(again, tmp_path / "again", events.append, 1)
    (rebuilt,), _ = records.read_all(tmp_path / "again")
    assert rebuilt.metrics == record.metrics
    assert rebuilt.stages["api"]["prompt_tokens"] == record.stages["api"]["prompt_tokens"]
    nowhere(Stub.KEY, tmp_path, events)
    nowhere(Stub.KEY, home)


def test_a_key_that_is_set_later_reaches_the_cells(api, stored, tmp_path, monkeypatch, command):
    """The server that cells are forked from was started without it."""
    asked = ["run", "--method", "llm_api", "--dataset", stored, "--protocol", "cand20", "--results", tmp_path]
    monkeypatch.delenv("GENREC_BENCH_API_KEY")
    _, out, _ = command(*asked, "--quiet")
    (failure,), _ = records.read_failures(tmp_path)
    assert failure.reason.startswith("llm_api: no key: set $GENREC_BENCH_API_KEY")
    assert "no key" in out
    monkeypatch.setenv("GENREC_BENCH_API_KEY", Stub.KEY)
    assert command(*asked, "--quiet")[0] == 0
    assert len(records.read_all(tmp_path)[0]) == 1
    assert records.read_failures(tmp_path) == ([], [])
    nowhere(Stub.KEY, tmp_path)


def test_a_cell_without_answers_says_why(api, stored, tmp_path):
    api.fault = lambda prompt, attempt: "401"
    with pytest.raises(MethodFault, match=r"^llm_api: http://127.*: the key is refused: HTTP 401 .* 0 of 6 answers"):
        execute(the_cell(stored), tmp_path, lambda event: None, 1)
