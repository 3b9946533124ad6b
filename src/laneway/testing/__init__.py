"""What users call in their own tests: whether a pipeline resumes exactly, and formats and catalogs are right."""

from laneway.testing.catalogs import check_catalog
from laneway.testing.conformance import check_format
from laneway.testing.corpora import corpus_schema, corpus_tables
from laneway.testing.resuming import assert_resumes_exactly
from laneway.testing.topologies import assert_exact_on_any_topology

__all__ = [
    "assert_exact_on_any_topology",
    "assert_resumes_exactly",
    "check_catalog",
    "check_format",
    "corpus_schema",
    "corpus_tables",
]
