"""DeepSpeed: the engine, its configuration, its partitioned state, and one step."""
