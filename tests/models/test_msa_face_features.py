"""Face features: geometry by hand-made landmarks, tracks by a scripted detector, and a real model where there is one."""

import os
import warnings
import zipfile
from types import SimpleNamespace

import numpy as np
import pytest

from hf_msa.models import msa_face_features
from hf_msa.models.msa_face_features import (
    BLENDSHAPES,
    FACE_BLENDSHAPE_COLUMNS,
    FACE_COLUMNS,
    face_features,
    face_geometry,
)
from hf_msa.models.msa_openface import FaceReport

# A face that looks into the camera: x to the right, y down, z away. Eyes 4 apart, their middle at (0, 0, 1).
HAND_MADE = {
    **{33: (-3, 0, 1), 133: (-1, 0, 1), 263: (3, 0, 1), 362: (1, 0, 1), 234: (-4, 1, 5), 454: (4, 1, 5)},
    **{10: (0, -4, 0), 152: (0, 6, 0), 4: (0, 2, -3)},
    **{160: (-2.5, -0.5, 1), 144: (-2.5, 0.5, 1), 158: (-1.5, -0.25, 1), 153: (-1.5, 0.25, 1)},
    **{387: (2.5, -0.1, 1), 373: (2.5, 0.1, 1), 385: (1.5, -0.1, 1), 380: (1.5, 0.1, 1)},
    **{78: (-2, 4, 0), 308: (2, 4, 0), 82: (-1, 4, 0), 87: (-1, 5, 0), 13: (0, 4, 0), 14: (0, 6, 0)},
    **{312: (1, 4, 0), 317: (1, 7, 0)},
}


def hand_made_face():
    points = np.zeros((478, 3))
    for place, point in HAND_MADE.items():
        points[place] = point
    return points


def turned(points, yaw=0.0, pitch=0.0, roll=0.0):
    (cy, sy), (cp, sp), (cr, sr) = ((np.cos(angle), np.sin(angle)) for angle in (yaw, pitch, roll))
    about_y = np.array([[cy, 0, sy], [0, 1, 0], [-sy, 0, cy]])
    about_x = np.array([[1, 0, 0], [0, cp, -sp], [0, sp, cp]])
    about_z = np.array([[cr, -sr, 0], [sr, cr, 0], [0, 0, 1]])
    return points @ (about_z @ about_y @ about_x).T


def named(values):
    return dict(zip(FACE_COLUMNS, values.tolist(), strict=True))


def test_columns():
    assert (len(FACE_COLUMNS), len(BLENDSHAPES), len(FACE_BLENDSHAPE_COLUMNS)) == (210, 52, 262)
    assert len(set(FACE_BLENDSHAPE_COLUMNS)) == 262
    assert FACE_COLUMNS[:3] == ("jaw_0_x", "jaw_0_y", "jaw_0_z") and FACE_COLUMNS[-7] == "inner_lips_7_z"


def test_features_of_a_hand_made_face():
    face = named(face_geometry(hand_made_face()))
    assert [face[f"nose_bridge_3_{axis}"] for axis in "xyz"] == [0, 0.5, -1]
    assert [face[f"jaw_8_{axis}"] for axis in "xyz"] == [0, 1.5, -0.25]
    assert [face[f"right_eye_0_{axis}"] for axis in "xyz"] == [-0.75, 0, 0]
    assert [face[f"head_{angle}"] for angle in ("yaw", "pitch", "roll")] == [0, 0, 0]
    assert face["right_eye_opening"] == pytest.approx((1 + 0.5) / 2 / 2)
    assert face["left_eye_opening"] == pytest.approx(0.1)
    assert face["mouth_opening"] == pytest.approx((1 + 2 + 3) / 3 / 4)


@pytest.mark.parametrize(
    ("yaw", "pitch", "roll"), [(0, 0, 0.7), (0, 0, -2.5), (0.4, 0, 0), (0, -0.3, 0), (0.2, 0.1, 0.3)]
)
def test_the_face_is_the_same_wherever_it_is_however_large_and_turned(yaw, pitch, roll):
    plain = face_geometry(hand_made_face())
    moved = face_geometry(turned(hand_made_face(), yaw, pitch, roll) * 37.0 + np.array([310.0, 95.0, -8.0]))
    np.testing.assert_allclose(np.delete(moved, slice(204, 207)), np.delete(plain, slice(204, 207)), atol=1e-6)
    np.testing.assert_allclose(moved[204:207], [yaw, pitch, roll], atol=1e-6)


