"""Work that goes on beside the main line of a job."""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import typer


@contextmanager
def run_periodically(work: Callable[[], None], *, name: str, every_s: float, complaint: str) -> Iterator[None]:
    """Do `work` every so many seconds, in a thread, for as long as the block runs.

    A failure is said once, until it is over: whoever needs the same thing in the block meets it and fails for good.
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
