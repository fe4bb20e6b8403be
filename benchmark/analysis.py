"""What a kept run's parts do: who serves which users, how alike answers are, where items lie, one user in full.

    genrec-bench run --method agrec --dataset ml-100k --mask-seen --keep-models
    genrec-bench analyse --run RUN --user 196 --output analysis/

The analyses of AGRec's paper (its figures 1 and 2, alpha curve, embeddings, case study) for any method that has
`Method.parts`, and those that need none for any other. It looks at test targets: nothing of it may choose a setting.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from tabulate import tabulate

from genrec_bench.benchmark.evaluate import Answers, evaluate
from genrec_bench.benchmark.plots import pyplot
from genrec_bench.benchmark.recommend import KeptRun
from genrec_bench.benchmark.tables import clean
from genrec_bench.datasets.errors import InputError
from genrec_bench.datasets.splits import HeldOut
from genrec_bench.methods.base import Method

HIT = 10  # a user is served by a list whose first so many items hold the target
LISTED = 20  # items of a list whose codes are compared
PICTURED = 2_000  # items of a picture
KINDS = 8  # commonest categories that a picture colours


@dataclass(frozen=True, eq=False)
class Analysis:
    """A kept run asked for everybody's test item, and its parts asked the same."""

    kept: KeptRun

    @cached_property
    def methods(self) -> dict[str, Method]:
        """The parts by name, then the whole."""
        return {**self.kept.method.parts(), "whole": self.kept.method}

    @cached_property
    def test(self) -> HeldOut:
        """Everybody's test item."""
        return self.kept.rules.split(self.kept.data).test

    @cached_property
    def answers(self) -> dict[str, Answers]:
        """What each of `methods` answers."""
        if self.kept.rules.name != "full":
            raise InputError(f"Run {self.kept.record.run_id} picks from candidates: only full rankings are analysed")
        return {
            name: evaluate(method, self.test, self.kept.rules, self.kept.data.num_items)
            for name, method in self.methods.items()
        }

    @cached_property
    def hits(self) -> dict[str, np.ndarray]:
        """Whom each serves, (B,) bool."""
        return {name: (answer.ranks > 0) & (answer.ranks <= HIT) for name, answer in self.answers.items()}

    def overlap(self) -> list[tuple[str, int, float]]:
        """For each way in which parts can share a user: how many users, and the share of them that the whole serves."""
        parts = [name for name in self.hits if name != "whole"]
        rows = []
        for pattern in range(2 ** len(parts) - 1, -1, -1):
            wanted = [bool(pattern >> place & 1) for place in reversed(range(len(parts)))]
            whom = np.logical_and.reduce([self.hits[name] == flag for name, flag in zip(parts, wanted, strict=True)])
            named = [name for name, flag in zip(parts, wanted, strict=True) if flag]
            label = " and ".join(named) + ("" if len(named) == len(parts) else " alone") if named else "none of them"
            rows.append((label, int(whom.sum()), float(self.hits["whole"][whom].mean()) if whom.any() else 0.0))
        return rows

    def homogeneity(self) -> list[list[Any]]:
        """Distinct prefixes of each length among a user's `LISTED` best items, averaged over users: a row a method."""
        codes = [self.kept.method.code(item) for item in range(self.kept.data.num_items)]
        if any(code is None for code in codes):
            return []
        levels = max(len(code) for code in codes if code)
        numbers = np.full((len(codes), levels), -1)
        for length in range(1, levels + 1):
            known: dict[tuple[str, ...], int] = {}
            for item, code in enumerate(codes):
                assert code is not None
                numbers[item, length - 1] = known.setdefault(tuple(code[:length]), len(known))
        rows: list[list[Any]] = []
        for name, answer in self.answers.items():
            assert answer.ranking is not None
            listed = answer.ranking.items[:, :LISTED]
            found = np.where(listed[..., None] >= 0, numbers[listed], -1)
            rows.append([name, *(_distinct(found[..., level]).mean() for level in range(levels))])
        return rows

    def case(self, user: str, k: int = 10) -> str:
        """One user: history, target, and where each part has the items of the whole's answer."""
        asked = self.kept.asked(users=[user])
        row = np.flatnonzero(self.test.histories.users == asked.users[0])
        if not len(row):
            raise InputError(f"User '{user}' has no test item in {self.kept.data.name}: too few interactions")
        ids, titles = (self.kept.data.items[name].to_numpy() for name in ("item_id", "title"))
        target, history = int(self.test.targets[row[0]]), self.test.histories.row(int(row[0]))
        places = {
            name: {int(item): rank for rank, item in enumerate(_ranked(answer)[row[0]], start=1) if item >= 0}
            for name, answer in self.answers.items()
        }
        lines = []
        for item, rank in list(places["whole"].items())[:k]:
            by = [places[name].get(item, "-") for name in places if name != "whole"]
            code = " ".join(self.kept.method.code(item) or [])
            title = clean(str(titles[item]))[:40]
            lines.append([rank, clean(str(ids[item])), title, code, *by, "target" if item == target else ""])
        heads = ["rank", "item", "title", "code", *(name for name in places if name != "whole"), ""]
        recent = "; ".join(clean(str(titles[item] or ids[item])) for item in history[-5:])
        return f"User {clean(user)}, {len(history)} items, last of them: {recent}\n" + tabulate(
            lines, headers=heads, disable_numparse=True
        )

    def report(self, user: str | None = None) -> str:
        """All of it as text."""
        record, parts = self.kept.record, []
        for stage, curve in self.kept.record.curves().items():
            parts.append(f"{stage}, on validation\n" + tabulate([list(curve.values())], list(curve), floatfmt=".4f"))
        if len(self.methods) > 1:
            heads = ["users whom ... serves", "users", "of them the whole serves"]
            parts.append(tabulate(self.overlap(), heads, floatfmt=(".0f", ".0f", ".3f")))
        if rows := self.homogeneity():
            heads = [f"distinct prefixes among {LISTED}", *(f"length {n}" for n in range(1, len(rows[0])))]
            parts.append(tabulate(rows, heads, floatfmt=".2f"))
        if user is not None:
            parts.append(self.case(user))
        head = (
            f"{clean(record.label)} · {record.dataset.name} · seed {record.seed} · test · served: among the first {HIT}"
        )
        return "\n\n".join([head, *parts])

    def draw(self, folder: Path) -> list[Path]:
        """Pictures of it, as PNG files in ``folder``."""
        plots = pyplot()
        folder.mkdir(parents=True, exist_ok=True)
        written = []

        def save(figure: Any, name: str) -> None:
            written.append(folder / f"{name}.png")
            figure.savefig(written[-1], dpi=120, bbox_inches="tight")
            plots.close(figure)

        for stage, curve in self.kept.record.curves().items():
            save(_curve(plots, stage, curve), stage)
        parts = [name for name in self.hits if name != "whole"]
        if len(parts) == 2:
            save(_venn(plots, parts, [count for _, count, _ in self.overlap()]), "overlap")
        for name, vectors in self.kept.method.item_vectors().items():
            save(self._picture(plots, name, vectors), f"items-{name.replace(' ', '-')}")
        return written

    def _picture(self, plots: Any, name: str, vectors: np.ndarray) -> Any:
        """Items in two dimensions by t-SNE, coloured by their commonest category."""
        from sklearn.manifold import TSNE

        counts = np.bincount(self.kept.data.sequences.items, minlength=self.kept.data.num_items)
        chosen = np.sort(np.argsort(-counts, kind="stable")[:PICTURED])
        perplexity = min(30, max((len(chosen) - 1) // 3, 1))
        flat = TSNE(2, perplexity=perplexity, init="pca", random_state=0).fit_transform(vectors[chosen])
        kinds = self.kept.data.items["categories"].to_numpy()[chosen]
        every = [one for kind in kinds for one in str(kind).split("|") if one]
        common = [str(one) for one in np.array(sorted(set(every), key=lambda one: (-every.count(one), one)))[:KINDS]]
        figure, axes = plots.subplots(figsize=(7, 6))
        labels = np.array([next((one for one in common if one in str(kind).split("|")), "other") for kind in kinds])
        for colour, kind in enumerate([*common, "other"]):
            of = labels == kind
            shade = "lightgrey" if kind == "other" else f"C{colour}"
            axes.scatter(*flat[of].T, s=6, color=shade, label=kind, zorder=1 if kind == "other" else 2)
        axes.set(title=f"{name}: the {len(chosen):,} items most interacted with, t-SNE", xticks=[], yticks=[])
        axes.legend(fontsize=7, markerscale=2, loc="upper left", bbox_to_anchor=(1, 1))
        return figure


def _ranked(answer: Answers) -> np.ndarray:
    assert answer.ranking is not None
    return answer.ranking.items


def _distinct(numbers: np.ndarray) -> np.ndarray:
    """Distinct values >= 0 of each row of (B, k), (B,) int64."""
    ordered = np.sort(numbers, axis=1)
    fresh = np.diff(ordered, axis=1, prepend=-1) != 0
    counts: np.ndarray = (fresh & (ordered >= 0)).sum(1)
    return counts


def _curve(plots: Any, name: str, curve: Mapping[str, float]) -> Any:
    figure, axes = plots.subplots(figsize=(5, 3.5))
    values = [float(value) for value in curve]
    axes.plot(values, list(curve.values()), marker="o")
    best = max(curve, key=lambda value: curve[value])
    axes.axvline(float(best), color="grey", linestyle=":", linewidth=1)
    axes.set(xlabel=name, ylabel="selection metric on validation", title=f"chosen: {name} = {best}")
    axes.grid(alpha=0.3)
    return figure


def _venn(plots: Any, names: Sequence[str], counts: Sequence[int]) -> Any:
    """Two circles whose areas, and whose common area, are ``counts``: both, the first alone, the second alone."""
    both, first, second, neither = counts
    radii = np.sqrt(np.array([both + first, both + second]) / np.pi)
    distance = _distance(float(radii[0]), float(radii[1]), both)
    figure, axes = plots.subplots(figsize=(6, 4))
    middles = (0.0, distance)
    for colour, (middle, radius) in enumerate(zip(middles, radii, strict=True)):
        axes.add_patch(plots.Circle((middle, 0), radius, color=f"C{colour}", alpha=0.45))
    left, right = -radii[0], distance + radii[1]
    edges = ((left + distance - radii[1]) / 2, (distance - radii[1] + radii[0]) / 2, (radii[0] + right) / 2)
    for place, count in zip(edges, (first, both, second), strict=True):
        axes.text(place, 0, f"{count:,}", ha="center", va="center", fontsize=11)
    top = max(radii) * 1.12
    axes.text(left, top, names[0], ha="left", color="C0", fontsize=11)
    axes.text(right, top, names[1], ha="right", color="C1", fontsize=11)
    axes.set(xlim=(left * 1.05, right * 1.05), ylim=(-top * 1.1, top * 1.2), aspect="equal")
    axes.set_title(f"users served (target among the first {HIT}); neither: {neither:,}", fontsize=10)
    axes.axis("off")
    return figure


def _distance(first: float, second: float, common: float) -> float:
    """Between the middles of two circles of these radii whose common area is ``common``, by bisection."""
    low, high = abs(first - second), first + second
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if _lens(first, second, middle) > common else (low, middle)
    return (low + high) / 2


def _lens(a: float, b: float, d: float) -> float:
    """Common area of two circles of radii ``a`` and ``b`` whose middles are ``d`` apart."""
    if d >= a + b:
        return 0.0
    if d <= abs(a - b):
        return float(np.pi * min(a, b) ** 2)
    at_a = np.arccos((d * d + a * a - b * b) / (2 * d * a))
    at_b = np.arccos((d * d + b * b - a * a) / (2 * d * b))
    return float(a * a * (at_a - np.sin(2 * at_a) / 2) + b * b * (at_b - np.sin(2 * at_b) / 2))
