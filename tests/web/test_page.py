"""The page as a phone's owner meets it, in a real browser, before a real controller."""

from __future__ import annotations

import re
import time
from pathlib import Path
from typing import Any

import msgspec
import pytest
from aiohttp import web
from axe_playwright_python.async_playwright import Axe
from playwright.async_api import Browser, Page, expect

from dht.records.memory_directory import MemoryMesh
from protocol.problems import BuildFailed
from protocol.records import Terms, VariantTerms
from tests.one_region import a_service, running_site
from tests.waiting import until
from tests.web.stage import Region, a_phone, a_region, png

pytestmark = [pytest.mark.browser, pytest.mark.asyncio(loop_scope="package")]

PHOTO = {"name": "photo.png", "mimeType": "image/png", "buffer": png(64, 48)}
OBJECTS = a_service("od01", name="objects", category="/image/object_detection", inputs=["image"], outputs=["image"])
FACES = a_service("fd01", name="faces", category="/image/face_detection", inputs=["image"], outputs=["image"])
WORDS = a_service("wc01", name="words", category="/text/word_count", inputs=["text"], outputs=["integer"])


async def offer(region: Region, *services: Any) -> None:
    for service in services:
        await region.site.publish(service)


async def choose(page: Page, photo: Any = PHOTO) -> None:
    await page.locator("#pick").set_input_files(photo)


async def count(page: Page, text: str) -> None:
    await page.get_by_label("Or write or paste a text").fill(text)
    await page.get_by_role("button", name="Use this text").tap()


def heading(page: Page, text: str) -> Any:
    return page.get_by_role("heading", name=text)


async def test_a_photo_from_the_camera_comes_back_with_boxes_cold_then_warm(browser: Browser, tmp_path: Path) -> None:
    async with a_region(tmp_path) as region, a_phone(browser) as page:
        await offer(region, OBJECTS, FACES, WORDS)
        await page.goto(region.url)
        await expect(page.locator("h2")).to_have_text(["Pictures", "Texts"])
        await page.get_by_role("link", name="Find objects in a photo").tap()
        await page.get_by_role("button", name="Take a photo").tap()
        await expect(page.locator("#shutter")).to_be_focused()

        region.agent.gate.clear()
        await page.get_by_role("button", name="Take it").tap()
        await expect(page.locator(".steps .now")).to_contain_text("Preparing it")
        await expect(page.get_by_role("status")).to_have_text("Preparing it")
        region.agent.gate.set()

        await expect(heading(page, "2 things found")).to_be_visible()
        await expect(page.get_by_role("status")).to_have_text("Done: 2 things found")
        await expect(page.locator(".found li")).to_have_text(["dog87 % sure", "bicycle61 % sure"])
        picture, frame = await box(page, ".framed img"), await box(page, ".frame >> nth=0")
        assert (frame["x"] - picture["x"]) / picture["width"] == pytest.approx(80 / 640, abs=0.01)
        assert frame["height"] / picture["height"] == pytest.approx(300 / 480, abs=0.01)
        ((path, kind, sent),) = region.service.calls
        assert (path, kind) == ("/see", "image/jpeg"), "the port's description names the path"
        how = page.locator("#how")
        await expect(how).to_contain_text("Cold")
        await expect(how).to_contain_text("On 127.0.0.1 in eu/de")
        await expect(how).to_contain_text(f"sent {len(sent) / 1000:.1f}\xa0KB. Without the store")
        await how.locator("summary").tap()
        await expect(page.get_by_role("row", name="Preparing it")).to_contain_text("2.0 ms")
        assert await page.evaluate("document.querySelector('video')?.srcObject ?? null") is None, "the camera is off"

        await choose(page)
        await expect(how).to_contain_text("Warm")
        assert len(region.agent.starts) == 1
        await page.go_back()
        await expect(page.get_by_role("link", name="Find faces in a photo")).to_be_visible()


async def box(page: Page, selector: str) -> Any:
    return await page.locator(selector).bounding_box()


