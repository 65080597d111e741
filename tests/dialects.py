"""Tokenizers of the great families, made on the spot in miniature, each with its family's own chat template."""

from __future__ import annotations

import json
from functools import cache
from importlib.util import find_spec
from pathlib import Path

import micro
from xwincli.chat import find_template

LLAMA3 = (  # its pre-tokenizer's rule
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
NAMES = (
    "chatml",
    "llama3",
    "gemma",
    "qwen3",
    "phi3",
    "vicuna-legacy",
    "vicuna-first",
    "vicuna-unigram",
    "vicuna-bytes",
)


def published(name: str) -> str:
    """A family's own chat template, as TRL ships it."""
    found = find_spec("trl")
    assert found is not None and found.origin
    return (Path(found.origin).parent / "chat_templates" / f"{name}.jinja").read_text()


@cache
def tokenizer(name: str):
    """One of NAMES. Cached: to change one, copy it."""
    from transformers import PreTrainedTokenizerFast

    build, template, roles = {
        "chatml": (lambda: byte_level(["<|im_start|>", "<|im_end|>"]), micro.CHATML, {"eos_token": "<|im_end|>"}),
        "qwen3": (qwen3, published("qwen3"), {"eos_token": "<|im_end|>"}),
        "llama3": (llama3, published("llama3"), {"bos_token": "<|begin_of_text|>", "eos_token": "<|eot_id|>"}),
        "phi3": (phi3, published("phi3"), {"bos_token": "<s>", "eos_token": "<|endoftext|>"}),
        "gemma": (gemma, published("gemma"), {"bos_token": "<bos>", "eos_token": "<eos>", "unk_token": "<unk>"}),
        "vicuna-legacy": (legacy, find_template("vicuna"), SENTENCEPIECE),
        "vicuna-first": (first, find_template("vicuna"), SENTENCEPIECE),
        "vicuna-bytes": (lambda: byte_level(["<s>", "</s>", "<unk>"]), find_template("vicuna"), SENTENCEPIECE),
        "vicuna-unigram": (unigram, find_template("vicuna"), SENTENCEPIECE),
    }[name]
    return PreTrainedTokenizerFast(tokenizer_object=build(), chat_template=template, **roles)


SENTENCEPIECE = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
WORDS = [*micro.TEXT, "a chat between a curious user and an artificial intelligence assistant USER: ASSISTANT: </s>"]


def byte_level(special: list[str], rule: str = "", **options):
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

    tok = Tokenizer(models.BPE(**options))
    if rule:
        split = pre_tokenizers.Split(Regex(rule), "isolated")
        bytes_ = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
        tok.pre_tokenizer = pre_tokenizers.Sequence([split, bytes_])
    else:
        tok.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tok.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    tok.train_from_iterator(WORDS, trainers.BpeTrainer(vocab_size=400, initial_alphabet=alphabet, show_progress=False))
    tok.add_special_tokens(special)
    return tok


def llama3():
    names = ["begin_of_text", "end_of_text", "start_header_id", "end_header_id", "eot_id", "reserved_special_token_0"]
    return byte_level([f"<|{n}|>" for n in names], LLAMA3, ignore_merges=True)


def qwen3():
    tok = byte_level(["<|endoftext|>", "<|im_start|>", "<|im_end|>"], LLAMA3)
    tok.add_tokens(["<tool_call>", "</tool_call>", "<tool_response>", "</tool_response>", "<think>", "</think>"])
    return tok


def phi3():
    """Its markers swallow the white space that follows them."""
    from tokenizers import AddedToken

    tok = pieces(normal=True)
    names = ["<s>", "<|endoftext|>", "<|system|>", "<|user|>", "<|assistant|>", "<|end|>"]
    tok.add_special_tokens([AddedToken(n, rstrip=n.startswith("<|"), normalized=False) for n in names])
    return tok


def pieces(*, normal: bool = False):
    """BPE over SentencePiece's ▁ with a token for every byte; ``normal``: ▁ written by the normaliser, as of old."""
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

    learnt = Tokenizer(models.BPE())
    learnt.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always")
    learnt.train_from_iterator(WORDS, trainers.BpeTrainer(vocab_size=300, show_progress=False))
    body = json.loads(learnt.to_str())["model"]
    start = ["<unk>", "<s>", "</s>", *(f"<0x{i:02X}>" for i in range(256))]
    vocab = {t: i for i, t in enumerate(dict.fromkeys([*start, *sorted(body["vocab"], key=body["vocab"].get)]))}
    merges = [tuple(m) for m in body["merges"]]
    tok = Tokenizer(models.BPE(vocab, merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    if normal:
        tok.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
        steps.append(decoders.Strip(" ", 1, 0))
    else:
        tok.normalizer = normalizers.Replace(" ", "▁")
    tok.decoder = decoders.Sequence(steps)
    return tok


def legacy():
    tok = pieces(normal=True)
    tok.add_special_tokens(["<unk>", "<s>", "</s>"])
    return tok


def first():
    """As newer Llama-2 conversions: a space is written before the text's beginning alone."""
    from tokenizers import decoders, normalizers, pre_tokenizers

    tok = pieces()
    tok.normalizer = normalizers.Sequence([])
    tok.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    tok.decoder = decoders.Sequence(steps)
    tok.add_special_tokens(["<unk>", "<s>", "</s>"])
    return tok


def gemma():
    """No space before a text; runs of newlines are added tokens, but not special ones."""
    tok = pieces()
    tok.add_special_tokens(["<pad>", "<eos>", "<bos>", "<unk>", "<start_of_turn>", "<end_of_turn>"])
    tok.add_tokens(["\n\n", "\n\n\n", "<h1>"])
    return tok


def unigram():
    """SentencePiece's other model, whose vocabulary holds the special tokens as pieces that text may become."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    found = sorted({w for line in WORDS for w in line.split()})
    chars = sorted({c for line in WORDS for c in line if c != " "} | {"▁", "<", "/", ">"})
    vocab = [("<unk>", 0.0), ("<s>", 0.0), ("</s>", 0.0)]
    vocab += [(f"<0x{i:02X}>", -20.0) for i in range(256)]
    vocab += [(f"▁{w}", -3.0 - len(w) / 50) for w in found if w != "</s>"] + [(c, -6.0) for c in chars]
    tok = Tokenizer(models.Unigram(vocab, unk_id=0, byte_fallback=True))
    tok.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")
    steps = [decoders.ByteFallback(), decoders.Metaspace(prepend_scheme="first"), decoders.Fuse()]
    tok.decoder = decoders.Sequence(steps)
    tok.add_special_tokens(["<unk>", "<s>", "</s>"])
    return tok
