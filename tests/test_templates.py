"""Chat templates of the great families over their kinds of tokenizer: plain ids, look-alikes, masks, digests."""

from __future__ import annotations

import copy

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import dialects
import micro
from xwincli import manifest
from xwincli.chat import Template, find_template, split_thinking, tokenizer_digest
from xwincli.chat.arguments import parse_arguments, variables
from xwincli.errors import XwinError

TEMPLATES = {name: Template(dialects.tokenizer(name)) for name in dialects.NAMES}
each = pytest.mark.parametrize("name", dialects.NAMES)

# text of every kind; ▁ is how SentencePiece writes a space, so it comes back as one
anything = st.text(alphabet=st.characters(codec="utf-8", exclude_categories=("Cs", "Co"), exclude_characters="▁"))
said = st.one_of(anything, st.sampled_from(["why ?", "a\n\nb", "two  spaces\n\n\n- x", "it's 1234 é ☃ 狐"])).map(
    str.strip
)
said = said.filter(bool)
LOOKALIKES = [
    *("<|im_start|>", "<|im_end|>", "<|eot_id|>", "<|start_header_id|>", "<|begin_of_text|>", "<end_of_turn>"),
    *("<start_of_turn>", "</s>", "<s>", "<unk>", "<|end|>", "<|user|>", "<|endoftext|>", "<bos>"),
]


def fakes(*more: str):
    """Text with two look-alikes in it."""
    marks = st.sampled_from([*LOOKALIKES, *more])
    return st.tuples(anything, marks, anything, marks, anything).map(lambda parts: "".join(parts).strip())


def user(text: str) -> dict[str, str]:
    return {"role": "user", "content": text}


def assistant(text: str) -> dict[str, str]:
    return {"role": "assistant", "content": text}


def plain(name: str, messages, prompt: bool = False) -> list[int]:
    tok = dialects.tokenizer(name)
    return tok.apply_chat_template(messages, tokenize=True, return_dict=False, add_generation_prompt=prompt)


def special(name: str, ids) -> list[str]:
    return [t for t in TEMPLATES[name].tokenizer.convert_ids_to_tokens(ids) if t in markers(name)]


def markers(name: str) -> set[str]:
    return {
        t.content
        for t in dialects.tokenizer(name).added_tokens_decoder.values()
        if t.content in [*LOOKALIKES, "<tool_response>"]
    }


@each
@given(question=said, answer=said, again=said)
@settings(max_examples=25, deadline=None)
def test_benign_conversations_give_the_ids_of_the_plain_render(name, question, answer, again):
    talk = [user(question), assistant(answer), user(again), assistant(answer)]
    assert TEMPLATES[name].prompt_ids(talk[:3]) == plain(name, talk[:3], prompt=True)
    prompt, response = TEMPLATES[name].response_ids(talk[:3], answer, tail=True)
    assert prompt + response == plain(name, talk)
    rows = TEMPLATES[name].conversation(talk)
    assert len(rows) == (2 if name == "qwen3" else 1)  # which writes thoughts into the last turn alone
    ids, learned = rows[-1]
    assert ids == plain(name, talk)[: len(ids)]
    assert ids[-1] in TEMPLATES[name].stop_ids and learned[-1]


@each
@given(question=fakes("<tool_response>", "</think>"), answer=fakes())  # these the assistant may write
@settings(max_examples=25, deadline=None)
def test_look_alikes_stay_text_whoever_wrote_them(name, question, answer):
    """The special ids are those of a benign conversation, and each text comes back whole."""
    template = TEMPLATES[name]
    prompt, response = template.response_ids([user(question)], answer)
    [(ids, learned)] = template.conversation([user(question), assistant(answer)])
    assert ids == prompt + response == template.prompt_ids([user(question)]) + response
    assert learned == [False] * len(prompt) + [True] * len(response)
    benign = special(name, template.conversation([user("q"), assistant("a")])[0][0])
    assert special(name, ids) == benign
    assert question in template.tokenizer.decode(prompt)
    if name == "qwen3":
        response = response[len(template.response_ids([user("q")], "")[1]) - 1 :]
    assert template.answer(response) == answer


@each
def test_the_mask_is_the_answers_with_their_stop_tokens(name):
    template = TEMPLATES[name]
    talk = [user("why ?"), assistant("because ."), user("and </s><|im_end|> ?"), assistant("it flows .")]
    found = [[i for i, keep in zip(ids, learned, strict=True) if keep] for ids, learned in template.conversation(talk)]
    stops = [i for ids in found for i in ids if i in template.stop_ids]
    assert len(stops) == 2
    if name != "qwen3":
        [both] = found
        at = both.index(stops[0]) + 1
        assert [template.answer(both[:at]), template.answer(both[at:])] == ["because .", "it flows ."]
        weightless = [talk[0], {**talk[1], "weight": 0}, *talk[2:]]
        [(ids, learned)] = template.conversation(weightless)
        assert [i for i, keep in zip(ids, learned, strict=True) if keep] == both[at:]


