"""A WordPiece tokenizer with a dozen words, made in memory, so that no test needs the network."""

from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import BertTokenizerFast, PreTrainedTokenizerBase

WORDS = ["good", "bad", "film", "this", "is", "a", "not", "very", "the", "plot", "was", "weak"]
VOCABULARY = {token: index for index, token in enumerate(["[PAD]", "[CLS]", "[SEP]", "[UNK]", "[MASK]", *WORDS])}
PAD, CLS, SEP, UNK = 0, 1, 2, 3


def tiny_tokenizer() -> PreTrainedTokenizerBase:
    """[CLS] text [SEP]; the unknown token is 3, on purpose not BERT's 100."""
    raw = Tokenizer(models.WordPiece(dict(VOCABULARY), unk_token="[UNK]"))
    raw.normalizer = normalizers.BertNormalizer()
    raw.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    raw.post_processor = processors.BertProcessing(("[SEP]", SEP), ("[CLS]", CLS))
    return BertTokenizerFast(tokenizer_object=raw)
