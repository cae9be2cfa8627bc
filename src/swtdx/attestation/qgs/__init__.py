"""The quote generation service: its protocol, a server in front of a quoting enclave, and a client."""
