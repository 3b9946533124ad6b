"""The exceptions of laneway, each derived from one base and the nearest builtin."""


class LanewayError(Exception):
    """Base of every error that laneway raises on purpose."""


class CheckpointMismatchError(LanewayError, ValueError):
    """A state describes another dataset, another order or another rank than the one it was given to."""


class StateFormatError(LanewayError, ValueError):
    """What was given as a state is none, or one of a format that this release does not know."""


class StateUnavailableError(LanewayError, RuntimeError):
    """The progress is held elsewhere, by DataLoader workers, and this object can't vouch for it."""


class DataFileError(LanewayError, OSError):
    """A data file is missing, unreadable, damaged or not of the format it was taken for."""


class SchemaMismatchError(LanewayError, ValueError):
    """The data files of one dataset disagree about their columns, or a column that was asked for does not exist."""


class ColumnConversionError(LanewayError, TypeError):
    """A column can't become what `output` asks for without losing something."""


class CollectiveError(LanewayError, RuntimeError):
    """A rank could not reach the others: one of them died, or did not take part."""


class ManifestCacheWarning(UserWarning):
    """The cache of manifests could not be used: what was read is right, but the next start has to read it again."""
