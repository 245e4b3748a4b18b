"""A folder of recordings as the world has them: damaged, lying, malicious, or only unusual.

`write_adversarial` says of each whether a decoder ought to read it, or to refuse it in one sentence. Refused is also what
could only be read in part, since half a clip is another clip.
"""

import os
import struct
import zlib
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Literal

import numpy as np

Expectation = Literal["read", "refused"]

RATE = 16_000
#: Seconds of what is longer than a clip may be.
HOUR = 3660
PCM, FLOAT = 1, 3
#: What programs write for sizes that they do not know yet.
UNKNOWN_SIZE = 0xFFFFFFFF


def speech(seconds: float = 1.0, rate: int = RATE) -> np.ndarray:
    """Something voiced: (samples,) float64 within 0.5, the same at every call."""
    times = np.arange(round(seconds * rate)) / rate
    tone = sum(np.sin(2 * np.pi * 120 * k * times) / k for k in range(1, 8))
    return 0.25 * tone * (0.6 + 0.4 * np.sin(2 * np.pi * 3 * times))


def pcm(samples: np.ndarray) -> bytes:
    """Samples (samples,) or (samples, channels) as 16-bit PCM."""
    return np.rint(np.clip(samples, -1, 1) * 32767).astype("<i2").tobytes()


def wav(
    data: bytes,
    *,
    rate: int = RATE,
    channels: int = 1,
    kind: int = PCM,
    bits: int = 16,
    data_size: int | None = None,
    riff_size: int | None = None,
    before: bytes = b"",
) -> bytes:
    """A WAV file whose header says what it is told to say.

    Args:
        data: What stands in the chunk ``data``.
        rate, channels, kind, bits: Of the header.
        data_size, riff_size: Other sizes than the true ones.
        before: Chunks between the header and the data.
    """
    block = channels * bits // 8
    header = struct.pack("<HHIIHH", kind, channels, rate, rate * block & UNKNOWN_SIZE, block & 0xFFFF, bits)
    size = len(data) if data_size is None else data_size
    body = b"WAVEfmt " + struct.pack("<I", len(header)) + header + before + b"data" + struct.pack("<I", size) + data
    return b"RIFF" + struct.pack("<I", len(body) if riff_size is None else riff_size) + body


def png() -> bytes:
    """A picture of one grey pixel."""

    def chunk(name: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))

    header = struct.pack(">IIBBBBB", 1, 1, 8, 0, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0\x80")) + chunk(b"IEND", b"")
    )


