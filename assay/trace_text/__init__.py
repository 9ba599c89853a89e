"""From a text back to its sources: verbatim spans, documents, steps."""
