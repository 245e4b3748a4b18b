"""A WordPiece tokenizer and a tiny BERT for the sample corpus, made on the spot so that nothing is downloaded."""

import string
from pathlib import Path

from hf_msa.data.sample_corpus import lexicon

LAYERS, WIDTH, HEADS, FEED_FORWARD = 2, 64, 4, 128
LONGEST_INPUT = 128

_SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")


def vocabulary() -> list[str]:
    """Return the tokenizer's vocabulary: special tokens, single characters for foreign words, every corpus word."""
    characters = string.ascii_lowercase + string.digits
    pieces = [*characters, *(f"##{character}" for character in characters), *string.punctuation]
    return [*_SPECIAL, *pieces, *(word for word in lexicon.all_words() if word not in pieces)]


def write_text_model(folder: Path, seed: int) -> None:
    """Write the tokenizer and the model so that `AutoTokenizer` and `AutoModel` load them from `folder`.

    Args:
        folder: Where to.
        seed: Decides the weights.
    """
    import torch
    from transformers import BertConfig, BertModel, BertTokenizer

    words = vocabulary()
    tokenizer = BertTokenizer(vocab={word: i for i, word in enumerate(words)}, model_max_length=LONGEST_INPUT)
    config = BertConfig(
        vocab_size=len(words),
        hidden_size=WIDTH,
        num_hidden_layers=LAYERS,
        num_attention_heads=HEADS,
        intermediate_size=FEED_FORWARD,
        max_position_embeddings=LONGEST_INPUT,
        pad_token_id=words.index("[PAD]"),
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = BertModel(config)
    tokenizer.save_pretrained(folder)
    model.save_pretrained(folder)
