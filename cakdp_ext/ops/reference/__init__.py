"""The ops in plain PyTorch: oracle and documentation of the native ones, and the way to run without a compiler."""
