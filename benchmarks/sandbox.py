"""How long a sandbox takes to start: from the call that starts it to the first byte of a trivial program.

    python -m benchmarks.sandbox

The program is /bin/echo, without an interpreter and without torch. With the interpreter's mounts and without
any; with a cgroup where this process may make one; where bubblewrap does not run, under Landlock. Prints one
JSON document.
"""

import argparse
import json
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable

from node.landlock import start_landlocked
from node.sandbox import detect_tier, start_sandboxed
from node.sandbox_spec import Limits, Mount, SandboxSpec, SandboxTier, python_mounts
from node.sandboxed_process import SandboxedProcess

Start = Callable[..., SandboxedProcess]

MEMORY_BYTES = 2**30


def parse(arguments: list[str]) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--repetitions", type=int, default=50)
    return parser.parse_args(arguments)


def main() -> int:
    """Start sandboxes, variants in turn, and print the times; 1 where there is no sandbox."""
    args = parse(sys.argv[1:])
    tier = detect_tier()
    if tier is SandboxTier.NONE:
        print("this host offers no sandbox", file=sys.stderr)
        return 1
    variants = _variants(tier)
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in variants}
    for _ in range(args.repetitions):
        for name, (start, spec) in variants.items():
            times[name].append(_start_and_end(start, spec))
    result = {
        "tier": tier.value,
        "kernel": platform.release(),
        "cores": os.cpu_count(),
        "is_root": os.geteuid() == 0,
        "repetitions": args.repetitions,
        "ms": {name: _summary(pairs) for name, pairs in times.items()},
    }
    print(json.dumps(result, indent=2))
    return 0


def _variants(tier: SandboxTier) -> dict[str, tuple[Start, SandboxSpec]]:
    argv, mounts = ["/bin/echo", "started"], python_mounts()
    if tier is SandboxTier.LANDLOCK:
        in_place = [Mount(host=mount.host, inside=mount.host) for mount in mounts]
        return {"mounts": (start_landlocked, SandboxSpec(argv=argv, mounts=in_place))}
    variants: dict[str, tuple[Start, SandboxSpec]] = {
        "no mounts": (start_sandboxed, SandboxSpec(argv=argv)),
        "mounts": (start_sandboxed, SandboxSpec(argv=argv, mounts=mounts)),
    }
    if tier is SandboxTier.CGROUP:
        spec = SandboxSpec(argv=argv, mounts=mounts, limits=Limits(memory_bytes=MEMORY_BYTES))
        variants["mounts and cgroup"] = (start_sandboxed, spec)
    return variants


def _start_and_end(start: Start, spec: SandboxSpec) -> tuple[float, float]:
    """Milliseconds to the first byte, and from the program's end until nothing is left."""
    reading, writing = os.pipe()
    started = time.perf_counter()
    with os.fdopen(writing, "wb") as output:
        process = start(spec, pass_fds=(), output=output)
    with os.fdopen(reading, "rb") as stream:
        first = stream.read(1)
        first_byte_s = time.perf_counter() - started
    if first != b"s" or process.wait(10) != 0:
        raise RuntimeError(f"the sandbox did not run {spec.argv}")
    ended = time.perf_counter()
    process.kill()
    return 1000 * first_byte_s, 1000 * (time.perf_counter() - ended)


def _summary(pairs: list[tuple[float, float]]) -> dict[str, float]:
    kinds: dict[str, Callable[[tuple[float, float]], float]] = {
        "start": lambda pair: pair[0],
        "end": lambda pair: pair[1],
    }
    summary = {}
    for name, take in kinds.items():
        values = sorted(map(take, pairs))
        summary[f"{name}_median"] = round(statistics.median(values), 2)
        summary[f"{name}_p95"] = round(values[min(len(values) - 1, int(0.95 * len(values)))], 2)
    return summary


if __name__ == "__main__":
    sys.exit(main())
