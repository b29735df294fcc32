"""Before a run starts: its machines, looked at from the first one and by its own processes.

Nothing is imported here, so that a hostfile is checked without torch.
"""