def test_signs_of_the_head_pose():
    # The tip of the nose, toward the camera, goes left in the picture, to the person's right; and down.
    assert turned(hand_made_face(), yaw=0.3)[4, 0] < 0
    assert turned(hand_made_face(), pitch=0.3)[4, 1] > turned(hand_made_face())[4, 1]
    # Clockwise in the picture, the person's left eye goes down.
    assert turned(hand_made_face(), roll=0.3)[263, 1] > 0


def test_points_that_coincide_give_zeros():
    assert not face_geometry(np.ones((468, 3))).any()
    flat = hand_made_face()
    flat[[10, 152]] = 0
    assert not face_geometry(flat).any()


# --- Tracks, by a scripted detector ---


def seen(left, top, size, depth=1.0):
    """Landmarks whose box is a square of a picture; `left` etc. are parts of the picture."""
    points = (hand_made_face() + [4, 4, 0]) / [8, 11, 8]
    points = points * [size, size, depth] + [left, top, 0]
    return [SimpleNamespace(x=x, y=y, z=z) for x, y, z in points]


@pytest.fixture
def script(tmp_path, monkeypatch):
    """Let MediaPipe find given faces, picture by picture; gives the path of a model."""

    def install(faces, blendshapes=None, members=("face_detector.tflite",)):
        answers = iter(faces)
        scores = [SimpleNamespace(category_name=name, score=score) for name, score in (blendshapes or {}).items()]

        class FaceLandmarker:
            closed = 0

            @classmethod
            def create_from_options(cls, options):
                return cls()

            def detect(self, image):
                found = next(answers)
                return SimpleNamespace(face_landmarks=found, face_blendshapes=[scores] * len(found))

            def close(self):
                FaceLandmarker.closed += 1

        package = SimpleNamespace(
            Image=lambda image_format, data: data,
            ImageFormat=SimpleNamespace(SRGB=1),
            FaceLandmarker=FaceLandmarker,
            FaceLandmarkerOptions=SimpleNamespace,
            RunningMode=SimpleNamespace(IMAGE=1),
            BaseOptions=SimpleNamespace,
        )
        monkeypatch.setattr(msa_face_features, "_mediapipe", lambda part: package)
        with zipfile.ZipFile(tmp_path / "a.task", "w") as task:
            for member in members:
                task.writestr(member, b"")
        return tmp_path / "a.task", FaceLandmarker

    return install


def pictures(count, step=0.1):
    return ((step * index, np.zeros((40, 80, 3), np.uint8)) for index in range(count))


def test_the_face_seen_longest_is_kept_and_frames_without_it_are_absent(script):
    long, short = seen(0.0, 0.1, 0.3), seen(0.5, 0.1, 0.45)
    moved = seen(0.04, 0.12, 0.3)
    model, landmarker = script([[short, long], [], [moved], [short], [short, moved], [long]])
    values, times, report = face_features(pictures(6), model)
    assert values.shape == (4, 210) and values.dtype == np.float32
    np.testing.assert_allclose(times, [0.0, 0.2, 0.4, 0.5])
    assert report == FaceReport(frames=6, frames_with_face=4, faces=2)
    assert landmarker.closed == 1


def test_of_faces_seen_equally_long_the_largest_is_kept(script):
    model, _ = script([[seen(0, 0, 0.3), seen(0.5, 0, 0.45)], [seen(0.5, 0, 0.45), seen(0, 0, 0.3)]])
    values, _, report = face_features(pictures(2), model)
    assert report == FaceReport(2, 2, 2)
    # Of the large one: landmarks are in pixels, so that the form of picture and box count.
    box = np.array([(point.x, point.y, point.z) for point in seen(0.5, 0, 0.45)]) * [80, 40, 80]
    np.testing.assert_array_equal(values, [face_geometry(box)] * 2)


def test_after_a_second_without_it_a_face_is_another_one(script):
    here = [seen(0.2, 0.2, 0.5)]
    model, _ = script([here, [], here, [], [], here])
    assert face_features(pictures(6, step=0.5), model)[2] == FaceReport(6, 2, 2)


def test_no_picture_and_no_face(script):
    model, _ = script([[], []])
    for count in (2, 0):
        values, times, report = face_features(pictures(count), model, blendshapes=False)
        assert values.shape == (0, 210) and times.shape == (0,)
        assert report == FaceReport(count, 0, 0) and report.share == 0


