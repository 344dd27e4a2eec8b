"""A service that looks at a photo: HTTP outside, and inside a `Detector`, which says what it sees where.

POST a JPEG or PNG to /detect, as the body or as the multipart field "file". The answer is the photo with labelled
boxes; as JSON with `Accept: application/json`, as PNG with `Accept: image/png`. Every refusal is problem+json.

What a photo may cost is bounded before it is paid: bytes by the request's head, pixels by the photo's. One photo is
looked at at a time, so memory is that of one.
"""

import io
import json
import threading
import time
import warnings
import zlib
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import BinaryIO, NamedTuple

import bottle
import numpy as np
from PIL import Image, ImageDraw, ImageFont, ImageOps
from serving import Application, problem

MAX_BYTES = 20 * 2**20
MAX_PIXELS = {"JPEG": 25_000_000, "PNG": 12_500_000}
"""By format: these and no others are read. A PNG is unpacked whole, a large JPEG at half its size or a quarter."""
LONGEST_SIDE = 1600
"""Of the picture that the detector sees and the client gets, in pixels."""
COLOURS = ("#ffd166", "#06d6a0", "#4cc9f0", "#ff8fa3", "#c77dff", "#f8961e", "#90be6d", "#f1faee")
JPEG_QUALITY = 88

Image.MAX_IMAGE_PIXELS = None  # MAX_PIXELS takes its place
warnings.filterwarnings("ignore", module="PIL")  # remarks on odd metadata: whether a photo can be read is what counts


class Detection(NamedTuple):
    """`box`: left, top, width, height in pixels of the photo that was looked at."""

    label: str
    confidence: float | None
    box: tuple[float, float, float, float]


Detector = Callable[[np.ndarray], list[Detection]]
"""What is on the photo, given as uint8 [height, width, 3], RGB; the surest first."""


class Refused(Exception):
    """`status` of the answer; what is wrong with the request, and what to do."""

    def __init__(self, status: int, detail: str, fix: str) -> None:
        super().__init__(detail)
        self.status, self.detail, self.fix = status, detail, fix


class Photo(NamedTuple):
    """The picture upright and shrunk to LONGEST_SIDE; `width` and `height` are the upright original's."""

    picture: Image.Image
    width: int
    height: int


def photo_application(what: str, detect: Detector) -> Application:
    """`what`: a few words for the front page, such as "Face detection"."""
    application = Application()
    one_at_a_time = threading.Lock()

    @application.get("/")
    def about() -> str:
        bottle.response.content_type = "text/plain"
        return (
            f"{what}: POST a photo (JPEG or PNG) to /detect, get it with boxes; with Accept: application/json, data.\n"
        )

    @application.post("/detect")
    def answer() -> bytes | str:
        application.alive.set()
        try:
            with sent_file() as file, one_at_a_time:
                started = time.perf_counter()
                photo = read_photo(file)
                read = time.perf_counter()
                found = detect(np.asarray(photo.picture))
                seen = time.perf_counter()
                body = encode(photo, found)
        except Refused as refused:
            return problem(refused.status, refused.detail, refused.fix)
        phases = {"read": read - started, "detect": seen - read, "answer": time.perf_counter() - seen}
        bottle.response.set_header(
            "Server-Timing", ", ".join(f"{name};dur={seconds * 1000:.1f}" for name, seconds in phases.items())
        )
        return body

    return application


@contextmanager
def sent_file() -> Iterator[BinaryIO]:
    """What was sent, whole. bottle keeps more than 100 KB in a temporary file, not in memory."""
    length = bottle.request.content_length
    if length < 0:
        raise Refused(411, "The request has no Content-Length.", "Send the size of the photo in bytes.")
    if length > MAX_BYTES:
        size, limit = f"{length / 1e6:.0f} MB", f"{MAX_BYTES / 1e6:.0f} MB"
        raise Refused(413, f"The photo has {size} and the limit is {limit}.", "Send a smaller copy of it.")
    if length == 0:
        raise Refused(400, "The request is empty.", "Send a photo as its body.")
    try:
        body = bottle.request.body
    except OSError as error:
        raise Refused(400, f"The photo did not arrive: {error}.", "Send it again.") from error
    with ExitStack() as files:
        files.callback(body.close)
        if body.seek(0, io.SEEK_END) < length:
            raise Refused(400, "The photo ended before its Content-Length.", "Send it again.")
        body.seek(0)
        yield field_file(files) if bottle.request.content_type.startswith("multipart/") else body


