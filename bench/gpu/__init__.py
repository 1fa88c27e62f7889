"""Check this project on a GPU with one command, `make check-gpu`; see docs/gpu.md."""
