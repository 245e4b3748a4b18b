"""Vision features of pictures by MediaPipe's face landmarks: face shape, head pose, eye and mouth opening, blendshapes."""

import contextlib
import importlib
import itertools
import os
import warnings
import zipfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from .msa_openface import FaceReport, longest_seen

FACE_FRAMES_PER_SECOND = 10.0
"""Pictures looked at per second: a blink, the shortest movement of a face that is felt, lasts more than a tenth."""

# Points of MediaPipe's mesh that stand for the 68 of the field's usual annotation, in its order: 340 of CH-SIMS' 709 columns
# are the same points by OpenFace, and the other 400 of the mesh lie between them.
_PARTS = {
    "jaw": (162, 234, 93, 58, 172, 136, 149, 148, 152, 377, 378, 365, 397, 288, 323, 454, 389),
    "right_brow": (70, 63, 105, 66, 107),
    "left_brow": (336, 296, 334, 293, 300),
    "nose_bridge": (168, 197, 5, 4),
    "nose_base": (98, 97, 2, 326, 327),
    "right_eye": (33, 160, 158, 133, 153, 144),
    "left_eye": (362, 385, 387, 263, 373, 380),
    "outer_lips": (61, 39, 37, 0, 267, 269, 291, 405, 314, 17, 84, 181),
    "inner_lips": (78, 82, 13, 312, 308, 317, 14, 87),
}
_POINTS = np.array([point for part in _PARTS.values() for point in part])
_MESH = 468
# Right and left as the person has them. Corners of the eyes, and the points before the ears.
_RIGHT_EYE, _LEFT_EYE = (33, 133), (263, 362)
_RIGHT_SIDE, _LEFT_SIDE = (*_RIGHT_EYE, 234), (*_LEFT_EYE, 454)
_FOREHEAD, _CHIN = 10, 152

FACE_COLUMNS = (
    *(f"{part}_{place}_{axis}" for part, points in _PARTS.items() for place in range(len(points)) for axis in "xyz"),
    *("head_yaw", "head_pitch", "head_roll", "right_eye_opening", "left_eye_opening", "mouth_opening"),
)
"""The 210 features of a face: 68 points, head pose in radians, and openings as parts of the width."""

BLENDSHAPES = (
    *("_neutral", "browDownLeft", "browDownRight", "browInnerUp", "browOuterUpLeft", "browOuterUpRight", "cheekPuff"),
    *("cheekSquintLeft", "cheekSquintRight", "eyeBlinkLeft", "eyeBlinkRight", "eyeLookDownLeft", "eyeLookDownRight"),
    *("eyeLookInLeft", "eyeLookInRight", "eyeLookOutLeft", "eyeLookOutRight", "eyeLookUpLeft", "eyeLookUpRight"),
    *(
        "eyeSquintLeft",
        "eyeSquintRight",
        "eyeWideLeft",
        "eyeWideRight",
        "jawForward",
        "jawLeft",
        "jawOpen",
        "jawRight",
    ),
    *("mouthClose", "mouthDimpleLeft", "mouthDimpleRight", "mouthFrownLeft", "mouthFrownRight", "mouthFunnel"),
    *("mouthLeft", "mouthLowerDownLeft", "mouthLowerDownRight", "mouthPressLeft", "mouthPressRight", "mouthPucker"),
    *("mouthRight", "mouthRollLower", "mouthRollUpper", "mouthShrugLower", "mouthShrugUpper", "mouthSmileLeft"),
    *("mouthSmileRight", "mouthStretchLeft", "mouthStretchRight", "mouthUpperUpLeft", "mouthUpperUpRight"),
    *("noseSneerLeft", "noseSneerRight"),
)
"""MediaPipe's 52 expression coefficients, 0 to 1."""

FACE_BLENDSHAPE_COLUMNS = (*FACE_COLUMNS, *BLENDSHAPES)
"""The 262 features of a face by a model that gives blendshapes, too."""

_MOST_FACES = 4
_SAME_FACE = 0.2  # Overlap of boxes, intersection over union; two people side by side have next to none.
_LONGEST_GAP = 1.0  # Seconds without a face after which it counts as another one.


