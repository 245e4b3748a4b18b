"""The demo page of a model: type, upload or record, take modalities away, and see what happens to the score."""

import contextlib
import dataclasses
import json
import os
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from .data.collator import MsaCollator
from .data.media import SAMPLING_RATE
from .data.missing import FrameMissing
from .data.missing_base import MissingProtocol, Samples
from .data.sample_corpus.speech import Voice, speak, synthesizer
from .errors import MsaError, as_msa_errors, require_package
from .files import atomic_directory
from .models.msa_pipeline import MsaPipeline
from .models.msa_schema import MODALITIES

DRAWS = 8
CURVE_RATES = (0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)
EXAMPLE = "the acting was wonderful but the story is a bit boring"
_LARGEST_UPLOAD = "50mb"
# Seconds until an upload that was never scored leaves the disk, and one that was leaves the memory.
_FORGET = 900


@dataclasses.dataclass(frozen=True)
class _Rates(MissingProtocol):
    """Positions dropped one by one, at a rate of its own for each modality."""

    parts: tuple[FrameMissing, ...] = ()
    modalities: tuple[str, ...] = MODALITIES

    def drop(self, samples: Samples) -> tuple[dict[str, Any], Any]:
        """Drop from a batch; see `MissingProtocol.drop`."""
        masks: dict[str, Any] = {}
        rates = np.zeros((len(samples.ids), len(MODALITIES)))
        for part in self.parts:
            found, nominal = part.drop(samples)
            masks |= found
            rates += nominal
        return masks, rates


def answer(
    pipeline: MsaPipeline,
    given: Mapping[str, Any],
    *,
    off: Sequence[str] = (),
    rates: Mapping[str, float] | None = None,
    curve: bool = True,
) -> dict[str, Any]:
    """Score an utterance of which parts are taken away; the same input always gives the same answer.

    Args:
        pipeline: See `hf_msa.pipelines.load_pipeline`.
        given: An utterance, as the pipeline takes it.
        off: Modalities that are taken away as a whole, as if they had not been recorded.
        rates: By modality the share of its positions that is dropped, in [0, 1); `DRAWS` draws are made.
        curve: Whether to give the curve, too.

    Returns:
        What the pipeline says of the utterance as it is left, with `score` the mean over draws and `interval` the lowest and
        highest of them, and `curve`: rate, mean, lowest and highest score, all modalities losing as much.

    Raises:
        MsaError: If the utterance cannot be read, nothing of it is left, or a rate is out of range.
    """
    with as_msa_errors():
        row = pipeline.preprocess(given, **pipeline._preprocess_params)
        row |= dict.fromkeys(off)
        there = {**row, "text": (row["text"] or "").strip() or None}
        left = [name for name in pipeline.model.modalities if there[name] is not None]
        if not left:
            raise MsaError("Nothing is left to score; type a text, give a recording, or switch a modality on.")
        found: dict[str, Any] = pipeline.postprocess(pipeline.forward({"rows": [row]}))[0]
        dropped = {name: rate for name, rate in (rates or {}).items() if rate > 0 and name in left}
        scores = _scores(pipeline, row, dropped) if dropped else [found["score"]]
        found |= {"score": float(np.mean(scores)), "interval": [min(scores), max(scores)]}
        if curve:
            along = [(rate, _scores(pipeline, row, dict.fromkeys(left, rate))) for rate in CURVE_RATES]
            found["curve"] = [(rate, float(np.mean(some)), min(some), max(some)) for rate, some in along]
    return found


@torch.inference_mode()
def _scores(pipeline: MsaPipeline, row: Mapping[str, Any], rates: Mapping[str, float]) -> list[float]:
    protocol = _Rates(tuple(FrameMissing(rate=rate, modalities=(name,)) for name, rate in rates.items()))
    present = {f"{name}_present": row[name] is not None for name in pipeline.processor.feature_extractor.modalities}
    widths = {
        name: getattr(pipeline.model.config, f"{name}_dim") for name in pipeline.processor.feature_extractor.modalities
    }
    empty = {name: np.zeros((1, width), np.float32) for name, width in widths.items() if row[name] is None}
    rows = [{**row, **empty, **present, "id": f"draw-{draw}", "text": row["text"] or ""} for draw in range(DRAWS)]
    batch = MsaCollator(pipeline.processor, protocol, "test")(rows)
    inputs = pipeline.model.inputs_from(
        {key: value.to(pipeline.model.device) for key, value in batch.items()}, predicting=True
    )
    outputs = pipeline.model.predict_rows(inputs, rows, pipeline.processor)
    return [float(score) for score in outputs.logits.float().reshape(-1)]


