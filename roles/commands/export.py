"""`quasar-node export`: write our kernels into a fork."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from node.devices import resolve_device
from node.settings import LoadedSettings
from node.settings_model import Settings
from protocol.errors import UsageError
from protocol.forks import TARGET_DIR, TARGET_FILES
from protocol.import_rules import check_imports

if TYPE_CHECKING:
    from kernels.launch import Launch


def add_parser(subparsers: Any, parents: list[argparse.ArgumentParser]) -> None:
    """Add the command to the parser."""
    parser = subparsers.add_parser(
        "export",
        parents=parents,
        help="write the shipped kernels into a fork",
        description="Write the five target files into fla/ops/quasar/ of a fork and prove them.",
    )
    parser.add_argument("--repo-path", type=Path, required=True, help="root of the fork's working tree")
    parser.add_argument("--variant", default="chunk", help="which shipped kernel (default: chunk)")
    parser.add_argument("--no-proof", action="store_true", help="skip running the exported files")


def run(args: argparse.Namespace, loaded: LoadedSettings) -> int:
    """Export, check the import rules and compare the exported operator with the reference.

    Raises:
        UsageError: no such folder or variant, or the export failed its own checks.
    """
    from kernels.export import VARIANTS, check_exported, export_files

    if not args.repo_path.is_dir():
        raise UsageError(
            f"--repo-path {args.repo_path}: no such folder; name the root of your fork's working tree"
        )
    if args.variant not in VARIANTS:
        raise UsageError(f"--variant {args.variant}: unknown; choose one of {', '.join(VARIANTS)}")
    files = export_files(args.variant, launch=_tuned(loaded.settings))
    report = check_imports(files)
    if report.status is not None:
        raise UsageError(f"the exported files break the import rules: {'; '.join(report.problems)}")
    target = args.repo_path / TARGET_DIR
    target.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        (target / name).write_text(text)
    print(f"wrote {', '.join(TARGET_FILES)} to {target}")
    if not args.no_proof:
        error = check_exported(args.repo_path)
        print(f"the exported operator agrees with the reference: relative error {error:.1e}")
    return 0


def _tuned(settings: Settings) -> "Launch | None":
    """What `tune` has found for this GPU and the miner's target length."""
    device = resolve_device("auto")
    if device == "cpu":
        return None
    import torch

    from kernels.tuned import tuned_for_entry

    return tuned_for_entry(torch.device(device), settings.miner.target_sequence_length)