def face_features(
    pictures: Iterable[tuple[float, np.ndarray]],
    face_model: str | os.PathLike[str] | None = None,
    *,
    blendshapes: bool = False,
) -> tuple[np.ndarray, np.ndarray, FaceReport]:
    """Make features of the one face that is seen longest and, of those seen equally long, the largest.

    Every picture is looked at by itself, so that a frame's features do not depend on where a clip begins.

    Args:
        pictures: Times in seconds, ascending, and pictures, uint8 RGB `(height, width, 3)`; one is held at a time.
        face_model: Path of a face landmark model of MediaPipe (`face_landmarker.task`).
        blendshapes: Whether to give `FACE_BLENDSHAPE_COLUMNS` in place of `FACE_COLUMNS`.

    Returns:
        Float32 `(frames, width)`, pictures without that face left out; their times `(frames,)` in seconds; and the report.

    Raises:
        ImportError: If MediaPipe is not installed.
        ValueError: In one sentence, if the model cannot be read or gives no blendshapes, or a picture has another form.
    """
    tracks: list[_Track] = []
    frames = 0
    with _landmarker(face_model, blendshapes) as find_faces:
        for time, picture in pictures:
            if getattr(picture, "dtype", None) != np.uint8 or picture.shape[2:] != (3,) or not picture.size:
                raise ValueError("A picture is no uint8 array (height, width, 3) of red, green and blue.")
            frames += 1
            _follow(tracks, time, find_faces(picture))
    width = len(FACE_BLENDSHAPE_COLUMNS if blendshapes else FACE_COLUMNS)
    if not tracks:
        return np.zeros((0, width), np.float32), np.zeros(0), FaceReport(frames, 0, 0)
    sizes = [float(np.mean(track.sizes)) for track in tracks]
    kept = tracks[longest_seen([len(track.times) for track in tracks], sizes)]
    report = FaceReport(frames, len(kept.times), len(tracks))
    return np.stack(kept.features), np.array(kept.times), report


# --- Geometry ---


def face_geometry(landmarks: np.ndarray) -> np.ndarray:
    """Describe a face by `FACE_COLUMNS`.

    The 68 points are given in the head's own frame: origin between the eyes, x from the person's right eye to the left, y
    from forehead to chin, z into the head, in units of the distance between the eyes. They are the same wherever the face is
    in the picture, however large, and however the head is turned. Head pose is 0 for a face that looks into the camera; yaw
    is positive for a face turned to its right, pitch for one that looks down, roll clockwise in the picture.

    Args:
        landmarks: `(468 or more, 3)`, all axes in one unit (pixels): x to the right, y down, z away from the camera.

    Returns:
        Float32 `(210,)`; zeros where points that span the frame coincide.
    """
    points = np.asarray(landmarks, dtype=np.float64)
    right, left = points[list(_RIGHT_EYE)].mean(axis=0), points[list(_LEFT_EYE)].mean(axis=0)
    across = points[list(_LEFT_SIDE)].sum(axis=0) - points[list(_RIGHT_SIDE)].sum(axis=0)
    down = points[_CHIN] - points[_FOREHEAD]
    axis_x = _unit(across)
    axis_y = _unit(down - (down @ axis_x) * axis_x)
    axes = np.stack([axis_x, axis_y, np.cross(axis_x, axis_y)])
    scale = float(np.linalg.norm(left - right))
    if not scale or not axis_x.any() or not axis_y.any():
        return np.zeros(len(FACE_COLUMNS), dtype=np.float32)
    shape = (points[_POINTS] - (right + left) / 2) @ axes.T / scale
    yaw = np.arctan2(-axis_x[2], np.hypot(axis_x[0], axis_x[1]))
    pitch = np.arctan2(axis_y[2], axes[2, 2])
    roll = np.arctan2(axis_x[1], axis_x[0])
    openings = [
        _opening(points, 33, 133, ((160, 144), (158, 153))),
        _opening(points, 263, 362, ((387, 373), (385, 380))),
        _opening(points, 78, 308, ((82, 87), (13, 14), (312, 317))),
    ]
    return np.concatenate([shape.ravel(), [yaw, pitch, roll], openings]).astype(np.float32)


def _unit(vector: np.ndarray) -> np.ndarray:
    length = float(np.linalg.norm(vector))
    return vector / length if length else np.zeros(3)


def _opening(points: np.ndarray, corner: int, other: int, lids: tuple[tuple[int, int], ...]) -> float:
    """Mean distance of the lids, or lips, over that of the corners: the aspect ratio of eye and mouth."""
    width = float(np.linalg.norm(points[corner] - points[other]))
    heights = [float(np.linalg.norm(points[upper] - points[lower])) for upper, lower in lids]
    return sum(heights) / len(heights) / width if width else 0.0


# --- Tracks ---


@dataclass
class _Face:
    """A face in one picture: its box (left, top, right, bottom) as parts of the picture, and its features."""

    box: np.ndarray
    features: np.ndarray

    @property
    def size(self) -> float:
        return float((self.box[2] - self.box[0]) * (self.box[3] - self.box[1]))


@dataclass
class _Track:
    """The frames of one person."""

    box: np.ndarray
    times: list[float] = field(default_factory=list)
    sizes: list[float] = field(default_factory=list)
    features: list[np.ndarray] = field(default_factory=list)

    def add(self, time: float, face: _Face) -> None:
        self.box = face.box
        self.times.append(time)
        self.sizes.append(face.size)
        self.features.append(face.features)