def plot_curve(found: Mapping[str, Any]) -> Any:
    """Draw the score over the missing rate, with its range over draws; a matplotlib figure."""
    from matplotlib.figure import Figure

    rates, mean, low, high = map(np.array, zip(*found["curve"], strict=True))
    figure = Figure(figsize=(5, 2.8), layout="constrained")
    axes = figure.add_subplot()
    axes.fill_between(rates, low, high, alpha=0.2, label=f"range of {DRAWS} draws")
    axes.plot(rates, mean, marker="o", label="mean")
    axes.set_ylim(*found["range"])
    axes.axhline(
        0 if found["range"][0] < 0 < found["range"][1] else np.mean(found["range"]), color="grey", linewidth=0.8
    )
    axes.set_xlabel("share of all modalities that is missing")
    axes.set_ylabel("score")
    axes.legend()
    return figure


def build_page(pipeline: MsaPipeline, title: str) -> Any:
    """Build the page: a `gradio.Blocks`.

    Args:
        pipeline: See `hf_msa.pipelines.load_pipeline`.
        title: What the page calls the model.

    Raises:
        MsaError: If Gradio or matplotlib is not installed.
    """
    require_package("gradio", "demo")
    require_package("matplotlib", "plots")
    import gradio as gr

    os.environ.setdefault("GRADIO_RUN_HISTORY", "False")  # It would keep recordings and answers in the browser.
    sets = {
        name: getattr(pipeline.processor.feature_extractor, f"{name}_set")
        for name in pipeline.model.modalities
        if name != "text"
    }
    # Of a modality without a set nothing can be given here.
    modalities = [name for name in pipeline.model.modalities if name == "text" or sets[name]]

    def run(
        text: str, sound: str | None, video: str | None, on: list[str], memory: dict[str, bytes], *rates: float
    ) -> tuple[str, Any, Any, str, dict[str, bytes]]:
        kept: dict[str, bytes] = {}
        try:
            for path in filter(None, (sound, video)):
                kept[path] = _taken(path, memory)
            found = answer(
                pipeline,
                {
                    "text": text.strip() or None,
                    **{name: kept[path] for name, path in (("audio", sound), ("video", video)) if path},
                },
                off=[name for name in modalities if name not in on],
                rates=dict(zip(modalities, rates, strict=True)),
            )
        except MsaError as error:
            # Not raised: what was uploaded would be lost.
            return f"**{error}**", None, None, text, kept
        transcript = (found.get("transcript") or {}).get("text", text)
        return _words(found), plot_curve(found), _details(found), transcript, kept

    with gr.Blocks(title=title, delete_cache=(_FORGET, _FORGET), analytics_enabled=False) as page:
        gr.Markdown(f"# {title}\n\nHow does it sound? Take parts away and see what the model still makes of it.")
        with gr.Row():
            with gr.Column():
                text = gr.Textbox(EXAMPLE, label="Transcript", lines=3)
                sound = gr.Audio(
                    label="Sound",
                    sources=["upload", "microphone"],
                    type="filepath",
                    buttons=[],  # Gradio's would publish it, or look for it once it is deleted.
                    visible=bool(sets.get("audio")),
                )
                spoken = gr.Button("Speak the example", size="sm", visible=bool(sets.get("audio")))
                video = gr.Video(
                    label="Video", sources=["upload", "webcam"], visible=all(sets.values()) and bool(sets)
                )
                on = gr.CheckboxGroup(modalities, value=modalities, label="Modalities")
                sliders = [gr.Slider(0, 0.9, 0, step=0.1, label=f"Missing share of the {name}") for name in modalities]
                button = gr.Button("Score", variant="primary")
            with gr.Column():
                score = gr.Markdown("Press *Score*.")
                curve = gr.Plot(show_label=False)
                details = gr.JSON(label="What the model says")
        memory = gr.State({}, time_to_live=_FORGET)
        # Gradio names a file by its content, so that the example of one visitor is deleted with that of another.
        spoken.click(example_recording, None, sound, api_name="example").then(
            lambda path: {path: Path(path).read_bytes()}, sound, memory, api_visibility="private"
        )
        button.click(
            run, [text, sound, video, on, memory, *sliders], [score, curve, details, text, memory], api_name="score"
        )
    return page


