"""Event logs of a TD (CCEL): reading, writing, replaying, and finding what does not fit."""
