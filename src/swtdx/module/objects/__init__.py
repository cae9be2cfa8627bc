"""What leaves work on: PAMT, TDR, TDCS, TDVPS, SEPT, key ownership, measurement."""
