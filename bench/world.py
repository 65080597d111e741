"""Models and data made on the spot for benchmark and check: random weights, a tokenizer, chats of invented words."""

from __future__ import annotations

import json
import math
import random
from dataclasses import dataclass
from pathlib import Path
from typing import Any

CHAT = (  # every turn ends with its stop token and nothing after it, so that all tools learn the same tokens
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


@dataclass(frozen=True, kw_only=True)
class Shape:
    """A model's shape; ``rows`` of the embedding, where they are to be more than the tokens there are."""

    family: str
    hidden: int
    inner: int
    layers: int
    heads: int
    kv: int
    vocab: int
    rows: int = 0


MODELS = {
    "S": Shape(family="llama", hidden=256, inner=672, layers=4, heads=4, kv=4, vocab=4096),  # 5M parameters
    "M": Shape(family="qwen2", hidden=512, inner=1344, layers=8, heads=8, kv=2, vocab=16384),  # 32M
}
PROMPT, RESPONSE, LONGEST = 120, 200, 1024  # mean tokens of a prompt and of a response, and the longest sequence


def words(count: int, seed: int) -> list[str]:
    """Invented words of two to four syllables."""
    draw = random.Random(seed)
    syllables = [c + v for c in "bcdfghjklmnprstvwz" for v in "aeiou"]
    return ["".join(draw.choices(syllables, k=draw.randint(2, 4))) for _ in range(count)]


def tokenizer(vocab: int) -> Any:
    """A byte-level BPE trained on invented text, with ChatML."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tok = Tokenizer(models.BPE())
    tok.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tok.decoder = decoders.ByteLevel()
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|pad|>"]
    trainer = trainers.BpeTrainer(
        vocab_size=vocab,
        special_tokens=special,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    lexicon = words(vocab, 0)
    tok.train_from_iterator((" ".join(lexicon[i : i + 50]) for i in range(0, len(lexicon), 50)), trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tok, eos_token="<|im_end|>", pad_token="<|pad|>", chat_template=CHAT
    )


def policy(shape: Shape, folder: Path) -> Path:
    """Write a random model of a shape as an ordinary folder."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM
    from transformers.utils import logging

    logging.disable_progress_bar()
    tok = tokenizer(shape.vocab)
    torch.manual_seed(0)
    config = AutoConfig.for_model(
        shape.family,
        vocab_size=max(shape.rows, shape.vocab, len(tok)),
        hidden_size=shape.hidden,
        intermediate_size=shape.inner,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.kv,
        max_position_embeddings=8192,
        bos_token_id=None,
        eos_token_id=tok.eos_token_id,
        pad_token_id=tok.pad_token_id,
        tie_word_embeddings=True,
    )
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    tok.save_pretrained(folder)
    return folder


def pairs(vocab: int, count: int, file: Path, seed: int = 1) -> Path:
    """Write ``count`` preference pairs with log-normal lengths as JSON lines (prompt, chosen, rejected).

    Args:
        vocab: of the tokenizer that will read them.
    """
    draw = random.Random(seed)
    lexicon = words(vocab, 0)
    a_word = len(tokenizer(vocab).encode(" ".join(lexicon))) / len(lexicon)  # in tokens

    def text(mean: float, sigma: float = 0.6) -> str:
        length = draw.lognormvariate(math.log(mean) - sigma**2 / 2, sigma)
        return " ".join(draw.choices(lexicon, k=int(min(length, LONGEST // 2) / a_word) + 1))

    with file.open("w") as f:
        for _ in range(count):
            said = lambda role, mean: [{"role": role, "content": text(mean)}]
            row = {
                "prompt": said("user", PROMPT),
                "chosen": said("assistant", RESPONSE),
                "rejected": said("assistant", RESPONSE),
            }
            f.write(json.dumps(row) + "\n")
    return file
