"""Where referees run: on this host's devices, or on GPUs of other hosts."""

import importlib.util
from dataclasses import dataclass
from typing import Self

from node.devices import resolve_device
from node.logs import get_logger
from node.processes import module_argv
from node.settings_model import Settings
from protocol.errors import ConfigError, DeviceMissing

_log = get_logger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """One that judges one submission at a time."""

    name: str
    """For people: logs, metrics."""
    device: str
    """`cpu` or `cuda:<n>`, as it is called where the referee runs."""
    argv: tuple[str, ...]
    """Starts a referee; what it is asked on its command line comes behind."""
    is_here: bool = True
    """On this host."""
    is_missing: bool = False
    """A GPU that was not there when it was looked for; it may come back."""

    @classmethod
    def here(cls, device: str) -> Self:
        """Return a device of this host. Raises ConfigError: there is no such device."""
        return cls._of(resolve_device(device))

    @classmethod
    def perhaps_here(cls, device: str) -> Self:
        """Return a device of this host, also a GPU that is missing. Raises ConfigError: it is none at all."""
        try:
            return cls.here(device)
        except DeviceMissing as error:
            _log.error("device out of service", device=error.device, reason=str(error))
            return cls._of(error.device, is_missing=True)

    @classmethod
    def _of(cls, device: str, *, is_missing: bool = False) -> Self:
        argv = tuple(module_argv("roles.referee"))
        return cls(name=device, device=device, argv=argv, is_missing=is_missing)


def places_of(settings: Settings) -> list[Place]:
    """Return what a validator judges on; of several GPUs some may be missing.

    Raises ConfigError: none of the GPUs is there, one is named twice, Ray is not installed, or what only this
    host's referees know is not set.
    """
    executor, evaluation = settings.executor, settings.evaluation
    if executor.backend == "local":
        named = evaluation.devices or (settings.node.device,)
        places = [Place.perhaps_here(device) for device in named]
        if all(place.is_missing for place in places):
            # For its sentence.
            Place.here(named[0])
        if len({place.device for place in places}) < len(places):
            raise ConfigError(f"[evaluation] devices {list(named)}: one of them is named twice")
        return places
    if importlib.util.find_spec("ray") is None:
        raise ConfigError('[executor] backend = "ray" needs Ray: pip install "quasar-node[ray]"')
    if evaluation.devices:
        raise ConfigError(
            f"[evaluation] devices {list(evaluation.devices)} are of this host, and [executor] backend is "
            '"ray": say with [executor] evaluations how many at once'
        )
    if evaluation.memory_limit_mb is None:
        raise ConfigError(
            '[executor] backend = "ray" needs [evaluation] memory_limit_mb: half of this host\'s memory, the '
            "default, says nothing of the hosts that have the GPUs"
        )
    gpus = "0" if executor.device == "cpu" else "1"
    argv = tuple(module_argv("node.ray_run", executor.address, gpus, "roles.referee"))
    return [
        Place(name=f"ray:{number}", device=executor.device, argv=argv, is_here=False)
        for number in range(executor.evaluations)
    ]
