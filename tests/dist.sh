#!/usr/bin/env bash
# Build wheel and sdist into dist/, and try the wheel in a clean environment. `make dist` runs it. Usage: tests/dist.sh PYTHON
set -euo pipefail
cd "$(dirname "$0")/.."
python=$1
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

rm -rf dist
"$python" -m venv "$work/tools"
"$work/tools/bin/pip" install --quiet --disable-pip-version-check build twine
"$work/tools/bin/python" -m build --outdir dist >"$work/log" 2>&1 || { cat "$work/log"; exit 1; }
"$work/tools/bin/twine" check --strict dist/*

# The sdist alone makes the same wheel.
"$work/tools/bin/pip" wheel --quiet --disable-pip-version-check --no-deps --wheel-dir "$work/again" dist/*.tar.gz
names() { "$python" -c 'import sys, zipfile; print(*sorted(zipfile.ZipFile(sys.argv[1]).namelist()), sep="\n")' "$1"; }
diff <(names dist/*.whl) <(names "$work"/again/*.whl)
names dist/*.whl | grep -q '^spot_plugins/py.typed$'

"$python" -m venv "$work/clean"
"$work/clean/bin/pip" install --quiet --disable-pip-version-check -c constraints.txt "$(echo dist/*.whl)[cli]"
cat >"$work/train.py" <<'PROGRAM'
import os, signal
import torch
from spot_plugins.bare import SpotLoop

torch.manual_seed(7)
model = torch.nn.Linear(2, 1)
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
with SpotLoop("run", every_steps=5) as spot:
    spot.register_model(model, optimizer)
    loader = spot.register_loader(torch.utils.data.DataLoader(torch.arange(40.0).reshape(20, 2), shuffle=True))
    spot.resume()
    for epoch in spot.epochs(1):
        for batch in spot.batches(loader):
            model(batch).sum().backward()
            optimizer.step()
            if spot.resumed_from is None:
                os.kill(os.getpid(), signal.SIGTERM)
            spot.after_step()
print("resumed from", spot.resumed_from)
PROGRAM
cd "$work"  # where the checkout cannot be imported
clean/bin/python train.py && code=0 || code=$?
[[ $code == 143 ]] || { echo "the notice ended with $code, not 143"; exit 1; }
clean/bin/python train.py | tee out
grep -q "^resumed from [1-9]" out
clean/bin/spot ls run
clean/bin/python -c "import sys, spot_plugins; sys.exit('torch' in sys.modules)"
echo "dist/ is good"
