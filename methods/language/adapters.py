"""What of a language model is trained: everything, or LoRA (Hu et al. 2022, arXiv 2106.09685) and the new tokens' rows.

Adapters are written as PEFT writes them (safetensors): ``PeftModel.from_pretrained`` reads them, once the model has
rows for the tokenizer that lies beside them.
"""

import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pydantic import PositiveFloat, PositiveInt
from torch import Tensor, nn

from genrec_bench.datasets.errors import InputError
from genrec_bench.methods.base import MethodConfig, Rate
from genrec_bench.methods.decoding.tokens import unwrapped
from genrec_bench.methods.dropout import Dropout
from genrec_bench.methods.language import sources
from genrec_bench.methods.language.backbone import Backbone

TASKS = {"causal": "CAUSAL_LM", "seq2seq": "SEQ_2_SEQ_LM"}


class LoraSettings(MethodConfig):
    """LC-Rec's and LETTER's values; ``targets`` are module names, or every linear layer but the output's."""

    r: PositiveInt = 8
    alpha: PositiveFloat = 32.0
    dropout: Rate = 0.05
    targets: tuple[str, ...] | None = None


def adapt(
    backbone: Backbone,
    lora: LoraSettings | None,
    trainable_rows: Sequence[Tensor] = (),
    gradient_checkpointing: bool = False,
) -> None:
    """Make ``backbone.model`` trainable in place: wholly with ``lora=None``, else adapters and ``trainable_rows``.

    ``trainable_rows`` are token numbers, as `vocabulary.add_code_tokens` returns them: their rows of the embedding and
    of the output layer learn, all others stay. Raises InputError for a target that the model does not have.
    """
    if lora is None:
        backbone.model.requires_grad_(True)
    else:
        backbone.model = _with_adapters(backbone, lora, trainable_rows)
    if gradient_checkpointing:
        switch_on_checkpointing(backbone.model)


def switch_on_checkpointing(model: Any) -> None:
    """Compute activations again in the backward pass instead of keeping them: less memory, a third more time."""
    # older versions of transformers have the second name only
    enable = getattr(model, "activation_checkpointing_enable", None) or model.gradient_checkpointing_enable
    enable({"use_reentrant": False})
    model.config.use_cache = False  # a cache of keys would need what is not kept


def merge(backbone: Backbone) -> None:
    """Put what adapters and new rows have learned into the weights themselves; the adapters are gone."""
    if hasattr(backbone.model, "merge_and_unload"):
        backbone.model = backbone.model.merge_and_unload()


def base_weights(model: nn.Module) -> dict[str, Tensor]:
    """The weights under LoRA adapters, by the names they have without them; tied ones once."""
    found: dict[str, Tensor] = {}
    seen: set[int] = set()
    for name, value in unwrapped(model).state_dict().items():
        if ".lora_" not in name and value.data_ptr() not in seen:
            seen.add(value.data_ptr())
            found[name.replace(".base_layer.", ".")] = value
    return found


def save_adapter(backbone: Backbone, folder: Path) -> None:
    """Write adapters, new rows and tokenizer to ``folder``."""
    model = backbone.model
    model.peft_config["default"].base_model_name_or_path = backbone.identity.get("model", "")
    # "auto" would ask the hub for the model's first vocabulary, and store all rows instead of the new ones
    model.save_pretrained(folder, safe_serialization=True, save_embedding_layers=False)
    backbone.tokenizer.save_pretrained(folder)


