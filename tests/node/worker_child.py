"""A worker for tests: does well, crashes, hangs, floods and prints on request."""

import os
import subprocess
import sys
import time
from typing import Any

from node.worker_main import serve
from protocol.errors import ConfigError


def echo(params: dict[str, Any]) -> dict[str, Any]:
    print("a library prints on stdout")
    return params


def refuse(params: dict[str, Any]) -> dict[str, Any]:
    raise ConfigError(f"cannot do {params['what']}")


def crash(_params: dict[str, Any]) -> dict[str, Any]:
    raise ZeroDivisionError("device is poisoned")


def die(_params: dict[str, Any]) -> dict[str, Any]:
    os.kill(os.getpid(), 9)
    return {}


def hang(_params: dict[str, Any]) -> dict[str, Any]:
    grandchild = subprocess.Popen(["sleep", "300"])
    sys.stderr.write(f"grandchild {grandchild.pid}\n")
    time.sleep(300)
    return {}


def sleep(_params: dict[str, Any]) -> dict[str, Any]:
    time.sleep(300)
    return {}


def flood(params: dict[str, Any]) -> dict[str, Any]:
    os.write(2, b"x" * params["bytes"] + b"\nend of flood\n")
    return {"text": "y" * params["bytes"]}


def environment(_params: dict[str, Any]) -> dict[str, Any]:
    return {"env": dict(os.environ), "argv": sys.argv[1:], "sid": os.getsid(0), "pid": os.getpid()}


HANDLERS = {
    "echo": echo,
    "refuse": refuse,
    "crash": crash,
    "die": die,
    "hang": hang,
    "sleep": sleep,
    "flood": flood,
    "environment": environment,
}

if __name__ == "__main__":
    if "--never-ready" in sys.argv:
        time.sleep(300)
    if "--fail" in sys.argv:
        sys.exit("there is no model here")
    serve(HANDLERS)
