"""The name `kernels` belongs to this product here, and to a package on PyPI that transformers can use."""

from importlib.metadata import PackageNotFoundError, version
from typing import Final

from protocol.errors import ConfigError

FOREIGN_NAME: Final = "kernels"


def check_kernels_package() -> None:
    """Refuse to work beside the PyPI package `kernels`.

    Whichever of the two comes first on the path, one side breaks: either this product's kernels are
    shadowed, or transformers imports names from them that only the other package has. Raises ConfigError.
    """
    try:
        found = version(FOREIGN_NAME)
    except PackageNotFoundError:
        return
    raise ConfigError(
        f"the PyPI package 'kernels' {found} is installed and takes the name of this product's own package: "
        "run `pip uninstall kernels`"
    )
