"""Base of the methods that ask a language model: which one it is, its LoRA adapter, and what it is given of a sample."""

import math
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from .configuration_msa import AUTO
from .modeling_msa import MsaPreTrainedModel, SideFile
from .msa_mllm import LocalMllm, Mllm, taken_modalities

ADAPTER_FOLDER = "adapter"
ADAPTER_FILES = ("adapter_config.json", "adapter_model.safetensors")


class AsksLanguageModel(MsaPreTrainedModel):
    """A model that asks a language model, which is no part of its weights and is loaded when it is first needed.

    The configuration gives `language_model`, its `LanguageModelSettings`, and `asks_language_model`. Beside the weights the
    checkpoint's folder holds the language model's adapter, if it has one.
    """

    SIDE_FILES: ClassVar[tuple[SideFile, ...]] = tuple(
        SideFile(f"{ADAPTER_FOLDER}/{name}", names_models=name.endswith(".json")) for name in ADAPTER_FILES
    )
    # What a sample has cost, as results call it -> the column of the output that says it.
    COST_COLUMNS: ClassVar[Mapping[str, str]] = {}
    _adapter: Path | None = None

    @classmethod
    def cost_of(cls, columns: Mapping[str, Any]) -> dict[str, Any] | None:
        """What the language model has cost, by `COST_COLUMNS` and `routes_of`; see `MsaPreTrainedModel.cost_of`."""
        if cls.COST_COLUMNS.get("calls") not in columns:
            return None
        means = {name: float(np.mean(columns[of], dtype=np.float64)) for name, of in cls.COST_COLUMNS.items()}
        shares = {
            name: means[name] / means["calls"] if means["calls"] else None for name in ("remembered", "unreadable")
        }
        known = {name: None if math.isnan(mean) else mean for name, mean in means.items()}
        return {**known, **shares, "routes": cls.routes_of(columns)}

    @classmethod
    def routes_of(cls, columns: Mapping[str, Any]) -> dict[str, float]:
        """The shares of samples by who answered; empty where all are answered in one way."""
        return {}

    @property
    def language_model_input(self) -> str | None:
        """See `MsaPreTrainedModel.language_model_input`; features are in words also where a sample's media are absent."""
        if not self.config.asks_language_model:
            return None
        raw = () if self.media is None else self.raw_modalities[1:]
        if raw:
            return "media" if len(raw) > 1 else f"media_{raw[0]}"
        return "words" if self.describes_features else "transcript"

    @property
    def raw_modalities(self) -> tuple[str, ...]:
        """Modalities that the language model is given in raw form, where a sample has them; text is the first.

        Raises:
            ValueError: If the model has to say what it takes, but cannot be loaded.
        """
        settings = self.config.language_model
        wanted = AUTO if settings is None else settings.modalities
        return taken_modalities(self.asked_model if wanted == AUTO else None, wanted)

    @property
    def asked_model(self) -> Mllm | None:
        """The language model that is asked, made when it is first needed; None where none is named."""
        raise NotImplementedError

    @property
    def describes_features(self) -> bool:
        """Whether features are described to the language model in words."""
        raise NotImplementedError

    def set_adapter_folder(self, folder: str | Path) -> None:
        """Say where the language model's adapter lies; it is copied into the checkpoint when the model is saved.

        Args:
            folder: What `hf_msa.training.lora.save_adapter` wrote.
        """
        self._adapter = Path(folder)

    def adapter_folder(self) -> Path | None:
        """Folder of the language model's adapter, fetched where the checkpoint is on the Hub; None without one."""
        settings = self.config.language_model
        if settings is None or not settings.has_adapter:
            return None
        if self._adapter is None:
            files = [self.stored_file(name, ADAPTER_FOLDER) for name in ADAPTER_FILES]
            if files[0] is not None and files[1] is not None:
                self._adapter = files[0].parent
        return self._adapter

    def load_language_model(self, adapted: bool = True) -> Mllm:
        """Make the language model that the configuration names; its weights are read when it is first asked.

        Args:
            adapted: With its adapter, where it has one.

        Raises:
            ValueError: If none is named, its adapter is not there, or it is a server that the caller has not allowed.
            ImportError: If a package that it needs is not installed.
        """
        settings = self.config.language_model
        if settings is None or settings.name is None:
            raise ValueError(self._no_language_model())
        adapter = self.adapter_folder() if adapted else None
        if adapted and settings.has_adapter and adapter is None:
            raise ValueError(
                f"The checkpoint's {settings.role} has an adapter, but none can be read from its folder {ADAPTER_FOLDER!r}; "
                f"copy it there, or load the checkpoint with {settings.adapter_field}=False to ask the model as it is."
            )
        if settings.kind == "endpoint":
            from .msa_mllm_endpoint import allowed_endpoint

            return allowed_endpoint(settings.name, settings.role, settings.without, settings.server)
        return LocalMllm.from_pretrained(
            settings.name,
            dtype=settings.local.dtype,
            device_map=settings.local.device_map,
            quantization=settings.quantization,
            adapter=None if adapter is None else str(adapter),
            batch_size=settings.batch_size,
            revision=settings.local.revision,
            attention=settings.local.attention,
        )

    def _no_language_model(self) -> str:
        """The sentence about a configuration that names none."""
        settings = self.config.language_model
        if settings is None:
            return "This checkpoint asks no language model, so there is none to load."
        return (
            f"This checkpoint names no {settings.role}; load it with {settings.field}=... (a language model or, where one "
            f"is taken, the URL of a server that has it), or with {settings.without} to do without one."
        )

    def save_side_files(self, folder: Path) -> None:
        """Copy the adapter, where there is one; see `MsaPreTrainedModel.save_side_files`."""
        super().save_side_files(folder)
        adapter = self.adapter_folder()
        if adapter is not None and adapter.resolve() != (folder / ADAPTER_FOLDER).resolve():
            (folder / ADAPTER_FOLDER).mkdir(exist_ok=True)
            for name in ADAPTER_FILES:
                shutil.copyfile(adapter / name, folder / ADAPTER_FOLDER / name)
