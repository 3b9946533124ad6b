"""The protocol of a pass, which a worker's stream and a rank's pass through a DataLoader implement."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from laneway.core.progress import Progress


class Pass(Protocol):
    """A pass of a worker, or of a whole rank, over an epoch."""

    @property
    def epoch(self) -> int:
        """The epoch that is delivered."""

    @property
    def is_complete(self) -> bool:
        """Whether the worker or rank has delivered all its rows of the epoch."""

    def progress(self) -> Progress:
        """Return the progress of the worker or rank."""

    def __next__(self) -> Any:  # noqa: ANN401 - items may be of any type
        """Return the next item, and count it as delivered. After an error, the next call retries the same item."""