async def test_nothing_found_and_what_the_service_refuses_are_said_in_words(browser: Browser, tmp_path: Path) -> None:
    async with a_region(tmp_path) as region, a_phone(browser) as page:
        await offer(region, OBJECTS)
        await page.add_init_script("Object.defineProperty(window, 'isSecureContext', {value: false})")
        region.service.reply = lambda: web.json_response({"width": 1, "height": 1, "detections": []})
        await page.goto(f"{region.url}#{'%2Fimage%2Fobject_detection%20image%20image'}")
        camera = page.get_by_label("Take a photo")  # without a secure origin, the phone's own
        await expect(camera).to_have_attribute("capture", "environment")
        await camera.set_input_files(PHOTO)
        await expect(heading(page, "Nothing found in this photo")).to_be_visible()

        region.service.reply = lambda: web.json_response(
            {"detail": "The photo is broken.", "fix": "Take it again."},
            status=422,
            content_type="application/problem+json",
        )
        await choose(page)
        await expect(page.locator(".notice")).to_contain_text("The photo is broken. Take it again.")


async def test_without_the_camera_a_photo_can_still_be_chosen(browser: Browser, tmp_path: Path) -> None:
    async with a_region(tmp_path) as region, a_phone(browser) as page:
        await offer(region, OBJECTS)
        await page.add_init_script(
            "navigator.mediaDevices.getUserMedia = () => Promise.reject(new Error('not allowed'))"
        )
        await page.goto(region.url)
        await page.get_by_role("link", name="Find objects in a photo").tap()
        await page.get_by_role("button", name="Take a photo").tap()
        await expect(heading(page, "The camera cannot be used")).to_be_visible()
        await choose(page)
        await expect(heading(page, "2 things found")).to_be_visible()


async def test_a_camera_that_opens_slowly_takes_the_photo_that_was_asked_for_meanwhile(
    browser: Browser, tmp_path: Path
) -> None:
    async with a_region(tmp_path) as region, a_phone(browser) as page:
        await offer(region, OBJECTS)
        await page.add_init_script(
            "const devices = navigator.mediaDevices, opened = devices.getUserMedia.bind(devices);"
            "const slowly = new Promise((open) => (window.openCamera = open));"
            "devices.getUserMedia = async (wanted) => { await slowly; return opened(wanted); }"
        )
        await page.goto(region.url)
        await page.get_by_role("link", name="Find objects in a photo").tap()
        await page.get_by_role("button", name="Take a photo").tap()
        await page.get_by_role("button", name="Take it").tap()
        await page.evaluate("() => window.openCamera()")
        await expect(heading(page, "2 things found")).to_be_visible()


async def test_what_is_no_photo_is_refused_and_a_large_one_shrunk(browser: Browser, tmp_path: Path) -> None:
    async with a_region(tmp_path) as region, a_phone(browser) as page:
        await offer(region, OBJECTS, WORDS)
        await page.goto(region.url)
        await page.get_by_role("link", name="Find objects in a photo").tap()
        await choose(page, {"name": "notes.txt", "mimeType": "text/plain", "buffer": b"no photo"})
        await expect(heading(page, "This is not a photo")).to_be_visible()
        await choose(page, {"name": "broken.png", "mimeType": "image/png", "buffer": png(64, 48)[:60]})
        await expect(heading(page, "This is not a photo")).to_be_visible()
        await choose(page, {"name": "empty.png", "mimeType": "image/png", "buffer": b""})
        await expect(heading(page, "This file is empty")).to_be_visible()
        assert region.agent.starts == [], "nothing was started for that"

        await choose(page, {"name": "huge.png", "mimeType": "image/png", "buffer": png(4000, 3000)})
        await expect(heading(page, "2 things found")).to_be_visible()
        (_, kind, sent), *_ = region.service.calls
        assert kind == "image/jpeg"
        assert jpeg_size(sent) == (1600, 1200)

        await page.get_by_role("link", name="All services").tap()
        await page.get_by_role("link", name="Count the words of a text").tap()
        await choose(page, PHOTO)
        await expect(heading(page, "This is not a text")).to_be_visible()


def jpeg_size(data: bytes) -> tuple[int, int]:
    """Of the frame header (ITU T.81, B.2.2)."""
    at = data.index(b"\xff\xc0")
    return int.from_bytes(data[at + 7 : at + 9]), int.from_bytes(data[at + 5 : at + 7])


