"""Language models: one interface, and a local back end.

Used by U-ACS as the expert and by OMG-Agent as the planner. The other back end is `msa_mllm_endpoint`.
"""

import hashlib
import inspect
import math
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Protocol, cast

import numpy as np
import torch
from torch import Tensor
from transformers import (
    DynamicCache,
    LogitsProcessor,
    LogitsProcessorList,
    PrefixConstrainedLogitsProcessor,
    TopPLogitsWarper,
)
from transformers.cache_utils import DynamicLayer
from transformers.video_utils import VideoMetadata

from .msa_mllm_answers import MllmAnswer
from .msa_mllm_forms import AnswerForm, FormConstraint, Vocabulary
from .msa_mllm_loading import MllmSource
from .msa_mllm_numbers import WIDEST_RANGE, NumberGrammar, check_room, writable_numbers
from .msa_schema import FEATURE_MODALITIES, MODALITIES

SAMPLING_RATE = 16_000
DEFAULT_MLLM = "Qwen/Qwen2.5-Omni-3B"

# Keys of a processor's output that go along the tokens, beside ids and attention mask.
_TOKEN_KEYS = ("token_type_ids", "mm_token_type_ids")
# A common beginning of fewer tokens is not worth a pass of its own.
_SHARED_AT_LEAST = 16
# Parts of a processor that take a modality.
_PARTS = {"audio": ("feature_extractor", "audio_processor"), "vision": ("video_processor", "image_processor")}
# For tokenizers that come without a chat template, those of models that were not taught to chat.
PLAIN_TEMPLATE = (
    "{% for message in messages %}{{ message['content'] }}\n\n{% endfor %}"
    "{% if add_generation_prompt %}Answer: {% endif %}"
)
# Seconds between the patches of each clip, as the models of the Qwen family call them.
_TIME_KEYS = {"video_second_per_grid", "second_per_grid_ts"}


@dataclass(frozen=True, eq=False)
class MllmRequest:
    """What a model is asked, with those modalities only that are there.

    Args:
        prompt: The user's message.
        audio: Mono waveform `(samples,)` at 16 kHz; None where there is no sound.
        frames: Video frames `(frames, height, width, 3)` of uint8, RGB; None where there is no picture.
        system: The system message; None leaves it to the model's chat template.
        frames_per_second: How densely `frames` were taken; models that place frames in time read it.

    Raises:
        ValueError: If an array has another shape or type, or is empty: leave a missing modality out instead.
    """

    prompt: str
    audio: np.ndarray | None = None
    frames: np.ndarray | None = None
    system: str | None = None
    frames_per_second: float = 2.0

    def __post_init__(self) -> None:
        if self.audio is not None and (
            self.audio.ndim != 1 or not self.audio.size or not np.issubdtype(self.audio.dtype, np.floating)
        ):
            raise ValueError(
                f"Audio of shape {self.audio.shape} and type {self.audio.dtype} was given; a request takes a mono waveform "
                "(samples,) of floats at 16 kHz, or None where there is none."
            )
        if self.frames is not None and (
            self.frames.ndim != 4
            or self.frames.shape[-1] != 3
            or not self.frames.size
            or self.frames.dtype != np.uint8
        ):
            raise ValueError(
                f"Frames of shape {self.frames.shape} and type {self.frames.dtype} were given; a request takes "
                "(frames, height, width, 3) of uint8, or None where there are none."
            )
        if not self.frames_per_second > 0:
            raise ValueError(f"frames_per_second is {self.frames_per_second}; it must be above 0.")

    @cached_property
    def digest(self) -> str:
        """A hash of everything in the request, for caches and seeds: equal requests have equal digests."""
        parts = hashlib.sha256()
        for part in (self.prompt, self.system, self.frames_per_second):
            parts.update(f"{part!r}\0".encode())
        for name, array in (("audio", self.audio), ("frames", self.frames)):
            if array is not None:
                parts.update(f"{name}{array.shape}{array.dtype}\0".encode())
                parts.update(np.ascontiguousarray(array).tobytes())
        return parts.hexdigest()


