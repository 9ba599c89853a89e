"""What every numba kernel stands on, in the data pipeline and in the audits: compiling, caching, Arrow's buffers."""
