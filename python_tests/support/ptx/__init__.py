"""The code that nvcc makes of the CUDA kernels, run on a CPU: PTX is translated to C++, which the threads of
csrc/cuda/device/emulate/ run. What it shows beside the emulation of the sources: that the compiled instructions are
right (fragments, addresses, alignment, masks), and how many of them are executed. What it cannot show: ptxas, time,
and rounding inside a tensor core.
"""
