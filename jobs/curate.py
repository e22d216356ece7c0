"""Bring the tables up to date once: journal -> turns -> interactions. The wheel does this by itself."""

import typer

from jobs.commandline import LAPTOP, Overrides, PrintConfig, RunFile, command, plain_errors, read_run
from sdpo_ray.storage import Layout


def main(run: RunFile = LAPTOP, overrides: Overrides = None, print_config: PrintConfig = False) -> None:
    """Ship, pair and admit whatever is new in the journal, and print what became of it as JSON."""
    resolved = read_run(run, overrides, print_config)
    import msgspec
    import ray

    from sdpo_ray.capture.segments import SegmentLog
    from sdpo_ray.curate.stream import Curator

    layout = Layout(resolved.directory)
    with plain_errors():
        ray.init(address="auto", ignore_reinit_error=True, log_to_driver=False)
        progress = Curator(layout, resolved.curate, SegmentLog(layout.journal)).advance()
    typer.echo(msgspec.json.encode(progress).decode())


if __name__ == "__main__":
    command(main)
