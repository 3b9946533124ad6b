"""What users call in their own tests: that a pipeline resumes exactly, and that a file format keeps its promises."""

from laneway.testing.conformance import check_format
from laneway.testing.corpora import corpus_schema, corpus_tables
from laneway.testing.resuming import assert_resumes_exactly
from laneway.testing.topologies import assert_exact_on_any_topology

__all__ = [
    "assert_exact_on_any_topology",
    "assert_resumes_exactly",
    "check_format",
    "corpus_schema",
    "corpus_tables",
]