def test_blendshapes_are_taken_by_name(script):
    scores = {name: index / 100 for index, name in enumerate(reversed(BLENDSHAPES))}
    model, _ = script([[seen(0, 0, 0.5)]], scores, members=("face_blendshapes.tflite",))
    values, _, _ = face_features(pictures(1), model, blendshapes=True)
    np.testing.assert_allclose(values[0, 210:], np.arange(51, -1, -1) / 100, rtol=1e-6)
    model, _ = script([[seen(0, 0, 0.5)]], {"_neutral": 1.0}, members=("face_blendshapes.tflite",))
    with pytest.raises(ValueError, match="does not give the blendshape browDownLeft"):
        face_features(pictures(1), model, blendshapes=True)


def test_landmarks_without_depth_are_warned_of_once(script):
    model, _ = script([[seen(0, 0, 0.5, depth=0.0)]] * 2)
    with pytest.warns(UserWarning, match="gives no depth") as said:
        face_features(pictures(2), model)
    assert len(said) == 1


def test_what_is_no_model_and_no_picture(script, tmp_path):
    model, landmarker = script([[]] * 9)
    for picture in (
        np.zeros((4, 4, 4), np.uint8),
        np.zeros((4, 4)),
        np.zeros((4, 4, 3)),
        np.zeros((0, 4, 3), np.uint8),
    ):
        with pytest.raises(ValueError, match="A picture is no uint8 array"):
            face_features([(0.0, picture)], model)
    assert landmarker.closed == 4
    (tmp_path / "b.task").write_bytes(b"no zip")
    for path, message in [
        (None, "need a face landmark model of MediaPipe"),
        (tmp_path / "none.task", "cannot be read: No such file or directory"),
        (tmp_path / "b.task", "it is no bundle of models"),
    ]:
        with pytest.raises(ValueError, match=message):
            face_features([], path)
    with pytest.raises(ValueError, match="gives no blendshapes"):
        face_features([], model, blendshapes=True)


def test_without_mediapipe_the_extra_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "mediapipe", None)
    with zipfile.ZipFile(tmp_path / "a.task", "w") as task:
        task.writestr("face_detector.tflite", b"")
    with pytest.raises(ImportError, match=r"pip install 'hf-msa\[face\]'"):
        face_features([], tmp_path / "a.task")


# --- With MediaPipe ---


def test_blendshapes_are_those_of_mediapipe():
    vision = pytest.importorskip("mediapipe.tasks.python.vision.face_landmarker")
    names = [one.name.replace("_", "").lower() for one in sorted(vision.Blendshapes)]
    assert names == [name.replace("_", "").lower() for name in BLENDSHAPES]


def test_a_damaged_model_is_refused_and_not_waited_for(tmp_path):
    pytest.importorskip("mediapipe")
    with zipfile.ZipFile(tmp_path / "a.task", "w") as task:
        task.writestr("face_detector.tflite", b"x" * 1000)
        task.writestr("face_landmarks_detector.tflite", b"x" * 1000)
    with pytest.raises(ValueError, match="cannot use the face landmark model .* not a valid Flatbuffer") as error:
        face_features(pictures(1), tmp_path / "a.task")
    assert "\n" not in str(error.value)


@pytest.fixture
def face_model():
    pytest.importorskip("mediapipe")
    path = os.environ.get("HF_MSA_FACE_MODEL")
    if not path:
        pytest.skip("HF_MSA_FACE_MODEL is not set: it names a face landmark model (see make_face_model.py)")
    return path


def test_a_real_face_is_found_and_smiles(real_data, face_model):
    pytest.importorskip("av")
    from hf_msa.models.msa_recordings import read_pictures

    clip = real_data / "media" / "single_face.mp4"
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        values, times, report = face_features(read_pictures(clip), face_model)
    assert report.frames == 72 and report.frames_with_face >= 40 and report.faces == 1
    assert len(values) == len(times) == report.frames_with_face
    assert np.isfinite(values).all() and (np.diff(times) > 0).all()
    face = dict(zip(FACE_COLUMNS, values.T, strict=True))
    # He looks into the camera, eyes open, and his mouth opens to a broad smile.
    assert np.abs([face["head_yaw"], face["head_pitch"], face["head_roll"]]).max() < 0.3
    assert face["mouth_opening"][0] < 0.1 < face["mouth_opening"].max()
    again, _, _ = face_features(read_pictures(clip), face_model)
    np.testing.assert_array_equal(again, values)
    # A clip that begins later has the same frames.
    later, _, _ = face_features(read_pictures(clip, start=1.0), face_model)
    np.testing.assert_array_equal(later[:10], values[30:40])
