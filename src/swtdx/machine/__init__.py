"""The hardware: memory, keys, processors, time."""
