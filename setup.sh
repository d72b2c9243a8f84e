#!/usr/bin/env bash
# Make .venv and install Folio into it, with the versions of constraints.txt. Safe to run again; does nothing when up to date.
#
#   ./setup.sh                     the machine's own build of torch, FAISS for CPU
#   TORCH_BACKEND=cpu ./setup.sh   the small CPU build of torch (also: cu130, auto; see `uv pip install --torch-backend`)
#   FAISS=gpu ./setup.sh           faiss-gpu in place of faiss-cpu
#   PYTHON=python3.12 ./setup.sh   another Python, 3.11 or newer
set -euo pipefail
cd "$(dirname "$0")"

python=${PYTHON:-python3}
extras="${FAISS:-cpu},train,dev"
stamp=.venv/.folio-setup
wanted=$(cat setup.sh pyproject.toml constraints.txt | cksum; echo "$extras ${TORCH_BACKEND:-} $PWD")
if [ -f "$stamp" ] && [ "$(cat "$stamp")" = "$wanted" ]; then exit 0; fi

"$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || {
  echo "setup.sh: $python is $("$python" -V 2>&1); Folio needs 3.11 or newer. Nothing was installed. Try: PYTHON=python3.12 ./setup.sh" >&2
  exit 1
}
[ -x .venv/bin/python ] || "$python" -m venv .venv
.venv/bin/python -m pip install --quiet --disable-pip-version-check -c constraints.txt uv

# uv does not read pip's settings; a folder of wheels that pip is told of (a CPU build of torch, say) is passed on.
links=${UV_FIND_LINKS:-$(.venv/bin/python -m pip config get global.find-links 2>/dev/null || true)}
links=${links:-${PIP_FIND_LINKS:-}}
[ -z "$links" ] || export UV_FIND_LINKS="${links//[[:space:]]/,}"
# Compiled now, because some machines never write bytecode: every command would then compile torch again, for seconds.
VIRTUAL_ENV=$PWD/.venv .venv/bin/uv pip install --quiet --compile-bytecode -c constraints.txt \
  ${TORCH_BACKEND:+--torch-backend "$TORCH_BACKEND"} -e ".[$extras]"
.venv/bin/python -c 'import faiss, torch, zarr'
printf '%s' "$wanted" > "$stamp"
