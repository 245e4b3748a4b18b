"""Language models that see, with random weights and processors of real classes, made in memory."""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from tokenizers import AddedToken
from transformers import AutoModelForMultimodalLM, PreTrainedTokenizerFast

from hf_msa.models.msa_mllm import LocalMllm
from tiny_mllm import tiny_mllm_tokenizer

_TEXT: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 4096,
    "initializer_range": 0.3,
}
_SIGHT: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "image_size": 28,
    "patch_size": 14,
}


def _template(image: str, video: str) -> str:
    return (
        "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{% for part in message['content'] %}"
        f"{{% if part['type'] == 'image' %}}{image}{{% elif part['type'] == 'video' %}}{video}"
        "{% else %}{{ part['text'] }}{% endif %}{% endfor %}<|im_end|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    )


def _tokenizer(tokens: Mapping[str, str]) -> PreTrainedTokenizerFast:
    tokenizer = tiny_mllm_tokenizer()
    tokenizer.add_tokens([AddedToken(token, special=True) for token in tokens.values()], special_tokens=True)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer.backend_tokenizer,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        extra_special_tokens=dict(tokens),
    )


def _qwen(kind: str) -> tuple[Any, Any]:
    import transformers

    tokens = {"image_token": "<|image_pad|>", "video_token": "<|video_pad|>"}
    tokens |= {"vision_start_token": "<|vision_start|>", "vision_end_token": "<|vision_end|>"}
    tokenizer = _tokenizer(tokens)
    ids = {name: tokenizer.convert_tokens_to_ids(token) for name, token in tokens.items()}
    is_third = kind == "Qwen3VL"
    rope: dict[str, Any] = {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [1, 1, 2]}
    text = {**_TEXT, "vocab_size": len(tokenizer), "rope_parameters": rope, "tie_word_embeddings": False}
    if not is_third:
        text.pop("head_dim")
    patch = 16 if is_third else 14
    sight: dict[str, Any] = (
        {"depth": 2, "hidden_size": 32, "intermediate_size": 32, "num_heads": 2, "out_hidden_size": 32}
        | {"deepstack_visual_indexes": [0], "num_position_embeddings": 16, "patch_size": patch}
        if is_third
        else {"depth": 2, "embed_dim": 32, "hidden_size": 32, "num_heads": 2, "mlp_ratio": 2, "patch_size": patch}
    )
    config = getattr(transformers, f"{kind}Config")(
        text_config=text,
        vision_config=sight,
        image_token_id=ids["image_token"],
        video_token_id=ids["video_token"],
        vision_start_token_id=ids["vision_start_token"],
        vision_end_token_id=ids["vision_end_token"],
    )
    size = {"shortest_edge": 4 * patch**2, "longest_edge": 64 * patch**2}
    options = {"size": size, "patch_size": patch}
    video = "<|video_pad|>" if is_third else "<|vision_start|><|video_pad|><|vision_end|>"
    processor = getattr(transformers, f"{kind}Processor")(
        transformers.Qwen2VLImageProcessor(**options),
        tokenizer,
        getattr(transformers, f"{kind}VideoProcessor")(**options),
        chat_template=_template("<|vision_start|><|image_pad|><|vision_end|>", video),
    )
    return config, processor


def _qwen2_vl() -> tuple[Any, Any]:
    return _qwen("Qwen2VL")


def _qwen3_vl() -> tuple[Any, Any]:
    return _qwen("Qwen3VL")