def _taken(upload: str, memory: Mapping[str, bytes]) -> bytes:
    """The content of an upload, which is in memory from now on and not on the disk."""
    file = Path(upload)
    if upload in memory and not file.exists():
        return memory[upload]
    try:
        content = file.read_bytes()
        file.unlink()
    except OSError as error:
        raise MsaError("The recording is no longer here; give it again.") from error
    with contextlib.suppress(OSError):  # Its folder bears the hash of the content.
        file.parent.rmdir()
    return content


def example_recording() -> tuple[int, np.ndarray]:
    """Speak the example, by espeak-ng where it is installed: samples per second and int16 `(samples,)`."""
    voice = Voice(pitch=180.0, rate=4.5, energy=-20.0)
    samples = speak(EXAMPLE.split(), voice, np.random.default_rng(0), synthesizer())
    return SAMPLING_RATE, np.round(samples * 32767).astype(np.int16)


def _words(found: Mapping[str, Any]) -> str:
    low, high = found["interval"]
    between = "" if low == high else f", {low:.2f} to {high:.2f} over {DRAWS} draws"
    present = ", ".join(name for name, there in found["present"].items() if there)
    scale = f"on a scale from {found['range'][0]:g} to {found['range'][1]:g}{between}"
    return f"## {found['score']:+.2f} — {found['label'].replace('_', ' ')}\n\n{scale}; from {present}."


def _details(found: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in found.items() if name not in ("curve", "interval", "range")}


def serve(pipeline: MsaPipeline, title: str, port: int | None = None) -> None:
    """Serve the page on this machine alone until interrupted; uploads are limited and not kept."""
    # A folder that nobody else can read, and that goes with what an upload that broke off has left.
    with tempfile.TemporaryDirectory(prefix="hf-msa-demo-") as folder:
        os.environ["GRADIO_TEMP_DIR"] = folder
        page = build_page(pipeline, title)
        page.launch(server_name="127.0.0.1", server_port=port, share=False, max_file_size=_LARGEST_UPLOAD)


# --- A Space on the Hub ---

_APP = '''"""Demo of {model}."""

import os

from hf_msa.demo_page import build_page
from hf_msa.pipelines import load_pipeline

page = build_page(load_pipeline({model!r}{options}), {model!r})
page.launch(server_name=os.environ.get("GRADIO_SERVER_NAME", "0.0.0.0"), max_file_size="{largest}")
'''

_CARD = """---
title: {title}
sdk: gradio
app_file: app.py
models:
  - {quoted}
license: apache-2.0
---

Demo of the model [{model}](https://huggingface.co/{model}), made by `hf-msa demo --export`. Uploads are limited in size and
deleted after the answer.
"""


def export_space(model: str, output: str | Path, transcribe: str | None = None) -> None:
    """Write a Space for the Hub that shows the page of a model: an app, its requirements and its card; no weights.

    Args:
        model: The model's name on the Hub.
        output: The folder to write; it must be new or empty.
        transcribe: Whisper model for recordings without a text.

    Raises:
        MsaError: If the model is no name on the Hub, or the folder is not empty.
    """
    target = Path(output)
    if model.count("/") != 1 or Path(model).exists():
        raise MsaError(
            f"A Space loads its model from the Hub, and {model!r} is no name there (org/name); push it first."
        )
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise MsaError(f"The folder {str(target)!r} is not empty; give another one.")
    extras = "train,plots,video,demo" + (",asr" if transcribe else "")
    options = f", transcribe={transcribe!r}" if transcribe else ""
    with atomic_directory(target) as folder:
        app = _APP.format(model=model, options=options, largest=_LARGEST_UPLOAD)
        (folder / "app.py").write_text(app, encoding="utf-8")
        (folder / "requirements.txt").write_text(f"hf-msa[{extras}]\n", encoding="utf-8")
        # A name can look like a number to YAML.
        names = {"title": json.dumps(model.rpartition("/")[2]), "quoted": json.dumps(model)}
        (folder / "README.md").write_text(_CARD.format(model=model, **names), encoding="utf-8")
