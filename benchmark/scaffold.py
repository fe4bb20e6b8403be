"""`genrec-bench new-method`: a method that runs as it stands, in one file, and its test."""

import keyword
from pathlib import Path

from genrec_bench.datasets.errors import InputError
from genrec_bench.methods import registry

METHOD = '''"""{title}: say here what it does, and which paper it is from.

genrec-bench check {name}.py
genrec-bench run --plugin {name}.py --method {name} --method popularity --dataset ml-100k
"""

from pathlib import Path

import numpy as np

from genrec_bench.methods.base import Context, MethodConfig
from genrec_bench.methods.registry import register
from genrec_bench.methods.scoring import Scorer


class {title}Config(MethodConfig):
    decay: float = 0.7  # weight of an item falls by this factor a step into the past

    search_space = {{"decay": [0.3, 0.5, 0.7, 0.9]}}


@register("{name}")
class {title}(Scorer):
    """Items bought right after the items of the history."""

    Config = {title}Config

    def fit(self, train, context: Context) -> None:
        self.follows = np.zeros((train.num_items, train.num_items), np.float32)
        for row in range(len(train.sequences)):
            items = train.sequences.row(row)
            np.add.at(self.follows, (items[:-1], items[1:]), 1.0)
        self.follows /= np.maximum(self.follows.sum(1, keepdims=True), 1.0)

    def score(self, histories) -> np.ndarray:
        scores = np.zeros((len(histories), len(self.follows)), np.float32)
        for row in range(len(histories)):
            recent = histories.row(row)[-5:][::-1]
            scores[row] = self.config.decay ** np.arange(len(recent)) @ self.follows[recent]
        return scores

    def save(self, folder: Path) -> None:
        np.save(folder / "follows.npy", self.follows)

    def load(self, folder: Path, train, context: Context) -> None:
        self.follows = np.load(folder / "follows.npy")
'''

TEST = '''"""The contract suite against {name}.py."""

from pathlib import Path

from genrec_bench.benchmark.contract import check_methods


def test_{name}_keeps_the_contract():
    lines: list[str] = []
    assert check_methods(str(Path(__file__).with_name("{name}.py")), lines.append), "\\n".join(lines)
'''


def write_method(name: str, folder: Path) -> list[Path]:
    """Write ``NAME.py`` and ``test_NAME.py`` into ``folder``; existing files are never overwritten."""
    if not name.isidentifier() or keyword.iskeyword(name) or name != name.lower():
        raise InputError(f"Method name '{name}': use lower-case letters, digits and underscores, such as my_method")
    if name in registry.names():
        raise InputError(f"Method name '{name}' is taken; `genrec-bench methods` lists the names in use")
    title = "".join(part.capitalize() for part in name.split("_"))
    files = {folder / f"{name}.py": METHOD, folder / f"test_{name}.py": TEST}
    for path in files:
        if path.exists():
            raise InputError(f"{path} exists already: choose another name or --folder")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for path, template in files.items():
            path.write_text(template.format(name=name, title=title), encoding="utf-8")
    except OSError as error:
        raise InputError(f"Cannot write into {folder}: {error.strerror}") from None
    return list(files)
