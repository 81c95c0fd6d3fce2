"""The planner's page in a real browser, driven over Chromium's own debugging protocol."""

from __future__ import annotations

import asyncio
import itertools
import shutil
import subprocess
import time
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import aiohttp
import pytest

from qwenfleet.cluster.plan_report.page import Grid, page

pytestmark = pytest.mark.integration

CODER = "Qwen/Qwen3-Coder-480B-A35B-Instruct-FP8"
NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--remote-debugging-port=0",
)


class Page:
    """One tab."""

    def __init__(self, socket: aiohttp.ClientWebSocketResponse) -> None:
        self._socket = socket
        self._ids = itertools.count()

    async def call(self, method: str, **parameters: object) -> Any:
        """One method of the protocol."""
        number = next(self._ids)
        await self._socket.send_json({"id": number, "method": method, "params": parameters})
        while True:
            answer = await self._socket.receive_json(timeout=20)
            if answer.get("id") == number:
                return answer["result"]

    async def run(self, script: str) -> Any:
        """The value of an expression in the page."""
        found = await self.call("Runtime.evaluate", expression=script, returnByValue=True)
        assert "exceptionDetails" not in found, found
        return found["result"].get("value")

    async def choose(self, name: str, value: str) -> None:
        """As a user does it: the list changes and says so."""
        await self.run(
            f"(() => {{ const list = document.querySelector('select[name={name}]');"
            f" list.value = '{value}';"
            " list.dispatchEvent(new Event('change', {bubbles: true})); })()"
        )

    async def text(self, selector: str) -> str:
        return await self.run(f"document.querySelector('{selector}').innerText")


@pytest.fixture(scope="module")
def file(tmp_path_factory) -> Path:
    written = tmp_path_factory.mktemp("page") / "plan.html"
    written.write_text(page(Grid()), encoding="utf-8")
    return written


@pytest.fixture
def port(tmp_path) -> Iterator[int]:
    """Where a browser of this test's own listens, on loopback only."""
    browser = next(filter(None, map(shutil.which, NAMES)), None)
    if browser is None:
        pytest.skip(f"no browser is on the PATH: none of {', '.join(NAMES)}")
    command = [browser, *FLAGS, f"--user-data-dir={tmp_path}", "about:blank"]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        yield _read_port(tmp_path / "DevToolsActivePort", process)
    finally:
        process.terminate()
        process.wait(10)


def _read_port(file: Path, process: subprocess.Popen[bytes]) -> int:
    for _ in range(400):
        if file.exists() and (lines := file.read_text().splitlines()):
            return int(lines[0])
        assert process.poll() is None, "the browser ended"
        time.sleep(0.05)
    raise AssertionError("the browser printed no port within 20 s")


@pytest.fixture
async def open_page(file, port) -> AsyncIterator[Callable[..., Any]]:
    """Opens the page at a choice, and waits until it shows it."""
    async with aiohttp.ClientSession() as session:

        async def open_at(**choice: str) -> Page:
            async with session.put(f"http://127.0.0.1:{port}/json/new") as answer:
                tab = await answer.json()
            opened = Page(await session.ws_connect(tab["webSocketDebuggerUrl"]))
            await opened.call("Page.navigate", url=f"{file.as_uri()}#{urlencode(choice)}")
            for _ in range(200):
                if await opened.run("document.querySelector('#reason')?.innerText"):
                    return opened
                await asyncio.sleep(0.05)
            raise AssertionError("the page did not come up in 10 s")

        yield open_at


async def test_lists_rows_memory_and_commands_follow_each_other(open_page):
    opened = await open_page()
    await opened.choose("model", CODER)
    await opened.choose("accelerator", "H200")
    await opened.choose("context", "131072")
    rows = await opened.run("[...document.querySelectorAll('#rows th')].map(e => e.innerText)")
    assert rows[0].strip() == "TP8+EP8"
    assert "--accelerator H200" in await opened.text("#plan")
    assert await opened.text("#vllm") != ""
    label = "document.querySelector('#bar').getAttribute('aria-label')"
    before = await opened.run(label)
    assert before.startswith("weights 56.2 GiB")
    await opened.run("document.querySelectorAll('#rows input')[1].click()")
    assert await opened.run(label) != before
    assert f"--layout {rows[1].strip()} " in await opened.text("#plan")
    widths = (
        "[...document.querySelectorAll('#bar span')].reduce((sum, e) => sum + e.offsetWidth, 0)"
    )
    assert await opened.run(widths) == pytest.approx(
        await opened.run("document.querySelector('#bar').offsetWidth"), abs=4
    )


async def test_model_that_does_not_fit_shows_the_reason_and_no_rows(open_page):
    opened = await open_page()
    await opened.choose("model", "Qwen/Qwen3-Coder-480B-A35B-Instruct")
    await opened.choose("accelerator", "H100")
    await opened.choose("nodes", "1")
    assert "GiB" in await opened.text("#reason")
    assert await opened.run("document.querySelector('#answer').hidden") is True


async def test_an_address_opens_at_its_choice_and_a_choice_is_an_address(open_page):
    opened = await open_page(model=CODER, accelerator="MI300X", nodes="1", context="262144")
    assert await opened.run("document.querySelector('select[name=accelerator]').value") == "MI300X"
    assert "VLLM_ROCM_USE_AITER=1" in await opened.text("#vllm")
    await opened.choose("accelerator", "B200")
    assert "accelerator=B200" in await opened.run("location.hash")


async def test_the_page_asks_nothing_of_the_network(open_page):
    opened = await open_page()
    loaded = "performance.getEntriesByType('resource').map(e => e.name)"
    assert await opened.run(loaded) == []


async def test_every_control_has_a_name(open_page):
    opened = await open_page()
    nameless = (
        "[...document.querySelectorAll('select, input')]"
        ".filter(e => !e.labels.length || !e.labels[0].innerText.trim()).length"
    )
    assert await opened.run(nameless) == 0
    assert await opened.run("document.documentElement.lang") == "en"
