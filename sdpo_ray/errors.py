"""Exceptions that this project raises.

    SdpoError
    ├── ConfigError      (ValueError)    a run file, flag or environment variable that the user can correct
    ├── DataError        (ValueError)    a record that contradicts itself; refused, never repaired
    │   ├── CorruptLog                   acknowledged bytes of the event log fail their checksum
    │   ├── LostEvents                   the event log no longer holds events that were not read
    │   └── TooManyDigits                a record is a table of numbers, which takes too long to redact
    ├── LogFull          (OSError)       the event log is full; turns are answered and not recorded
    ├── NotReady         (RuntimeError)  a directory without its READY marker
    ├── SwapError        (RuntimeError)  new weights could not be loaded; the old ones are still served
    ├── ReleaseError     (RuntimeError)  replicas did not confirm a release in time
    └── LearnerError     (RuntimeError)  an update that must not become a candidate

Each carries one message and can be pickled, because Ray passes them between processes.
"""


class SdpoError(Exception):
    """Base class of this project's exceptions."""


class ConfigError(SdpoError, ValueError):
    """The user's configuration cannot be run; the message says what to write instead."""


class DataError(SdpoError, ValueError):
    """A record contradicts itself."""


class CorruptLog(DataError):
    """An acknowledged record of the event log fails its checksum, or is not an event."""


class TooManyDigits(DataError):
    """A record is a table of numbers: the search for phone numbers in it would delay all other requests."""


class LostEvents(DataError):
    """The event log starts after the position that was read last: events were dropped before they were stored."""


class LogFull(SdpoError, OSError):
    """The event log has reached its size limit. It accepts events again once there is room."""


class NotReady(SdpoError, RuntimeError):
    """A directory passed between stages has no READY marker: it is incomplete."""


class SwapError(SdpoError, RuntimeError):
    """The engine refused new weights; the previous ones are still served."""


class ReleaseError(SdpoError, RuntimeError):
    """Replicas did not confirm the released policy in time."""


class LearnerError(SdpoError, RuntimeError):
    """An update ended in a state that must not become a candidate."""
