"""Finds the objects on a photo: of the 80 kinds of COCO, with their boxes and how sure it is."""

import os
from pathlib import Path

import numpy as np
from detector import SIDE, ObjectDetector
from photo_service import photo_application
from serving import Application, serve


def application(views: str) -> Application:
    """Warm: the first photo takes no longer than the next. `views`: a key of `detector.VIEWS`."""
    detector = ObjectDetector(Path(__file__).parent, views)
    detector(np.zeros((SIDE, SIDE, 3), np.uint8))
    return photo_application("Object detection", detector)


if __name__ == "__main__":
    serve(application(os.environ.get("VIEWS", "whole")))
