"""The exceptions of laneway: each derives from LanewayError and from the closest builtin."""


class LanewayError(Exception):
    """Base class of all errors that laneway raises.

    Itself, it is raised for an iterator that another pass has replaced, and for workers that ended too early.
    """


class CheckpointMismatchError(LanewayError, ValueError):
    """A state belongs to another dataset, another order or another rank."""


class StateFormatError(LanewayError, ValueError):
    """A value is not a state, is a damaged state, or has a format version that this release does not know."""


class StateUnavailableError(LanewayError, RuntimeError):
    """A loader or its workers hold the progress, so the dataset does not know it."""


class DataFileError(LanewayError, OSError):
    """A data file is missing, unreadable, damaged, changed or of another format, or there are no data files."""


class SchemaMismatchError(LanewayError, ValueError):
    """The selected columns differ from file to file, can't be cast to `schema`, or don't exist."""


class ColumnConversionError(LanewayError, TypeError):
    """A column can't be converted to `output` without loss."""


class NotReproducibleError(LanewayError, RuntimeError):
    """A function of the user has returned something else for the same rows than before the state was saved."""


class CollectiveError(LanewayError, RuntimeError):
    """A rank could not reach the other ranks: one of them died or did not make the same call."""


class ManifestCacheWarning(UserWarning):
    """The cache of manifests could not be used: the data is correct, but the next start must scan again."""