@pytest.mark.parametrize("name", ["llama3", "gemma", "phi3", "qwen3"])
def test_the_mask_is_that_of_generation_tags(name):
    """TRL's training templates mark by tags what is learned: transformers' own masks agree."""
    tok = copy.deepcopy(dialects.tokenizer(name))
    tok.chat_template = dialects.published(f"{name}_training")
    talk = [user("why ?\n\nsay it"), assistant("because of the sun ."), user("and ?"), assistant("it flows .")][
        : 2 if name == "qwen3" else 4
    ]
    want = tok.apply_chat_template(talk, tokenize=True, return_dict=True, return_assistant_tokens_mask=True)
    [(ids, learned)] = Template(tok).conversation(talk)
    assert ids == want["input_ids"][: len(ids)]
    after = [i > 0 and ids[i - 1] in Template(tok).stop_ids for i in range(len(ids))]  # they learn its newline too
    assert learned == [bool(k) and not a for k, a in zip(want["assistant_masks"], after, strict=False)]
    assert sum(learned) > 10


def test_a_token_across_the_boundary_is_cut_there_as_in_generation():
    """``\\n\\n`` is one token in Gemma, but a prompt ends with its first newline and generation goes on from there."""
    tok = copy.deepcopy(dialects.tokenizer("gemma"))
    tok.chat_template = micro.CHATML.replace("<|im_start|>", "<start_of_turn>").replace("<|im_end|>", "<end_of_turn>")
    template = Template(tok)
    prompt, response = template.response_ids([user("q")], "\nfox")
    assert prompt == template.prompt_ids([user("q")])
    assert tok.decode(prompt + response).endswith("assistant\n\nfox<end_of_turn>")
    assert tok.convert_tokens_to_ids("\n\n") not in prompt + response
    [(ids, _)] = template.conversation([user("q"), assistant("\nfox")])
    assert ids == prompt + response


def test_no_space_is_written_into_an_answer_that_is_encoded_apart():
    tok = copy.deepcopy(dialects.tokenizer("vicuna-first"))
    turn = "{{ m['role'] + ': ' + m['content'] + eos_token }}"  # below, the prompt's last space meets the answer
    tok.chat_template = "{{ bos_token }}{% for m in messages %}" + turn + "{% endfor %}"
    tok.chat_template += "{% if add_generation_prompt %}{{ 'assistant: ' }}{% endif %}"
    prompt, response = Template(tok).response_ids([user("q")], "fox .")
    assert prompt == Template(tok).prompt_ids([user("q")])
    assert tok.decode(prompt + response) == "<s>user: q</s>assistant: fox .</s>"


def test_what_a_byte_level_policy_writes_in_vicuna_is_read_as_it_was_written():
    """Its space after ``ASSISTANT:`` is drawn by the model and written by the template: it must not grow."""
    template = TEMPLATES["vicuna-bytes"]
    prompt, response = template.response_ids([user("q")], "because .")
    assert template.tokenizer.decode(response) == " because .</s>"
    assert template.answer(response) == "because ."
    assert template.response_ids([user("q")], template.answer(response)) == (prompt, response)


def test_a_typed_mark_of_ours_cannot_become_a_special_token():
    """The characters that stand in for special tokens while encoding are chosen among those not in the text."""
    template = TEMPLATES["chatml"]
    text = "<|im_end|>" + "".join(chr(0x10FF00) + chr(0xF0000 + i) + chr(0x10FF01) + chr(0xF0000 + i) for i in range(3))
    ids = template.prompt_ids([user(text)])
    assert special("chatml", ids) == ["<|im_start|>", "<|im_end|>", "<|im_start|>"]
    assert text in template.tokenizer.decode(ids)


def test_tool_arguments_are_text_too():
    tok = copy.deepcopy(dialects.tokenizer("qwen3"))
    call = {"type": "function", "function": {"name": "look", "arguments": {"for": "</s><|im_end|>"}}}
    talk = [user("q"), {"role": "assistant", "content": "", "tool_calls": [call]}]
    [(ids, _)] = Template(tok).conversation(talk)
    assert tok.convert_ids_to_tokens(ids).count("<|im_end|>") == 2
    assert '"</s><|im_end|>"' in tok.decode(ids)


def test_roles_a_template_does_not_know_are_refused():
    for name, role in (("gemma", "system"), ("vicuna-first", "tool")):
        with pytest.raises(XwinError, match="refuses this conversation"):
            TEMPLATES[name].prompt_ids([{"role": role, "content": "be brief"}, user("q")])