async def test_a_variant_can_be_chosen_and_the_same_photo_asked_again(browser: Browser, tmp_path: Path) -> None:
    async with a_region(tmp_path) as region, a_phone(browser) as page:
        terms = Terms(variants=(VariantTerms("accurate", 0.89, 300.0), VariantTerms("fast")))
        await offer(region, msgspec.structs.replace(OBJECTS, terms=terms))
        await page.goto(region.url)
        await page.get_by_role("link", name="Find objects in a photo").tap()
        await expect(page.get_by_role("radio", name="As it comes")).to_be_checked()
        await choose(page)
        await expect(heading(page, "2 things found")).to_be_visible()
        await tab_to(page, "variant-0")
        await page.keyboard.press("ArrowDown")
        await expect(page.get_by_role("radio", name="Accurate accuracy 89 %, about 300 ms")).to_be_checked()
        await barrier_free(page, {})
        await page.get_by_role("button", name="The same photo again").tap()
        await expect(page.locator("#how")).to_contain_text("Accurate")
        assert [command.variant for command in region.agent.starts] == [None, "accurate"]
        await expect(page.get_by_role("radio", name="Accurate")).to_be_checked()


async def test_a_region_without_room_counts_down_and_asks_again_by_itself(browser: Browser, tmp_path: Path) -> None:
    async with a_region(tmp_path) as region, a_phone(browser) as page:
        await offer(region, WORDS)
        region.service.reply = lambda: web.Response(text="3")
        region.agent.memory = 10
        await region.agent.beat()
        await until(lambda: region.site.controller.agents()[0].memory_free == 10)
        await page.clock.install()
        await page.goto(region.url)
        await page.get_by_role("link", name="Count the words of a text").tap()
        await count(page, "one two three")
        await expect(heading(page, "There is no room right now")).to_be_visible()
        await expect(page.locator(".notice")).to_contain_text(re.compile(r"Trying again in \d+ s"))
        await expect(page.get_by_role("button", name="Stop trying")).to_be_visible()
        region.agent.memory = 1000
        await region.agent.beat()
        await until(lambda: region.site.controller.agents()[0].memory_free == 1000)
        await page.clock.fast_forward(6000)
        await expect(page.locator(".number")).to_have_text("3 words")


async def test_a_service_that_cannot_be_built_is_its_publishers_to_mend(browser: Browser, tmp_path: Path) -> None:
    async with a_region(tmp_path) as region, a_phone(browser) as page:
        await offer(region, WORDS)
        region.agent.failures.append(BuildFailed("no wheel for it", fix="Mend the Dockerfile.", log=["pip failed"]))
        await page.goto(region.url)
        await page.get_by_role("link", name="Count the words of a text").tap()
        await count(page, "one")
        await expect(heading(page, "This service is broken")).to_be_visible()
        await page.get_by_text("Details").tap()
        await expect(page.locator("pre")).to_contain_text("pip failed")


async def test_a_controller_that_goes_away_is_waited_for(browser: Browser, tmp_path: Path) -> None:
    async with a_region(tmp_path) as region, a_phone(browser) as page:
        await offer(region, WORDS)
        region.service.reply = lambda: web.Response(text="2")
        await page.goto(region.url)
        await page.get_by_role("link", name="Count the words of a text").tap()
        region.agent.gate.clear()
        await count(page, "one two")
        await expect(page.locator(".steps .now")).to_contain_text("Preparing it")
        await region.go_away()
        lost = page.locator("#lost")
        await expect(lost).to_contain_text("The store does not answer")
        await expect(page.get_by_role("status")).to_have_text("The store does not answer.")  # once, without countdown
        await expect(page.locator("#progress")).to_contain_text("as soon as it is back")
        region.agent.gate.set()
        await region.listen()
        await expect(page.locator(".number")).to_have_text("2 words")
        await expect(lost).to_be_empty()
        assert len(region.agent.starts) == 1, "asked again, it was the same request"


async def test_a_large_mesh_comes_in_pages_and_what_the_page_knows_well_first(browser: Browser, tmp_path: Path) -> None:
    async with a_region(tmp_path) as region, a_phone(browser) as page:
        now = int(time.time() * 1000)
        await offer(region, msgspec.structs.replace(OBJECTS, seq=now - 1000))  # the newest come first
        await offer(region, *(a_service(f"s{n}", category=f"/sound/s{n}", seq=now + n) for n in range(101)))
        await page.goto(region.url)
        await expect(page.locator(".card").first).to_contain_text("Find objects in a photo")
        await expect(page.locator(".card")).to_have_count(101)
        await page.get_by_role("button", name="Show more").tap()
        await expect(page.locator(".card")).to_have_count(102)
        await expect(page.get_by_role("button", name="Show more")).to_have_count(0)


