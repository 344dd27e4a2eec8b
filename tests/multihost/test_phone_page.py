"""The page on a phone in a site's LAN, with the uplink cut: a real node and a real browser, on hosts of their own."""

from __future__ import annotations

from pathlib import Path

import pytest
from playwright.async_api import expect

from node.local_mesh import Site, up
from tests.local_sites import ask
from tests.multihost.testbed import Host, running_testbed
from tests.web.stage import CHROMIUM, a_phone, running_browser

pytestmark = [pytest.mark.netns, pytest.mark.browser, pytest.mark.timeout(120)]

SERVICES = Path(__file__).parents[2] / "services"


def browser_on(host: Host, folder: Path) -> str:
    """A Chromium that lives on the host."""
    script = folder / "chromium-there"
    script.write_text(f'#!/bin/sh\nexec nsenter --net={host.path} {CHROMIUM} "$@"\n')
    script.chmod(0o755)
    return str(script)


async def test_words_are_counted_for_a_phone_whose_site_is_cut_off(tmp_path: Path) -> None:
    async with running_testbed({"a": ["node", "phone"]}) as bed:
        node, phone = bed.host("a", "node"), bed.host("a", "phone")
        site = Site("a", "eu/a", bed.folder / "a", memory_mb=64, host="", enter=("nsenter", f"--net={node.path}"))
        await site.found("corner")
        async with up(site), running_browser(executable=browser_on(phone, tmp_path)) as browser:
            await ask(site, "publish", str(SERVICES / "word_count_wasm"))
            await bed.cut_wan("a")
            url = f"http://{site.running.rest.rpartition('/')[2]}/"
            assert node.address in url
            async with a_phone(browser) as page:
                await page.goto(url)
                await page.get_by_text("Another phone does not find").tap()
                await expect(page.get_by_role("img", name=f"QR code of {url[:-1]}")).to_be_visible()
                await page.get_by_role("link", name="Count the words of a text").tap()
                await page.locator("#pick").set_input_files(
                    {"name": "text.txt", "mimeType": "text/plain", "buffer": b"eleven words\n" * 50_000}
                )
                await expect(page.get_by_role("heading", name="100,000 words")).to_be_visible()
                how = page.locator("#how")
                await expect(how).to_contain_text("Cold")
                await expect(how).to_contain_text(f"On {node.address} in eu/a")
                await expect(how).to_contain_text("sent 650\xa0KB. Without the store")
                assert not await page.evaluate("() => isSecureContext"), "as on most real phones"
