"""The embedded data plane: an HTTP and TCP sidecar proxy in the manner of MOSN, on uvloop and httptools."""