def field_file(files: ExitStack) -> BinaryIO:
    """The field "file" of a form, whose files are closed with `files`."""
    uploads = bottle.request.files
    for _, upload in uploads.allitems():
        files.callback(upload.file.close)
    if "file" not in uploads:
        raise Refused(400, 'The form has no field "file".', 'Name the field of the photo "file".')
    return uploads["file"].file


def read_photo(file: BinaryIO) -> Photo:
    """Raises Refused for what is no photo, is broken, or is too large to be unpacked."""
    try:
        picture = Image.open(file, formats=list(MAX_PIXELS))
        width, height = picture.size
        most = MAX_PIXELS[str(picture.format)]
        if width * height > most:
            size, limit = f"{width} x {height} pixels", f"{most / 1e6:.3g} million"
            raise Refused(413, f"The photo has {size} and the limit is {limit}.", "Send a smaller copy of it.")
        picture.draft(None, (LONGEST_SIDE, LONGEST_SIDE))  # of a JPEG, no more than is needed
        picture.thumbnail((LONGEST_SIDE, LONGEST_SIDE))
        upright = ImageOps.exif_transpose(picture)
        turned = (upright.width > upright.height) != (picture.width > picture.height)
        return Photo(upright.convert("RGB"), *((height, width) if turned else (width, height)))
    except Image.UnidentifiedImageError:
        fix = "Send a JPEG or PNG file; HEIC and others have to be converted."
        raise Refused(415, "This is no JPEG or PNG photo.", fix) from None
    # What Pillow raises for a photo whose head is fine and whose rest is not.
    except (OSError, SyntaxError, ValueError, EOFError, IndexError, KeyError, TypeError, zlib.error) as error:
        raise Refused(422, f"The photo is broken: {error}.", "Take it again, or send another copy.") from error


def encode(photo: Photo, found: list[Detection]) -> bytes | str:
    """In the form that the request's Accept asks for; sets the content type."""
    accepted = bottle.request.get_header("Accept", "")
    if "application/json" in accepted:
        bottle.response.content_type = "application/json"
        return as_json(photo, found)
    kind, options = ("PNG", {}) if "image/png" in accepted else ("JPEG", {"quality": JPEG_QUALITY})
    bottle.response.content_type = f"image/{kind.lower()}"
    drawn, file = with_boxes(photo.picture, found), io.BytesIO()
    drawn.save(file, kind, **options)
    return file.getvalue()


def as_json(photo: Photo, found: list[Detection]) -> str:
    """Boxes are left, top, width, height in pixels of the upright original."""
    scale = photo.width / photo.picture.width
    detections = [
        {"label": label, "box": [round(side * scale) for side in box]}
        | ({} if confidence is None else {"confidence": round(confidence, 3)})
        for label, confidence, box in found
    ]
    return json.dumps({"width": photo.width, "height": photo.height, "detections": detections}) + "\n"


def with_boxes(picture: Image.Image, found: list[Detection]) -> Image.Image:
    """A copy with a frame around each detection and its label above, or inside where there is no room."""
    drawn = picture.copy()
    pen = ImageDraw.Draw(drawn)
    line = max(2, max(picture.size) // 400)
    font = ImageFont.load_default(max(12, max(picture.size) // 50))
    for label, _, (left, top, width, height) in found:
        pen.rectangle((left, top, left + width, top + height), outline=colour_of(label), width=line)
    for label, confidence, (left, top, _, _) in reversed(found):  # the surest on top
        text = label if confidence is None else f"{label} {confidence:.0%}"
        _, _, width, height = (side + 2 * line for side in pen.textbbox((0, 0), text, font))
        x, y = max(0, min(left, picture.width - width)), max(0, top - height)
        pen.rectangle((x, y, x + width, y + height), fill=colour_of(label))
        pen.text((x + line, y + line), text, "black", font)
    return drawn


def colour_of(label: str) -> str:
    return COLOURS[zlib.crc32(label.encode()) % len(COLOURS)]
