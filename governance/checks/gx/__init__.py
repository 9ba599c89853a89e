"""Great Expectations: expectations by name, own classes, suite files."""
