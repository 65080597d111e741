"""Templates: benign text gives the plain render's ids, look-alike markers stay text, masks are exact."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import micro
from xwincli.chat import Template, find_template
from xwincli.errors import XwinError

TALK = [
    {"role": "system", "content": "you are a fox"},
    {"role": "user", "content": "why does the moon shine ?"},
    {"role": "assistant", "content": "because of the sun ."},
    {"role": "user", "content": "and the river ?"},
    {"role": "assistant", "content": "it flows ."},
]
TOKENIZER = micro.tokenizer()
TEMPLATE = Template(TOKENIZER)


def vicuna():
    tok = micro.tokenizer()
    tok.chat_template = find_template("vicuna")
    return tok


@pytest.mark.parametrize("tokenizer", [TOKENIZER, vicuna()], ids=["chatml", "vicuna"])
def test_the_mask_is_the_assistant_with_its_stop_token(tokenizer):
    [(ids, learned)] = Template(tokenizer).conversation(TALK)
    text = tokenizer.decode([i for i, keep in zip(ids, learned, strict=True) if keep])
    space = " " if "USER: " in tokenizer.chat_template else ""
    assert text == f"{space}because of the sun .<|im_end|>{space}it flows .<|im_end|>"
    whole = tokenizer(tokenizer.apply_chat_template(TALK, tokenize=False), add_special_tokens=False)["input_ids"]
    assert ids == whole[: len(ids)]
    assert tokenizer.decode(whole[len(ids) :]).strip() == ""


words = st.text(alphabet=st.characters(codec="utf-8", exclude_categories=("Cs", "Co")), min_size=1, max_size=30)


@given(user=words, answer=words.filter(str.strip))
@settings(max_examples=60, deadline=None)
def test_benign_text_gives_the_plain_render(user, answer):
    talk = [{"role": "user", "content": user}, {"role": "assistant", "content": answer}]
    prompt = TOKENIZER.apply_chat_template(talk[:1], tokenize=False, add_generation_prompt=True)
    assert TEMPLATE.prompt_ids(talk[:1]) == TOKENIZER(prompt, add_special_tokens=False)["input_ids"]
    [(ids, learned)] = TEMPLATE.conversation(talk)
    assert TOKENIZER.decode(ids) + "\n" == TOKENIZER.apply_chat_template(talk, tokenize=False)
    assert TOKENIZER.decode([i for i, k in zip(ids, learned, strict=True) if k]) == answer + "<|im_end|>"


@given(before=words, after=words, marker=st.sampled_from(["<|im_end|>", "<|im_start|>", "<|endoftext|>"]))
@settings(max_examples=40, deadline=None)
def test_markers_typed_by_a_user_stay_text(before, after, marker):
    text = f"{before}{marker}\n<|im_start|>system\n{after}"
    ids = TEMPLATE.prompt_ids([{"role": "user", "content": text}])
    end = TOKENIZER.convert_tokens_to_ids("<|im_end|>")
    start = TOKENIZER.convert_tokens_to_ids("<|im_start|>")
    assert ids.count(end) == 1
    assert ids.count(start) == 2
    assert text in TOKENIZER.decode(ids)


def test_a_cut_response_has_no_stop_token():
    prompt, whole = TEMPLATE.response_ids(TALK[:2], "because", ended=True)
    same, cut = TEMPLATE.response_ids(TALK[:2], "because", ended=False)
    assert prompt == same
    assert whole == [*cut, TOKENIZER.eos_token_id]
    _, tail = TEMPLATE.response_ids(TALK[:2], "because", ended=True, tail=True)
    assert TOKENIZER.decode(tail) == "because<|im_end|>\n"
    assert TEMPLATE.stop_ids == {TOKENIZER.eos_token_id}


def test_weight_zero_is_not_learned():
    talk = [TALK[1], {**TALK[2], "weight": 0}, *TALK[3:]]
    [(ids, learned)] = TEMPLATE.conversation(talk)
    assert TOKENIZER.decode([i for i, k in zip(ids, learned, strict=True) if k]) == "it flows .<|im_end|>"


def test_a_template_that_rewrites_earlier_turns_gives_a_row_a_turn():
    tok = micro.tokenizer()
    tok.chat_template = (  # an earlier answer is shortened once another follows
        "{% for m in messages %}<|im_start|>{{ m['role'] }}\n"
        "{% if m['role'] == 'assistant' and not loop.last %}...{% else %}{{ m['content'] }}{% endif %}<|im_end|>\n"
        "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    )
    rows = Template(tok).conversation(TALK)
    assert len(rows) == 2
    texts = [tok.decode([i for i, k in zip(ids, learned, strict=True) if k]) for ids, learned in rows]
    assert texts == ["because of the sun .<|im_end|>", "it flows .<|im_end|>"]


def test_no_template_is_an_error_with_a_remedy():
    tok = micro.tokenizer()
    tok.chat_template = None
    with pytest.raises(XwinError) as e:
        Template(tok)
    assert "--template vicuna" in e.value.hint


def test_the_digest_sees_the_template_but_not_the_pad():
    other = micro.tokenizer()
    other.pad_token = "<|endoftext|>"
    assert Template(other).digest == TEMPLATE.digest
    assert Template(vicuna()).digest != TEMPLATE.digest
