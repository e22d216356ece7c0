"""Deploy the Ray Serve applications of a run through Ray's REST API, as `serve deploy` does."""

from typing import Annotated

import typer
import yaml

from sdpo_ray.cli.options import LAPTOP, Overrides, PrintConfig, RunFile, command, plain_errors, read_run
from sdpo_ray.cluster.serve_deploy import deploy, serve_config


def main(
    run: RunFile = LAPTOP,
    overrides: Overrides = None,
    print_config: PrintConfig = False,
    address: Annotated[
        str,
        typer.Option(envvar=["RAY_API_SERVER_ADDRESS", "RAY_DASHBOARD_ADDRESS"], help="URL of Ray's dashboard."),
    ] = "http://127.0.0.1:8265",
    print_: Annotated[bool, typer.Option("--print", help="Print the Serve config file and deploy nothing.")] = False,
    wait: Annotated[bool, typer.Option(help="Wait until every application runs.")] = True,
) -> None:
    """Serve the policy of a run on the Ray cluster that is up.

    \b
    ray start --head
    sdpo deploy --run my.toml
    sdpo deploy --run my.toml --print > serve.yaml    # for KubeRay

    Two applications are deployed: one for users, one that evaluates candidates; a third where the run file sets
    `promote.canary.mode`. The command prints the URL when they run. Run it again after a change of the run file:
    applications whose arguments did not change go on serving.
    """
    resolved = read_run(run, overrides, print_config)
    run_file = run.absolute()
    if print_:
        typer.echo(yaml.safe_dump(serve_config(resolved, run_file, overrides or []), sort_keys=False))
        return
    with plain_errors():
        deploy(address.rstrip("/"), resolved, run_file, overrides or [], wait=wait)
    typer.echo(f"{resolved.serve.url} serves {resolved.serve.served_name}" if wait else "Ray Serve has accepted it")


if __name__ == "__main__":
    command(main)
