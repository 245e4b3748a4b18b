"""Loading language models of transformers with their processors and adapters, from folders, the Hub or GGUF files."""

import importlib.util
import os
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForMultimodalLM,
    AutoTokenizer,
    BitsAndBytesConfig,
)
from transformers.models.auto.modeling_auto import MODEL_FOR_MULTIMODAL_LM_MAPPING_NAMES

QUANTIZATIONS = ("8bit", "4bit")


@dataclass(frozen=True)
class MllmSource:
    """Which language model is to be loaded, and how; the arguments are those of `LocalMllm.from_pretrained`."""

    name: str
    dtype: str | torch.dtype = "auto"
    device_map: str | Mapping[str, Any] | None = None
    quantization: str | None = None
    adapter: str | None = None
    revision: str | None = None
    token: str | None = None
    attention: str | None = None

    def check(self) -> None:
        """Check what can be checked without reading anything of the model.

        Raises:
            ValueError: If the quantisation is unknown.
            ImportError: If a package that it needs is not installed.
        """
        if self.quantization is not None and self.quantization not in QUANTIZATIONS:
            raise ValueError(
                f"Unknown quantization {self.quantization!r}; give one of {', '.join(QUANTIZATIONS)}, or None."
            )
        if self.quantization is not None and importlib.util.find_spec("bitsandbytes") is None:
            raise ImportError(
                f"Loading in {self.quantization} needs bitsandbytes, which is not installed: pip install "
                "'bitsandbytes>=0.46'."
            )
        if self.adapter is not None and importlib.util.find_spec("peft") is None:
            raise ImportError("Loading an adapter needs peft, which is not installed: pip install 'hf-msa[lora]'.")
        if self._place[1] is not None and importlib.util.find_spec("gguf") is None:
            raise ImportError("Reading a GGUF file needs gguf, which is not installed: pip install gguf.")

    @cached_property
    def _place(self) -> tuple[str, str | None]:
        """Folder or Hub name, and the GGUF file in it, if it is one."""
        if self.name.lower().endswith(".gguf") and not os.path.isdir(self.name):
            folder, file = os.path.split(self.name)
            return folder or os.curdir, file
        if os.path.isdir(self.name) and not os.path.isfile(os.path.join(self.name, "config.json")):
            files = sorted(file for file in os.listdir(self.name) if file.lower().endswith(".gguf"))
            if len(files) > 1:
                raise ValueError(f"{self.name!r} holds {len(files)} GGUF files; name one of them, e.g. {files[0]!r}.")
            return self.name, next(iter(files), None)
        return self.name, None

    @cached_property
    def _hub(self) -> dict[str, Any]:
        """What everything is read with."""
        given = {"revision": self.revision, "token": self.token, "gguf_file": self._place[1]}
        return {key: value for key, value in given.items() if value is not None}

    @cached_property
    def config(self) -> Any:
        """The model's configuration.

        Raises:
            ValueError: If it is not there.
        """
        try:
            config = AutoConfig.from_pretrained(self._place[0], **self._hub)
        except (OSError, ValueError) as error:
            raise self._error(error) from error
        # Of a model that thinks and talks only the first part is needed; its class passes over the weights of the other.
        return getattr(config, "thinker_config", config)

    @property
    def _is_multimodal(self) -> bool:
        return self.config.model_type in MODEL_FOR_MULTIMODAL_LM_MAPPING_NAMES

    def load_processor(self) -> Any:
        """Load the processor, or the tokenizer of a model that reads text alone.

        Raises:
            ValueError: If it is not there.
            ImportError: If a package that it needs is not installed.
        """
        is_multimodal = self._is_multimodal
        try:
            if not is_multimodal:
                return AutoTokenizer.from_pretrained(self._place[0], **self._hub)
            if importlib.util.find_spec("PIL") is None:
                raise ImportError(
                    "A multimodal model needs Pillow, which is not installed: pip install 'hf-msa[mllm]'."
                )
            from .msa_mllm_processing import load_mllm_processor

            return load_mllm_processor(self._place[0], **self._hub)
        except (OSError, ValueError) as error:
            raise self._error(error) from error

    def load_model(self) -> Any:
        """Load the weights, with the adapter where there is one.

        Raises:
            ValueError: If they are not there, not whole, or the adapter is none for this model.
        """
        kind: Any = AutoModelForMultimodalLM if self._is_multimodal else AutoModelForCausalLM
        options: dict[str, Any] = {"dtype": self.dtype, "config": self.config, **self._hub}
        if self.attention is not None:
            options["attn_implementation"] = self.attention
        if self.quantization is not None:
            options["quantization_config"] = (
                BitsAndBytesConfig(load_in_8bit=True)
                if self.quantization == "8bit"
                else BitsAndBytesConfig(
                    load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=torch.bfloat16
                )
            )
        if self.device_map is not None or self.quantization is not None:
            options["device_map"] = self.device_map or "auto"
        try:
            model, loading = kind.from_pretrained(self._place[0], output_loading_info=True, **options)
            if lacking := sorted(loading["missing_keys"]):
                # The library fills them with random numbers and goes on.
                raise ValueError(
                    f"its checkpoint lacks {len(lacking)} weights of a {type(model).__name__}, e.g. {lacking[0]!r}"
                )
        except (ImportError, OSError, RuntimeError, ValueError) as error:
            raise self._error(error) from error
        if "device_map" not in options and torch.cuda.is_available():
            model = model.to("cuda")
        if self.adapter is not None:
            try:
                found = model.load_adapter(self.adapter)
                if odd := sorted({*found.missing_keys, *found.unexpected_keys}):
                    raise ValueError(f"{len(odd)} weights are in one of them alone, e.g. {odd[0]!r}")
            except (OSError, ValueError, RuntimeError) as error:
                raise ValueError(
                    f"The adapter {self.adapter!r} cannot be loaded onto {self.name!r} ({_first_line(error)})."
                ) from error
        return model.eval()

    def _error(self, error: Exception) -> ValueError:
        return ValueError(
            f"The language model {self.name!r} cannot be loaded ({_first_line(error)}); pass a folder, Hub name or GGUF "
            "file of a model of transformers that writes text, or the URL of a server that has one."
        )


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0].removesuffix(".")
