"""Finds faces that look at the camera, with OpenCV's cascade of local binary patterns (LBP)."""

from pathlib import Path

import cv2
import numpy as np
from photo_service import Detection, photo_application
from serving import Application, serve

CASCADE = Path(__file__).with_name("lbpcascade_frontalface.xml")
LONGEST_SIDE = 640
"""Of the photo that is searched: a face has at least 24 of these pixels."""
SCALE_STEP = 1.05
AGREEING = 20
"""So many windows around one place must say that there is a face. In photos without any, up to 15 do."""


class FaceDetector:
    def __init__(self) -> None:
        self._cascade = cv2.CascadeClassifier(str(CASCADE))

    def __call__(self, photo: np.ndarray) -> list[Detection]:
        scale = max(1.0, max(photo.shape) / LONGEST_SIDE)
        size = round(photo.shape[1] / scale), round(photo.shape[0] / scale)
        small = cv2.resize(cv2.cvtColor(photo, cv2.COLOR_RGB2GRAY), size, interpolation=cv2.INTER_AREA)
        boxes, windows = self._cascade.detectMultiScale2(small, scaleFactor=SCALE_STEP, minNeighbors=AGREEING)
        surest_first = sorted(zip(windows, boxes, strict=True), key=lambda pair: -pair[0])
        return [Detection("face", None, tuple(float(side) * scale for side in box)) for _, box in surest_first]


def application() -> Application:
    """Warm: the first photo takes no longer than the next."""
    detector = FaceDetector()
    detector(np.zeros((LONGEST_SIDE, LONGEST_SIDE, 3), np.uint8))
    return photo_application("Face detection", detector)


if __name__ == "__main__":
    serve(application())