class Mllm(Protocol):
    """A multimodal language model, wherever it runs."""

    @property
    def name(self) -> str:
        """Which model this is, adapter included, for caches and results."""

    def generate(
        self,
        requests: Sequence[MllmRequest],
        max_new_tokens: int,
        num_candidates: int = 1,
        temperature: float | None = None,
        top_p: float | None = None,
        seed: int = 0,
        only_number: bool | tuple[float, float] = False,
        form: AnswerForm | None = None,
    ) -> list[list[MllmAnswer]]:
        """Answer each request.

        Args:
            requests: What is asked.
            max_new_tokens: Longest answer.
            num_candidates: Answers to each request.
            temperature: Draw tokens at this temperature; None takes the most probable token.
            top_p: Draw only from the most probable tokens that together have this probability.
            seed: Of the draws.
            only_number: Lets the model write nothing but one number of one decimal ("-0.4"), within a range where one is
                given. Entropies and log-probabilities stay those of the full vocabulary: an answer that the model would
                not have given by itself is uncertain.
            form: Lets the model write nothing but answers of this form; entropies likewise. Not beside `only_number`.

        Returns:
            For each request its candidates.
        """

    def embed(self, requests: Sequence[MllmRequest]) -> np.ndarray:
        """Vectors of requests `(requests, width)`, float32: the mean of the final hidden states over their tokens."""


class _Decoder(LogitsProcessor):
    """Chooses every token, and keeps entropy and log-probability of each choice.

    The draws of a row come from a generator of its own, so they depend neither on the batch nor on torch's state.
    Keeping two numbers per step in the place of all scores saves the memory of `output_scores`.

    Args:
        seeds: One for each row; None takes the most probable token.
        temperature: Of the draws.
        top_p: Probability of the tokens that are drawn from.
        constraint: Leaves the tokens that may be chosen; entropies are those of all tokens nevertheless.
    """

    def __init__(
        self,
        seeds: Sequence[int] | None,
        temperature: float | None,
        top_p: float | None,
        constraint: LogitsProcessor | None,
    ) -> None:
        self._generators = None if seeds is None else [np.random.default_rng(seed) for seed in seeds]
        self._temperature = temperature or 1.0
        self._top_p = None if top_p is None or top_p >= 1 else TopPLogitsWarper(top_p)
        self._constraint = constraint
        self._entropies: list[Tensor] = []
        self._logprobs: list[Tensor] = []

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """Leave only the chosen token of each row."""
        logprobs = scores.float().log_softmax(-1)
        allowed = logprobs if self._constraint is None else self._constraint(input_ids, logprobs)
        chosen = self._choose(input_ids, allowed)
        self._entropies.append(torch.special.entr(logprobs.exp()).sum(-1))
        self._logprobs.append(logprobs.gather(1, chosen).squeeze(1))
        return torch.full_like(scores, -math.inf).scatter(1, chosen, 0.0)

    def _choose(self, input_ids: Tensor, logprobs: Tensor) -> Tensor:
        if self._generators is None:
            return logprobs.argmax(-1, keepdim=True)
        warped = logprobs / self._temperature
        if self._top_p is not None:
            warped = self._top_p(input_ids, warped)
        cumulative = warped.softmax(-1).double().cumsum(-1)
        points = cumulative.new_tensor([[generator.random()] for generator in self._generators])
        chosen: Tensor = torch.searchsorted(cumulative, points * cumulative[:, -1:], right=True)
        return chosen.clamp(max=logprobs.shape[1] - 1)

    def records(self) -> tuple[list[list[float]], list[list[float]]]:
        """Entropies and log-probabilities, `(rows, steps)` each."""
        return torch.stack(self._entropies, 1).tolist(), torch.stack(self._logprobs, 1).tolist()


