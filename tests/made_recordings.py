"""Small recordings for tests, and a model that hears them."""

from pathlib import Path

import numpy as np
import pytest
import soundfile

from hf_msa.models.modeling_tcmr import TcmrForSentimentAnalysis
from tiny import TINY_CONFIGS, tiny_processor


def write_sound(file: Path, rate: int = 16_000, seconds: float = 1.0, channels: tuple[float, ...] = (0.5,)) -> Path:
    """Constant sound, each channel at its own height."""
    file.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(file, np.tile(np.float32(channels), (int(rate * seconds), 1)), rate)
    return file


def write_video(
    file: Path,
    seconds: float = 3.0,
    size: tuple[int, int] = (64, 48),
    rate: int = 10,
    sound: tuple[float, ...] | None = (0.5,),
) -> Path:
    """Pictures that grow brighter, 8 levels per tenth of a second up to 255, and constant sound of 22.05 kHz.

    A .webm is as a browser records it: VP8 and Opus, as a stream that does not say how long it is.
    """
    av = pytest.importorskip("av", reason="PyAV is not installed: pip install 'hf-msa[video]'")
    file.parent.mkdir(parents=True, exist_ok=True)
    webm = file.suffix == ".webm"
    with av.open(str(file), "w", options={"live": "1"} if webm else {}) as container:
        stream = container.add_stream("libvpx" if webm else "mpeg4", rate=rate)
        stream.width, stream.height, stream.pix_fmt, stream.bit_rate = *size, "yuv420p", 4_000_000
        layout = "stereo" if sound and len(sound) == 2 else "mono"
        codec = {".mkv": "pcm_s16le", ".webm": "libopus"}.get(file.suffix, "aac")
        track = container.add_stream(codec, rate=48_000 if webm else 22_050, layout=layout) if sound else None
        for index in range(int(seconds * rate)):
            picture = np.full((size[1], size[0], 3), min(255, index * 80 // rate), dtype=np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode(None))
        if track is not None and sound is not None:
            values = np.tile(np.float32(sound), int(22_050 * seconds))[None]
            frame = av.AudioFrame.from_ndarray((values * 32767).astype(np.int16), format="s16", layout=layout)
            frame.sample_rate = 22_050
            container.mux(track.encode(frame))
            container.mux(track.encode(None))
    return file


def save_listener(folder: Path) -> str:
    """Save an untrained TCMR that reads prosody, and vision of no known set; gives the folder."""
    config = TINY_CONFIGS["tcmr"](audio_dim=5)
    processor = tiny_processor(config)
    processor.feature_extractor.audio_set = "prosody@1"
    TcmrForSentimentAnalysis(config).save_pretrained(folder)
    processor.save_pretrained(folder)
    return str(folder)
