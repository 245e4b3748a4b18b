"""Put together a face landmark model that MediaPipe 1 reads, of the parts in the wheel of mediapipe 0.10.21.

The wheel's landmark network gives 468 points, 1404 numbers. MediaPipe's task expects 478 points: it would take the numbers
for pairs, and every point would be wrong and without depth. So the last layer is widened by ten points, the irises, all 0.
Needs ai-edge-litert, for the format of the network. The result gives no blendshapes; it is never committed.

    python tests/make_face_model.py mediapipe-0.10.21-WHEEL face_landmarker.task
"""

import sys
import zipfile
from typing import Any

import flatbuffers
import numpy as np
from ai_edge_litert import schema_py_generated as schema

HAS, NEEDS = 468 * 3, 478 * 3


def widened(network: bytes) -> bytes:
    model = schema.ModelT.InitFromPackedBuf(network, 0)
    for tensor in model.subgraphs[0].tensors:
        shape = list(tensor.shape)
        if HAS in shape:
            grow(model.buffers[tensor.buffer])
            tensor.shape = np.array([NEEDS if size == HAS else size for size in shape], np.int32)
    builder = flatbuffers.Builder()
    builder.Finish(model.Pack(builder), b"TFL3")
    return bytes(builder.Output())


def grow(buffer: Any) -> None:
    """Add zeros at the end, where there is data; weights lie point by point."""
    if buffer.data is not None and len(buffer.data):
        data = np.asarray(buffer.data, np.uint8)
        buffer.data = np.concatenate([data, np.zeros(len(data) // HAS * (NEEDS - HAS), np.uint8)])


if __name__ == "__main__":
    modules = "mediapipe/modules"
    with zipfile.ZipFile(sys.argv[1]) as wheel, zipfile.ZipFile(sys.argv[2], "w") as task:
        task.writestr(
            "face_detector.tflite", wheel.read(f"{modules}/face_detection/face_detection_short_range.tflite")
        )
        network = wheel.read(f"{modules}/face_landmark/face_landmark.tflite")
        task.writestr("face_landmarks_detector.tflite", widened(network))