async def test_extend_stop_and_a_hand_off_are_told(browser: Browser, tmp_path: Path) -> None:
    mesh = MemoryMesh()
    async with (
        a_region(tmp_path, mesh=mesh, region="eu/de") as far,
        running_site(tmp_path, "eu/fr", mesh=mesh) as near,
        a_phone(browser) as page,
    ):
        await offer(far, WORDS)
        far.service.reply = lambda: web.Response(text="1")
        here = Region(near, far.agent, far.service)
        await here.listen()
        await page.goto(here.url)
        await page.get_by_role("link", name="Count the words of a text").tap()
        await count(page, "one")
        how, lease = page.locator("#how"), page.locator("#lease")
        await expect(how).to_contain_text("eu/fr had no room: eu/de took it over")
        await expect(how).to_contain_text("On 127.0.0.1 in eu/de")
        await expect(lease).to_contain_text(re.compile("stays ready for (59|60)\xa0s"))
        await page.get_by_role("button", name="Keep 5 min").tap()
        await expect(lease).to_contain_text(re.compile("ready for (4|5)\xa0min"))
        await page.get_by_role("button", name="Stop it").tap()
        await expect(lease).to_contain_text("The service is stopped")
        await here.go_away()


async def test_by_keyboard_alone_and_without_motion(browser: Browser, tmp_path: Path) -> None:
    async with a_region(tmp_path) as region, a_phone(browser, reduced_motion="reduce") as page:
        await offer(region, OBJECTS, WORDS)
        region.service.reply = lambda: web.Response(text="2")
        region.agent.gate.clear()
        await page.goto(region.url)
        await expect(page.get_by_role("link", name="Find objects in a photo")).to_be_visible()
        await tab_to(page, "Count the words of a text")
        await page.keyboard.press("Enter")
        await expect(heading(page, "Count the words of a text")).to_be_focused()
        await tab_to(page, "pasted")
        await page.keyboard.type("one two")
        await tab_to(page, "Use this text")
        await page.keyboard.press("Enter")
        now = page.locator(".steps .now")
        await expect(now).to_be_visible()
        assert await now.locator(".icon").evaluate("(icon) => getComputedStyle(icon).animationName") == "none"
        region.agent.gate.set()
        await expect(page.locator(".number")).to_have_text("2 words")
        await tab_to(page, "Stop it")
        await page.keyboard.press("Enter")
        await expect(page.locator("#lease")).to_contain_text("The service is stopped")


async def tab_to(page: Page, wanted: str) -> None:
    """Presses Tab until what is `wanted`, by its text or id, has the focus, and can be seen to have it."""
    for _ in range(25):
        await page.keyboard.press("Tab")
        focused = await page.evaluate(
            "() => { const e = document.activeElement;"
            " const seen = e.matches('.hidden-input') ? e.nextSibling : e;"
            " return [e.id, e.textContent, getComputedStyle(seen).outlineStyle]; }"
        )
        if wanted == focused[0] or focused[1].startswith(wanted):
            assert focused[2] == "solid", f"{wanted} has the focus, and nobody sees it"
            return
    raise AssertionError(f"no Tab leads to {wanted!r}")


@pytest.mark.parametrize(("scheme", "rules"), [("light", {}), ("dark", {"runOnly": ["color-contrast"]})])
async def test_nothing_stands_in_the_way_of_who_sees_or_moves_otherwise(
    browser: Browser, tmp_path: Path, scheme: Any, rules: dict[str, Any]
) -> None:
    """axe-core's rules, on every kind of screen; what differs in the dark is contrast."""
    async with a_region(tmp_path) as region, a_phone(browser, color_scheme=scheme) as page:
        await offer(region, OBJECTS, WORDS)
        await page.goto(region.url)
        await page.get_by_text("Another phone does not find").tap()
        await expect(page.get_by_role("link", name=re.compile("Find objects"))).to_be_visible()
        await barrier_free(page, rules)
        await page.get_by_role("link", name="Find objects in a photo").tap()
        region.agent.gate.clear()
        await choose(page)
        await expect(page.locator(".steps .now")).to_be_visible()
        await barrier_free(page, rules)
        region.agent.gate.set()
        await expect(heading(page, "2 things found")).to_be_visible()
        await page.locator("#how summary").tap()
        await barrier_free(page, rules)
        await choose(page, {"name": "notes.txt", "mimeType": "text/plain", "buffer": b"no photo"})
        await expect(heading(page, "This is not a photo")).to_be_visible()
        await barrier_free(page, rules)


async def barrier_free(page: Page, rules: dict[str, Any]) -> None:
    found = await Axe().run(page, options={"resultTypes": ["violations"], **rules})
    assert found.violations_count == 0, found.generate_report()
