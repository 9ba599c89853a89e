"""Personal data and secrets: detection, validation, redaction."""
