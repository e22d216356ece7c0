"""Turns go on into the tables while a cycle is under way: an update may take hours, and the journal is bounded."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager

import typer

from sdpo_ray.config import Run
from sdpo_ray.storage import Layout

SHIP_S = 5.0
"""Seconds between two looks at the event log."""


@contextmanager
def shipping(run: Run, layout: Layout, *, every_s: float = SHIP_S) -> Iterator[None]:
    """Store what is new in the log for as long as the block runs; nothing is paired meanwhile.

    It needs no turn of its own (`curate.turnstile`): what an erased user left in the log never enters. What goes wrong
    is said once; curation meets it again after the block, and fails for good.
    """
    done = threading.Event()
    thread = threading.Thread(target=_ship, args=(run, layout, done, every_s), name="shipping", daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()


def _ship(run: Run, layout: Layout, done: threading.Event, every_s: float) -> None:
    from sdpo_ray.capture.log import open_log
    from sdpo_ray.curate.erasures import Erasures
    from sdpo_ray.curate.ship import ship
    from sdpo_ray.curate.store import Table

    failing = False
    log, turns, feedback = open_log(layout, run.capture, name="ship"), Table.turns(layout), Table.feedback(layout)
    erasures = Erasures(layout)
    while not done.wait(every_s):
        try:
            ship(
                log,
                turns,
                feedback,
                max_turns=run.curate.max_batch_turns,
                max_bytes=run.curate.max_batch_mib << 20,
                erased=erasures.covers,
                on_turns=lambda num_turns: None,
            )
            failing = False
        except Exception as error:
            if not failing:
                typer.echo(f"the event log is not stored while the cycle goes on: {error}", err=True)
            failing = True
    log.close()