def _llava_onevision() -> tuple[Any, Any]:
    import transformers

    tokenizer = _tokenizer({"image_token": "<image>", "video_token": "<video>"})
    config = transformers.LlavaOnevisionConfig(
        text_config={"model_type": "qwen2", **_TEXT, "vocab_size": len(tokenizer)},
        vision_config={"model_type": "siglip_vision_model", **_SIGHT, "vision_use_head": False},
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
        video_token_index=tokenizer.convert_tokens_to_ids("<video>"),
        image_grid_pinpoints=[[28, 28]],
    )
    size = {"height": 28, "width": 28}
    processor = transformers.LlavaOnevisionProcessor(
        transformers.LlavaOnevisionImageProcessor(size=size, image_grid_pinpoints=[[28, 28]]),
        tokenizer,
        transformers.LlavaOnevisionVideoProcessor(size=size),
        num_image_tokens=4,
        vision_feature_select_strategy="full",
        chat_template=_template("<image>", "<video>"),
    )
    return config, processor


def _smolvlm() -> tuple[Any, Any]:
    import transformers

    tokens = {
        "image_token": "<image>",
        "fake_image_token": "<fake_token_around_image>",
        "global_image_token": "<global-img>",
        "end_of_utterance_token": "<end_of_utterance>",
    }
    tokenizer = _tokenizer(tokens)
    config = transformers.SmolVLMConfig(
        text_config={"model_type": "llama", **_TEXT, "vocab_size": len(tokenizer), "pad_token_id": 0},
        vision_config=_SIGHT,
        image_token_id=tokenizer.convert_tokens_to_ids("<image>"),
        scale_factor=2,
    )
    size = {"longest_edge": 28}
    processor = transformers.SmolVLMProcessor(
        transformers.SmolVLMImageProcessor(size=size, max_image_size=size, do_image_splitting=False),
        tokenizer,
        transformers.SmolVLMVideoProcessor(
            size=size,
            max_image_size=size,
            video_sampling={"max_frames": 8, "video_size": size, "fps": 1},
            num_frames=8,
            fps=1,
        ),
        image_seq_len=1,
        chat_template=_template("<image>", "<video>"),
    )
    return config, processor


def _gemma3() -> tuple[Any, Any]:
    import transformers
    from transformers.models.gemma3.image_processing_pil_gemma3 import Gemma3ImageProcessorPil

    tokens = {"image_token": "<image_soft_token>", "boi_token": "<start_of_image>", "eoi_token": "<end_of_image>"}
    tokenizer = _tokenizer({**tokens, "bos": "<bos>"})
    tokenizer.bos_token = "<bos>"
    ids = {name: tokenizer.convert_tokens_to_ids(token) for name, token in tokens.items()}
    config = transformers.Gemma3Config(
        text_config={**_TEXT, "vocab_size": len(tokenizer), "sliding_window": 4096},
        vision_config={**_SIGHT, "vision_use_head": False},
        mm_tokens_per_image=4,
        image_token_index=ids["image_token"],
        boi_token_index=ids["boi_token"],
        eoi_token_index=ids["eoi_token"],
    )
    processor = transformers.Gemma3Processor(
        Gemma3ImageProcessorPil(size={"height": 28, "width": 28}),
        tokenizer,
        image_seq_length=4,
        chat_template="{{ bos_token }}" + _template("<start_of_image>", ""),
    )
    return config, processor


FAMILIES: dict[str, Callable[[], tuple[Any, Any]]] = {
    "qwen2_vl": _qwen2_vl,
    "qwen3_vl": _qwen3_vl,
    "llava_onevision": _llava_onevision,
    "smolvlm": _smolvlm,
    "gemma3": _gemma3,
}
"""Families of models that see -> what makes their configurations and processors; all but Gemma 3 need torchvision."""


def tiny_vision_mllm(family: str) -> LocalMllm:
    """Model and processor as one back end."""
    config, processor = FAMILIES[family]()
    torch.manual_seed(0)
    model = AutoModelForMultimodalLM.from_config(config).eval()
    for parameter in model.parameters():
        if parameter.ndim > 1:
            torch.nn.init.normal_(parameter, std=0.3)
    model.generation_config.eos_token_id = processor.tokenizer.eos_token_id
    return LocalMllm(model, processor, name=f"tiny-{family}")