def test_vicuna_is_the_papers():
    talk = [user("u1"), assistant("a1"), user("u2"), assistant("a2")]
    tok = dialects.tokenizer("vicuna-first")
    system = "A chat between a curious user and an artificial intelligence assistant. "
    system += "The assistant gives helpful, detailed, and polite answers to the user's questions."
    text = tok.apply_chat_template(talk, tokenize=False)
    assert text == f"<s>{system} USER: u1 ASSISTANT: a1</s>USER: u2 ASSISTANT: a2</s>"
    assert tok.apply_chat_template(talk[:1], tokenize=False, add_generation_prompt=True).endswith("USER: u1 ASSISTANT:")
    own = tok.apply_chat_template([{"role": "system", "content": "s"}, *talk[:1]], tokenize=False)
    assert own == "<s>s USER: u1"


# -- arguments


def test_arguments_are_read_as_people_write_them():
    given_ = ["a=true", "b=False", "c=None", "d=3", "e=0.5", "f=26 Jul 2024", 'g="42"', "h=x=y", "i=NaN", "j=[1]", "k="]
    wanted = [True, False, None, 3, 0.5, "26 Jul 2024", "42", "x=y", "NaN", [1], ""]
    assert list(parse_arguments(given_).values()) == wanted
    for wrong in (["a"], ["=1"], ["a b=1"], ["a=1", "a=2"]):
        with pytest.raises(XwinError, match="--template-arg"):
            parse_arguments(wrong)


def test_an_argument_reaches_the_template_and_its_digest():
    template = TEMPLATES["qwen3"]
    off = template.given(["enable_thinking=false"])
    assert off.tokenizer.decode(off.prompt_ids([user("q")])).endswith("assistant\n<think>\n\n</think>\n\n")
    assert template.tokenizer.decode(template.prompt_ids([user("q")])).endswith("assistant\n")
    assert off.text_digest != template.text_digest
    assert off.digest != template.digest
    assert off.tokenizer_digest == template.tokenizer_digest
    assert template.given([]).digest == template.digest
    assert off.response_ids([user("q")], "fox")[1] == template.tokenizer("fox<|im_end|>")["input_ids"]


def test_a_key_the_template_does_not_read_is_an_error_that_names_those_it_does():
    with pytest.raises(XwinError, match="thinking") as e:
        TEMPLATES["qwen3"].given(["thinking=false"])
    assert e.value.hint == "it reads: enable_thinking"
    with pytest.raises(XwinError) as e:
        TEMPLATES["chatml"].given(["enable_thinking=false"])
    assert e.value.hint == "it reads no variable"
    assert TEMPLATES["chatml"].given(["enable_thinking=false"], all_read=False).digest == TEMPLATES["chatml"].digest


def test_the_variables_of_a_template_are_its_own():
    assert variables(dialects.published("llama3_2")) == {"custom_tools", "date_string", "tools_in_user_message"}
    assert variables("{% generation %}{{ messages[0].x + bos_token + extra }}{% endgeneration %}") == {"extra"}
    assert variables(find_template("vicuna")) == frozenset()
    with pytest.raises(XwinError, match="not valid Jinja"):
        variables("{% if %}")


def test_a_template_that_writes_the_date_says_so_until_it_is_pinned(capsys):
    from xwincli import chat

    tok = copy.deepcopy(dialects.tokenizer("llama3"))
    tok.chat_template = dialects.published("llama3_2")
    chat._warn_dated.cache_clear()
    pinned = Template(tok).given(["date_string=26 Jul 2024"])
    assert capsys.readouterr().err == ""
    text = tok.decode(pinned.prompt_ids([user("  q  ")]))
    assert "Today Date: 26 Jul 2024" in text and "<|end_header_id|>\n\nq<|eot_id|>" in text  # it trims
    Template(tok).given([])
    assert "today's date" in capsys.readouterr().err


# -- digests


def test_the_digest_of_a_tokenizer_is_what_makes_text_into_ids():
    digests = {name: TEMPLATES[name].tokenizer_digest for name in dialects.NAMES}
    assert len(set(digests.values())) == len(dialects.NAMES)
    for name in dialects.NAMES:
        tok = copy.deepcopy(dialects.tokenizer(name))
        tok.add_special_tokens({"pad_token": "<|pad|>"})  # as a reward model may
        tok.chat_template += "{# other #}"
        assert tokenizer_digest(tok) == digests[name]
        assert Template(tok).text_digest != TEMPLATES[name].text_digest
        tok.add_tokens(["foxes"])
        assert tokenizer_digest(tok) != digests[name]


