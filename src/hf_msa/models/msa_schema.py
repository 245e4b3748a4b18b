"""The one contract between data and models: modality names, batch keys, mask polarity and label families.

Modalities are names, never positions. Where an order is needed (a ``(batch, 3)`` table), it is that of `MODALITIES`.

Masks:
    ``attention_mask``, ``audio_attention_mask``, ``vision_attention_mask``: 1 = a real position, 0 = padding.
    ``text_missing_mask``, ``audio_missing_mask``, ``vision_missing_mask``: True = dropped by the missing-data engine.
    A dropped token has the tokenizer's unknown id, a dropped frame is all zeros; both keep an attention mask of 1. So does
    a modality that a sample is wholly without, see `msa_missing`.
    ``complete_attention_mask`` and so on: 1 = a real position of the complete values, which may be more or fewer.
"""

MODALITIES = ("text", "audio", "vision")
FEATURE_MODALITIES = ("audio", "vision")

VALUE_KEYS = {"text": "input_ids", "audio": "audio_values", "vision": "vision_values"}
ATTENTION_MASK_KEYS = {"text": "attention_mask", "audio": "audio_attention_mask", "vision": "vision_attention_mask"}
MISSING_MASK_KEYS = {"text": "text_missing_mask", "audio": "audio_missing_mask", "vision": "vision_missing_mask"}
COMPLETE_KEYS = {"text": "complete_input_ids", "audio": "complete_audio_values", "vision": "complete_vision_values"}
COMPLETE_ATTENTION_KEYS = {modality: f"complete_{key}" for modality, key in ATTENTION_MASK_KEYS.items()}
UNIMODAL_LABEL_KEYS = {"text": "label_text", "audio": "label_audio", "vision": "label_vision"}

# What else a batch may hold: `forward` takes it, so that a batch can be handed over as it is, and does not read it.
# `token_type_ids` is what many tokenizers give beside `input_ids`.
UNREAD_KEYS = ("sample_index", "draw", "missing_rates", "token_type_ids", *UNIMODAL_LABEL_KEYS.values())

# Classes of a sentiment score by its sign, in the order of class logits.
SENTIMENT_CLASSES = ("negative", "neutral", "positive")

# The words of the seven classes of a score from -3 to 3, rounded.
SENTIMENT_SCALE = (
    "strongly negative",
    "negative",
    "slightly negative",
    "neutral",
    "slightly positive",
    "positive",
    "strongly positive",
)
