#!/bin/sh
# Makes .venv-clients: packages that talk to an OpenAI endpoint. Those of Python are in two
# environments, for they ask for two versions of OpenAI's own, those of npm in a folder. One that has
# what is pinned is left as it is.
set -eu
cd "$(dirname "$0")/../.."
here=tests/clients there=.venv-clients
wanted=$(cat "$here"/openai?.txt "$here/node/package.json" "$here/install.sh" | cksum)
test "$wanted" != "$(cat "$there/installed" 2>/dev/null)" || exit 0

echo "making $there: the clients of tests/clients"
mkdir -p "$there/node"
rm -f "$there/installed"
for name in openai3 openai2; do
  test -x "$there/$name/bin/python" || .venv/bin/python -m venv --without-pip "$there/$name"
  # The pins are whole: nothing is left to be resolved.
  .venv/bin/pip --python "$there/$name/bin/python" --disable-pip-version-check install --quiet \
    --no-deps --requirement "$here/$name.txt"
done
cp "$here/node/package.json" "$there/node"
npm install --prefix "$there/node" --no-package-lock --no-audit --no-fund --silent
printf '%s\n' "$wanted" > "$there/installed"
