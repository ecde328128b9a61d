"""A swarm that fills the host's memory, judged; run by test_cgroups.py on a kernel with cgroups, as root."""

from protocol.verdicts import Fault, Status
from tests.adversarial.conftest import Judge

pytest_plugins = ["tests.adversarial.conftest"]

MIB = 2**20
SWARM = f"""
import os, time
print("THE SWARM BEGINS", flush=True)
for _ in range(12):
    if os.fork() == 0:
        held = bytearray({16 * MIB})
        held[::4096] = b"x" * len(held[::4096])
        time.sleep(3600)
time.sleep(3600)
"""


def test_a_swarm_of_modest_processes_is_out_of_memory(judge_submission: Judge) -> None:
    """Each stays below the limit of a process; together they would end the host."""
    figures = judge_submission(SWARM, memory_limit_bytes=320 * MIB).figures
    assert figures.status is Status.OUT_OF_MEMORY, figures.evidence
    assert figures.fault is Fault.MINER
    assert figures.evidence["reason"] == "it held more than 320 MiB of the host's memory"
    assert "THE SWARM BEGINS" in figures.evidence["log_tail"], "what the worker needs itself is well below"
