"""Writes all generated tables of README.md and docs/; `--check` only compares."""

from __future__ import annotations

import sys

import document_expected
import document_figures
import document_language_model
import document_performance
import document_reference
import document_reliability
import document_security
import document_selection
import document_verbs
from measured_tables import MakeTable, write_tables

DOCUMENTS: dict[str, MakeTable] = {
    'README.md': document_figures.make_table,
    document_expected.DOCUMENT: document_expected.make_table,
    'docs/checkpoints.md': document_figures.make_table,
    'docs/measured.md': document_figures.make_table,
    'docs/clips.md': document_figures.make_table,
    'docs/language_model.md': document_language_model.make_table,
    document_performance.DOCUMENT: document_performance.make_table,
    document_reliability.DOCUMENT: document_reliability.make_table,
    document_security.DOCUMENT: document_security.make_table,
    'docs/token_selection.md': document_selection.make_table,
    document_verbs.DOCUMENT: document_verbs.make_table,
    **dict.fromkeys(document_reference.DOCUMENTS, document_reference.make_table),
}


if __name__ == '__main__':
    codes = [write_tables(document, make_table) for document, make_table in DOCUMENTS.items()]
    sys.exit(max(codes))
