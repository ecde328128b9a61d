"""What tests of a whole subnet share."""

import asyncio
import tomllib
from typing import Any

import aiohttp
import tomli_w

from roles.devnet.layout import Member


def change(member: Member, **sections: dict[str, Any]) -> None:
    """Set other values in a member's settings file."""
    config = tomllib.loads(member.config_file.read_text())
    for section, values in sections.items():
        config.setdefault(section, {}).update(values)
    member.config_file.write_text(tomli_w.dumps(config))


async def until_up(api_url: str) -> None:
    """Wait until the API answers."""
    async with aiohttp.ClientSession() as session, asyncio.timeout(60):
        while True:
            try:
                async with session.get(f"{api_url}/health") as response:
                    if response.status == 200:
                        return
            except aiohttp.ClientError:
                pass
            await asyncio.sleep(0.1)
