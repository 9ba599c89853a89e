"""Numba kernels over CPU tensors.

They are for the model's arithmetic between matrix products. Each takes flat or row-major arrays of one part of the work
(`threads.over` shares them out), computes in fp32 whatever it reads, and has a plain formula in the tests that it
equals. `governance.kernels.compiled` says how they are compiled.
"""
