"""The event log that a run file names."""

from sdpo_ray.config.data import CaptureConfig
from sdpo_ray.eventlog.factory import open_log
from sdpo_ray.eventlog.journal.log import JournalLog
from sdpo_ray.eventlog.protocol import EventLog
from sdpo_ray.io.paths import Layout
from tests.support.conversations import turn
from tests.support.journals import MIB, files


def test_the_run_file_selects_the_event_log(tmp_path):
    layout = Layout(tmp_path)
    log: EventLog = open_log(layout, CaptureConfig())
    assert isinstance(log, JournalLog)
    log.append(turn("t0")).result(timeout=10)
    assert files(layout.journal)[0].stat().st_size == 16 * MIB
    assert "-replica-" in log.partitions()[0]
    log.close()
