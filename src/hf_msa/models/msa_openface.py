"""Tables of OpenFace (1 and 2): which columns the field's feature sets take, and which rows are one person's."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

OPENFACE_BOOKKEEPING = ("frame", "face_id", "timestamp", "confidence", "success")
"""Columns before the features; OpenFace 1 has no `face_id`."""

_GAZE = (
    *(f"gaze_{eye}_{axis}" for eye in (0, 1) for axis in "xyz"),
    *("gaze_angle_x", "gaze_angle_y"),
    *(f"eye_lmk_{axis}_{point}" for axis in "xyXYZ" for point in range(56)),
)
_HEAD_POSE = tuple(f"pose_{kind}{axis}" for kind in "TR" for axis in "xyz")
_LANDMARKS_2D = tuple(f"{axis}_{point}" for axis in "xy" for point in range(68))
_LANDMARKS_3D = tuple(f"{axis}_{point}" for axis in "XYZ" for point in range(68))
_SHAPE = (*("p_scale", "p_rx", "p_ry", "p_rz", "p_tx", "p_ty"), *(f"p_{mode}" for mode in range(34)))
_INTENSITIES = (1, 2, 4, 5, 6, 7, 9, 10, 12, 14, 15, 17, 20, 23, 25, 26, 45)
_PRESENCES = (*_INTENSITIES[:-1], 28, 45)

OPENFACE_AU_COLUMNS = (
    *(f"AU{unit:02}_r" for unit in _INTENSITIES),
    *(f"AU{unit:02}_c" for unit in _PRESENCES),
)
"""The 35 of the action units: 17 intensities (0 to 5) and 18 presences (0 or 1). OpenFace 1 has them, too."""

OPENFACE_COLUMNS = (*_GAZE, *_HEAD_POSE, *_LANDMARKS_2D, *_LANDMARKS_3D, *_SHAPE, *OPENFACE_AU_COLUMNS)
"""All 709 of OpenFace 2, those of CH-SIMS: 288 of gaze, 6 of head pose, 340 landmarks, 40 of shape, 35 of action units."""

OPENFACE_SIMSV2_COLUMNS = (*_HEAD_POSE, *_LANDMARKS_2D, *OPENFACE_AU_COLUMNS)
"""The 177 of CH-SIMS v2: head pose, landmarks in the picture, action units; of OpenFace 1, too.

What `openface.json`, the example configuration of the data's authors' own extractor (MMSA-FET), switches on; of OpenFace's
groups of columns no others add up to 177. The authors do not say in words that it is the data's.
"""


@dataclass(frozen=True)
class FaceReport:
    """Whose face was kept of a recording, and how often it was seen.

    Args:
        frames: Frames looked at.
        frames_with_face: Frames in which the kept face was seen, which are the rows of the features.
        faces: Different faces that were seen.
        confidence: Mean confidence of the kept face's frames, 0 to 1; None where the detector gives none.
    """

    frames: int
    frames_with_face: int
    faces: int
    confidence: float | None = None

    @property
    def share(self) -> float:
        """Share of frames in which the kept face was seen."""
        return self.frames_with_face / self.frames if self.frames else 0.0


def longest_seen(lengths: Sequence[int], sizes: Sequence[float]) -> int:
    """Choose among faces the one seen longest and, of those seen equally long, the largest; then the first.

    Args:
        lengths: Per face the frames in which it was seen.
        sizes: Per face its mean size, in whatever unit.
    """
    return max(range(len(lengths)), key=lambda face: (lengths[face], sizes[face], -face))


def select_columns(names: Iterable[str], values: np.ndarray, columns: Sequence[str]) -> np.ndarray:
    """Take columns of a table by their names.

    Args:
        names: The table's header; blanks around a name do not count.
        values: `(frames, len(names))`.
        columns: Which to take, in which order.

    Returns:
        `(frames, len(columns))`.

    Raises:
        ValueError: Naming the columns that the table lacks, or has twice.
    """
    header = [name.strip() for name in names]
    places = {name: place for place, name in enumerate(header)}
    missing = [name for name in columns if name not in places]
    if missing:
        more = f" and {len(missing) - 8} more" if len(missing) > 8 else ""
        raise ValueError(
            f"The table lacks {len(missing)} of {len(columns)} columns: {', '.join(missing[:8])}{more}; make it with all of "
            "OpenFace's outputs, or choose a feature set that needs fewer."
        )
    doubled = next((name for name in columns if header.count(name) > 1), None)
    if doubled is not None:
        raise ValueError(f"The table has the column {doubled!r} twice; keep one of them.")
    return values[:, [places[name] for name in columns]]


def face_track(columns: Mapping[str, np.ndarray]) -> tuple[np.ndarray, FaceReport]:
    """Choose the rows of one person: of the face seen longest and largest, those in which it was found.

    Args:
        columns: The table's `(rows,)` by name. Of use are `success` (1 = found; without it all are), `face_id`, `frame`,
            `confidence`, and for the size the landmarks `x_0`..`y_67`, else `p_scale`, else `pose_Tz`.

    Returns:
        The rows' numbers in ascending order, none if no face was found, and the report.
    """
    rows = len(next(iter(columns.values())))
    found = columns["success"] == 1 if "success" in columns else np.ones(rows, dtype=bool)
    faces = columns.get("face_id", np.zeros(rows))
    frames = len(np.unique(columns["frame"])) if "frame" in columns else rows
    known = np.unique(faces[found])
    if not len(known):
        return np.arange(0), FaceReport(frames, 0, 0)
    tracks = [np.flatnonzero(found & (faces == face)) for face in known]
    size = _sizes(columns, rows)
    kept = tracks[longest_seen([len(track) for track in tracks], [float(size[track].mean()) for track in tracks])]
    certain = columns["confidence"][kept] if "confidence" in columns else np.zeros(0)
    certain = certain[np.isfinite(certain)]
    return kept, FaceReport(frames, len(kept), len(known), float(certain.mean()) if len(certain) else None)


def _sizes(columns: Mapping[str, np.ndarray], rows: int) -> np.ndarray:
    with np.errstate(all="ignore"):
        if set(_LANDMARKS_2D) <= set(columns):
            sides = [np.ptp([columns[f"{axis}_{point}"] for point in range(68)], axis=0) for axis in "xy"]
            size = sides[0] * sides[1]
        elif "p_scale" in columns:
            size = columns["p_scale"]
        else:
            size = -columns["pose_Tz"] if "pose_Tz" in columns else np.zeros(rows)  # What is near is large.
    return np.where(np.isfinite(size), size, 0.0)


TRACK_COLUMNS = frozenset({*OPENFACE_BOOKKEEPING, *_LANDMARKS_2D, "p_scale", "pose_Tz"})
"""Columns that `face_track` reads where they are there."""