class LocalMllm:
    """A language model of transformers on this machine: one that hears and sees, or one that reads text alone.

    Args:
        model: Any model of `AutoModelForMultimodalLM` or `AutoModelForCausalLM` that writes text.
        processor: Its processor; of a model that reads text alone its tokenizer.
        name: What it is called in caches and results.
        batch_size: Rows that run together, candidates counted one by one.
    """

    def __init__(self, model: Any, processor: Any, name: str = "local", batch_size: int = 8) -> None:
        self._model: Any = model
        self._processor: Any = processor
        self._source: MllmSource | None = None
        self._name = name
        self.batch_size = batch_size

    @classmethod
    def from_pretrained(
        cls,
        name: str = DEFAULT_MLLM,
        dtype: str | torch.dtype = "auto",
        device_map: str | Mapping[str, Any] | None = None,
        quantization: str | None = None,
        adapter: str | None = None,
        batch_size: int = 8,
        revision: str | None = None,
        token: str | None = None,
        attention: str | None = None,
    ) -> "LocalMllm":
        """Name a model, which is loaded when it is first used.

        Args:
            name: Folder, Hub name or GGUF file. Of a model that also speaks, the part that thinks is loaded.
            dtype: Of the weights; "auto" takes that of the checkpoint.
            device_map: As in transformers ("auto" spreads the model over all GPUs); None puts it on the GPU where there is
                one.
            quantization: "8bit" or "4bit" with bitsandbytes; None loads the weights as they are.
            adapter: Folder or Hub name of a LoRA adapter for this model.
            batch_size: Rows that run together.
            revision: Branch, tag or commit.
            token: For private models.
            attention: Implementation of attention, as in transformers; None takes its default.

        Raises:
            ValueError: If the quantisation is unknown.
            ImportError: If it needs bitsandbytes, the adapter peft, or the file gguf, which is not installed.
        """
        source = MllmSource(name, dtype, device_map, quantization, adapter, revision, token, attention)
        source.check()
        mllm = cls(None, None, name if adapter is None else f"{name}+{adapter}", batch_size)
        mllm._source = source
        return mllm

    @property
    def name(self) -> str:
        """Which model this is, adapter included."""
        return self._name

    @cached_property
    def identity(self) -> dict[str, str | None]:
        """What answers depend on beside the request, for caches: right for adapters that were moved or replaced, too.

        ``model``, ``dtype``, ``quantization`` and ``revision`` as they were given, and as ``adapter`` a hash of its weights
        where it is a folder, else its name. Of a model that was handed over in memory only ``model`` is known, its name.
        """
        source = self._source
        if source is None:
            return {"model": self._name}
        adapter = source.adapter
        return {
            "model": source.name,
            "adapter": adapter_digest(adapter) if adapter is not None and os.path.isdir(adapter) else adapter,
            "dtype": str(source.dtype),
            "quantization": source.quantization,
            "revision": source.revision,
        }

    @property
    def is_loaded(self) -> bool:
        """Whether the weights are in memory."""
        return self._model is not None

    @property
    def model(self) -> Any:
        """The model; loaded on first use."""
        if self._model is None:
            assert self._source is not None
            self._model = self._source.load_model()
        return self._model

    @property
    def processor(self) -> Any:
        """The processor, or the tokenizer of a model that reads text alone; loaded on first use, without the weights."""
        if self._processor is None:
            assert self._source is not None
            self._processor = self._source.load_processor()
        return self._processor

    @property
    def tokenizer(self) -> Any:
        """The tokenizer."""
        return getattr(self.processor, "tokenizer", self.processor)

    @property
    def width(self) -> int:
        """Width of its hidden states; known without its weights."""
        config = self._source.config if self._model is None and self._source is not None else self.model.config
        return int(config.get_text_config().hidden_size)

    @cached_property
    def modalities(self) -> tuple[str, ...]:
        """Which of text, audio and vision it takes in raw form, by what its processor has parts for."""
        return "text", *(name for name in FEATURE_MODALITIES if self._has(*_PARTS[name]))

    def generate(
        self,
        requests: Sequence[MllmRequest],
        max_new_tokens: int,
        num_candidates: int = 1,
        temperature: float | None = None,
        top_p: float | None = None,
        seed: int = 0,
        only_number: bool | tuple[float, float] = False,
        form: AnswerForm | None = None,
    ) -> list[list[MllmAnswer]]:
        """Answer each request; see `Mllm.generate`.

        A candidate depends on its request, its number and the seed, not on the batch. The penalties and warpers of a
        checkpoint's own generation settings are left out: an answer's entropies are those of the plain distribution.

        Raises:
            ValueError: If several candidates are asked for without a temperature, a modality is given that the model
                does not take, or the vocabulary or `max_new_tokens` leaves no room for the number or form that is wanted.
        """
        check_sampling(max_new_tokens, num_candidates, temperature, top_p)
        numbers: tuple[str, ...] = ()
        if only_number is not False:
            numbers = writable_numbers(*(WIDEST_RANGE if only_number is True else only_number))
            check_room(numbers, max_new_tokens)
        rows = [(request, number) for request in requests for number in range(num_candidates)]
        answers: dict[int, MllmAnswer] = {}
        for members in self._batches([request for request, _ in rows]):
            chunk = [rows[index] for index in members]
            seeds = None if temperature is None else [_row_seed(seed, request, number) for request, number in chunk]
            inputs = self._on_device(self.encode([request for request, _ in chunk]))
            prompt_length = inputs["input_ids"].shape[1]
            constraint = self._constraint(numbers, prompt_length)
            if form is not None:
                constraint = FormConstraint(form, self._vocabulary, prompt_length, max_new_tokens)
            decoder = _Decoder(seeds, temperature, top_p, constraint)
            with torch.inference_mode():
                inputs, beginning = self.share_beginning(inputs, self.model)
                sequences = self.model.generate(
                    **inputs,
                    **beginning,
                    max_new_tokens=max_new_tokens,
                    logits_processor=LogitsProcessorList([decoder]),
                    pad_token_id=self._pad_id,
                    do_sample=False,
                    num_beams=1,
                    repetition_penalty=1.0,
                    temperature=None,
                    top_p=None,
                    top_k=None,
                )
            tokens = sequences[:, inputs["input_ids"].shape[1] :].tolist()
            lengths = inputs["attention_mask"].sum(1).tolist()
            for index, length, *row in zip(members, lengths, tokens, *decoder.records(), strict=True):
                answers[index] = replace(self._answer(*row), prompt_tokens=length)
        ordered = [answers[index] for index in range(len(rows))]
        return [list(chunk) for chunk in _chunks(ordered, num_candidates)]

    def score(self, requests: Sequence[MllmRequest], answers: Sequence[str]) -> list[MllmAnswer]:
        """Entropies and log-probabilities of given answers, the end of text after each included.

        Args:
            requests: What is asked.
            answers: One answer to each request.
        """
        pairs = list(zip(requests, answers, strict=True))
        scored: dict[int, MllmAnswer] = {}
        for members in self._batches(requests):
            encoded, lengths = self.encode_with_answers(*zip(*(pairs[index] for index in members), strict=True))
            inputs, longest = self._on_device(encoded), max(lengths)
            with torch.inference_mode():
                logits = self.model(**inputs, use_cache=False, **self.last_logits(longest + 1)).logits
            # What a position gives is the distribution of the next one.
            logprobs = logits[:, -longest - 1 : -1].float().log_softmax(-1)
            tokens = inputs["input_ids"][:, -longest:]
            entropies = torch.special.entr(logprobs.exp()).sum(-1).tolist()
            chosen = logprobs.gather(2, tokens.unsqueeze(2)).squeeze(2).tolist()
            for row, (index, length) in enumerate(zip(members, lengths, strict=True)):
                scored[index] = self._answer(
                    tokens[row, :length].tolist(), entropies[row][:length], chosen[row][:length]
                )
        return [scored[index] for index in range(len(pairs))]

    def embed(self, requests: Sequence[MllmRequest]) -> np.ndarray:
        """Mean of the final hidden states over what was asked: text, audio and frames.

        The tokens of the chat template are left out: they are the same for every request, and would make the vectors of
        short ones alike.

        Args:
            requests: A bare text is a request with a prompt alone.

        Returns:
            `(requests, hidden width)`, float32.

        Raises:
            ValueError: If a request is empty.
        """
        trunk = self.model.base_model
        whole = trunk is self.model  # no trunk to call alone: its hidden states come with all layers' and the logits
        vectors = np.zeros((len(requests), self.width), dtype=np.float32)
        for members in self._batches(requests):
            chunk = [requests[index] for index in members]
            inputs = self._on_device(self._with_positions(self.encode(chunk, ask=False)))
            with torch.inference_mode():
                outputs = trunk(**inputs, use_cache=False, **({"output_hidden_states": True} if whole else {}))
                hidden = outputs.hidden_states[-1] if whole else outputs.last_hidden_state
                mask = self._content_mask(chunk, inputs).to(hidden.device)
                sums = (hidden.float() * mask.unsqueeze(-1)).sum(1)
                vectors[members] = (sums / mask.sum(1, keepdim=True)).cpu().numpy()
        return vectors

    def encode(self, requests: Sequence[MllmRequest], ask: bool = True) -> dict[str, Tensor]:
        """Make model inputs, padded on the left, in the model's type but on the CPU.

        Args:
            requests: What is asked, of any mixture of modalities.
            ask: Whether the answer is to follow (the template's generation prompt).

        Raises:
            ValueError: If a modality is given that the model does not take.
        """
        for request in requests:
            self._check_media(request)
        texts = [self.render(request, ask) for request in requests]
        if self.modalities == ("text",):
            ids = [self._ids(text) for text in texts]
            return _padded_left(ids, [[1] * len(row) for row in ids], self._pad_id)
        if self._needs_equal_clips and len({len(one.frames) for one in requests if one.frames is not None}) > 1:
            return self._encode_unequal(requests, ask)
        audio = [request.audio.astype(np.float32) for request in requests if request.audio is not None]
        frames = [[] if request.frames is None else [request.frames] for request in requests]
        media: dict[str, Any] = {}
        if audio:
            media["audio"] = audio
        if any(frames):
            if self._takes_videos:
                media["videos"] = frames
                # They have been chosen already: none is to be left out, and each keeps its time.
                media["do_sample_frames"] = False
                media["video_metadata"] = [_metadata(one) for one in requests if one.frames is not None]
            else:
                media["images"] = [[frame for clip in clips for frame in clip] for clips in frames]
        inputs = dict(
            self.processor(
                text=texts,
                padding=True,
                padding_side="left",
                return_tensors="pt",
                add_special_tokens=self._adds_special_tokens(texts[0]),
                **media,
            )
        )
        for key in _TIME_KEYS & inputs.keys():
            # The processor takes one frame rate for all clips.
            step = self.processor.video_processor.temporal_patch_size
            rates = [request.frames_per_second for request in requests if request.frames is not None]
            inputs[key] = step / torch.tensor(rates)
        media_keys = {key for key, value in inputs.items() if value.is_floating_point()} - _TIME_KEYS
        return inputs | {key: inputs[key].to(self.model.dtype) for key in media_keys}

    def _encode_unequal(self, requests: Sequence[MllmRequest], ask: bool) -> dict[str, Tensor]:
        """As `encode`, of clips of unequal length for a processor that makes one tensor of all clips of a batch.

        Those of equal length are made together, and filled up with black frames afterwards. Where the model has a place for
        every frame in the text, places for those are put in and not attended to.
        """
        counts = [0 if request.frames is None else len(request.frames) for request in requests]
        longest, clip_token = max(counts), getattr(self.model.config, "video_token_id", None)
        ids: dict[int, list[int]] = {}
        masks: dict[int, list[int]] = {}
        pixels: dict[str, dict[int, Tensor]] = {}
        for count in sorted(set(counts)):
            members = [index for index, found in enumerate(counts) if found == count]
            made = self.encode([requests[index] for index in members], ask)
            mask = made.pop("attention_mask").bool()
            for row, index in enumerate(members):
                tokens = made["input_ids"][row][mask[row]].tolist()
                real = [1] * len(tokens)
                if count and "pixel_values_videos" in made:
                    # All frames' tokens alike, and one that ends the clip.
                    end = len(tokens) - 1 - tokens[::-1].index(clip_token)
                    added = (longest - count) * ((tokens.count(clip_token) - 1) // count)
                    tokens[end:end], real[end:end] = [clip_token] * added, [0] * added
                ids[index], masks[index] = tokens, real
                for key in made.keys() - {"input_ids"} if count else ():
                    filled = made[key].new_zeros(longest, *made[key].shape[2:])
                    filled[:count] = made[key][row]
                    pixels.setdefault(key, {})[index] = filled
        order = range(len(requests))
        inputs = _padded_left([ids[index] for index in order], [masks[index] for index in order], self._pad_id)
        return inputs | {key: torch.stack([found[index] for index in sorted(found)]) for key, found in pixels.items()}

    @property
    def _needs_equal_clips(self) -> bool:
        """Whether its processor makes one tensor of all clips of a batch, rather than patches of each."""
        processor = getattr(self.processor, "video_processor", None)
        return processor is not None and "video_grid_thw" not in processor.model_input_names

    def encode_with_answers(
        self, requests: Sequence[MllmRequest], answers: Sequence[str]
    ) -> tuple[dict[str, Tensor], list[int]]:
        """Make model inputs of requests and given answers, each followed by the end of text.

        Requests end, and answers begin, at the same position in every row: padding is left of the one and right of the
        other.

        Args:
            requests: What is asked.
            answers: One answer to each request.

        Returns:
            The inputs, whose last `max(lengths)` positions are the answers', and the length of each answer in tokens.
        """
        inputs = self.encode(requests)
        ids = [[*self.tokenizer(text, add_special_tokens=False)["input_ids"], self._end_id] for text in answers]
        lengths = [len(row) for row in ids]
        longest = max(lengths)
        tokens = torch.tensor([row + [self._pad_id] * (longest - len(row)) for row in ids])
        real = torch.arange(longest) < torch.tensor(lengths).unsqueeze(1)
        added = {"input_ids": tokens, "attention_mask": real} | dict.fromkeys(_TOKEN_KEYS, torch.zeros_like(tokens))
        for key, value in added.items():
            if key in inputs:
                inputs[key] = torch.cat([inputs[key], value.to(inputs[key])], dim=1)
        return self._with_positions(inputs), lengths

    def share_beginning(self, inputs: dict[str, Tensor], model: Any) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Compute once what all rows of a batch begin with: the template, the instruction, the same request of candidates.

        Only of models that read text alone and attend to everything before; of others nothing is changed.

        Args:
            inputs: Of `encode` or `encode_with_answers`, on the model's device.
            model: The model, or what a trainer has wrapped it in.

        Returns:
            The inputs, with their padding behind the common beginning, and the cache for `generate`, or for a forward pass
            of the positions behind it only, by its name; empty where nothing is shared.
        """
        ids, mask = inputs["input_ids"], inputs["attention_mask"]
        if len(ids) < 2 or self.modalities != ("text",) or not self._attends_to_all:
            return inputs, {}
        starts = mask.argmax(dim=1).tolist()
        # At least one token of every row is left to ask about.
        rows = [ids[row, start:].tolist() for row, start in enumerate(starts)]
        count = min(min(_common(rows[0], row) for row in rows[1:]), min(mask.sum(1).tolist()) - 1)
        if count < _SHARED_AT_LEAST:
            return inputs, {}
        beginning = ids[:1, starts[0] : starts[0] + count]
        # What later versions of transformers call it.
        name = "cache" if "cache" in inspect.signature(self.model.forward).parameters else "past_key_values"
        cache = model(input_ids=beginning, use_cache=True, **self.last_logits(1))[name]
        cache.batch_repeat_interleave(len(ids))
        moved = [[*range(s, s + count), *range(s), *range(s + count, ids.shape[1])] for s in starts]
        order = torch.tensor(moved, device=ids.device)
        return {key: value.gather(1, order) for key, value in inputs.items()}, {name: cache}

    @cached_property
    def _attends_to_all(self) -> bool:
        """Whether every layer keeps keys and values of all positions, so that those of a beginning can be taken over."""
        if not self.model._supports_default_dynamic_cache():
            return False
        layers = DynamicCache(config=self.model.config).layers
        return all(type(layer) is DynamicLayer for layer in layers) and not getattr(self.model.config, "alibi", False)

    def _with_positions(self, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
        """The inputs with positions that do not count padding; most models of several modalities find out by themselves."""
        counts_itself = self.modalities != ("text",) and not self._needs_equal_clips
        if counts_itself or "position_ids" not in inspect.signature(self.model.forward).parameters:
            return inputs
        return {**inputs, "position_ids": (inputs["attention_mask"].cumsum(1) - 1).clamp(min=0)}

    def render(self, request: MllmRequest, ask: bool = True) -> str:
        """The text of a request in the model's chat template, with one placeholder for each clip or frame.

        Special tokens inside the prompt are taken out: a transcript must not end a turn or claim a clip.

        Args:
            request: What is asked.
            ask: Whether the answer is to follow.
        """
        parts: list[dict[str, str]] = []
        if request.audio is not None:
            parts.append({"type": "audio"})
        if request.frames is not None:
            parts += [{"type": "video"}] if self._takes_videos else [{"type": "image"}] * len(request.frames)
        parts.append({"type": "text", "text": self._without_special(request.prompt)})
        turns: list[dict[str, Any]] = [{"role": "user", "content": parts}]
        if request.system is not None:
            turns.insert(0, {"role": "system", "content": [{"type": "text", "text": request.system}]})
        options: dict[str, Any] = {"add_generation_prompt": ask, "tokenize": False}
        if self.modalities == ("text",):
            # Templates of such models join strings.
            turns = [{**turn, "content": "".join(part["text"] for part in turn["content"])} for turn in turns]
            options["chat_template"] = self.tokenizer.chat_template or PLAIN_TEMPLATE
        text: str = self.processor.apply_chat_template(turns, **options)
        return text

    def _ids(self, text: str) -> list[int]:
        """The tokens of a rendered request without media."""
        ids: list[int] = self.tokenizer(text, add_special_tokens=self._adds_special_tokens(text))["input_ids"]
        return ids

    def _adds_special_tokens(self, text: str) -> bool:
        """Whether the tokenizer is to add its own: not where the template has done so."""
        if self.modalities == ("text",):
            return self.tokenizer.chat_template is None
        begin = self.tokenizer.bos_token
        return begin is None or not text.startswith(begin)

    def _on_device(self, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The inputs on the model's device."""
        return {key: value.to(self.model.device) for key, value in inputs.items()}

    def _without_special(self, text: str) -> str:
        """The text without special tokens, nor what becomes one when others are taken out of it."""
        while (shorter := self._special.sub("", text)) != text:
            text = shorter
        return text

    @cached_property
    def _special(self) -> re.Pattern[str]:
        # Those that only mark turns are in no named role.
        added = (str(token) for token in self.tokenizer.added_tokens_decoder.values() if token.special)
        tokens = sorted({*self.tokenizer.all_special_tokens, *added} - {""}, key=lambda token: (-len(token), token))
        return re.compile("|".join(map(re.escape, tokens)) or r"(?!)")

    @property
    def _takes_videos(self) -> bool:
        return getattr(self.processor, "video_processor", None) is not None

    @property
    def _end_id(self) -> int:
        end: int | None = self.tokenizer.eos_token_id
        if end is None:
            raise ValueError(f"The tokenizer of {self.name!r} has no token for the end of text; take another model.")
        return end

    @property
    def _pad_id(self) -> int:
        pad: int | None = self.tokenizer.pad_token_id
        return self._end_id if pad is None else pad

    @property
    def _end_ids(self) -> set[int]:
        given = self.model.generation_config.eos_token_id
        return {self._end_id, *(given if isinstance(given, list) else [given])} - {None}

    @cached_property
    def _number_grammar(self) -> NumberGrammar:
        return NumberGrammar(self.tokenizer, self._end_ids)

    @cached_property
    def _vocabulary(self) -> Vocabulary:
        return Vocabulary(self.tokenizer, self._end_ids)

    def _constraint(self, numbers: tuple[str, ...], prompt_length: int) -> LogitsProcessor | None:
        """Leaves the tokens that lead to one of some numbers; None where there are none."""
        if not numbers:
            return None
        grammar = self._number_grammar
        return PrefixConstrainedLogitsProcessor(
            lambda _, tokens: grammar.allowed(tokens[prompt_length:].tolist(), numbers), num_beams=1
        )

    def _has(self, *parts: str) -> bool:
        return any(getattr(self.processor, part, None) is not None for part in parts)

    def _check_media(self, request: MllmRequest) -> None:
        for modality, given in (("audio", request.audio), ("vision", request.frames)):
            if given is not None and modality not in self.modalities:
                what = "frames" if modality == "vision" else modality
                raise ValueError(
                    f"A request brings {what}, which {self.name!r} does not take; leave {what} out, or take another model."
                )

    def _batches(self, requests: Sequence[MllmRequest]) -> Iterator[list[int]]:
        """Indices of the requests that run together: of like length, the longest first."""
        order = sorted(range(len(requests)), key=lambda index: _length(requests[index]), reverse=True)
        for members in _chunks(order, self.batch_size):
            yield list(members)

    def last_logits(self, count: int) -> dict[str, int]:
        """What a model's forward is to be given to compute the last positions' logits only; empty where it cannot.

        Args:
            count: How many.
        """
        return (
            {"logits_to_keep": count} if "logits_to_keep" in inspect.signature(self.model.forward).parameters else {}
        )

    def _content_mask(self, requests: Sequence[MllmRequest], inputs: Mapping[str, Tensor]) -> Tensor:
        """True at tokens of the request itself: those between what is there of the template in any request."""
        mask = inputs["attention_mask"].bool().cpu()
        for row, request in enumerate(requests):
            empty = self._ids(self.render(MllmRequest("", system=request.system), ask=False))
            ids = inputs["input_ids"][row].cpu()[mask[row]].tolist()
            before = _common(ids, empty)
            after = _common(ids[before:][::-1], empty[before:][::-1])
            if before + after >= len(ids):
                raise ValueError("An empty request has no embedding; give it a prompt, audio or frames.")
            positions = mask[row].nonzero().squeeze(1)
            mask[row, positions[:before]] = False
            mask[row, positions[len(ids) - after :]] = False
        return mask

    def _answer(self, tokens: list[int], entropies: list[float], logprobs: list[float]) -> MllmAnswer:
        """Cut behind the end of text, and say what each token adds to the text."""
        ends = self._end_ids
        length = next((position + 1 for position, token in enumerate(tokens) if token in ends), len(tokens))
        pieces, text = [], ""
        for end in range(1, length + 1):
            longer = self.tokenizer.decode(tokens[:end], skip_special_tokens=True, clean_up_tokenization_spaces=False)
            # A character of several tokens is there with its last one.
            if longer.endswith("\ufffd") and end < length:
                longer = text
            pieces.append(longer[len(text) :])
            text = longer
        finished = tokens[length - 1] in ends if length else False
        return MllmAnswer(text, tuple(pieces), tuple(entropies[:length]), tuple(logprobs[:length]), finished=finished)


def taken_modalities(mllm: Mllm | None, wanted: str | Sequence[str] = "auto") -> tuple[str, ...]:
    """Which modalities a model is given in raw form, in the order of `MODALITIES`.

    Args:
        mllm: The model; one that does not say what it takes, such as a server, is taken to take everything, and so is None.
        wanted: "auto": all that it takes; or their names, for which no model is needed.
    """
    if not isinstance(wanted, str):
        return tuple(wanted)
    taken: tuple[str, ...] = getattr(mllm, "modalities", MODALITIES)
    return taken


def adapter_digest(folder: str | os.PathLike[str]) -> str:
    """A hash of an adapter's weights: what tells adapters apart, wherever they lie.

    Args:
        folder: With `adapter_model.safetensors`.
    """
    with open(os.path.join(folder, "adapter_model.safetensors"), "rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=16)).hexdigest()


def check_sampling(max_new_tokens: int, num_candidates: int, temperature: float | None, top_p: float | None) -> None:
    """Refuse settings of `Mllm.generate` that make no sense; the arguments are its own.

    Raises:
        ValueError: If a number is out of its range, or several candidates are asked for without a temperature.
    """
    if max_new_tokens < 1 or num_candidates < 1:
        raise ValueError(
            f"max_new_tokens is {max_new_tokens} and num_candidates {num_candidates}; both must be at least 1."
        )
    if temperature is not None and not temperature > 0:
        raise ValueError(f"temperature is {temperature}; it must be above 0, or None for the most probable tokens.")
    if temperature is None and num_candidates > 1:
        raise ValueError(f"{num_candidates} candidates without a temperature would all be equal; give a temperature.")
    if top_p is not None and (temperature is None or not 0 < top_p <= 1):
        raise ValueError(f"top_p is {top_p}; it must lie in (0, 1] and needs a temperature.")


def _row_seed(seed: int, request: MllmRequest, number: int) -> int:
    return int.from_bytes(hashlib.sha256(f"{seed} {number} {request.digest}".encode()).digest()[:16])


def _chunks(rows: Sequence[Any], size: int) -> Iterator[Sequence[Any]]:
    for begin in range(0, len(rows), size):
        yield rows[begin : begin + size]


def _length(request: MllmRequest) -> tuple[int, ...]:
    """What the time that a request takes grows with: frames, sound, words."""
    return *(0 if part is None else len(part) for part in (request.frames, request.audio)), len(request.prompt)


def _metadata(request: MllmRequest) -> VideoMetadata:
    """When the frames of a request were taken."""
    count, rate = len(cast(np.ndarray, request.frames)), request.frames_per_second
    return VideoMetadata(
        total_num_frames=count,
        fps=rate,
        duration=count / rate,
        frames_indices=list(range(count)),
        video_backend="none",
    )


def _padded_left(ids: Sequence[list[int]], masks: Sequence[list[int]], pad: int) -> dict[str, Tensor]:
    longest = max(map(len, ids))
    return {
        "input_ids": torch.tensor([[pad] * (longest - len(row)) + row for row in ids]),
        "attention_mask": torch.tensor([[0] * (longest - len(row)) + row for row in masks]),
    }


def _common(left: Sequence[int], right: Sequence[int]) -> int:
    """Length of the common beginning."""
    count = 0
    for a, b in zip(left, right, strict=False):
        if a != b:
            break
        count += 1
    return count
