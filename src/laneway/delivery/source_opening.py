"""Opens the sources of a mixture: what reads their lanes, and what builds items of the rows."""

from __future__ import annotations

from typing import TYPE_CHECKING

from laneway.convert.mixed_rows import MixedConverter
from laneway.delivery.context import MixtureContexts, OfSource
from laneway.delivery.item_maker import ItemMaker
from laneway.delivery.source_functions import SourceFunctions
from laneway.reading.origin import HIDDEN_IN_MIXTURES, SOURCE_INDEX
from laneway.reading.windows import reading_threads

if TYPE_CHECKING:
    from collections.abc import Mapping

    from laneway.convert.batches import BatchConverter
    from laneway.convert.open_rows import OpenRows
    from laneway.core.plan import Plan
    from laneway.delivery.dataset_definition import DatasetDefinition
    from laneway.delivery.definition import Definition
    from laneway.delivery.item_maker import Converter
    from laneway.metering import Meter
    from laneway.reading.lane_reader import LaneReader
    from laneway.reading.rows import LaneRows


class SourceOpener:
    """Opens the sources of a mixture, which share the threads that read."""

    def __init__(
        self, definition: Definition, sources: Mapping[str, DatasetDefinition], epoch: int, meter: Meter
    ) -> None:
        """Prepare to open.

        Args:
            definition: The mixture.
            sources: Name -> source.
            epoch: How many times the mixture has ended before.
            meter: Measures how.
        """
        self._definition = definition
        self._sources = sources
        self._meter = meter
        functions = SourceFunctions.of(
            {name: each.transform for name, each in sources.items()},
            {name: each.columns.schema.names for name, each in sources.items()},
        )
        self._transform = definition.transform if functions is None else definition.transform.after(functions)
        takes_context = self._transform.takes_context or definition.takes_context
        self._hidden = frozenset(HIDDEN_IN_MIXTURES.names if takes_context else ())
        self._indices = {name: index for index, name in enumerate(sources)}
        self._contexts = None
        if takes_context:
            of_sources = [
                OfSource(name, each.manifest.files.paths, each.identity.settings.seed) for name, each in sources.items()
            ]
            self._contexts = MixtureContexts(of_sources, epoch=epoch)
        self.threads = reading_threads(is_remote=any(not each.storage.is_local for each in sources.values()))
        """Those that read."""
        hidden = HIDDEN_IN_MIXTURES if takes_context else None
        self.common: BatchConverter | None = definition.columns_to_read(definition.columns).with_hidden(hidden)
        """Converts the rows of all sources; None: their columns differ, until their own functions were called."""
        self._own: dict[str, BatchConverter] = {}
        if any(definition.columns.difference(each.columns, "", name) for name, each in sources.items()):
            self.common = None
            self._own = {name: each.columns.with_hidden(hidden) for name, each in sources.items()}

    def lanes(self, name: str, of_epoch: Plan) -> LaneReader:
        """Open what reads the lanes of an epoch of a source, which may have had fewer files then."""
        source = self._sources[name].of(of_epoch.identity)
        return source.open_lanes(
            of_epoch,
            self._definition.columns_to_read(source.columns),
            self.common or self._own[name],
            self._hidden,
            self._meter,
            source_index=self._indices[name],
            threads=self.threads,
        )

    def items(self, lanes: LaneRows) -> ItemMaker:
        """Open what builds items of the rows of lanes."""
        converter: Converter = self.common or MixedConverter([*self._own.values()], _source_of)
        collate_fn = self._definition.collate_fn
        return ItemMaker(lanes, converter, self._transform, self._contexts, collate_fn, meter=self._meter)


def _source_of(rows: OpenRows) -> int:
    """Return the index of the source of some rows, which have it in a hidden column."""
    if SOURCE_INDEX in rows.numbers:
        return int(rows.numbers[SOURCE_INDEX][rows.start])
    return int(rows.column(SOURCE_INDEX)[0].as_py())
