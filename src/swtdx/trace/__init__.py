"""Events, timelines, the cost model."""