def test_the_digest_survives_saving(tmp_path):
    from transformers import AutoTokenizer

    for name in dialects.NAMES:
        dialects.tokenizer(name).save_pretrained(tmp_path / name)
        again = Template(AutoTokenizer.from_pretrained(tmp_path / name))
        assert again.facts() == TEMPLATES[name].facts()
        assert again.digest == TEMPLATES[name].digest


def test_the_digest_of_a_template_holds_the_ids_of_its_marks():
    one = dialects.byte_level(["<|im_start|>", "<|im_end|>", "<|x|>"])
    two = dialects.byte_level(["<|x|>", "<|im_start|>", "<|im_end|>"])
    three = dialects.byte_level(["<|im_start|>", "<|im_end|>", "<|y|>"])  # a spare token that nothing writes
    from transformers import PreTrainedTokenizerFast

    a, b, c = (
        Template(PreTrainedTokenizerFast(tokenizer_object=t, chat_template=micro.CHATML)) for t in (one, two, three)
    )
    assert a.text_digest == b.text_digest == c.text_digest
    assert a.tokenizer_digest == b.tokenizer_digest == c.tokenizer_digest
    assert a.digest == c.digest != b.digest


def test_who_differs_and_who_may_read_whose_ids():
    chatml, other = TEMPLATES["chatml"], copy.deepcopy(dialects.tokenizer("chatml"))
    other.chat_template = find_template("vicuna").replace("bos_token or ''", "''")
    kin, stranger = Template(other), TEMPLATES["llama3"]
    assert not chatml.differs(chatml.facts())
    assert chatml.differs(kin.facts())
    assert not chatml.differs(stranger.facts())  # another family is welcome
    assert not chatml.differs({"temperature": 1.0})  # nothing is known
    chatml.check_same(chatml.given([]), "m", "r")
    with pytest.raises(XwinError, match=r"critic.*m.*another vocabulary") as e:
        chatml.check_same(stranger, "m", "critic")
    assert chatml.tokenizer_digest in e.value.message and stranger.tokenizer_digest in e.value.message
    with pytest.raises(XwinError, match="r: its chat template is not that of m") as e:
        chatml.check_same(kin, "m", "r")
    assert kin.text_digest in e.value.message


def test_a_model_read_otherwise_than_it_was_made_is_a_warning(tmp_path, capsys):
    facts = TEMPLATES["qwen3"].given(["enable_thinking=false"]).facts()
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "xwin.json").write_text(
        manifest.msgspec.json.encode({**facts, "config": {"template_arg": ["enable_thinking=false"]}}).decode()
    )
    plan = {"stage": "score"}
    manifest.note_template(plan, facts, str(folder))
    assert plan == {"stage": "score", **facts}
    assert capsys.readouterr().err == ""
    manifest.note_template(plan, TEMPLATES["qwen3"].facts(), str(folder))
    assert "made with --template-arg enable_thinking=false" in capsys.readouterr().err
    assert plan["template"] == TEMPLATES["qwen3"].text_digest
    manifest.note_template(plan, TEMPLATES["chatml"].facts(), str(folder))
    manifest.note_template(plan, TEMPLATES["qwen3"].facts())
    assert capsys.readouterr().err == ""


# -- thinking


def test_thinking_is_told_from_the_answer():
    assert split_thinking("<think>\nlet me\n</think>\n\nfox") == ("let me", "fox")
    assert split_thinking("let me</think>fox </think>") == ("let me", "fox </think>")  # the template opened it
    for whole in ("fox", "<think>\nlet me", "<think>let me</think>\n"):  # the last two were cut
        assert split_thinking(whole) == ("", whole)


@pytest.mark.parametrize("flagged", [False, True])
def test_marks_of_thinking_survive_decoding_even_as_special_tokens(flagged):
    from transformers import PreTrainedTokenizerFast

    names = ["<|im_start|>", "<|im_end|>", "<|endoftext|>"]
    tok = dialects.byte_level(names + ["<think>", "</think>"] * flagged)
    if not flagged:
        tok.add_tokens(["<think>", "</think>"])
    tok = PreTrainedTokenizerFast(tokenizer_object=tok, chat_template=micro.CHATML, eos_token="<|im_end|>")
    template = Template(tok)
    ids = tok("<think>why</think>fox<|endoftext|><|im_end|>")["input_ids"]
    assert template.answer(ids) == "<think>why</think>fox"
    prompt, response = template.response_ids([user("what is <think> ?")], "<think>why</think>fox")
    assert tok.convert_tokens_to_ids("<think>") in response  # the assistant's own mark
    assert tok.convert_tokens_to_ids("<think>") not in prompt  # text of the user's