def write_adversarial(folder: Path) -> dict[str, Expectation]:
    """Write the files, below 30 MB in all; those that need PyAV are left out where there is none.

    Args:
        folder: Gets the files; created where absent. Beside it, ``<folder>_outside`` gets the file that a link leads to.

    Returns:
        The name of each in `folder` -> what ought to become of it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    outside = folder.with_name(f"{folder.name}_outside")
    outside.mkdir(exist_ok=True)
    expected: dict[str, Expectation] = {}
    sound = pcm(speech())
    good = wav(sound)

    def add(name: str, content: bytes, expectation: Expectation) -> None:
        (folder / name).write_bytes(content)
        expected[name] = expectation

    # Unusual, and nothing is wrong with them.
    add("speech.wav", good, "read")
    add("UPPER.WAV", good, "read")
    add("wave_named.mp3", good, "read")
    add("with spaces & ümläute.wav", good, "read")
    add("-dash.wav", good, "read")
    add("concat:speech.wav|UPPER.wav", good, "read")
    add("ten_channels.wav", wav(pcm(np.repeat(speech()[:, None], 10, axis=1)), channels=10), "read")
    add("low_rate.wav", wav(pcm(speech(rate=8000)), rate=8000), "read")
    add("beyond_full_scale.wav", wav((8 * speech()).astype("<f4").tobytes(), kind=FLOAT, bits=32), "read")
    add("silence.wav", wav(bytes(2 * RATE)), "read")
    # Written to a pipe: nobody knew how long it would be.
    add("streamed.wav", wav(sound, data_size=UNKNOWN_SIZE, riff_size=UNKNOWN_SIZE), "read")

    # Damaged or untrue.
    add("empty.wav", b"", "refused")
    add("empty.mp4", b"", "refused")
    add("header_only.wav", wav(b""), "refused")
    add("one_sample.wav", wav(sound[:2]), "refused")
    add("truncated.wav", good[: len(good) // 2], "refused")
    add("truncated_header.wav", good[:30], "refused")
    add("lying_chunk.wav", wav(sound, before=b"LIST" + struct.pack("<I", 0x7FFFFFF0)), "refused")
    add("zero_rate.wav", wav(sound, rate=0), "refused")
    add("absurd_rate.wav", wav(sound, rate=4_000_000_000), "refused")
    add("no_channels.wav", wav(sound, channels=0), "refused")
    nan = speech()
    nan[RATE // 2] = np.nan
    add("nan.wav", wav(nan.astype("<f4").tobytes(), kind=FLOAT, bits=32), "refused")
    add("text_named.mp4", b"This is not a film.\n" * 50, "refused")
    add("text_named.wav", b"Nor is this a song.\n" * 50, "refused")
    add("noise_named.mp4", np.random.default_rng(0).bytes(20_000), "refused")
    add("picture_named.mp4", png(), "refused")

    # Lists of other files, which FFmpeg would open if it were let.
    add("playlist.m3u8", b"#EXTM3U\n#EXT-X-TARGETDURATION:2\n#EXTINF:1,\nspeech.wav\n#EXT-X-ENDLIST\n", "refused")
    add("playlist_named.wav", (folder / "playlist.m3u8").read_bytes(), "refused")
    add("concat_named.mp4", b"ffconcat version 1.0\nfile speech.wav\n", "refused")
    add("session_named.mp4", b"v=0\no=- 0 0 IN IP4 127.0.0.1\nm=audio 5004 RTP/AVP 0\n", "refused")

    # What is no file in the folder.
    (outside / "speech.wav").write_bytes(good)
    links = {
        "link_out.wav": outside / "speech.wav",
        "link_nowhere.wav": folder / "absent.wav",
        "link_itself.wav": folder / "link_itself.wav",
        "link_device.wav": Path("/dev/zero"),
    }
    for name, target in links.items():
        (folder / name).symlink_to(target)
        expected[name] = "refused"
    (folder / "folder.wav").mkdir()
    expected["folder.wav"] = "refused"
    os.mkfifo(folder / "fifo.wav")
    expected["fifo.wav"] = "refused"

    if find_spec("av") is None:
        add("hour_of_silence.wav", wav(b"\x80" * (HOUR * 1000), rate=1000, bits=8), "refused")
    else:
        _write_containers(add, folder)
    return expected


def _write_containers(add: Callable[[str, bytes, Expectation], None], folder: Path) -> None:
    """What needs an encoder."""
    film = encode(folder, "mp4", pictures=10, sound=speech())
    add("film.mp4", film, "read")
    add("UPPER.MP4", film, "read")
    add("film_named.wav", film, "read")
    matroska = encode(folder, "mkv", pictures=10, sound=speech())
    add("film.mkv", matroska, "read")
    add("mute.mp4", encode(folder, "mp4", pictures=10), "read")
    add("sound_only.mp4", encode(folder, "mp4", sound=speech()), "read")
    add("4k.mp4", encode(folder, "mp4", pictures=2, width=3840, height=2160), "read")
    spoken = encode(folder, "flac", sound=speech())
    add("flac_named.wav", spoken, "read")
    add("hour_of_silence.flac", encode(folder, "flac", sound=np.zeros(HOUR * 8000), rate=8000), "refused")
    # The index stands at the end, and is lost; or it stands first, and says more than there is. FFmpeg reads what is left of
    # the Matroska file, as of truncated.wav, without a word: only their headers tell that it is not all.
    add("truncated.mp4", film[: len(film) // 2], "refused")
    first = encode(folder, "mp4", pictures=10, sound=speech(), index_first=True)
    add("cut_download.mp4", first[: len(first) * 3 // 4], "refused")
    for ending, whole in (("flac", spoken), ("mkv", matroska)):
        add(f"truncated.{ending}", whole[: len(whole) // 2], "refused")


def encode(
    folder: Path,
    ending: str,
    *,
    sound: np.ndarray | None = None,
    rate: int = RATE,
    pictures: int = 0,
    width: int = 64,
    height: int = 48,
    index_first: bool = False,
) -> bytes:
    """A file as PyAV writes it.

    Args:
        folder: Where it may lie for a moment.
        ending: Which container: ``mp4``, ``mkv`` or ``flac``.
        sound: (samples,) within 1; none without.
        rate: Its samples per second.
        pictures: How many, ten per second; they become brighter.
        width, height: Of the pictures.
        index_first: Whether an MP4's index stands before its content.
    """
    import av

    file = folder / f".made.{ending}"
    options = {"movflags": "faststart"} if index_first else {}
    with av.open(str(file), "w", options=options) as container:
        film = container.add_stream("mpeg4", rate=10) if pictures else None
        if film is not None:
            film.width, film.height, film.pix_fmt = width, height, "yuv420p"
        voice = None
        if sound is not None:
            voice = container.add_stream("flac" if ending == "flac" else "aac", rate=rate, layout="mono")
        for number in range(pictures):
            values = np.full((height, width, 3), 20 * number % 256, np.uint8)
            values[: height // 2, : width // 2] = 255
            container.mux(film.encode(av.VideoFrame.from_ndarray(values, format="rgb24")))
        if film is not None:
            container.mux(film.encode(None))
        if voice is not None:
            kind = "s16" if ending == "flac" else "fltp"
            values = np.rint(sound * 32767).astype(np.int16) if ending == "flac" else sound.astype(np.float32)
            # A frame of half a minute at most; the encoder cuts them further.
            for start in range(0, len(values), 30 * rate):
                frame = av.AudioFrame.from_ndarray(values[None, start : start + 30 * rate], format=kind, layout="mono")
                frame.sample_rate, frame.pts = rate, start
                container.mux(voice.encode(frame))
            container.mux(voice.encode(None))
    content = file.read_bytes()
    file.unlink()
    return content
