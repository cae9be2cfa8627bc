"""What a TD will be measured as, computed offline: an independent implementation of the MRTD rule."""
