"""Work repeated in a background thread."""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import typer


@contextmanager
def run_periodically(work: Callable[[], None], *, name: str, every_s: float, complaint: str) -> Iterator[None]:
    """Call `work` every `every_s` seconds in a thread while the block runs.

    The first of several exceptions in a row is printed after `complaint`; none ends the block. The block itself uses
    the same service sooner or later, and then raises.
    """
    done = threading.Event()

    def repeat() -> None:
        failing = False
        while not done.wait(every_s):
            try:
                work()
                failing = False
            except Exception as error:
                if not failing:
                    typer.echo(f"{complaint}: {error}", err=True)
                failing = True

    thread = threading.Thread(target=repeat, name=name, daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()
