"""The unmodified SDK over the embedded chain."""

import asyncio
from pathlib import Path

import bittensor as bt
import pytest
from conftest import NETUID, Subnet  # type: ignore[import-not-found]

from node.chain.substrate import LocalSubstrate
