"""Takes the picture of the page that the documentation shows, from a running API with example data.

python -m tests.roles.api.page.screenshot docs/page.png [--scheme dark] [--width 390] [--path /miners/...]
"""

import argparse
import asyncio
import tempfile
from pathlib import Path

from playwright.async_api import async_playwright

from tests.roles.api.harness import key, running
from tests.roles.api.page.browser import launch
from tests.roles.api.page.populated import found_subnet, page_settings, populate


async def take(target: Path, *, path: str, scheme: str, width: int, colors: int) -> None:
    """Run the API, show the page in the browser, and write the picture with a small palette."""
    with tempfile.TemporaryDirectory() as folder:
        subnet = found_subnet(Path(folder), block_time_s=12.0)
        async with running(page_settings(subnet)) as api, async_playwright() as driver:
            await populate(api, subnet)
            browser = await launch(driver)
            page = await browser.new_page(
                viewport={"width": width, "height": 800}, color_scheme=scheme, device_scale_factor=1.5
            )
            await page.goto(api.url + path.replace("FIRST", key("orion").ss58_address))
            await page.locator(".live.on").wait_for()
            if path == "/":
                # What is shown may be some seconds old; the stream brings the newest block.
                newest = page.locator("#round dd", has_text=f"{subnet.chain.height():,}")
                await newest.wait_for()
            await page.screenshot(path=target, full_page=True, animations="disabled")
            await browser.close()
    optimise(target, colors)


def optimise(path: Path, colors: int) -> None:
    """Reduce a picture to a palette, which halves a page of text without a visible loss."""
    from PIL import Image

    picture = Image.open(path).convert("RGB").quantize(colors, dither=Image.Dither.NONE)
    picture.save(path, optimize=True)


def main() -> None:
    """Read the command line and take the picture."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("target", type=Path)
    parser.add_argument("--path", default="/")
    parser.add_argument("--scheme", choices=("light", "dark"), default="light")
    parser.add_argument("--width", type=int, default=1240)
    parser.add_argument("--colors", type=int, default=128)
    options = parser.parse_args()
    asyncio.run(
        take(
            options.target,
            path=options.path,
            scheme=options.scheme,
            width=options.width,
            colors=options.colors,
        )
    )


if __name__ == "__main__":
    main()
