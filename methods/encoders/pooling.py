"""Vectors of texts by a pretrained language model: one forward pass, mean over the positions that carry text.

Encoders (BERT, T5's encoder) average all positions of the attention mask, as sentence-transformers does, and follow the
folder's own ``modules.json`` for what comes after; decoders leave out the BOS position, whose state is the same for
every text (EAGER-LLM eq. 2, LC-Rec's masked mean).
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from genrec_bench.datasets.errors import InputError
from genrec_bench.methods.language import sources
from genrec_bench.methods.language.sources import ModelSource, quietly

MAX_TOKENS = 512
BATCH_TOKENS = {"cpu": 2048, "cuda": 65536}  # 2048 fits a core's cache: 1024 to 8192 differ by 15 percent


def pooled_vectors(texts: Sequence[str], source: ModelSource, device: str = "cpu") -> np.ndarray:
    """One vector for each text, (N, d) float32; no text may be empty of tokens.

    Raises InputError where the folder's model or pooling is of a kind that is not known here.
    """
    sources.require("transformers")
    from transformers import AutoTokenizer

    name, kind = sources.architecture(source.folder)
    head = SentenceHead.read(source.folder) if kind != "causal" else SentenceHead()
    try:
        with quietly():
            tokenizer = AutoTokenizer.from_pretrained(source.folder, local_files_only=True)
            model = _load(source.folder, kind, device)
    except (OSError, ValueError, RuntimeError) as error:
        first_line = str(error).strip().partition("\n")[0]
        raise InputError(f"{source.folder}: {name} cannot be loaded as a text encoder: {first_line}") from error
    limit = min(head.max_tokens, getattr(model.config, "max_position_embeddings", MAX_TOKENS) or MAX_TOKENS)
    token_ids = tokenizer(list(texts), truncation=True, max_length=limit, padding=False)["input_ids"]
    dropped = tokenizer.bos_token_id if kind == "causal" else None
    return encode(model, token_ids, device, head, dropped)


@torch.inference_mode()
def encode(
    model: torch.nn.Module,
    token_ids: Sequence[Sequence[int]],
    device: str,
    head: "SentenceHead",
    bos: int | None,
    budget: int | None = None,
) -> np.ndarray:
    """(N, d) float32 from token numbers; ``bos`` is left out of the mean where it stands first.

    ``budget`` is the padded tokens of a batch.
    """
    lengths = np.array([len(row) for row in token_ids])
    vectors: np.ndarray | None = None
    for rows in token_batches(lengths, budget or BATCH_TOKENS[torch.device(device).type]):
        ids = torch.zeros((len(rows), int(lengths[rows].max())), dtype=torch.int64)
        mask = torch.zeros_like(ids)
        for i, row in enumerate(rows):
            ids[i, : lengths[row]] = torch.tensor(token_ids[row], dtype=torch.int64)
            mask[i, : lengths[row]] = 1
        ids, mask = ids.to(device), mask.to(device)
        states = model(input_ids=ids, attention_mask=mask).last_hidden_state  # (B, T, d)
        if bos is not None:
            has_more = mask.sum(1) > 1  # a text of the BOS alone keeps it: a mean over nothing is NaN
            mask[:, 0] *= ~((ids[:, 0] == bos) & has_more)
        pooled = head.apply(states.float(), mask).cpu().numpy()
        if vectors is None:
            vectors = np.empty((len(token_ids), pooled.shape[1]), dtype=np.float32)
        vectors[rows] = pooled
    return vectors if vectors is not None else np.empty((0, 0), dtype=np.float32)


def token_batches(lengths: np.ndarray, budget: int) -> Iterator[np.ndarray]:
    """Rows of similar length whose padded size stays within ``budget`` tokens (a longer row comes alone)."""
    order = np.argsort(lengths, kind="stable")[::-1]  # longest first: what does not fit the memory shows at once
    start = 0
    while start < len(order):
        end = start + max(1, budget // max(1, int(lengths[order[start]])))
        yield order[start:end]
        start = end


@dataclass(frozen=True)
class SentenceHead:
    """What turns hidden states into one vector: the mean, then the dense layers and the norm of a sentence model."""

    first_token: bool = False  # the first position instead of the mean
    dense: tuple[tuple[Tensor, Tensor | None, Any], ...] = ()  # (weight, bias, activation)
    normalise: bool = False
    max_tokens: int = MAX_TOKENS

    def apply(self, states: Tensor, mask: Tensor) -> Tensor:
        """(B, T, d) states and (B, T) mask -> (B, d')."""
        weight = mask.unsqueeze(2).to(states.dtype)
        pooled = states[:, 0] if self.first_token else (states * weight).sum(1) / weight.sum(1)
        for matrix, bias, activation in self.dense:
            pooled = activation(functional.linear(pooled, matrix.to(pooled), None if bias is None else bias.to(pooled)))
        return functional.normalize(pooled, dim=1) if self.normalise else pooled

    @classmethod
    def read(cls, folder: Path) -> "SentenceHead":
        """From the files that sentence-transformers writes; the plain mean where a folder has none."""
        if not (folder / "modules.json").is_file():
            return cls()
        first_token, normalise, dense = False, False, []
        for module in _json_list(folder / "modules.json"):
            kind, path = str(module.get("type", "")).rpartition(".")[2], folder / str(module.get("path", ""))
            if kind == "Pooling":
                first_token = _pooling(path)
            elif kind == "Dense":
                dense.append(_dense(path))
            elif kind == "Normalize":
                normalise = True
            elif kind != "Transformer":
                raise InputError(f"{folder / 'modules.json'}: module '{kind}' is not known here")
        limits = folder / "sentence_bert_config.json"
        limit = sources.read_json(limits).get("max_seq_length") if limits.is_file() else None
        return cls(first_token, tuple(dense), normalise, int(limit or MAX_TOKENS))


def _pooling(folder: Path) -> bool:
    """Whether the first token is taken; the mean is the other way that is known."""
    config = sources.read_json(folder / "config.json")
    chosen = [name for name, on in config.items() if name.startswith("pooling_mode_") and on is True]
    chosen = chosen or [f"pooling_mode_{config.get('pooling_mode', 'mean')}"]
    known = {"pooling_mode_mean_tokens": False, "pooling_mode_mean": False}
    known |= {"pooling_mode_cls_token": True, "pooling_mode_cls": True}
    if len(chosen) != 1 or chosen[0] not in known:
        raise InputError(f"{folder / 'config.json'}: pooling {', '.join(chosen)} is not known here (mean, cls)")
    return known[chosen[0]]


def _dense(folder: Path) -> tuple[Tensor, Tensor | None, Any]:
    from safetensors.torch import load_file

    config = sources.read_json(folder / "config.json")
    activations = {"Identity": torch.nn.Identity(), "Tanh": torch.nn.Tanh(), "ReLU": torch.nn.ReLU()}
    activation = str(config.get("activation_function", "Identity")).rpartition(".")[2]
    if activation not in activations:
        raise InputError(f"{folder / 'config.json'}: activation {activation} is not known here")
    whole = folder / "model.safetensors"
    pickled = folder / "pytorch_model.bin"
    if not whole.is_file() and not pickled.is_file():
        raise InputError(f"{folder}: the weights of this layer are missing")
    weights = load_file(whole) if whole.is_file() else torch.load(pickled, weights_only=True)
    return weights["linear.weight"], weights.get("linear.bias"), activations[activation]


def _load(folder: Path, kind: sources.Kind, device: str) -> torch.nn.Module:
    """The model without its output layer, evaluating; of a sequence-to-sequence model the encoder."""
    from transformers import AutoConfig, AutoModel, AutoModelForTextEncoding

    config = AutoConfig.from_pretrained(folder, local_files_only=True)
    encoder_only = kind != "causal" and getattr(config, "is_encoder_decoder", False)
    auto = AutoModelForTextEncoding if encoder_only else AutoModel
    dtype = getattr(torch, sources.precision(folder, device))
    model: torch.nn.Module = auto.from_pretrained(folder, config=config, dtype=dtype, local_files_only=True)
    return model.to(device).eval()


def _json_list(path: Path) -> list[dict[str, Any]]:
    import json

    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"{path} cannot be read as JSON: {error}") from error
    if not isinstance(content, list) or not all(isinstance(part, dict) for part in content):
        raise InputError(f"{path} must hold a JSON list of objects")
    return content
