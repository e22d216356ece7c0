"""Every exception this project raises on purpose.

    SdpoError
    ├── ConfigError      (ValueError)    a run file, flag or environment the user can correct
    ├── DataError        (ValueError)    a record that contradicts itself; refused, never padded
    │   └── CorruptJournal               bytes before the torn tail of a journal do not check out
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


class CorruptJournal(DataError):
    """A journal record before the end of its segment fails its checksum."""


class NotReady(SdpoError, RuntimeError):
    """A directory handed over between stages has no READY marker: it does not exist yet."""


class SwapError(SdpoError, RuntimeError):
    """New weights were refused by the engine; what served before still serves."""


class ReleaseError(SdpoError, RuntimeError):
    """The served policy did not become the released one in time."""


class LearnerError(SdpoError, RuntimeError):
    """An update ended in a state that must not become a candidate."""
