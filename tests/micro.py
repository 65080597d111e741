"""A micro policy with its own tokenizer, made on the spot in a second: what every offline test runs on."""

from __future__ import annotations

from pathlib import Path

CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>' + '\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
TEXT = [
    "write one short sentence about a fox that mentions the rain .",
    "the quick brown fox jumps over the lazy dog near the river .",
    "give exactly three bullets about tea and coffee in lower case .",
    "- first , boil the water\n- second , add the leaves\n- third , wait",
    "why does the moon shine ? because it reflects the light of the sun .",
    "system user assistant you are a helpful assistant",
]


def tokenizer(vocab: int = 384):
    """A byte-level BPE trained here, with ChatML, eos `<|im_end|>` and a pad of its own."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tok = Tokenizer(models.BPE())
    tok.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tok.decoder = decoders.ByteLevel()
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|pad|>"]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    tok.train_from_iterator(
        TEXT, trainers.BpeTrainer(vocab_size=vocab, special_tokens=special, initial_alphabet=alphabet)
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tok, eos_token="<|im_end|>", pad_token="<|pad|>", chat_template=CHATML
    )


def policy(folder: Path, *, seed: int = 0, hidden: int = 32, layers: int = 2, family: str = "llama") -> Path:
    """Write a random causal language model of a family into ``folder`` as an ordinary HF folder."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    tok = tokenizer()
    torch.manual_seed(seed)
    config = AutoConfig.for_model(
        family,
        vocab_size=len(tok),
        hidden_size=hidden,
        intermediate_size=2 * hidden,
        num_hidden_layers=layers,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=512,
        bos_token_id=None,
        eos_token_id=tok.eos_token_id,
        pad_token_id=tok.pad_token_id,
        tie_word_embeddings=True,
    )
    model = AutoModelForCausalLM.from_config(config)
    with torch.no_grad():  # sharper than the default initialisation, so that samples differ from noise
        for p in model.parameters():
            if p.ndim == 2:
                p.mul_(4)
    model.generation_config.eos_token_id = tok.eos_token_id
    model.save_pretrained(folder)
    tok.save_pretrained(folder)
    return folder
