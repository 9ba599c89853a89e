"""Great Expectations: expectations by name, custom classes, suite files."""
