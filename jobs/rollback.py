"""Serve an earlier release again: move the alias `champion`, then the pointer, then wait for the replicas.

A trial that is on is over with it: whoever rolls back wants everybody to meet what they know.
"""

from typing import Annotated

import typer

from sdpo_ray.cli.options import LAPTOP, Overrides, PrintConfig, RunFile, command, plain_errors, read_run


def main(
    run: RunFile = LAPTOP,
    overrides: Overrides = None,
    print_config: PrintConfig = False,
    to: Annotated[int | None, typer.Option(help="Policy version to serve; default: the one before.")] = None,
) -> None:
    """Roll the served policy back to an earlier release. No request fails, and the training loop goes on from there."""
    resolved = read_run(run, overrides, print_config)
    from sdpo_ray.promote.canary import end
    from sdpo_ray.promote.registry import Registry
    from sdpo_ray.promote.release import confirm, release_to_restore, rollback

    layout = resolved.layout
    with plain_errors():
        wanted = release_to_restore(layout, to).policy_version
        registry = Registry.of(resolved)
        registry.set_champion(wanted)
        end(layout)
        release = rollback(layout, wanted)
        seconds = confirm(
            resolved.serve.url,
            release.policy_version,
            timeout_s=resolved.promote.confirm_timeout_s,
            answers=resolved.serve.num_replicas,
        )
    typer.echo(f"v{release.policy_version} is served again, {seconds:.1f} s after the pointer moved")


if __name__ == "__main__":
    command(main)
