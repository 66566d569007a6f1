#!/usr/bin/env bash
# Try a wheel as a user would: in a new virtual environment, away from the checkout, on the embedded Postgres.
# tests/smoke.sh dist/command_registry-*.whl
set -euo pipefail

wheel=$(readlink -f "$1")
place=$(mktemp -d /tmp/crs-XXXXXX)
chmod 711 "$place"  # as root, the server runs under another account, which must get through
trap 'rm -rf "$place"' EXIT
export COMMAND_REGISTRY_HOME="$place/home"
unset COMMAND_REGISTRY_DSN

python3 -m venv "$place/venv"
"$place/venv/bin/python" -m pip install --quiet --disable-pip-version-check "$wheel"
cd "$place"
PATH="$place/venv/bin:$PATH"

python - <<'PY'
from importlib.resources import files
import eventstore, projections, registry

for package in (eventstore, projections, registry):
    assert "site-packages" in package.__file__, package.__file__
    assert (files(package) / "py.typed").is_file(), package
assert "CREATE TABLE" in (files("eventstore") / "schema.sql").read_text()
PY

command-registry --version
command-registry demo --commands 20 --seed 1
created=$(command-registry create dep_smoke sync-data --json)
id=$(python -c 'import json, sys; print(json.loads(sys.argv[1])["command_id"])' "$created")
command-registry complete "$id" SUCCEEDED
command-registry history "$id"
command-registry verify
echo '{"jsonrpc":"2.0","id":1,"method":"get_command_status","params":{"command_id":"'"$id"'"}}' | command-registry rpc | grep -q SUCCEEDED

# With what tests need: one line that proves a registry, and the fixtures.
python -m pip install --quiet --disable-pip-version-check "$wheel[testing]" pytest
cat >test_theirs.py <<'PY'
from registry import MemoryCommandRegistry
from registry.testing import check_concurrent_calls, check_registry

def test_mine():
    check_registry(MemoryCommandRegistry)
    check_concurrent_calls(MemoryCommandRegistry)

def test_with_a_registry(command_registry):
    assert command_registry.verify().ok
PY
python -m pytest -q test_theirs.py

if pgrep -f "$place/home" >/dev/null; then
    echo "a server was left behind" >&2
    exit 1
fi
echo "the wheel works"
