"""A server of FUSE for one folder of the host, which the guest mounts as virtiofs."""
