"""Numba kernels over CPU tensors.

They do the model's arithmetic between matrix products. Each takes flat or row-major arrays of one part of the work
(`threads.run_in_threads` splits it), computes in fp32 whatever the input type, and equals a plain formula in the tests.
`governance.kernels.compiled` compiles them.
"""
