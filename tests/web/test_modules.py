"""The page's pure modules, asked in the browser that they are for."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from playwright.async_api import Browser, Page

from tests.web.stage import a_phone, a_region

pytestmark = [pytest.mark.browser, pytest.mark.asyncio(loop_scope="package")]


@pytest_asyncio.fixture(scope="module", loop_scope="package")
async def page(browser: Browser, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Page]:
    folder: Path = tmp_path_factory.mktemp("region")
    async with a_region(folder) as region, a_phone(browser) as page:
        await page.goto(region.url)
        yield page


async def ask(page: Page, module: str, expression: str, value: Any = None) -> Any:
    """`expression` of the `module` (as m) and `value` (as v)."""
    load = f"async (v) => {{ const m = await import('/page/{module}.js'); return {expression}; }}"
    return await page.evaluate(load, value)


@pytest.mark.parametrize(
    ("pieces", "events"),
    [
        (["event: result\ndata: 1\n\n"], [["result", "1"]]),
        (["event: pro", "gress\nda", "ta: a\n", "\nevent: result\ndata: b\n\n"], [["progress", "a"], ["result", "b"]]),
        ([": keep-alive\n\n", "data: x\r\n\r\n"], [["message", "x"]]),
        (["data: a\ndata: b\n\n", "event: problem\ndata: cut o"], [["message", "a\nb"]]),
    ],
)
async def test_events_come_in_pieces_of_any_size(page: Page, pieces: list[str], events: list[list[str]]) -> None:
    read = (
        "(() => { const p = new m.EventParser(); return v.flatMap((x) => p.feed(x)).map((e) => [e.name, e.data]); })()"
    )
    assert await ask(page, "events", read, pieces) == events


@pytest.mark.parametrize(
    ("link", "path"),
    [
        (None, None),
        ('</v1/services?cursor=a%2Cb>; rel="next"', "/v1/services?cursor=a%2Cb"),
        ('</x>; rel="prev", </y>; rel=next', "/y"),
        ('<http://elsewhere.example/v1>; rel="next"', None),
    ],
)
async def test_the_next_page_is_on_this_controller(page: Page, link: str | None, path: str | None) -> None:
    assert await ask(page, "controller", "m.nextOf(v)", link) == path


async def test_services_are_told_by_meaning_and_each_once(page: Page) -> None:
    photo = {"inputs": ["image"], "outputs": ["image"], "description": "", "name": "x", "variants": []}
    services = [
        {**photo, "category": "/gaming/server/ar_duel", "inputs": [], "name": "ar-duel"},
        {**photo, "category": "/image/face_detection"},
        {**photo, "category": "/image/object_detection", "variants": [{"name": "fast"}]},
        {**photo, "category": "/image/object_detection", "variants": [{"name": "fast"}, {"name": "slow"}]},
        {**photo, "category": "/text/word_count", "inputs": ["text"]},
    ]
    told = "m.grouped(v).map(({title, tasks}) => [title, tasks.map((t) => [t.title, t.takes])])"
    assert await ask(page, "words", told, services) == [
        ["Pictures", [["Find objects in a photo", "photo"], ["Find faces in a photo", "photo"]]],
        ["Texts", [["Count the words of a text", "text"]]],
        ["Games", [["Ar duel", "file"]]],
    ]
    variants = "m.grouped(v)[0].tasks[0].variants.map(({name}) => name)"
    assert await ask(page, "words", variants, services) == ["fast", "slow"], "whoever offers them"


@pytest.mark.parametrize(
    "answer",
    [
        {},
        {"detections": "many", "width": 1, "height": 1},
        {"detections": [], "width": 0, "height": 1},
        {"detections": [None, {"label": "x", "box": [1, 2]}, {"box": [0, 0, None, 1]}, {}], "width": 1, "height": 1},
    ],
)
async def test_what_a_service_says_it_found_is_looked_at_first(page: Page, answer: dict[str, Any]) -> None:
    assert await ask(page, "words", "m.detections(v)", answer) in (None, [])


async def test_savings_are_those_of_this_errand(page: Page) -> None:
    said = await ask(page, "words", "m.saving(...v)", [250_000, 28_000_000])
    assert said.replace("\xa0", " ").endswith("uploaded the service too: 28 MB more. Saved: 99.1 %.")
    assert await ask(page, "words", "m.saving(...v)", [250_000, 0]) == "", "nobody knows the archive's size"


async def test_a_problem_without_words_of_its_own_shows_the_controllers(page: Page) -> None:
    problem = {"type": "https://cornerstore.dev/problems/new-one", "title": "T", "detail": "D", "fix": "F"}
    told = await ask(page, "words", "m.explained(v)", {**problem, "retry_after": 1e9, "regions": {"eu": "full"}})
    assert (told["title"], told["text"], told["retry_after"], told["log"]) == ("T", "D", 120, ["eu: full"])


async def test_a_region_is_asked_again_by_itself_only_so_often(page: Page) -> None:
    """The state machine alone: attempts and refusals in turn."""
    run = """(() => {
      let s = m.next(m.START, {type: "opened", meaning: {key: "k"}});
      const refusal = {type: "failed", problem: {type: "x/no-capacity", retry_after: 5}, now: 1000};
      const seen = [];
      for (let i = 0; i < 5; i++) {
        s = m.next(m.next(s, {type: "attempt"}), refusal);
        seen.push(s.task.problem.retry_at);
      }
      return seen;
    })()"""
    assert await ask(page, "state", run) == [6000, 6000, 6000, None, None]


async def test_what_an_event_does_not_touch_stays_the_same_object(page: Page) -> None:
    run = """(() => {
      const s = m.next(m.START, {type: "opened", meaning: {key: "k"}});
      const t = m.next(s, {type: "link-lost", retry_at: 1});
      return [t.task === s.task, t.list === s.list, t.link === s.link, m.next(m.START, {type: "attempt"}) === m.START];
    })()"""
    assert await ask(page, "state", run) == [True, True, False, True]