def load_adapter(backbone: Backbone, folder: Path, trainable: bool = False) -> None:
    """Put what `save_adapter` wrote on the model it was made from; the model gets rows for the folder's tokens.

    Raises InputError for a folder that holds no adapter, or one of another model.
    """
    sources.require("transformers", "peft")
    from peft import PeftModel
    from transformers import AutoTokenizer

    if not (folder / "adapter_config.json").is_file():
        raise InputError(f"{folder} holds no adapter: adapter_config.json is missing")
    weights = folder / "adapter_model.safetensors"
    if not weights.is_file():
        raise InputError(f"{folder} holds no adapter: {weights.name} is missing")
    sources.check_safetensors(weights)
    tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    rows = backbone.model.get_input_embeddings().weight.shape[0]
    if len(tokenizer) > rows:
        backbone.model.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    try:
        with _quiet():
            adapted = PeftModel.from_pretrained(backbone.model, folder, is_trainable=trainable)
    except (RuntimeError, ValueError, KeyError) as error:
        first_line = str(error).strip().partition("\n")[0]
        raise InputError(f"The adapter in {folder} is not one of this model: {first_line}") from error
    backbone.model = _with_quick_dropout(adapted).eval()
    _check_whole(backbone, folder)
    backbone.tokenizer = tokenizer


def _check_whole(backbone: Backbone, folder: Path) -> None:
    """Refuse an adapter of a deeper or shallower model, which peft loads as far as it goes, and of another one."""
    from peft import get_peft_model_state_dict
    from safetensors import safe_open

    with safe_open(folder / "adapter_model.safetensors", framework="pt") as file:
        stored = set(file.keys())
    own = set(get_peft_model_state_dict(backbone.model, save_embedding_layers=False))
    made_for = backbone.model.peft_config["default"].base_model_name_or_path
    name = backbone.identity.get("model", "")
    if stored != own:
        odd = sorted(stored ^ own)[0]
        raise InputError(f"The adapter in {folder} is not one of this model: {odd} is in one of them only")
    if made_for and name and made_for != name:
        raise InputError(
            f"The adapter in {folder} is not one of this model: it was made for {made_for}, this is {name}"
        )


def _with_adapters(backbone: Backbone, lora: LoraSettings, trainable_rows: Sequence[Tensor]) -> Any:
    sources.require("peft")
    from peft import LoraConfig, get_peft_model

    rows = sorted({int(row) for level in trainable_rows for row in level})
    config = LoraConfig(
        r=lora.r,
        lora_alpha=lora.alpha,  # type: ignore[arg-type]  # a scale: PEFT divides it by r
        lora_dropout=lora.dropout,
        target_modules=list(lora.targets) if lora.targets else "all-linear",
        trainable_token_indices=dict.fromkeys(_row_matrices(backbone.model), rows) if rows else None,
        task_type=TASKS[backbone.kind],
    )
    try:
        with _quiet():
            return _with_quick_dropout(get_peft_model(backbone.model, config))
    except ValueError as error:
        if lora.targets is None:
            raise
        modules = backbone.model.named_modules()
        linear = sorted({name.rpartition(".")[2] for name, part in modules if isinstance(part, nn.Linear)})
        raise InputError(
            f"LoRA targets {', '.join(lora.targets)} are not in this model; its linear layers: {', '.join(linear)}"
        ) from error


@contextmanager
def _quiet() -> Iterator[None]:
    """Without transformers' warning that peft calls one of its properties by an older name."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "`is_gradient_checkpointing` is deprecated", FutureWarning)
        yield


def _with_quick_dropout(model: Any) -> Any:
    """Our dropout before the adapters: with torch's own, a CPU step of SmolLM2 takes a tenth longer."""
    for part in model.modules():
        for name, layer in getattr(part, "lora_dropout", {}).items():
            if isinstance(layer, nn.Dropout):  # else Identity: no dropout
                part.lora_dropout[name] = Dropout(layer.p)
    return model


def _row_matrices(model: Any) -> list[str]:
    """Names of the modules that hold a row for each token: the embedding, and the output layer where it is not tied."""
    names = {id(part): name for name, part in model.named_modules()}
    embedding, output = model.get_input_embeddings(), model.get_output_embeddings()
    modules = [embedding] if output is None or output.weight is embedding.weight else [embedding, output]
    return [names[id(part)].rpartition(".")[2] for part in modules]
