"""An SSDLite-MobileNetV2 (`model.onnx`, `anchors.npy`) as a detector.

The network sees 300 x 300 pixels, so small objects on a large photo are lost to it. A detector may therefore look
several times: at the whole photo, and at parts of it that overlap.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
from coco import LABELS
from photo_service import Detection

SIDE = 300
CENTRE_SCALE, SIZE_SCALE = 0.1, 0.2
"""What the network's output is multiplied with, as it was trained."""
MIN_CONFIDENCE = 0.5
SAME_OBJECT = 0.5
"""Two boxes show one object if their intersection has more than this share of their union."""
PART = 0.6
"""Of width and height: neighbouring parts share a third, so that what is cut by one is whole in another."""
CUT = 0.02
"""A box that comes this near (in parts of the view) to an edge inside of the photo is taken to be cut off there."""


class View(NamedTuple):
    """A part of a photo, in pixels."""

    left: int
    top: int
    width: int
    height: int


def whole(width: int, height: int) -> Iterator[View]:
    yield View(0, 0, width, height)


def whole_and_parts(width: int, height: int) -> Iterator[View]:
    yield View(0, 0, width, height)
    part_width, part_height = round(width * PART), round(height * PART)
    for top in (0, height - part_height):
        for left in (0, width - part_width):
            yield View(left, top, part_width, part_height)


VIEWS = {"whole": whole, "parts": whole_and_parts}


class ObjectDetector:
    def __init__(self, folder: Path, views: str) -> None:
        """`views`: a key of VIEWS. Raises KeyError for another."""
        self._views = VIEWS[views]
        self._network = cv2.dnn.readNetFromONNX(str(folder / "model.onnx"))
        top, left, bottom, right = np.load(folder / "anchors.npy").T
        self._size = np.stack([bottom - top, right - left], axis=1)
        self._centre = np.stack([top, left], axis=1) + self._size / 2

    def __call__(self, photo: np.ndarray) -> list[Detection]:
        height, width, _ = photo.shape
        seen = [self._look(photo, view) for view in self._views(width, height)]
        boxes, classes, scores = (np.concatenate(parts) for parts in zip(*seen, strict=True))
        kept = cv2.dnn.NMSBoxes(boxes.tolist(), scores.tolist(), MIN_CONFIDENCE, SAME_OBJECT)
        return [Detection(LABELS[classes[i]], float(scores[i]), tuple(boxes[i].tolist())) for i in kept]

    def _look(self, photo: np.ndarray, view: View) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Boxes (left, top, width, height in pixels of the photo), classes and scores of what the view shows whole."""
        pixels = photo[view.top : view.top + view.height, view.left : view.left + view.width]
        self._network.setInput(cv2.dnn.blobFromImage(pixels, 1 / 127.5, (SIDE, SIDE), (127.5,) * 3))
        offsets, scores = (output[0] for output in self._network.forward(["boxes", "scores"]))
        classes = scores[:, 1:].argmax(axis=1) + 1  # 0 is the background
        best = scores[np.arange(len(scores)), classes]
        sure = best >= MIN_CONFIDENCE
        boxes = self._decoded(offsets[sure], sure)
        uncut = ~is_cut(boxes, view, photo.shape[1], photo.shape[0])
        in_pixels = boxes[uncut] * (view.width, view.height, view.width, view.height) + (view.left, view.top, 0, 0)
        return in_pixels, classes[sure][uncut], best[sure][uncut]

    def _decoded(self, offsets: np.ndarray, chosen: np.ndarray) -> np.ndarray:
        """Left, top, width, height in parts of the view: each offset (y, x, height, width) moves its anchor."""
        size = np.exp(offsets[:, 2:] * SIZE_SCALE) * self._size[chosen]
        corner = offsets[:, :2] * CENTRE_SCALE * self._size[chosen] + self._centre[chosen] - size / 2
        return np.concatenate([corner[:, ::-1], size[:, ::-1]], axis=1)


def is_cut(boxes: np.ndarray, view: View, width: int, height: int) -> np.ndarray:
    """Which boxes (in parts of the view) end at an edge of the view that is none of the photo's."""
    left, top = boxes[:, 0], boxes[:, 1]
    right, bottom = left + boxes[:, 2], top + boxes[:, 3]
    return (
        ((left < CUT) & (view.left > 0))
        | ((top < CUT) & (view.top > 0))
        | ((right > 1 - CUT) & (view.left + view.width < width))
        | ((bottom > 1 - CUT) & (view.top + view.height < height))
    )
