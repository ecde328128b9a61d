"""The name `kernels` belongs to this product here, and to a package on PyPI that transformers can use."""

from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import Final

from protocol.errors import ConfigError

FOREIGN_NAME: Final = "kernels"


def check_kernels_package() -> None:
    """Refuse to work beside the PyPI package `kernels`, or behind a folder of that name.

    Whichever of two comes first on the path, one side breaks: either this product's kernels are shadowed
    (also by a folder `kernels` where `python -m roles` is run), or transformers imports names from them that
    only the other package has. Raises ConfigError.
    """
    try:
        found = version(FOREIGN_NAME)
    except PackageNotFoundError:
        pass
    else:
        raise ConfigError(
            f"the PyPI package 'kernels' {found} is installed and takes the name of this product's own "
            "package: run `pip uninstall kernels`"
        )
    own = Path(__file__).resolve().parents[1] / FOREIGN_NAME
    spec = find_spec(FOREIGN_NAME)
    folders = list(spec.submodule_search_locations or ()) if spec is not None else []
    if not folders or Path(folders[0]).resolve() != own:
        shown = folders[0] if folders else spec.origin if spec is not None else "nothing"
        raise ConfigError(
            f"{shown} stands where this product's package 'kernels' ({own}) should be found: rename it, or "
            "start from another folder"
        )
