"""Starts a program under Landlock as tests/node/test_landlock.py says (JSON, the only argument).

`run` exits with the program's code; `kill` and `pause` act once it has printed `ready`; `wait` then waits.
"""

import json
import os
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from node.landlock import start_landlocked
from node.sandbox_spec import Limits, Mount, SandboxSpec


def main(told: dict[str, Any]) -> int:
    spec = SandboxSpec(
        argv=told["argv"],
        mounts=[Mount(host=Path(one), inside=Path(one)) for one in told["readable"]],
        hidden=[Path(one) for one in told["hidden"]],
        scratch=Path(told["scratch"]),
        environment={"TMPDIR": told["scratch"]},
        limits=Limits(**told["limits"]),
    )
    with tempfile.TemporaryFile() as output:
        process = start_landlocked(spec, pass_fds=(), output=output)
        try:
            if told["mode"] == "run":
                code = process.wait(60.0)
                assert code is not None
                output.seek(0)
                sys.stdout.buffer.write(output.read())
                return code
            while b"ready" not in os.pread(output.fileno(), 1000, 0):
                assert process.poll() is None
                time.sleep(0.02)
            print("ready", flush=True)
            if told["mode"] == "wait":
                time.sleep(3600.0)
            if told["mode"] == "pause":
                process.pause()
                before = os.fstat(output.fileno()).st_size
                time.sleep(0.3)
                assert os.fstat(output.fileno()).st_size == before
                process.resume()
                while os.fstat(output.fileno()).st_size < before + 100:
                    time.sleep(0.02)
                process.pause()
        finally:
            process.kill()
        return 0


if __name__ == "__main__":
    sys.exit(main(json.loads(sys.argv[1])))
