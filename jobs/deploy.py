"""Deploy the applications of a run, declaratively, through Ray's REST API, as `serve deploy` does.

    python jobs/deploy.py --run jobs/recipes/laptop.toml
    python jobs/deploy.py --run my.toml --print > serve.yaml      # for `serve deploy`, or KubeRay

Run it again after a change of the run file: what did not change goes on serving.
"""

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
        typer.Option(envvar=["RAY_API_SERVER_ADDRESS", "RAY_DASHBOARD_ADDRESS"], help="Ray's dashboard."),
    ] = "http://127.0.0.1:8265",
    print_: Annotated[bool, typer.Option("--print", help="Print the Serve config file, and deploy nothing.")] = False,
    wait: Annotated[bool, typer.Option(help="Wait until everything runs.")] = True,
) -> None:
    """Serve the policy of a run on the Ray cluster that is up: users' application, and the engine that evaluates."""
    resolved = read_run(run, overrides, print_config)
    run_file = run.absolute()
    if print_:
        typer.echo(yaml.safe_dump(serve_config(resolved, run_file, overrides or []), sort_keys=False))
        return
    with plain_errors():
        deploy(address.rstrip("/"), resolved, run_file, overrides or [], wait=wait)
    typer.echo(f"{resolved.serve.url} serves {resolved.serve.served_name}" if wait else "asked for")


if __name__ == "__main__":
    command(main)
