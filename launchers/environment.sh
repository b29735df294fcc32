#!/usr/bin/env bash
# Makes the Python environment of this repository, or brings it up to date.
#
#   launchers/environment.sh [EXTRAS]        for example: launchers/environment.sh test,assets
#
#   SCALEPET_VENV   where the environment lies (default: .venv in the repository root)
#   PYTHON          the interpreter it is made from (default: python3)
#
# pip's own settings hold: a machine without a GPU saves gigabytes when PIP_EXTRA_INDEX_URL names
# PyTorch's index of CPU builds.
set -euo pipefail
export PYTHONSAFEPATH=1 # a stranger's file in the current folder is no module

extras="${1:-}"
root="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
venv="${SCALEPET_VENV:-$root/.venv}"
python="${PYTHON:-python3}"
stamp="$venv/scalepet-installed"

say() { printf 'scalepet: %s\n' "$*"; }
fail() { printf 'scalepet: %s\n' "$*" >&2; exit 1; }

make_venv() {
  command -v "$python" >/dev/null || fail "'$python' is not found; PYTHON=... names a Python >= 3.11"
  local version
  version="$("$python" -c 'import sys; print("%d.%d.%d" % sys.version_info[:3])')" ||
    fail "'$python' does not start; PYTHON=... names a Python >= 3.11"
  "$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' ||
    fail "'$python' is Python $version; scalepet needs 3.11 or later: PYTHON=... names another one"
  "$python" -c 'import ensurepip, venv' 2>/dev/null ||
    fail "Python $version has no venv module; Debian and Ubuntu have it in the package python3-venv"
  say "making $venv with Python $version"
  "$python" -m venv "$venv"
}

# The repository's own path belongs to the digest: an editable install points at one folder.
digest="$({ echo "$root"; cat "$root/pyproject.toml" "$root/launchers/constraints.txt"; } | sha256sum)"

# First line of the stamp: the digest. Then one line for each set of extras installed under it.
is_current() {
  [[ -f "$stamp" && "$(head -n 1 "$stamp")" == "$digest" ]] &&
    tail -n +2 "$stamp" | grep -Fqx "extras: $extras"
}

install() {
  say "installing scalepet${extras:+[$extras]} (a few minutes and some gigabytes the first time)"
  # Editable installs from pyproject.toml alone need pip >= 21.3; -qq leaves errors to be seen.
  "$venv/bin/python" -m pip install -qq 'pip>=21.3'
  "$venv/bin/python" -m pip install -qq --constraint "$root/launchers/constraints.txt" \
    --editable "$root${extras:+[$extras]}"
  [[ -f "$stamp" && "$(head -n 1 "$stamp")" == "$digest" ]] || echo "$digest" >"$stamp"
  echo "extras: $extras" >>"$stamp"
}

# An interrupted start leaves a python without pip; making the environment again mends it.
"$venv/bin/python" -m pip --version >/dev/null 2>&1 || make_venv
if is_current; then
  say "$venv is up to date"
else
  install
  say "$venv is ready"
fi
