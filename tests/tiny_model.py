"""A model that is nothing but its files: a tokenizer of 300 ids and a chat template."""

from __future__ import annotations

import json

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers

from services.common.generation import ModelRef

MODEL = ModelRef("tiny", "ab" * 32)
MAX_POSITIONS = 2048
CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def tiny_tokenizer() -> Tokenizer:
    """A byte-level BPE so small that most characters beyond ASCII are cut into several ids."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=300,
        show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        special_tokens=[],
    )
    tokenizer.train_from_iterator(["the capital of France is Paris and more words"] * 3, trainer)
    tokenizer.add_special_tokens(
        [AddedToken(text, special=True) for text in ("<|im_start|>", "<|im_end|>", "<|endoftext|>")]
    )
    return tokenizer


def model_files(tokenizer: Tokenizer) -> dict[str, bytes]:
    """The files of a model that has this tokenizer."""
    end = tokenizer.token_to_id("<|im_end|>")
    return {
        "tokenizer.json": tokenizer.to_str().encode(),
        "tokenizer_config.json": json.dumps(
            {"chat_template": CHAT_TEMPLATE, "eos_token": "<|im_end|>"}
        ).encode(),
        "generation_config.json": json.dumps({"eos_token_id": end}).encode(),
    }
