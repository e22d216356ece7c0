"""Serve an earlier release again: move the alias `champion`, then the release pointer, then wait for the replicas."""

from typing import Annotated

import typer

from sdpo_ray.cli.options import LAPTOP, Overrides, PrintConfig, RunFile, command, plain_errors, read_run


def main(
    run: RunFile = LAPTOP,
    overrides: Overrides = None,
    print_config: PrintConfig = False,
    to: Annotated[int | None, typer.Option(help="Policy version to serve. Default: the previous release.")] = None,
) -> None:
    """Serve an earlier release again.

    \b
    sdpo rollback --run my.toml         # the previous release
    sdpo rollback --run my.toml --to 3

    Waits until every replica answers with it and prints the seconds that took. No request fails. A running canary
    ends, and the training loop continues from the restored release.
    """
    resolved = read_run(run, overrides, print_config)
    from sdpo_ray.promote.canary import end
    from sdpo_ray.promote.registry import Registry
    from sdpo_ray.promote.release import confirm, release_to_restore, rollback

    layout = resolved.layout
    with plain_errors():
        version = release_to_restore(layout, to).policy_version
        registry = Registry.of(resolved)
        registry.set_champion(version)
        end(layout)
        release = rollback(layout, version)
        seconds = confirm(
            resolved.serve.url,
            release.policy_version,
            timeout_s=resolved.promote.confirm_timeout_s,
            answers=resolved.serve.num_replicas,
        )
    typer.echo(f"v{release.policy_version} is served again, {seconds:.1f} s after the pointer moved")


if __name__ == "__main__":
    command(main)
