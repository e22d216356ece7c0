"""Every exception this project raises on purpose.

    SdpoError
    ├── ConfigError      (ValueError)    a run file, flag or environment the user can correct
    ├── DataError        (ValueError)    a record that contradicts itself; refused, never padded
    │   ├── CorruptLog                   bytes of the event log that were acknowledged do not check out
    │   ├── LostEvents                   the event log no longer holds what was not read yet
    │   └── TooManyDigits                a record is a table of numbers, and takes too long to redact
    ├── LogFull          (OSError)       the event log has no room for more; turns are answered and not recorded
    ├── NotReady         (RuntimeError)  a hand-over directory without its READY marker
    ├── SwapError        (RuntimeError)  new weights could not be served; the old ones still are
    ├── ReleaseError     (RuntimeError)  replicas did not confirm a release in time
    └── LearnerError     (RuntimeError)  an update that must not become a candidate

All of them carry one message and pickle, since Ray carries them between processes.
"""


class SdpoError(Exception):
    """Base of every error raised on purpose."""


class ConfigError(SdpoError, ValueError):
    """The user wrote something we cannot run; the message says what to write instead."""


class DataError(SdpoError, ValueError):
    """A record contradicts itself."""


class CorruptLog(DataError):
    """An acknowledged record of the event log fails its checksum, or is no event."""


class TooManyDigits(DataError):
    """A record is a table of numbers: looking for phone numbers in it would hold up everybody else."""


class LostEvents(DataError):
    """The event log begins behind the position that was read last: events were dropped before they were stored."""


class LogFull(SdpoError, OSError):
    """The event log is at its bound. It takes events again by itself once there is room."""


class NotReady(SdpoError, RuntimeError):
    """A directory handed over between stages has no READY marker: it does not exist yet."""


class SwapError(SdpoError, RuntimeError):
    """New weights were refused by the engine; what served before still serves."""


class ReleaseError(SdpoError, RuntimeError):
    """The served policy did not become the released one in time."""


class LearnerError(SdpoError, RuntimeError):
    """An update ended in a state that must not become a candidate."""