def _follow(tracks: list[_Track], time: float, faces: list[_Face]) -> None:
    """Give each face of a picture to the track whose last box it overlaps most, or begin one."""
    open_tracks = [track for track in tracks if time - track.times[-1] <= _LONGEST_GAP]
    pairs = sorted(
        (
            (_overlap(track.box, face.box), at, of)
            for at, track in enumerate(open_tracks)
            for of, face in enumerate(faces)
        ),
        key=lambda pair: (-pair[0], pair[1:]),
    )
    taken: set[int] = set()
    placed: set[int] = set()
    for overlap, at, of in pairs:
        if overlap >= _SAME_FACE and at not in taken and of not in placed:
            open_tracks[at].add(time, faces[of])
            taken.add(at)
            placed.add(of)
    for of, face in enumerate(faces):
        if of not in placed:
            tracks.append(_Track(face.box))
            tracks[-1].add(time, face)


def _overlap(first: np.ndarray, second: np.ndarray) -> float:
    sides = np.minimum(first[2:], second[2:]) - np.maximum(first[:2], second[:2])
    common = float(np.prod(np.maximum(sides, 0)))
    both = float(np.prod(first[2:] - first[:2]) + np.prod(second[2:] - second[:2])) - common
    return common / both if both > 0 else 0.0


# --- MediaPipe ---


@contextlib.contextmanager
def _landmarker(face_model: str | os.PathLike[str] | None, blendshapes: bool) -> Iterator[Any]:
    """A function from a picture to its faces."""
    if face_model is None:
        raise ValueError(
            "Face features need a face landmark model of MediaPipe; give the path of a face_landmarker.task."
        )
    path = os.fspath(face_model)
    try:
        with zipfile.ZipFile(path) as members:
            names = members.namelist()
    except (OSError, zipfile.BadZipFile) as error:
        why = getattr(error, "strerror", None) or "it is no bundle of models"
        raise ValueError(
            f"The face landmark model {path!r} cannot be read: {why}; give a face_landmarker.task."
        ) from error
    if blendshapes and not any("blendshapes" in name for name in names):
        raise ValueError(
            f"The face landmark model {path!r} gives no blendshapes; give one that does, or choose features without them."
        )
    media, vision, base = (
        _mediapipe(name) for name in ("", ".tasks.python.vision", ".tasks.python.core.base_options")
    )
    try:
        landmarker = vision.FaceLandmarker.create_from_options(
            vision.FaceLandmarkerOptions(
                base_options=base.BaseOptions(model_asset_path=path),
                running_mode=vision.RunningMode.IMAGE,
                num_faces=_MOST_FACES,
                output_face_blendshapes=blendshapes,
            )
        )
    except (OSError, RuntimeError, ValueError) as error:
        raise _unusable(path, error) from error
    told = itertools.count()

    def find_faces(picture: np.ndarray) -> list[_Face]:
        height, width = picture.shape[:2]
        image = media.Image(image_format=media.ImageFormat.SRGB, data=np.ascontiguousarray(picture))
        try:
            found = landmarker.detect(image)
        except (RuntimeError, ValueError) as error:
            raise _unusable(path, error) from error
        faces = []
        for place, landmarks in enumerate(found.face_landmarks):
            points = np.array([(point.x, point.y, point.z) for point in landmarks[:_MESH]])
            if len(points) < _MESH or not np.isfinite(points).all():
                continue
            if not points[:, 2].any() and not next(told):
                warnings.warn(
                    f"The face landmark model {path!r} gives no depth, so MediaPipe reads it wrongly: its landmarks are not "
                    "to be trusted; use a face_landmarker.task with 478 points.",
                    stacklevel=3,
                )
            box = np.concatenate([points.min(axis=0)[:2], points.max(axis=0)[:2]])
            features = face_geometry(points * (width, height, width))
            if blendshapes:
                scores = {one.category_name: one.score for one in found.face_blendshapes[place]}
                lacking = next((name for name in BLENDSHAPES if name not in scores), None)
                if lacking is not None:
                    raise _unusable(path, f"it does not give the blendshape {lacking}")
                features = np.concatenate([features, np.array([scores[name] for name in BLENDSHAPES], np.float32)])
            faces.append(_Face(box, features))
        return faces

    try:
        yield find_faces
    finally:
        try:
            landmarker.close()
        except RuntimeError:
            # It failed before, and that was said. Deleted, it would close itself once more and wait for ever.
            landmarker._handle = None


def _unusable(path: str, why: object) -> ValueError:
    said = " ".join(str(why).split())[:160].rstrip(". ")
    return ValueError(f"MediaPipe cannot use the face landmark model {path!r}: {said}; give a face_landmarker.task.")


def _mediapipe(part: str) -> Any:
    try:
        return importlib.import_module(f"mediapipe{part}")
    except ImportError as error:
        raise ImportError(
            "Face features need MediaPipe, which is not installed: pip install 'hf-msa[face]'."
        ) from error
