"""Python imports this before anything else, where this folder is on PYTHONPATH."""

try:
    import emulated_cuda.library  # noqa: F401  (before torch)
    from emulated_cuda import device

    device.take_in()
except Exception as error:  # which Python would show, and go on without the device
    raise SystemExit(f"the emulated CUDA device does not start: {error!r}") from error
