"""Each fault is found in a data set that has it, with the rows, and in no clean one."""

import numpy as np
import pytest

from genrec_bench.datasets.audit import Finding, audit, has_errors
from genrec_bench.datasets.describe import describe, gini
from genrec_bench.datasets.events import item_table
from genrec_bench.datasets.interactions import Histories, InteractionData
from genrec_bench.datasets.synthetic import generate


def data_of(rows: list[list[int]], titles: list[str] | None = None, times: list[int] | None = None) -> InteractionData:
    num_items = max(map(max, rows)) + 1
    offsets = np.concatenate([[0], np.cumsum([len(row) for row in rows])])
    sequences = Histories(np.arange(len(rows)), offsets, np.concatenate(rows).astype(np.int32))
    items = item_table([f"i{i}" for i in range(num_items)], titles or [f"title {i}" for i in range(num_items)])
    users = np.array([f"u{u}" for u in range(len(rows))], dtype=object)
    return InteractionData("toy", users, items, sequences, None if times is None else np.array(times))


def finding(data: InteractionData, name: str) -> Finding | None:
    return next((found for found in audit(data) if found.name == name), None)


def test_clean_data_has_no_findings() -> None:
    assert audit(generate()) == []


def test_time_order() -> None:
    found = finding(data_of([[0, 1, 2], [2, 1, 0]], times=[1, 2, 2, 5, 4, 6]), "time_order")
    assert found is not None
    assert (found.severity, found.count) == ("error", 1)
    assert found.samples == ("user 'u1': item 'i1' at 4 after 5",)


def test_repeated_last_item_and_pairs() -> None:
    data = data_of([[0, 1, 1], [2, 1, 2], [0, 2, 1]])
    last, pairs = finding(data, "repeated_last_item"), finding(data, "repeated_pairs")
    assert last is not None
    assert (last.severity, last.samples) == ("error", ("user 'u0': ends in item 'i1' twice",))
    assert pairs is not None
    assert (pairs.severity, pairs.count) == ("error", 2)
    assert pairs.samples == ("user 'u0': item 'i1' again", "user 'u1': item 'i2' again")


def test_sequences_sorted_by_item() -> None:
    rng = np.random.default_rng(0)
    rows = [rng.choice(60, 6, replace=False).tolist() for _ in range(30)]
    assert finding(data_of(rows), "sorted_by_item") is None
    found = finding(data_of([sorted(row) for row in rows]), "sorted_by_item")
    assert found is not None
    assert (found.severity, found.count, len(found.samples)) == ("error", 30, 5)


def test_item_numbers_in_order_of_appearance() -> None:
    data = generate()
    order = dict.fromkeys(data.sequences.items.tolist())
    number = {item: k for k, item in enumerate(order)}
    rows = [[number[i] for i in data.sequences.row(b).tolist()] for b in range(data.num_users)]
    found = finding(data_of(rows), "id_order_leak")
    assert found is not None
    assert found.severity == "warning"
    assert found.samples[0] == "user 'u0': item number 0 then 1"


def test_short_sequences() -> None:
    some, all_short = finding(data_of([[0, 1, 2], [1]]), "too_short"), finding(data_of([[0, 1], [1]]), "too_short")
    assert some is not None
    assert (some.severity, some.count, some.samples) == ("warning", 1, ("user 'u1': length 1",))
    assert all_short is not None
    assert all_short.severity == "error"


def test_unseen_targets() -> None:
    # Item 3 is tested for user 0 and trained on nowhere; item 0 is tested for user 1 and trained on by user 0.
    found = finding(data_of([[0, 1, 3], [1, 2, 0]]), "unseen_targets")
    assert found is not None
    assert (found.count, found.samples) == (1, ("user 'u0': item 'i3'",))


def test_titles() -> None:
    data = data_of([[0, 1, 2, 3]], ["Same", "", "same ", "Other"])
    repeated, missing = finding(data, "repeated_titles"), finding(data, "no_text")
    assert repeated is not None
    assert (repeated.count, repeated.samples) == (2, ("item 'i0': 'Same'",))
    assert missing is not None
    assert (missing.count, missing.samples) == (1, ("item 'i1'",))


def test_errors_come_first_and_count() -> None:
    findings = audit(data_of([[0, 1, 1], [1]], ["", ""]))
    severities = [found.severity for found in findings]
    assert severities == sorted(severities)  # error before warning
    assert has_errors(findings)
    assert not has_errors([found for found in findings if found.severity == "warning"])


def test_describe_by_hand() -> None:
    facts = describe(data_of([[0, 1, 2], [1]], ["a", "b", ""]))
    assert facts["users"] == 2
    assert facts["average_length"] == facts["median_length"] == 2
    assert facts["density"] == pytest.approx(4 / 6)
    assert facts["text_coverage"] == pytest.approx(2 / 3)
    # popularity 1, 2, 1: mean absolute difference 4/9 * 2 / (2 * 4/3) = 1/6
    assert facts["popularity_gini"] == pytest.approx(1 / 6)
    assert gini(np.array([0, 0])) == 0
