"""Models that chat: what ends their turn, in answers that they learn and in those they write; room for the template."""

import numpy as np
import pytest
import torch
from test_candidates_language import NAMES, SMALL, context, train_view

from genrec_bench.datasets.errors import InputError
from genrec_bench.methods import registry
from genrec_bench.methods.candidates import inference
from genrec_bench.methods.candidates.prompts import TITLES
from genrec_bench.methods.candidates.wording import NOUNS, TEMPLATES
from genrec_bench.methods.language.backbone import load_backbone, tiny_llama
from genrec_bench.methods.language.vocabulary import byte_tokenizer

pytest.importorskip("transformers")
TEMPLATE = (
    "{% for turn in messages %}<turn>{{ turn['role'] }}\n{{ turn['content'] }}<end>\n{% endfor %}"
    "{% if add_generation_prompt %}<turn>assistant\n{% endif %}"
)
ONE_SIDED = "{{ messages[0]['content'] }}\nBOT\n"
REFUSING = "{% if messages | length > 1 %}{{ raise_exception('one turn') }}{% endif %}" + ONE_SIDED


@pytest.fixture
def saved(tmp_path):
    """``saved(template, ends)``: a model folder whose generation settings hold those ends beside its tokenizer's."""

    def save(template=TEMPLATE, ends=("<end>",), special=True, eos="</s>"):
        wordings = [part.format(**NOUNS["items"]._asdict()) for template_ in TEMPLATES for part in template_]
        tokenizer = byte_tokenizer([*NAMES, *wordings] * 2)
        tokenizer.add_tokens(["<turn>", "<end>"], special_tokens=special)
        tokenizer.chat_template, tokenizer.eos_token = template, eos
        model = tiny_llama(len(tokenizer), layers=1, dim=32, heads=2, feedforward=64, positions=700)
        eos_id = model.generation_config.eos_token_id
        model.generation_config.eos_token_id = [eos_id, *tokenizer.convert_tokens_to_ids(list(ends))]
        model.save_pretrained(tmp_path / "chatty")
        tokenizer.save_pretrained(tmp_path / "chatty")
        return str(tmp_path / "chatty")

    return save


def made(folder, **config):
    method = registry.get("llm_zero_shot")(registry.configure("llm_zero_shot", {**SMALL, "backbone": folder, **config}))
    method.make_model(train_view(), context(), None)
    return method


@pytest.mark.parametrize(
    ("template", "ends", "special", "expected"),
    [
        (TEMPLATE, ["<end>"], True, "<end>"),
        (TEMPLATE, ["<end>"], False, "<end>"),
        (TEMPLATE, [], True, "<end>"),  # only the template tells
        (TEMPLATE, [], False, "</s>"),
        (ONE_SIDED, ["<end>"], True, "</s>"),
        (REFUSING, ["<end>"], True, "</s>"),
    ],
)
def test_a_turn_ends_as_the_template_says(saved, template, ends, special, expected):
    method = made(saved(template, ends, special), chat=True)
    ids = method.backbone.tokenizer.convert_tokens_to_ids
    assert method.writer.answer("Up").tokens[-1] == ids(expected)
    assert set(method.writer.ends) == {ids("</s>"), *map(ids, ends), ids(expected)}
    plain = made(saved(template, ends, special))
    assert plain.writer.answer("Up").tokens[-1] == ids("</s>")
    assert set(plain.writer.ends) == {ids("</s>"), *map(ids, ends)}


@pytest.mark.parametrize("special", [True, False])
def test_what_a_model_that_chats_writes_ends_with_its_turn(saved, monkeypatch, special):
    method = made(saved(special=special), chat=True)
    ids = method.backbone.tokenizer.convert_tokens_to_ids
    done, _ = method.stops.after(torch.tensor([ids("<end>"), ids("</s>"), ids("<turn>")]), torch.tensor([True] * 3))
    assert done.tolist() == [True, True, False]
    method.known = {}
    monkeypatch.setattr(inference, "written", lambda *given: [[*method.writer.ids("Up"), ids("<end>")]])
    question = method.writer.questions.ask(np.array([0]), np.array([3, 4]))
    method._answered([question], [method.writer.prompt(question, TITLES)])
    assert list(method.known.values()) == ["Up"]


def test_a_text_has_one_end_where_nothing_else_is_said():
    tiny = load_backbone("tiny", texts=NAMES, spelling="bytes", layers=1, dim=16, heads=2, feedforward=32)
    assert tiny.ends == (tiny.tokenizer.eos_token_id,)
    tiny.model.generation_config.eos_token_id = None
    assert tiny.ends == (tiny.tokenizer.eos_token_id,)


def test_a_tokenizer_without_an_end_is_refused(saved):
    with pytest.raises(InputError, match="Model 'chatty' has a tokenizer without an end token"):
        made(saved(eos=None))


def test_what_stands_around_a_question_needs_room(saved):
    folder = saved()
    around = made(folder, chat=True).writer.around
    assert around > made(folder).writer.around == 1  # a line break
    most = 700 - (48 + 1) - around
    made(folder, chat=True, max_prompt=most)
    with pytest.raises(InputError, match=rf"max_prompt={most + 1}, {around} tokens around it .* up to 701 tokens"):
        made(folder, chat=True, max_prompt=most + 1)
