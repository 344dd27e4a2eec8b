"""The HTTP side that the photo services share, by way of the face detection: what it takes, refuses and answers."""

from __future__ import annotations

import io
import json
import random
import socket
import struct
import zlib

import pytest
from PIL import Image

from tests.samples import photo
from tests.service_stage import Answer, call, form


def encoded(picture: Image.Image, kind: str = "JPEG", **options: object) -> bytes:
    file = io.BytesIO()
    picture.save(file, kind, **options)
    return file.getvalue()


def portrait() -> Image.Image:
    return Image.open(io.BytesIO(photo("astronaut.png"))).convert("RGB")


def detect(port: int, body: bytes, **headers: str) -> Answer:
    return call(port, "POST", "/detect", body, **{"Accept": "application/json", **headers})


def png_of(width: int, height: int) -> bytes:
    """A small file that claims to unpack into width x height black pixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(bytes(1000))) + chunk(b"IEND", b"")
    )


HUGE = (40_000, 40_000)
JPEG = encoded(Image.effect_noise((400, 300), 50).convert("RGB"))


@pytest.mark.parametrize(
    ("body", "status", "words"),
    [
        pytest.param(b"no photo at all, but a text", 415, "no JPEG or PNG", id="text"),
        pytest.param(b"", 400, "empty", id="nothing"),
        pytest.param(JPEG[: len(JPEG) // 2], 422, "broken", id="a JPEG cut off in its middle"),
        pytest.param(JPEG[:30], 422, "broken", id="a JPEG cut off in its head"),
        pytest.param(b"\xff\xd8\xff\xe0" + bytes(2000), 415, "no JPEG or PNG", id="a JPEG in name only"),
        pytest.param(png_of(*HUGE), 413, "40000 x 40000", id="a decompression bomb"),
        pytest.param(png_of(400, 300), 422, "broken", id="a PNG with too few pixels"),
        pytest.param(encoded(Image.new("RGB", (8, 8)), "GIF"), 415, "no JPEG or PNG", id="a GIF"),
    ],
)
def test_what_is_no_photo_is_refused_in_a_sentence(face_detection: int, body: bytes, status: int, words: str) -> None:
    answer = detect(face_detection, body)
    assert (answer.status, answer.kind) == (status, "application/problem+json"), answer.text
    assert words in answer.json["detail"]
    assert answer.json["fix"]
    assert len(detect(face_detection, photo("astronaut.png")).json["detections"]) == 1


def test_a_hundred_megabytes_are_refused_before_they_are_read(face_detection: int) -> None:
    with socket.create_connection(("127.0.0.1", face_detection), timeout=10) as connection:
        head = "POST /detect HTTP/1.1\r\nHost: x\r\nAccept: application/json\r\nContent-Length: 100000000\r\n\r\n"
        connection.sendall(head.encode() + bytes(2**20))
        answer = b"".join(iter(lambda: connection.recv(4096), b""))
    head_lines, _, body = answer.partition(b"\r\n\r\n")
    assert head_lines.split()[1] == b"413"
    assert json.loads(body)["detail"] == "The photo has 100 MB and the limit is 21 MB."


def test_a_photo_without_a_length_or_an_end_is_refused(face_detection: int) -> None:
    assert call(face_detection, "POST", "/detect", None, Transfer_Encoding="chunked").status == 411
    with socket.create_connection(("127.0.0.1", face_detection), timeout=10) as connection:
        connection.sendall(b"POST /detect HTTP/1.1\r\nContent-Length: 1000\r\n\r\n" + JPEG[:500])
        connection.shutdown(socket.SHUT_WR)
        assert b"ended before" in b"".join(iter(lambda: connection.recv(4096), b""))


def test_damaged_photos_never_break_the_service(face_detection: int) -> None:
    chance = random.Random(6)
    for _ in range(40):
        damaged = bytearray(encoded(portrait().resize((64, 64)), chance.choice(("JPEG", "PNG"))))
        for _ in range(chance.randrange(1, 20)):
            damaged[chance.randrange(len(damaged))] = chance.randrange(256)
        assert detect(face_detection, bytes(damaged)).status in {200, 413, 415, 422}


def test_a_form_is_answered_for_its_field_file(face_detection: int) -> None:
    kind = "multipart/form-data; boundary=xyz"
    sent = form(('name="file"; filename="a.png"', photo("astronaut.png")))
    assert len(detect(face_detection, sent, Content_Type=kind).json["detections"]) == 1
    refused = detect(face_detection, form(('name="other"', b"x")), Content_Type=kind)
    assert (refused.status, refused.json["detail"]) == (400, 'The form has no field "file".')


@pytest.mark.parametrize(("accept", "kind"), [("*/*", "JPEG"), ("image/jpeg", "JPEG"), ("image/png", "PNG")])
def test_the_picture_comes_back_with_its_boxes(face_detection: int, accept: str, kind: str) -> None:
    sent = portrait()
    answer = detect(face_detection, encoded(sent), Accept=accept)
    got = Image.open(io.BytesIO(answer.body))
    assert (answer.status, answer.kind, got.format, got.size) == (200, f"image/{kind.lower()}", kind, sent.size)
    left, top, width, height = detect(face_detection, encoded(sent)).json["detections"][0]["box"]
    for x, y in ((left, top + height // 2), (left + width, top + height // 2), (left + width // 2, top + height)):
        near = [got.getpixel((x + dx, y + dy)) for dx in (-1, 0, 1) for dy in (-1, 0, 1)]
        was = [sent.getpixel((x + dx, y + dy)) for dx in (-1, 0, 1) for dy in (-1, 0, 1)]
        assert max(abs(a - b) for one, two in zip(near, was, strict=True) for a, b in zip(one, two, strict=True)) > 40


def test_boxes_are_of_the_upright_original_however_large_it_is(face_detection: int) -> None:
    """A phone writes the photo as its sensor lies, and how to turn it into the metadata."""
    large = portrait().resize((3000, 3000))
    lying = large.rotate(90, expand=True).crop((0, 0, 3000, 2500))  # the top of the portrait is on the left
    exif = Image.Exif()
    exif[0x0112] = 6  # turn by 90 degrees clockwise
    answer = detect(face_detection, encoded(lying, exif=exif)).json
    assert (answer["width"], answer["height"]) == (2500, 3000)
    [face] = answer["detections"]
    left, top, width, height = face["box"]
    assert 300 < left + width / 2 < 1500
    assert 450 < top + height / 2 < 900


def test_every_kind_of_png_and_jpeg_can_be_read(face_detection: int) -> None:
    face = portrait()
    for picture in (face.convert("L"), face.convert("CMYK"), face):
        assert len(detect(face_detection, encoded(picture, progressive=True)).json["detections"]) == 1, picture.mode
    for mode in ("L", "LA", "RGBA", "P", "1", "I;16"):
        picture = face.convert("L").convert(mode) if mode == "I;16" else face.convert(mode)
        assert detect(face_detection, encoded(picture, "PNG")).status == 200, mode


def test_the_front_page_says_what_the_service_does(face_detection: int) -> None:
    assert call(face_detection, "GET", "/").text.startswith("Face detection: POST a photo")
